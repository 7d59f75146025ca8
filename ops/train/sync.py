"""Batches that all ranks begin together: no rank enters an update before every rank has its part of it.

Before each update every rank votes, in one row of integers: what its next batch can be, whether it is asked
to stop, and what it has read. The row is handed in while the update before is still being computed, so that
agreeing costs no time when readers keep up. A single rank does the same with a table of one row.
"""

import enum
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ops.distributed.world import Rows, World
from ops.errors import EXIT_FAILED, RankFailed, RankLost, Starved, exit_code_of
from ops.train.events import Waiting
from stream.errors import StreamError
from stream.lanes import BadRecordRef, LaneLag, LaneStats, add_counts
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.step import Readiness


class State(enum.IntEnum):
    """What a rank can do next. The smallest of all ranks is what is done."""

    WAITING = 0
    PASS_ENDED = 1
    FAILED = 2
    TAIL_FOUND = 3
    READY = 4


class StopVote(enum.IntEnum):
    """Whether a rank is asked to stop, and how; the smallest counts."""

    TERMINATE = 0
    """By SIGTERM."""
    ASKED = 1
    NO = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The vote of one rank before one update."""

    turn: int
    """Number of the vote: the same on all ranks, or they have lost step."""
    state: State
    stop: StopVote
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
        state, stop = State(values.pop("state")), StopVote(values.pop("stop"))
        return cls(state=state, stop=stop, **values)


def decided(rows: Sequence[Row]) -> State:
    """What is done: as soon as no rank is still reading, a failure is not kept waiting for new records."""
    states = {row.state for row in rows if not row.starving}
    if State.FAILED in states and not states & {State.WAITING, State.PASS_ENDED}:
        return State.FAILED
    return min(row.state for row in rows)


logger = logging.getLogger(__name__)

# Longest time between two votes while not all ranks are ready.
TURN_S = 0.1
LAG_S = 0.5
"""Seconds between two counts of the lag."""
# A message names so many lanes, or ranks, and no more.
MOST_NAMED = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long it may take until all ranks are ready."""

    warn_s: float
    """Seconds after which the lanes are named that hold up the others."""
    fail_s: float
    """Seconds after which a rank ends the run whose readers bring nothing although records are there."""


