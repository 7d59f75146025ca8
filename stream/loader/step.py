"""One step of a rank: whether it can be made, and of what. Chunks, tails and replays all give steps."""

import enum
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stream.cursor import Cursor
from stream.lanes import LaneStats
from stream.loader.shared_memory import BatchFrame
from stream.loader.tasks import Chunk, TailSamples


class Readiness(enum.Enum):
    """What the next step of this rank can be."""

    READY = enum.auto()
    """`take` gives a batch."""
    WAITING = enum.auto()
    """Not yet: chunks are in work, or records have not arrived."""
    PASS_ENDED = enum.auto()
    """A lane can fill no further chunk of this pass: ranks exchange `pass_report`, and `settle`."""
    TAIL_FOUND = enum.auto()
    """What remains of this rank's lanes has been read: ranks exchange `pass_report`, and `settle`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The samples of one step of a rank, in memory that readers fill again after `StepSource.advance`."""

    frame: BatchFrame
    lane_B: Tensor
    """[B] int64, of each column."""
    dealt_B: Tensor
    """[B] int64, see `Batch`."""
    parts: tuple[Chunk | TailSamples, ...] = ()
    """What the cursor moves over. A replay has none, nor a tail in which this rank's lanes give none."""


class StepSource(Protocol):
    """Gives steps, one after the other; not thread-safe."""

    def state(self, cursor: Cursor) -> Readiness:
        """What the step that follows the cursor can be; asks readers for more, and does not wait.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent.
            WorkerFailed: readers die of the same records again and again.
            StreamError: what the source raised in a reader.
        """
        ...

    def stats(self) -> LaneStats:
        """Account of this rank's part of the step that is ready."""
        ...

    def step(self) -> Step:
        """The step that is ready."""
        ...

    def advance(self) -> None:
        """Go to the next step."""
        ...
