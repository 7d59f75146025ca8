"""Settings of an ingest: what is refused, what is made smaller, and how records are stored."""

from dataclasses import dataclass, field

from stream.config import KafkaConfig, RetentionConfig, ShardConfig, TopicWriterConfig

LABELS_FROM = ("", "parent")
REENCODE = ("auto", "always", "never")


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """How images become records."""

    short_side: int = 384
    """Images whose shorter side is longer than this are made smaller, pixels; 0 keeps every size."""
    quality: int = 90
    """JPEG quality of images that have to be encoded again; 1 .. 100."""
    reencode: str = "auto"
    """auto: only what has to change is encoded again. always: every image. never: bytes stay as they are."""
    lossless_px: int = 16_384
    """Images of lossless formats with at most this many pixels are stored as PNG, not JPEG; 0 = none."""
    max_pixels: int = 70_000_000
    """Images whose header states more pixels are skipped before they are decoded; >= 1."""
    max_bytes: int = 64 * 1024 * 1024
    """Files with more encoded bytes are skipped before they are read; >= 1."""
    min_side: int = 8
    """Images with a shorter side below this are skipped, pixels; >= 1."""
    max_aspect: float = 20.0
    """Images whose longer side is more than this many times the shorter one are skipped; >= 1."""
    keep_duplicates: bool = False
    """Whether content that the stream already has is written again; knowing it takes 16 bytes a record."""
    shuffle: bool = False
    """Whether new files are taken in a random order instead of that of their names; archives stay whole."""
    seed: int = 0
    """Of the random order; 0 .. 2^63 - 1."""
    digests: bool = True
    """Whether a tar that is indexed where it is (--reference) is read once for the digests of its images.

    Without them `stream verify` cannot check its content, and equal images in it are not found."""
    label_from: str = ""
    """parent: the name of the folder that an image lies in is its label_name. Empty: .cls and .json only."""
    workers: int = -1
    """Processes that decode; -1 = as many as there are processors, at most 4. 0 = decode in this process."""
    timeout_s: float = 30.0
    """Seconds that one image may take to be decoded before it is skipped; > 0. Needs workers."""
    memory_bytes: int = 3 * 1024**3
    """Memory that one decoding process may take beyond what it starts with, bytes; > 0. Needs workers."""
    shard: ShardConfig = field(default_factory=ShardConfig)
    """When a shard is closed."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    """When old shards leave, and when to wait for those who read."""
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    """How a Kafka cluster is reached, where DEST is a topic."""
    topic: TopicWriterConfig = field(default_factory=TopicWriterConfig)
    """How records are sent to a topic."""

    def __post_init__(self) -> None:
        if self.short_side < 0:
            raise ValueError(f"short_side must be >= 0 pixels (0 keeps every size), got {self.short_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in 1..100, got {self.quality}")
        if self.reencode not in REENCODE:
            raise ValueError(f"reencode must be one of {', '.join(REENCODE)}, got {self.reencode!r}")
        if self.lossless_px < 0:
            raise ValueError(f"lossless_px must be >= 0, got {self.lossless_px}")
        for name in ("max_pixels", "max_bytes", "min_side", "memory_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.max_aspect >= 1.0:
            raise ValueError(f"max_aspect must be >= 1, got {self.max_aspect}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in 0 .. 2^63 - 1, got {self.seed}")
        if self.label_from not in LABELS_FROM:
            raise ValueError(f"label_from must be empty or `parent`, got {self.label_from!r}")
        if self.workers < -1:
            raise ValueError(
                f"workers must be -1 (as many as processors, at most 4) or more, got {self.workers}"
            )
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0 seconds, got {self.timeout_s}")
