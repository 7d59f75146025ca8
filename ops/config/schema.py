"""The root config of a run: one tree of frozen dataclasses."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from learner.config import (
    AugmentConfig,
    HealthConfig,
    LearnerConfig,
    ModelConfig,
    OptimConfig,
    ReseedConfig,
    SwavConfig,
)
from ops.config import binding
from ops.errors import ConfigError
from stream.config import CropConfig, KafkaConfig, ReaderConfig, ReplayConfig

PAPER_CROPS = (
    CropConfig(count=2, size=224, scale_min=0.14, scale_max=1.0),
    CropConfig(count=6, size=96, scale_min=0.05, scale_max=0.14),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often the run is saved, and how many saves are kept."""

    every_samples: int = 100_000
    """Samples between two checkpoints; >= 1."""
    keep: int = 3
    """Newest checkpoints that stay on disk; >= 1. With 1 a damaged newest one has no reserve."""

    def __post_init__(self) -> None:
        _at_least("checkpoint", self, every_samples=1, keep=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """What is published for others, where, and how often."""

    every_samples: int = 50_000
    """Samples between two snapshots; 0 = only one at the end."""
    url: str = ""
    """Redis to publish to, as redis://HOST:6379/0 (rediss:// with TLS, sentinel://HOST:26379,HOST2/NAME);
    empty = SWAVSTREAM_REDIS_URL where it is set, else an embedded server in the run directory. A password
    belongs in SWAVSTREAM_REDIS_PASSWORD or SWAVSTREAM_REDIS_PASSWORD_FILE: settings are written to disk."""
    keep: int = 20
    """Newest snapshots that stay in the store; >= 1."""
    ladder: int = 1
    """Older ones that stay for each doubling of age in versions, or one more: 0 (none), 1, 2, 4, 8."""

    def __post_init__(self) -> None:
        _at_least("snapshot", self, every_samples=0, keep=1)
        if self.ladder not in {0, 1, 2, 4, 8}:
            raise ConfigError(f"snapshot.ladder must be 0, 1, 2, 4 or 8, got {self.ladder}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The HTTP port of metrics, health and the live page."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every interface."""
    port: int = 9464
    """0 takes a free one (it is printed and stands in the run directory); -1 serves nothing."""

    def __post_init__(self) -> None:
        if not -1 <= self.port <= 65_535:
            raise ConfigError(f"server.port must be in -1..65535, got {self.port}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RanksConfig:
    """How long ranks have patience with each other."""

    timeout_s: float = 300.0
    """Seconds after which a rank that does not answer at all counts as lost, and the run ends; >= 1."""
    starve_warn_s: float = 60.0
    """Seconds without a step after which the lanes are named that hold up the others; >= 0."""
    starve_fail_s: float = 600.0
    """Seconds after which the run is saved and ended because readers bring nothing although records are
    there; >= 0. Records that have not arrived are waited for without end."""

    def __post_init__(self) -> None:
        _at_least("ranks", self, timeout_s=1, starve_warn_s=0, starve_fail_s=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsConfig:
    """What the signals do with which schedulers warn a job before they end it."""

    usr1: str = "save"
    """On SIGUSR1: save, and learn on; or end, as on SIGTERM."""
    usr2: str = "save"
    """On SIGUSR2: the same choice."""

    def __post_init__(self) -> None:
        _one_of("signals.usr1", self.usr1, "save", "end")
        _one_of("signals.usr2", self.usr2, "save", "end")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything about a run but where its stream and its directory are."""

    seed: int = 0
    """Of weights, order, crops and augmentation; 0 .. 2^63 - 1."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: the first GPU when there is one."""
    precision: str = "float32"
    """Of the encoder: float32, bfloat16 (autocast), float64. Scores, codes, loss are never below float32.
    bfloat16 becomes float32 on an x86 CPU without AVX-512, which has no fast kernels for it."""
    lanes: int = 64
    """V, lanes that the stream is read as; on Kafka the number of partitions."""
    batch: int = 256
    """B, samples of one step over all ranks; a whole multiple of `lanes`."""
    window: int = 8
    """W, commits whose shards are shuffled together; an open stream is read once W more have arrived. 0 = all
    commits of a sealed stream. On Kafka, records of a block."""
    order: str = "window"
    """window: records are shuffled over the whole window. shard: the shards of a window are, and the records
    of each; for stores where random reads are dear. Kafka topics: no difference."""
    passes: int = 1
    """Times that a sealed stream is read; one is the rule."""
    tail: str = "drop"
    """What remains of a pass when some lane cannot fill its chunk: drop leaves it unread, counted as left
    over; train makes a last, short batch of it, dealt over all lanes: fewer than `lanes` are left over."""
    end_samples: int = 0
    """The run ends with the first step that brings it to so many samples; 0 = with its stream."""
    workers: int = 2
    """Reader processes of each rank; 0 = read in the learner's own process."""
    accumulate: int = 1
    """Pieces that a step is computed in to save memory; codes are always over the whole batch."""
    mode: str = "auto"
    """strict: each lane gives one chunk a step. available: chunks come from lanes that are ready. auto:
    available for a Kafka topic that is open, strict else."""
    on_nonfinite: str = "stop"
    """When loss or gradient is not finite twice at one place: stop, or skip the batch (counted, kept)."""
    crops: tuple[CropConfig, ...] = PAPER_CROPS
    """Kinds of views; the first kind gives the views that are assigned."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    swav: SwavConfig = field(default_factory=SwavConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    reseed: ReseedConfig = field(default_factory=ReseedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    signals: SignalsConfig = field(default_factory=SignalsConfig)

    def __post_init__(self) -> None:
        _at_least("", self, lanes=1, batch=1, window=0, passes=1, end_samples=0, workers=0, accumulate=1)
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be in 0..2^63-1, got {self.seed}")
        if self.precision not in {"float32", "bfloat16", "float64"}:
            raise ConfigError(f"precision must be float32, bfloat16 or float64, got {self.precision!r}")
        if self.device not in {"auto", "cpu", "cuda"} and not self.device.removeprefix("cuda:").isdigit():
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        _one_of("order", self.order, "window", "shard")
        _one_of("tail", self.tail, "drop", "train")
        _one_of("on_nonfinite", self.on_nonfinite, "stop", "skip")
        _one_of("mode", self.mode, "auto", "strict", "available")
        if self.mode == "available" and self.accumulate > 1:
            raise ConfigError(
                "mode = available cannot accumulate: parts of a batch are groups of lanes, and any lanes may "
                "make a batch; set mode = strict, or accumulate = 1"
            )
        if self.mode == "available" and self.replay.updates > 1:
            raise ConfigError("mode = available cannot replay: set mode = strict, or replay.updates = 1")
        if self.batch % self.lanes:
            raise ConfigError(_what_fits(self.batch, self.lanes))
        self.replay.window_steps(self.batch)
        if not self.crops:
            raise ConfigError("crops needs at least one kind of view")
        if sum(kind.count for kind in self.crops) < 2:
            raise ConfigError(
                "crops must give at least 2 views of an image: one view predicts another's code"
            )
        if self.swav.assign_views > self.crops[0].count:
            raise ConfigError(
                f"swav.assign_views is {self.swav.assign_views}, but the first kind of crops gives "
                f"{self.crops[0].count}: codes come from the first kind only"
            )

    @property
    def chunk(self) -> int:
        """C, samples that a lane gives to one step."""
        return self.batch // self.lanes

    @property
    def learner(self) -> LearnerConfig:
        """The part that the learner package sees."""
        return LearnerConfig(
            model=self.model,
            swav=self.swav,
            optim=self.optim,
            augment=self.augment,
            health=self.health,
            reseed=self.reseed,
        )

    def length(self, stream_samples: int | None) -> int | None:
        """Samples of the whole run, given those that its stream has in all passes; None = no end is known."""
        if not self.end_samples:
            return stream_samples
        return self.end_samples if stream_samples is None else min(stream_samples, self.end_samples)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; `from_dict` reads them back equal."""
        values: dict[str, Any] = binding.plain(self)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Read nested plain values.

        Raises:
            ConfigError: unknown key (names the nearest), wrong type, or out of bounds.
        """
        return binding.read(cls, values)

    def digest(self) -> str:
        """Hex SHA-256 of all settings: the `config_hash` of snapshots and metrics."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


# Settings that make a run the run it is: with another value the rest of the stream would not continue what
# was learned, or the saved state would not fit. All others may be changed on the way; that is written down.
IDENTITY = (
    "seed",
    "lanes",
    "batch",
    "window",
    "order",
    "tail",
    "crops",
    "replay.updates",
    "replay.policy",
    "replay.window_samples",
    "model.backbone",
    "model.projection_hidden",
    "model.projection_dim",
    "model.projection_norm",
    "model.bn_groups",
    "model.branch_centres",
    "model.branch_patch_width",
    "model.branch_scales",
    "model.branch_width",
    "model.branch_px",
    "model.branch_samples",
    "model.branch_pairs",
    "swav.prototypes",
    "swav.assign_views",
    "swav.queue_samples",
    "optim.optimizer",
)


def is_identity(name: str, old: Any, new: Any) -> bool:
    """Whether a dotted setting may not go from `old` to `new` within a run."""
    if name == "precision":  # bfloat16 keeps its weights in float32, so those two can follow each other
        return "float64" in {old, new}
    return name in IDENTITY


def _what_fits(batch: int, lanes: int) -> str:
    divisors = [number for number in range(1, min(batch, 1024) + 1) if batch % number == 0]
    near = sorted(divisors, key=lambda number: abs(number - lanes))[:5]
    below = batch // lanes * lanes
    batches = [str(number) for number in (below, below + lanes) if number]
    return (
        f"batch {batch} is not a whole multiple of {lanes} lanes: take batch {' or '.join(batches)}, "
        f"or lanes {', '.join(str(number) for number in sorted(near))}"
    )


def _one_of(name: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}")


def _at_least(section: str, config: Any, **least: int) -> None:
    for name, bound in least.items():
        if getattr(config, name) < bound:
            full = f"{section}.{name}" if section else name
            raise ConfigError(f"{full} must be >= {bound}, got {getattr(config, name)}")