class Steps:
    """Iterates over the batches of a run that all ranks begin together, and over the replays of each.

    One thread. Iterating ends when all passes are done (the loader is `finished`) or any rank is
    asked to stop, after the current step. All ranks leave together, also when one of them fails.

    Args:
        loader: of this rank.
        world: the ranks.
        stop: whether this rank is asked to stop.
        on_wait: given what is waited for, at least every 0.1 s while not all ranks are ready.
        patience: how long that may take.
        warn: given a sentence about the lanes that hold the others up.
        save_asked: whether this rank was asked to save since it was last called.
        on_save: called on all ranks between the same two steps once any of them was asked to.
        on_unusable: given the unusable records of a step that a pass ended without: the account of all ranks,
            and the places of this rank's.
        lag_s: seconds between two counts of the lag.
    """

    def __init__(  # noqa: PLR0913  what a run knows only when it is wired
        self,
        loader: Loader,
        world: World,
        *,
        stop: Callable[[], StopVote],
        on_wait: Callable[[Waiting], None],
        patience: Patience,
        warn: Callable[[str], None],
        save_asked: Callable[[], bool] = lambda: False,
        on_save: Callable[[], None] = lambda: None,
        on_unusable: Callable[[LaneStats, Sequence[BadRecordRef]], None] = lambda _stats, _places: None,
        lag_s: float = LAG_S,
    ) -> None:
        self.loader = loader
        self.stop = StopVote.NO
        """How the ranks were asked to stop, once they were."""
        self.lag = 0
        """Records committed and not used, of all ranks, as of the last vote."""
        self.lanes: list[LaneLag] = []
        """How far each lane is behind, of all ranks, as of the last look."""
        self.restarts = 0
        """Reader processes replaced so far, of all ranks."""
        self._world, self._stop_vote, self._on_wait, self._warn = world, stop, on_wait, warn
        self._save_asked, self._on_save, self._saving = save_asked, on_save, False
        self._on_unusable = on_unusable
        self._patience, self._lag_s = patience, lag_s
        self._turn = 0
        self.error: StreamError | OSError | None = None
        """Why this rank cannot go on; all ranks know of it."""
        self._ahead: Callable[[], Rows] | None = None
        self._lag_here, self._next_lag, self._tell = 0, 0.0, 0
        self._waits_since = 0.0
        self._named_at = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while not self.loader.finished:
            state, stats = self._agree()
            if self.stop is not StopVote.NO:
                return
            if state in {State.PASS_ENDED, State.TAIL_FOUND}:
                self._settle()
                continue
            batch = self.loader.take(stats)
            self._say_ahead()
            yield batch

    def replays(self) -> Iterator[Batch]:
        """The replays of the batch that was given last. A step is done as a whole: no stop is applied."""
        while self.loader.replays_left:
            _, stats = self._agree()
            again = self.loader.take(stats)
            self._say_ahead()
            yield again

    def _agree(self) -> tuple[State, LaneStats]:
        """What all ranks do next, and the account of what they will do it with; waits until that is known.

        Raises:
            RankFailed: another rank cannot go on.
            StreamError, OSError: this rank cannot.
            Starved: a rank's readers bring nothing.
            RankLost: a rank is gone.
        """
        self._waits_since = self._named_at = time.monotonic()
        replaying = self.loader.replays_left > 0
        while True:
            rows = self._heard()
            state = decided(rows)
            if self._saving and not replaying:  # also while records are waited for
                self._saving = False
                self._on_save()
            stopping = self.stop is not StopVote.NO and not replaying
            if stopping or state in {State.PASS_ENDED, State.TAIL_FOUND}:
                return state, LaneStats()
            if state is State.READY:
                return state, self._account(rows)
            if state is State.FAILED:
                self._raise(self._world.all_gather_objects(self._failure()))
            self._name_the_late(rows)
            self._on_wait(Waiting(records=any(row.starving for row in rows), lag=self.lag, lanes=self.lanes))
            self._say(TURN_S)

    def _say_ahead(self) -> None:
        """Hand in the row for the next update before this one is computed; alone there is no hurry."""
        if self._world.world_size > 1:
            self._say(0.0)

    def _say(self, timeout_s: float) -> None:
        """Hand in this rank's row for the next update."""
        state, stats = State.WAITING, LaneStats()
        self._look_at_lag()
        try:
            if self.error is not None:
                state = State.FAILED
            elif not self.loader.finished:
                state = _STATES[self.loader.ready(timeout_s)]
                stats = self.loader.upcoming if state is State.READY else stats
        except (StreamError, OSError) as error:
            state, self.error = State.FAILED, error
        self._turn += 1
        row = Row(
            turn=self._turn,
            state=state,
            stop=self._stop_vote(),
            starving=len(self.loader.starving) if state is State.WAITING and self.loader.waiting else 0,
            lag=self._lag_here,
            restarts=self.loader.worker_restarts,
            rebuilding=int(self.loader.rebuilding),
            name=int(self._world.is_main and time.monotonic() - self._named_at >= self._patience.warn_s),
            tell=self._tell,
            save=int(self._save_asked()),
            read=stats.read,
            used=stats.used,
            bytes=stats.bytes,
            read_us=round(stats.read_s * 1e6),
            decode_us=round(stats.decode_s * 1e6),
            crop_us=round(stats.crop_s * 1e6),
        )
        self._ahead = self._world.all_gather_ints(row.wire())

    def _look_at_lag(self) -> None:
        """Count the lag now and then: it looks at each lane. A figure for people never ends a run."""
        now = time.monotonic()
        if now < self._next_lag:
            return
        self._next_lag, self._tell = now + self._lag_s, int(self._world.is_main)
        try:
            self._lag_here = self.loader.lag()
        except (StreamError, OSError) as error:
            logger.warning("the lag cannot be told now: %s", error)

    def _heard(self) -> list[Row]:
        """The votes of all ranks."""
        if self._ahead is None:
            self._say(TURN_S)
        assert self._ahead is not None
        rows = [Row.of_wire(numbers) for numbers in self._ahead()]
        self._ahead = None
        if any(row.turn != self._turn for row in rows):
            raise RankLost(f"the ranks have lost step: they stand at {[row.turn for row in rows]}")
        self.lag = sum(row.lag for row in rows)
        self.restarts = sum(row.restarts for row in rows)
        self.stop = min(row.stop for row in rows)
        self._saving = self._saving or any(row.save for row in rows)
        if rows[0].tell:
            self._tell = 0
            own = [asdict(lag) for lag in self.loader.lane_lags()]
            self.lanes = [LaneLag(**lag) for lags in self._world.all_gather_objects(own) for lag in lags]
        return rows

    def _account(self, rows: list[Row]) -> LaneStats:
        """What all ranks read for the next update, added up."""
        skipped: dict[str, int] = {}
        # All ranks see the same table, so all of them ask for the reasons, or none does.
        if any(row.read > row.used for row in rows):
            for reasons in self._world.all_gather_objects(dict(self.loader.upcoming.skipped)):
                skipped = add_counts(skipped, reasons)
        return LaneStats(
            read=sum(row.read for row in rows),
            used=sum(row.used for row in rows),
            skipped=skipped,
            bytes=sum(row.bytes for row in rows),
            read_s=sum(row.read_us for row in rows) / 1e6,
            decode_s=sum(row.decode_us for row in rows) / 1e6,
            crop_s=sum(row.crop_us for row in rows) / 1e6,
        )

    def _settle(self) -> None:
        """The chunks of a pass, or of its tail, have ended: all ranks go on alike, by what each has found."""
        # A lane of this rank that cannot be read on does not matter any more: the pass ends without it, as it
        # does when one rank has all lanes. In what remains, or the next pass, the fault comes again.
        self.error = None
        own: dict[str, Any] = {}
        try:
            own = self.loader.pass_report()
        except (StreamError, OSError) as error:
            self.error = error
        reports = self._world.all_gather_objects([own, self._failure()])
        if any(failed for _, failed in reports):
            self._raise([failed for _, failed in reports])
        places = self.loader.unusable_places
        unusable = self.loader.settle([report for report, _ in reports])
        if unusable:
            self._on_unusable(LaneStats(read=sum(unusable.values()), skipped=unusable), places)

    def _failure(self) -> list[Any] | None:
        """Why this rank cannot go on, for the others, and with which exit code."""
        if self.error is None:
            return None
        return [f"{type(self.error).__name__}: {self.error}", exit_code_of(self.error) or EXIT_FAILED]

    def _raise(self, failures: Sequence[list[Any] | None]) -> NoReturn:
        """One rank or more cannot go on: they raise what they met, the others say who."""
        if self.error is not None:
            raise self.error
        rank = next(number for number, failed in enumerate(failures) if failed)
        why, code = failures[rank] or ("", EXIT_FAILED)
        raise RankFailed(f"rank {rank} of {self._world.world_size} cannot go on: {why}", code)

    def _name_the_late(self, rows: list[Row]) -> None:
        """Name the lanes that hold up the others; end the run when readers bring nothing for too long."""
        if not rows[0].name:
            return
        self._named_at = time.monotonic()
        waited = self._named_at - self._waits_since
        own = {"starving": list(self.loader.starving), "lanes": list(self.loader.lanes), "waited": waited}
        states = self._world.all_gather_objects(own)
        late = [rank for rank, row in enumerate(rows) if row.state is State.WAITING]
        stuck = [rank for rank in late if not (rows[rank].starving or rows[rank].rebuilding)]
        num_lanes = sum(len(one["lanes"]) for one in states)
        whose = "; ".join(f"rank {rank} ({_names(states[rank]['lanes'])})" for rank in stuck[:MOST_NAMED])
        # The first rank's clock decides, so that all do the same.
        if stuck and states[0]["waited"] >= self._patience.fail_s:
            raise Starved(
                f"{whose}: no batch for {states[0]['waited']:.0f} s although records "
                "are there: readers hang, or the storage does; look at them and run the same command again"
            )
        starving = sorted(lane for rank in late for lane in states[rank]["starving"])
        if starving and len(starving) < num_lanes:
            ranks = [rank for rank in late if states[rank]["starving"]]
            of_ranks = f" (rank {', '.join(map(str, ranks))})" if len(states) > 1 else ""
            self._warn(
                f"waiting {waited:.0f} s for records of {_names(starving)}{of_ranks}; other lanes have some"
            )
        elif stuck:
            self._warn(f"waiting {waited:.0f} s for the readers of {whose}")


_STATES = {
    Readiness.READY: State.READY,
    Readiness.WAITING: State.WAITING,
    Readiness.PASS_ENDED: State.PASS_ENDED,
    Readiness.TAIL_FOUND: State.TAIL_FOUND,
}


def _names(lanes: list[int]) -> str:
    shown = ", ".join(map(str, lanes[:MOST_NAMED]))
    more = f" and {len(lanes) - MOST_NAMED} more" if len(lanes) > MOST_NAMED else ""
    return f"lane{'s' if len(lanes) > 1 else ''} {shown}{more}"
