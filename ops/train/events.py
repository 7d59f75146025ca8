"""What happens in a run, for its listeners: one class an event."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from learner.report import StepReport
from ops.rundir.summary import Progress
from ops.snapshots.types import PublishResult, SnapshotTaken
from stream.cursor import Cursor
from stream.lanes import LaneLag, LaneStats
from stream.loader.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimings:
    """How long a step took, seconds."""

    step_s: float = 0.0
    """From the end of the step before to the end of this one."""
    load_s: float = 0.0
    """Part of it that was spent waiting for the batch and its replays."""
    save_s: float = 0.0
    """Part of it for which a checkpoint held up the loop; most of its writing goes on in the background."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepDone:
    """A step of all ranks, as the first one knows it."""

    report: StepReport
    """Of the arriving batch, with the seconds and updates of the whole step."""
    batch: Batch
    """The arriving batch of this rank; samples, skipped records and steps of its cursor are the run's."""
    stats: LaneStats
    """Account of the batch and its replays, over all ranks."""
    timings: StepTimings
    replays: int = 0
    """Updates of the step beside that of the arriving batch."""
    replay_prototypes: int | None = None
    """Prototypes that have images in the memory for replay; None = a run without."""
    run_s: float = 0.0
    """Seconds spent on the run, over restarts."""
    lag: int = 0
    """Records committed but not yet used, as of the last look."""
    lanes: Sequence[LaneLag] = ()
    """How far each lane is behind, as of the last look."""
    reader_restarts: int = 0
    """Reader processes replaced so far."""
    dead_letters: tuple[int, int] = (0, 0)
    """Sent and dropped so far, by this rank."""
    usage_K: np.ndarray[Any, np.dtype[np.float32]] | None = None
    """Shares of all prototypes, when the step brought a health report."""

    @property
    def thumbs(self) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """[B, 3, T, T] thumbnails of the batch; None when records come without."""
        return None if self.batch.thumbs is None else self.batch.thumbs.numpy()


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Not all ranks are ready; several times a second, so it is a sign of life too."""

    records: bool
    """Some rank waits for records to arrive, and not only for its readers."""
    samples: int = 0
    """Used so far."""
    reason: str = ""
    """What else is waited for."""
    lag: int | None = None
    """Records committed and not used, of all ranks; None when that is not known."""
    lanes: Sequence[LaneLag] = ()
    """How far each lane is behind."""


@dataclass(frozen=True, slots=True)
class Started:
    """The learner is made; `progress` has the fence that the publisher goes on from."""

    progress: Progress
    samples: int
    """Where the run goes on from."""


@dataclass(frozen=True, slots=True)
class Rewound:
    """The run went back to this cursor: later steps did not happen."""

    cursor: Cursor


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A batch was read but not learned from; the cursor is behind it."""

    stats: LaneStats
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class StepRefused:
    """Loss or gradient of an update was not finite."""

    text: str


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint is about to be written: what must not be behind it is written by the listener now."""


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """A checkpoint was written (ok), could not be (error), or was found damaged (damaged)."""

    result: str
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence that a person should see; with `terminal` on stderr too."""

    kind: str
    text: str
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Stopping:
    """The last step is done; the run saves and publishes."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """All is saved and published, and the summary is about to be written."""

    finished: bool
    """The run needs nothing of its stream any more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The summary is written, and the run ended as it should: no scheduler has to bring it back."""


Event = (
    StepDone | Waiting | Started | Rewound | LeftOut | StepRefused | Saving | CheckpointResult | SnapshotTaken
    | PublishResult | Notice | Stopping | Leaving | Ended
)  # fmt: skip


class StepListener(Protocol):
    """Is notified of what happens in a run.

    The loop's thread calls; `CheckpointResult` comes from the thread that writes checkpoints too,
    `PublishResult` and `Notice` from the one that publishes. `notify` returns within microseconds where its
    listener does not say otherwise, and raises nothing for the world.
    """

    def notify(self, event: Event) -> None:
        """Take one event; those that a listener does not care for do nothing."""
        ...
