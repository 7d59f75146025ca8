"""Settings of reading a stream: crops, how far readers run ahead, what is read again; shards and Kafka."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """One kind of view: `count` random resized crops of `size` pixels."""

    count: int
    """Crops of this kind cut from each image; >= 1."""
    size: int
    """Side of the crop after resizing, pixels; >= 8."""
    scale_min: float
    """Smallest share of the image's area that a crop covers; (0, 1]."""
    scale_max: float
    """Largest share of the image's area that a crop covers; [scale_min, 1]."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"crops.count must be >= 1, got {self.count}")
        if self.size < 8:
            raise ValueError(f"crops.size must be >= 8 pixels, got {self.size}")
        if not 0.0 < self.scale_min <= self.scale_max <= 1.0:
            raise ValueError(
                f"crops need 0 < scale_min <= scale_max <= 1, got {self.scale_min} and {self.scale_max}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """How records become batches."""

    prefetch: int = 2
    """Chunks of each lane that may be ready or in work ahead of the learner; >= 1."""
    thumbnail_px: int = 48
    """Side of the small whole-image copy that travels with each sample, pixels; 0 sends none."""
    max_pixels: int = 50_000_000
    """Images with more pixels are skipped before they are decoded."""
    max_bad_fraction: float = 0.5
    """The run stops when more than this share of the last `bad_window` records was unusable; (0, 1]."""
    bad_window: int = 1000
    """Records over which the share of unusable ones is taken; >= 1."""
    poll_s: float = 0.5
    """Seconds between two looks for new records of an open stream; > 0."""

    def __post_init__(self) -> None:
        if self.prefetch < 1:
            raise ValueError(f"reader.prefetch must be >= 1, got {self.prefetch}")
        if self.thumbnail_px < 0:
            raise ValueError(f"reader.thumbnail_px must be >= 0, got {self.thumbnail_px}")
        if self.max_pixels < 1:
            raise ValueError(f"reader.max_pixels must be >= 1, got {self.max_pixels}")
        if not 0.0 < self.max_bad_fraction <= 1.0:
            raise ValueError(f"reader.max_bad_fraction must be in (0, 1], got {self.max_bad_fraction}")
        if self.bad_window < 1:
            raise ValueError(f"reader.bad_window must be >= 1, got {self.bad_window}")
        if not self.poll_s > 0:
            raise ValueError(f"reader.poll_s must be > 0 seconds, got {self.poll_s}")


FIFO, PROTOTYPES = "fifo", "prototypes"
POLICIES = (FIFO, PROTOTYPES)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """How often samples are learned from again, and which."""

    updates: int = 1
    """Updates for each arriving batch: its own, and the rest from the window; 1 = no replay."""
    window_samples: int = 0
    """The samples that replays are drawn from; a whole multiple of the batch, 0 without replay."""
    policy: str = FIFO
    """fifo: the window is the latest samples, the arriving batch among them. prototypes: it is a memory that
    stays balanced over prototypes, from all that has arrived; its encoded images lie in the checkpoint."""

    def __post_init__(self) -> None:
        _one_of("replay.policy", self.policy, POLICIES)
        if self.updates < 1:
            raise ValueError(f"replay.updates must be >= 1, got {self.updates}")
        if self.window_samples < 0:
            raise ValueError(f"replay.window_samples must be >= 0, got {self.window_samples}")
        if self.updates == 1 and self.window_samples:
            raise ValueError(
                f"replay.window_samples is {self.window_samples}, but replay.updates = 1 replays nothing: "
                "raise replay.updates or leave the window at 0"
            )
        if self.updates == 1 and self.policy != FIFO:
            raise ValueError(
                f"replay.policy is {self.policy}, but replay.updates = 1 replays nothing: raise it"
            )

    def window_steps(self, batch: int) -> int:
        """Batches that the window holds; 0 without replay.

        Args:
            batch: samples of one step over all ranks.

        Raises:
            ValueError: the window is not so many whole batches, or holds none.
        """
        if self.updates == 1:
            return 0
        if self.window_samples < batch or self.window_samples % batch:
            below = self.window_samples // batch * batch
            fitting = " or ".join(str(number) for number in (below, below + batch) if number)
            raise ValueError(
                f"replay.window_samples must be a whole multiple of batch {batch}, got "
                f"{self.window_samples}: take {fitting}"
            )
        return self.window_samples // batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """When a shard is closed and committed."""

    max_records: int = 1000
    """Records in one shard; 1 .. 1,000,000."""
    max_bytes: int = 256 * 1024 * 1024
    """Encoded image bytes in one shard; the record that reaches it is the last one; >= 1."""
    max_age_s: float = 60.0
    """Seconds that a record (or a skip) may wait uncommitted before the shard is closed; > 0."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_records <= 1_000_000:
            raise ValueError(f"shard.max_records must be in 1..1000000, got {self.max_records}")
        if self.max_bytes < 1:
            raise ValueError(f"shard.max_bytes must be >= 1, got {self.max_bytes}")
        if not self.max_age_s > 0:
            raise ValueError(f"shard.max_age_s must be > 0 seconds, got {self.max_age_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionConfig:
    """How much of a stream is kept, and how far it may run ahead of those who read it."""

    keep_hours: float = 0.0
    """Shards that were committed longer ago than this are pruned, hours; 0 keeps all."""
    keep_bytes: int = 0
    """The oldest shards are pruned until those that are left have no more bytes than this; 0 keeps all."""
    max_ahead: int = 0
    """Records that the slowest registered run may have unread before more are brought; 0 is no limit."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.keep_hours) and self.keep_hours >= 0):
            raise ValueError(f"retention.keep_hours must be >= 0, got {self.keep_hours}")
        if self.keep_bytes < 0:
            raise ValueError(f"retention.keep_bytes must be >= 0, got {self.keep_bytes}")
        if self.max_ahead < 0:
            raise ValueError(f"retention.max_ahead must be >= 0 records, got {self.max_ahead}")


SECURITY = ("plaintext", "tls", "sasl", "sasl_tls")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
ON_GAP = ("stop", "skip")
NONE = "-"
"""In place of a name: there shall be none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KafkaConfig:
    """How a Kafka cluster is reached, and what is done about what it no longer has.

    No secret stands here: settings are written to disk. Passwords come from a file, or from the environment
    variables SWAVSTREAM_KAFKA_PASSWORD and SWAVSTREAM_KAFKA_KEY_PASSWORD.
    """

    security: str = "plaintext"
    """plaintext, tls, sasl (a password over an open line), or sasl_tls."""
    mechanism: str = "SCRAM-SHA-512"
    """Of SASL: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."""
    username: str = ""
    """Of SASL."""
    password_file: str = ""
    """File that holds the SASL password; empty = the environment variable."""
    ca_file: str = ""
    """Certificates (PEM) that the brokers' own are checked against; empty = the system's."""
    cert_file: str = ""
    """Certificate (PEM) that this client shows; empty shows none."""
    key_file: str = ""
    """Its key (PEM)."""
    key_password_file: str = ""
    """File that holds the password of `key_file`; empty = the environment variable, if set."""
    check_hostname: bool = True
    """Whether a broker's certificate must carry its name."""
    on_gap: str = "stop"
    """Records that were not read yet and are gone (retention, deletion, compaction): stop, or skip them,
    counted as `lost`. A log that was cut off or rewritten below where a run stands stops it either way."""
    dead_letters: str = ""
    """Topic where records that cannot be used are reported; empty = the topic's name with .dead; - = none."""
    group: str = ""
    """Consumer group that progress is committed to, for tools that show lag; it is never read. Empty = one
    named after the run; - = none."""
    fetch_bytes: int = 1024 * 1024
    """Bytes that one fetch brings of one partition; >= 1. A larger record is fetched all the same."""
    buffer_bytes: int = 128 * 1024 * 1024
    """Fetched records that one reader process keeps; >= 1. What one block takes is kept in any case."""
    patience_s: float = 120.0
    """Seconds that brokers may be away before reading or writing fails; > 0."""

    def __post_init__(self) -> None:
        _one_of("kafka.security", self.security, SECURITY)
        _one_of("kafka.mechanism", self.mechanism, MECHANISMS)
        _one_of("kafka.on_gap", self.on_gap, ON_GAP)
        for name in ("fetch_bytes", "buffer_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"kafka.{name} must be >= 1, got {getattr(self, name)}")
        if not self.patience_s > 0:
            raise ValueError(f"kafka.patience_s must be > 0 seconds, got {self.patience_s}")
        if self.security.startswith("sasl") and not self.username:
            raise ValueError(f"kafka.security = {self.security} needs kafka.username")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("kafka.cert_file and kafka.key_file go together: give both or none")


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicWriterConfig:
    """How records are sent to a Kafka topic."""

    batch_bytes: int = 1024 * 1024
    """Records of one partition that are sent at once; >= 1. The idempotent producer has one batch of a
    partition on its way at a time, so that small ones mean one record a round trip."""
    linger_s: float = 0.05
    """Seconds that a record waits for others to be sent with; >= 0."""
    budget_bytes: int = 128 * 1024 * 1024
    """Records sent and not yet acknowledged; beyond it writing waits; >= 1."""
    max_message_bytes: int = 8 * 1024 * 1024
    """`max.message.bytes` of topics that are created; >= 1."""
    replication: int = -1
    """Copies of each partition of topics that are created; -1 = as the brokers do by default."""

    def __post_init__(self) -> None:
        for name in ("batch_bytes", "budget_bytes", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"topic.{name} must be >= 1, got {getattr(self, name)}")
        if not self.linger_s >= 0:
            raise ValueError(f"topic.linger_s must be >= 0 seconds, got {self.linger_s}")
        if self.replication == 0 or self.replication < -1:
            raise ValueError(f"topic.replication must be -1 or >= 1, got {self.replication}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
