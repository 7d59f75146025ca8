"""What the next step of a rank can be."""

import enum


class Readiness(enum.Enum):
    """What the next step of this rank can be."""

    READY = enum.auto()
    """`take` gives a batch."""
    WAITING = enum.auto()
    """Not yet: chunks are in work, or records have not arrived."""
    PASS_ENDED = enum.auto()
    """A lane can fill no further chunk of this pass; `end_pass` goes to the next one."""
    TAIL_FOUND = enum.auto()
    """What remains of this rank's lanes has been read; `deal_tail` makes a batch of it."""
    FINISHED = enum.auto()
    """All passes are done."""
