"""How the loop of a run goes, beside what the learner reports."""

from collections.abc import Sequence
from dataclasses import dataclass

from stream.lanes import LaneLag


@dataclass(kw_only=True, slots=True)
class Pace:
    """How the loop goes, beside what the learner reports."""

    step_s: float
    """From the end of the step before to the end of this one."""
    load_s: float
    """Part of it that was spent waiting for the batch and its replays."""
    save_s: float = 0.0
    """Part of it for which a checkpoint held up the loop; most of its writing goes on in the background."""
    replays: int
    """Updates of the step beside that of the arriving batch."""
    lag: int
    """Records committed but not yet used, as of the last look."""
    restarts: int
    """Reader processes replaced so far."""
    lanes: Sequence[LaneLag] = ()
    """How far each lane is behind, as of the last look."""
    dead_letters: tuple[int, int] = (0, 0)
    """Sent and dropped so far, by this rank."""
