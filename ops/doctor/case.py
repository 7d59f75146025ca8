"""What the doctor is given, and what it says. Nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a run; None = not known."""

    status: str = "running"
    """running, finished, stopped or left; see `ops.rundir.status`."""
    live: bool = True
    """The learner itself was asked."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All settings, nested."""
    changes: tuple[Mapping[str, Any], ...] = ()
    """Lines of changes.jsonl."""
    kafka: bool = False
    """The stream is a topic."""
    samples: int = 0
    updates: int = 0
    loss_over_ln_k: float | None = None
    """Mean over the latest entries of the history."""
    start_loss_over_ln_k: float | None = None
    """Mean over the first ones."""
    view_agreement: float | None = None
    """Of two views on one prototype, corrected for chance, mean over the latest entries; 0 = chance."""
    start_view_agreement: float | None = None
    """Mean over the first ones."""
    same_images_ratio: float | None = None
    """Of the first images that arrived, the share that shows one and the same picture."""
    code_entropy_over_ln_k: float | None = None
    feature_std_ratio: float | None = None
    usage_perplexity_ratio: float | None = None
    usage_window_fill: float | None = None
    dead_prototypes_ratio: float | None = None
    prototype_twins_ratio: float | None = None
    sinkhorn_residual: float | None = None
    drift_psi: float | None = None
    novelty_ratio: float | None = None
    stream_autocorrelation: float | None = None
    batch_similarity: float | None = None
    lag: int | None = None
    waiting: bool = False
    since_step_s: float | None = None
    since_start_s: float | None = None
    start_samples: int = 0
    """Where this life of the run began."""
    reader_restarts: int = 0
    """Of late, as are all counts of troubles but `stale_epochs`."""
    used: int = 0
    """Records of late."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Records of late that could not be used, by reason."""
    not_finite: int = 0
    """Steps that were refused."""
    publish_errors: int = 0
    last_publish: str = ""
    """Result of the latest attempt."""
    publish_detail: str = ""
    unhealthy: str = ""
    """Limits that the newest snapshot failed; empty = none, or there is no snapshot yet."""
    stale_epochs: int = 0
    """Since the learner started: once refused it is refused until it ends."""
    snapshot_samples: int | None = None
    redis_error: str = ""
    """Why Redis cannot be reached now; empty = it can, or nobody has asked."""
    redis_warnings: tuple[str, ...] = ()
    checkpoint_errors: int = 0
    damaged: tuple[str, ...] = ()
    """Checkpoints that were set aside."""

    def setting(self, name: str) -> Any:
        """A dotted setting; None when it is not there."""
        place: Any = self.config
        for part in name.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        return place


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong."""

    name: str
    """Stable, short."""
    cause: str
    """One sentence."""
    evidence: str
    """What was seen."""
    setting: str
    """The setting to change first; empty when none helps."""
    advice: str
    """What to do."""
    runbook: str
    """Name of the page in ops/monitoring/runbooks; empty = none."""
    follows_from: str = ""
    """Name of the finding that explains this one; empty = it is a cause, as far as is known."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
