"""What each rank says before each update, and what all do then: a row of integers goes over the wire."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class State(enum.IntEnum):
    """What a rank can do next. The smallest of all ranks is what is done."""

    WAITING = 0
    PASS_ENDED = 1
    FAILED = 2
    TAIL_FOUND = 3
    READY = 4


class Stop(enum.IntEnum):
    """Whether a rank is asked to stop, and how; the smallest counts."""

    TERMINATE = 0
    """By SIGTERM."""
    ASKED = 1
    NO = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one rank says before one update."""

    turn: int
    """Number of the vote: the same on all ranks, or they have lost step."""
    state: State
    stop: Stop
    starving: int
    """Lanes without the records for the next chunk."""
    lag: int
    restarts: int
    rebuilding: int
    """1: it reads the window of replays again."""
    name: int
    """1: the first rank wants to know which lanes are starving."""
    tell: int
    """1: the first rank wants to know how far each lane is behind."""
    save: int = 0
    """1: this rank is asked to save now; all do."""
    read: int = 0
    used: int = 0
    bytes: int = 0
    read_us: int = 0
    decode_us: int = 0
    crop_us: int = 0

    def wire(self) -> list[int]:
        """The row as integers."""
        return [int(getattr(self, field)) for field in self.__dataclass_fields__]

    @classmethod
    def of_wire(cls, numbers: list[int]) -> "Row":
        """The row that another rank handed in."""
        values = dict(zip(cls.__dataclass_fields__, numbers, strict=True))
        state, stop = State(values.pop("state")), Stop(values.pop("stop"))
        return cls(state=state, stop=stop, **values)


def decided(rows: Sequence[Row]) -> State:
    """What is done: as soon as no rank is still reading, a failure is not kept waiting for new records."""
    states = {row.state for row in rows if not row.starving}
    if State.FAILED in states and not states & {State.WAITING, State.PASS_ENDED}:
        return State.FAILED
    return min(row.state for row in rows)
