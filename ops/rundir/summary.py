"""What a run counts beside learner and cursor, and the summary that it ends with. Nothing heavy here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.config.schema import RunConfig
from ops.durations import duration
from ops.rundir.files import read_json

if TYPE_CHECKING:
    from stream.cursor import Cursor

FINISHED, STOPPED = "finished", "stopped"
# The loss of a summary is the mean over so many last updates: one batch alone is noise.
RECENT_UPDATES = 50


FEW_UPDATES = 200
"""A network that made fewer updates has hardly moved: the likeliest reason where nothing was learned."""


def skipped_text(count: int, by_reason: Mapping[str, int]) -> str:
    """Such as `3 skipped (2 truncated, 1 empty)`."""
    reasons = ", ".join(f"{some:,} {reason}" for reason, some in by_reason.items())
    return f"{count:,} skipped" + (f" ({reasons})" if reasons else "")


@dataclass(kw_only=True, slots=True)
class Progress:
    """Counts that go on over restarts; saved in each checkpoint."""

    seconds: float = 0.0
    """Spent on the run until this process took it over, waiting included."""
    updates: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the last updates, nats."""
    ratios: list[float] = field(default_factory=list)
    """The same against ln K."""
    usage_perplexity: float | None = None
    finished: bool = False
    """The end of the stream was reached, and all passes are done."""
    snapshot_epoch: int = 0
    """Fencing number that this learner published under."""
    snapshot_version: int = 0
    """Last version number known."""

    def note(self, *, loss: float, loss_over_ln_k: float, usage_perplexity: float, updates: int) -> None:
        """Count one update."""
        self.updates = updates
        self.losses = [*self.losses[1 - RECENT_UPDATES :], loss]
        self.ratios = [*self.ratios[1 - RECENT_UPDATES :], loss_over_ln_k]
        self.usage_perplexity = usage_perplexity

    def saved(self, *, seconds: float) -> dict[str, Any]:
        """Plain values for a checkpoint, with the seconds until now."""
        return {**asdict(self), "seconds": seconds}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """How a run ended; what `learn --json` prints. Counts and seconds are over all restarts."""

    status: str
    """FINISHED: the stream ended. STOPPED: a stop was requested; the same command goes on."""
    run: str
    """The run directory."""
    samples: int
    """Records that were learned from, over all passes."""
    skipped: int
    """Records that could not be used."""
    left_over: int
    """Records at the ends of passes that no longer filled a step."""
    steps: int
    """Global batches."""
    updates: int
    """Optimizer steps."""
    passes: int
    seconds: float
    loss: float | None
    """Nats, mean over the last updates; None when there were none."""
    loss_over_ln_k: float | None
    """1 = has learned nothing."""
    usage_perplexity: float | None
    """Prototypes in use, as a count."""
    prototypes: int
    """K of the first head."""
    skipped_by_reason: Mapping[str, int]
    checkpoint: str | None
    """Directory of the newest checkpoint."""
    snapshot: Mapping[str, Any] | None
    """version and digest of the newest snapshot; None when none could be published."""
    against_start: Mapping[str, Any] | None = None
    """How well views of one image find each other, beside the network before its first step; see
    `ops.evaluate.against_start`. None of a run that was stopped, or could not be compared."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def why_nothing(self) -> str:
        """Why no record was used; of a run without samples."""
        if self.skipped and not self.left_over:
            return "none of the records can be used"
        if self.skipped:
            return 'the records that can be used do not fill one batch (lower `batch`, or set tail = "train")'
        if self.left_over:
            return 'the records do not fill one batch (lower `batch`, or set tail = "train")'
        if self.status == "stopped":
            return "it was stopped before its first step; the same command goes on"
        return "there were no records"

    def records(self) -> str:
        """What became of the records that were read; the three counts are all of them."""
        skipped = skipped_text(self.skipped, self.skipped_by_reason)
        return f"{self.samples:,} used + {skipped} + {self.left_over:,} left over"

    def render(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.status}: {self.samples:,} samples in {self.steps:,} steps, {duration(self.seconds)}",
            f"  records    {self.records()}",
        ]
        if not self.samples:
            lines.append(f"  nothing was learned: {self.why_nothing()}")
        if self.loss is not None and self.loss_over_ln_k is not None:
            lines.append(f"  loss       {self.loss:.4f} ({self.loss_over_ln_k:.4f} of ln K)")
        if self.usage_perplexity is not None:
            lines.append(f"  usage      {self.usage_perplexity:.1f} of {self.prototypes} prototypes")
        if self.against_start is not None:
            lines += _start_lines(self.against_start, self.updates)
        lines.append(f"  checkpoint {self.checkpoint or 'none'}")
        shot = self.snapshot
        named = f"{shot['version']} ({shot['digest'][:16]})" if shot else "none"
        lines.append(f"  snapshot   {named}")
        return "\n".join(lines)


def summarise(
    *,
    status: str,
    run_dir: Path,
    cursor: "Cursor",
    progress: Progress,
    seconds: float,
    config: RunConfig,
    checkpoint: Path | None,
    snapshot: Mapping[str, Any] | None,
) -> RunSummary:
    """The summary of a run as it stands."""
    return RunSummary(
        status=status,
        run=str(run_dir),
        samples=cursor.samples,
        skipped=sum(cursor.skipped.values()),
        left_over=cursor.left_over,
        steps=cursor.steps,
        updates=progress.updates,
        passes=config.passes,
        seconds=round(seconds, 3),
        loss=_mean(progress.losses),
        loss_over_ln_k=_mean(progress.ratios),
        usage_perplexity=progress.usage_perplexity,
        prototypes=config.swav.prototypes[0],
        skipped_by_reason=dict(cursor.skipped),
        checkpoint=str(checkpoint) if checkpoint else None,
        snapshot=snapshot,
    )


def _start_lines(found: Mapping[str, Any], updates: int) -> list[str]:
    trained, start = (100 * found[when]["views_found"] for when in ("trained", "start"))
    told = [
        f"  start      {trained:.1f} % of views find the other view of their image, {start:.1f} % before the "
        f"first step ({found['images']} images)"
    ]
    if not found["better"]:
        told.append(
            f"  nothing was learned beyond the start, as far as these views tell: {_why_not(updates)}"
        )
    return told


def _why_not(updates: int) -> str:
    if updates < FEW_UPDATES:
        return (
            f"{updates:,} updates are few (bring more images, or in a new run raise replay.updates or passes)"
        )
    return "`swavstream doctor` looks for a cause"


def read_summary(run_dir: Path) -> RunSummary | None:
    """How the run in a directory last ended; None when it never did, or another version wrote it."""
    body = read_json(run_dir / "summary.json")
    try:
        return RunSummary(**body) if body is not None else None
    except TypeError:
        return None


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
