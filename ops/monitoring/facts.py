"""What the rules judge: facts of one run, from its live page or from its files. Nothing heavy is imported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a run; None = not known. Figures have the names of `ops.monitoring.catalog.JUDGED`."""

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
    prototypes: int = 0
    """K of the first head."""
    loss_over_ln_k: float | None = None
    """The doctor takes the mean over the latest entries of the history, the live page the latest step."""
    start_loss_over_ln_k: float | None = None
    """Mean over the first entries."""
    view_agreement: float | None = None
    """Of two views on one prototype, corrected for chance, mean over the latest entries; 0 = chance."""
    start_view_agreement: float | None = None
    """Mean over the first ones."""
    views_found: float | None = None
    """Of a finished run: share of views of its probe images that find the other view of their image."""
    start_views_found: float | None = None
    """The same before its first step."""
    learned_beyond_start: bool | None = None
    """Whether the first is above the second."""
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
    """Where this session of the run began."""
    reader_restarts: int = 0
    """In the last half hour, as are all counts of troubles but `stale_epochs`."""
    used: int = 0
    """Records of the last five minutes."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Records of the last five minutes that could not be used, by reason."""
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
    """Why Redis cannot be reached now; empty = it can, or it was not asked."""
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

    def value(self, name: str) -> float | None:
        """A fact by name as a number; None = not known."""
        value = getattr(self, name)
        return None if value is None or not math.isfinite(value) else float(value)

    @property
    def batch(self) -> int | None:
        """Samples of a step."""
        return self.setting("batch") or None

    @property
    def bad_records(self) -> Mapping[str, int]:
        """Records that are unusable, by reason; those of a batch that was left out are sound."""
        return {reason: count for reason, count in self.skipped.items() if reason != "non_finite"}

    @property
    def bad_records_ratio(self) -> float | None:
        """Their share of what was read."""
        bad = sum(self.bad_records.values())
        return bad / (self.used + bad) if self.used + bad else None

    @property
    def lag_growth(self) -> float | None:
        """Only Prometheus keeps what this needs."""
        return None

    @property
    def checkpoint_troubles(self) -> int:
        """Checkpoints that could not be written or were found damaged."""
        return self.checkpoint_errors + len(self.damaged)

    @property
    def publishing_fails(self) -> bool:
        """Redis cannot be reached, or did not take the latest snapshot."""
        return bool(self.redis_error) or self.last_publish == "error"

    @property
    def snapshot_every(self) -> int:
        """Samples between two snapshots; 0 = only one at the end."""
        return self.setting("snapshot.every_samples") or 0

    @property
    def snapshot_behind(self) -> int | None:
        """Samples since the newest snapshot, or since this session began; of a live run only."""
        newest = max(self.snapshot_samples or 0, self.start_samples)
        return self.samples - newest if self.live else None


def duration(seconds: float) -> str:
    """For people: 113 s, 5 min, 3 h, 2 d."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
