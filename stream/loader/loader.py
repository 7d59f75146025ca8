"""Batches for the learner: one chunk of every lane, in lane order, and the cursor after them.

The loader alone knows where lanes stand; what readers have read ahead is simply forgotten at the end or in a
crash. So the sequence of batches is a function of (seed, V, C, data), whatever the number of ranks and
readers and whatever dies.

It also refuses a cursor that its stream cannot continue (another stream, or records that are gone), says
what the next step of a rank can be and how far each lane is behind the end of the stream, and stops a run
when too many of the newest records are unusable.
"""

import enum
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from types import TracebackType
from typing import Self

import torch

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor
from stream.errors import StreamMismatch, StreamPruned, TooManyBadRecords
from stream.lanes import BadRecordRef, LaneLag, LaneStats, Position, add_counts, owned_lanes
from stream.loader.batch import Batch, copied
from stream.loader.plan import ReadPlan, plan_of
from stream.loader.pool import InlinePool, Pool, ProcessPool
from stream.loader.prefetch import AvailableLookahead, Lookahead
from stream.loader.shared_memory import BatchFrame, FrameLayout, SharedBuffer
from stream.loader.tasks import BudgetSpent, Chunk, NotEnough, Reply, TailSamples, availability_from
from stream.source import Source, SourceSpec


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


def lane_lags(
    source: Source,
    pass_number: int,
    *,
    trained: Iterable[Position],
    trained_newest: Mapping[int, float],
    fetched: Mapping[int, tuple[Position, float]],
    finished: bool,
) -> tuple[LaneLag, ...]:
    """The lag of some lanes; quick: no I/O.

    Args:
        source: this process's view of the stream.
        pass_number: which pass over it.
        trained: where learning stands, for each of the lanes.
        trained_newest: when the newest record learned from was put on the stream, by lane.
        fetched: where reading ahead stands, and when its newest record was put on the stream, by lane.
        finished: the last pass is done: nothing is behind.
    """
    positions = {position.lane: position for position in trained}
    now = time.time()
    found = []
    for lane, (ahead, newest) in fetched.items():
        unlearned = 0 if finished else source.unread((positions[lane],), pass_number)
        unread = 0 if finished else source.unread((ahead,), pass_number)
        found.append(
            LaneLag(
                lane=lane,
                trained_records=unlearned,
                trained_s=_behind(unlearned, trained_newest.get(lane, 0.0), now),
                fetched_records=unread,
                fetched_s=_behind(unread, newest, now),
            )
        )
    return tuple(found)


def _behind(records: int, newest: float, now: float) -> float | None:
    """Age of the newest record that a lane got to, seconds; 0 when it has all, None when it is not known."""
    if newest == 0.0:  # shards do not say, nor has a topic before its first record
        return None
    return max(now - newest, 0.0) if records else 0.0


def check_same_stream(source: Source, cursor: Cursor) -> None:
    """Refuse a cursor of another stream.

    Raises:
        StreamMismatch: names both.
    """
    identity = source.identity()
    if dict(cursor.source) != identity or cursor.lanes != source.lanes:
        raise StreamMismatch(
            f"the cursor is of {dict(cursor.source)}, {cursor.lanes} lanes, but the stream is {identity}, "
            f"{source.lanes} lanes: give the stream that the run began with, or begin a new run"
        )


def check_kept(source: Source, positions: Iterable[Position], pass_number: int) -> None:
    """Refuse before anything is read when records of any lane have been pruned.

    Raises:
        StreamPruned: says how many were missed.
    """
    missed, pruned = 0, None
    for position in positions:
        try:
            availability_from(source, position, pass_number)
        except StreamPruned as error:
            missed, pruned = missed + error.missed, error
    if pruned is not None:
        raise StreamPruned(
            f"{missed:,} records that come next for this run were pruned from its stream ({pruned}): "
            "a new run begins at the first that is kept",
            missed=missed,
        ) from pruned


def charged(
    before: Cursor, after: Cursor, stats: LaneStats, bad: Sequence[BadRecordRef], plan: ReadPlan
) -> Cursor:
    """The cursor after a step, with what the step spent of the budget.

    Args:
        before: the cursor before the step.
        after: the one behind it, which has read and counted, but spent nothing.
        stats: of the step, over all ranks.
        bad: places of unusable records, for the message.
        plan: says how many may be unusable.

    Raises:
        TooManyBadRecords: the budget is spent; on all ranks at the same step.
    """
    # What was accepted beforehand is forgotten too: the budget begins again behind it.
    accepted = before.read < after.accept_until
    newest = () if accepted else (*after.recent, (stats.seen, stats.seen - stats.used))
    recent = _newest(newest, plan.bad_window)
    if plan.over_budget(sum(read for read, _ in recent), sum(bad for _, bad in recent)):
        raise too_many_bad(before, stats, bad, plan)
    return replace(after, recent=recent)


def too_many_bad(
    cursor: Cursor, stats: LaneStats, bad: Sequence[BadRecordRef], plan: ReadPlan
) -> TooManyBadRecords:
    """What is raised in place of the step that follows a cursor."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats.skipped.items())
    examples = f"; for example {'; '.join(map(str, bad[:3]))}" if bad else ""
    return TooManyBadRecords(
        f"more than {plan.max_bad_fraction:.0%} of the last {plan.bad_window} records cannot "
        f"be used; in this step: {reasons}{examples}. Mend the stream "
        "or raise reader.max_bad_fraction; `learn --accept-bad-until now` goes past all that the stream "
        f"has now (this run has read {cursor.read:,} records)",
        bad=tuple(bad),
    )


def _newest(steps: Sequence[tuple[int, int]], window: int) -> tuple[tuple[int, int], ...]:
    """As few of the newest steps as hold `window` records."""
    first, read = len(steps), 0
    while first > 0 and read < window:
        first -= 1
        read += steps[first][0]
    return tuple(steps[first:])


STRICT, AVAILABLE = "strict", "available"
TURN_S = 0.1
"""Longest time between two looks at `should_stop`."""


class Loader:
    """Iterates over the batches of one rank.

    Iterating blocks: until chunks are read, and on an open stream until records arrive, for ever. It ends
    when all passes over a sealed stream are done (`finished` is then true) or when `should_stop` says so. To
    be used by one thread; `waiting` and `worker_restarts` may be read by any. After an exception only `close`
    may be called. Several ranks agree between `ready` and `take` or `end_pass`, instead of iterating. What
    remains of a pass it leaves over (`TailLoader` does not), and it replays nothing (`ReplayLoader` does).

    Args:
        spec: opens the stream, here and in each reader process.
        cursor: where to begin; of the whole run.
        crops: kinds of crops; at least one.
        config: how records become batches.
        workers: reader processes; 0 reads in this process.
        ranks: learners that share the lanes.
        rank: which of them this is.
        passes: over a sealed stream; >= 1.
        pin_memory: give batches in page-locked memory, for copying to a CUDA device.
        should_stop: asked at least every 0.1 s while iterating waits.
        mode: strict: each lane gives one chunk a step. available: as many chunks from lanes that are ready.
        groups: of batch norm, by which lanes are dealt to ranks.
        more_frames: memory for so many further batches, beyond those of looking ahead.

    Raises:
        ValueError: an argument out of range.
        StreamMismatch: the cursor is of another stream or number of lanes.
        StreamPruned: records that come next are gone.
        StreamError: the stream cannot be opened, or memory for the batches is missing.
    """

    def __init__(  # noqa: PLR0913  what a run knows only when it is wired
        self,
        spec: SourceSpec,
        *,
        cursor: Cursor,
        crops: Sequence[CropConfig],
        config: ReaderConfig,
        workers: int,
        ranks: int = 1,
        rank: int = 0,
        passes: int = 1,
        pin_memory: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        mode: str = STRICT,
        groups: int = 1,
        more_frames: int = 0,
    ) -> None:
        if mode not in {STRICT, AVAILABLE}:
            raise ValueError(f"mode must be {STRICT} or {AVAILABLE}, got {mode!r}")
        if workers < 0 or passes < 1 or not crops:
            raise ValueError(
                f"workers must be >= 0, passes >= 1, crops not empty; got {workers}, {passes}, {tuple(crops)}"
            )
        self._lanes = owned_lanes(cursor.lanes, ranks, rank, groups)
        self.cursor = cursor
        self.waiting = False
        self._passes, self._pin_memory, self._should_stop = passes, pin_memory, should_stop
        self._plan = plan_of(cursor, tuple(crops), config, lanes=len(self._lanes))
        layout = FrameLayout(crops=tuple(crops), thumbnail_px=config.thumbnail_px, columns=self._plan.columns)
        with ExitStack() as opened:
            self._source = spec.open()
            opened.callback(self._source.close)
            check_same_stream(self._source, cursor)
            if not self.finished:
                check_kept(self._source, self._positions(), cursor.pass_number)
            # In this process nothing is read ahead, so one frame is enough.
            num_frames = config.prefetch if workers else 1
            self._buffer = SharedBuffer(layout, num_frames + more_frames)
            opened.callback(self._buffer.close)
            self._frames = self._buffer.frames
            self._pool = self._readers(spec, workers)
            opened.callback(self._pool.close)
            self._opened = opened.pop_all()
        self._newest: dict[int, float] = {}
        kind = AvailableLookahead if mode == AVAILABLE else Lookahead
        self._ahead = kind(
            self._source,
            self._pool,
            lanes=self._lanes,
            chunk=cursor.chunk,
            num_frames=num_frames,
            workers=workers,
            poll_s=config.poll_s,
        )
        self._ahead.begin(self._positions(), cursor.pass_number)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while not self._should_stop():
            state = self.ready(TURN_S)
            if state is Readiness.READY:
                return self.take()
            if state is Readiness.FINISHED:
                break
            if state is not Readiness.WAITING:
                self._end_chunks(state)
        self.waiting = False
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether all passes are done."""
        return self.cursor.pass_number >= self._passes

    @property
    def worker_restarts(self) -> int:
        """Reader processes that died and were replaced."""
        return self._pool.restarts

    @property
    def lanes(self) -> tuple[int, ...]:
        """Lanes of this rank, ascending."""
        return self._lanes

    @property
    def starving(self) -> tuple[int, ...]:
        """Lanes of which the next chunk cannot be read before records arrive."""
        return self._ahead.starving

    def lag(self) -> int:
        """Records of this rank's lanes, committed and not used yet. May block on I/O, not on arrivals."""
        self._ahead.look()
        return 0 if self.finished else self._source.unread(self._positions(), self.cursor.pass_number)

    def lane_lags(self) -> tuple[LaneLag, ...]:
        """How far each lane of this rank is behind, in learning and in reading ahead. Quick: no I/O."""
        return lane_lags(
            self._source,
            self.cursor.pass_number,
            trained=self._positions(),
            trained_newest=self._newest,
            fetched=self._ahead.fetched(),
            finished=self.finished,
        )

    def ready(self, timeout_s: float) -> Readiness:
        """What the next step can be; blocks so long at most until that is known.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent.
            WorkerFailed: readers die of the same chunks again and again.
            StreamError: what the source raised in a reader.
        """
        if self.finished:
            return Readiness.FINISHED
        deadline = time.monotonic() + timeout_s
        left = timeout_s
        while (state := self._state()) is Readiness.WAITING and left >= 0:
            self.waiting = not self._pool.pending
            if self.waiting:
                time.sleep(left)
            else:
                self._collect(left)
            left = deadline - time.monotonic()
        self.waiting = self.waiting and state is Readiness.WAITING
        return state

    @property
    def upcoming(self) -> LaneStats:
        """ReadStats of this rank's part of the batch that is ready."""
        return sum((chunk.stats for chunk in self._ahead.chunks()), LaneStats())

    def take(self, of_all: LaneStats | None = None) -> Batch:
        """The batch that is ready, in memory of its own; the cursor is after it.

        Args:
            of_all: `upcoming` of all ranks, added up, for samples, skips and the budget of unusable records
                are of the run and not of a rank; None when there is one rank.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent; on all ranks at the same step.
        """
        chunks = self._ahead.chunks()
        stats = self.upcoming if of_all is None else of_all
        cursor, bad = self._after(chunks, stats)
        frame = self._ahead.batch(self._frames)
        self.cursor = self._moved(cursor, frame)
        batch = self._batch(frame, stats, lanes=self._ahead.lanes(), bad=bad)
        self._ahead.advance()
        return batch

    def unread(self) -> int:
        """Records of this rank's lanes that a pass which has ended leaves unread."""
        self._source.refresh()  # a reader may have seen more of the stream than this process has
        return self._source.unread(self._positions(), self.cursor.pass_number)

    @property
    def unusable(self) -> dict[str, int]:
        """Unusable records that were found for a step which the pass ends without, of this rank's lanes.

        In strict mode they are a function of the stream and of the cursor: each lane is read up to its chunk
        of that step or to its end.
        """
        return reduce(add_counts, map(_skipped, self._unfilled()), {})

    @property
    def unusable_places(self) -> tuple[BadRecordRef, ...]:
        """Where they are."""
        return tuple(place for part in self._unfilled() for place in part.bad)

    def end_pass(self, unread: int | None = None, unusable: Mapping[str, int] | None = None) -> None:
        """Go to the start of the next pass. What is unusable counts as skipped, the rest as left over.

        Args:
            unread: `unread` of all ranks, added up; None when there is one rank.
            unusable: `unusable` of all ranks, added up; None when there is one rank.
        """
        unread = self.unread() if unread is None else unread
        unusable = self.unusable if unusable is None else unusable
        deadly = {*self.cursor.deadly, *(place for part in self._unfilled() for place in part.deadly)}
        self.cursor = replace(
            self.cursor,
            pass_number=self.cursor.pass_number + 1,
            skipped=add_counts(self.cursor.skipped, unusable),
            left_over=self.cursor.left_over + unread - sum(unusable.values()),
            positions=self.cursor.first_positions(),
            deadly=tuple(sorted(deadly)),
        )
        self._ahead.begin(self._positions(), self.cursor.pass_number)

    def _unfilled(self) -> Sequence[Chunk | NotEnough | BudgetSpent | TailSamples]:
        """What was read for a step that the pass ends without."""
        return self._ahead.unfilled()

    def _end_chunks(self, state: Readiness) -> None:
        """Go on, alone, from where a pass can fill no further chunk of some lane."""
        self.end_pass()

    def close(self) -> None:
        """End the readers and let go of memory and files. May be called twice."""
        self._frames = ()
        self._opened.close()

    def _readers(self, spec: SourceSpec, workers: int) -> Pool:
        if workers:
            return ProcessPool(spec, self._plan, self._buffer, workers)
        return InlinePool(self._source, self._plan, self._frames)

    def _after(
        self, parts: Sequence[Chunk | TailSamples], stats: LaneStats
    ) -> tuple[Cursor, tuple[BadRecordRef, ...]]:
        """The cursor after a step of these parts of lanes, and where their unusable records lie.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent.
        """
        cursor = self.cursor.advanced((part.after for part in parts), stats)
        bad = tuple(place for part in parts for place in part.bad)
        cursor = charged(self.cursor, cursor, stats, bad, self._plan)
        deadly = {*cursor.deadly, *(place for part in parts for place in part.deadly)}
        self._newest |= {part.after.lane: part.newest for part in parts}
        return replace(cursor, deadly=tuple(sorted(deadly))), bad

    def _moved(self, after: Cursor, frame: BatchFrame) -> Cursor:
        """The cursor after the step that lies in a frame."""
        return after

    def _collect(self, timeout_s: float) -> None:
        """Take in replies that have come; waits so long at most for the first."""
        for reply in self._pool.collect(timeout_s):
            self._take_in(reply)

    def _take_in(self, reply: Reply) -> None:
        self._ahead.take_in(reply)

    def _positions(self) -> list[Position]:
        return [self.cursor.positions[lane] for lane in self._lanes]

    def _state(self) -> Readiness:
        self._ahead.accepted = self.cursor.accepted
        self._ahead.ask()
        if self._ahead.complete():
            return Readiness.READY
        if not self._ahead.settled():
            return Readiness.WAITING
        if self._ahead.ended():
            return Readiness.PASS_ENDED
        failure = self._ahead.failure()
        if isinstance(failure, BudgetSpent):
            raise too_many_bad(self.cursor, failure.stats, failure.bad, self._plan)
        if failure is not None:
            raise failure.error
        return Readiness.WAITING

    def _batch(
        self,
        frame: BatchFrame,
        stats: LaneStats,
        *,
        lanes: Sequence[int] | None = None,
        thumbs: bool = True,
        bad: tuple[BadRecordRef, ...] = (),
    ) -> Batch:
        return copied(
            frame,
            lane_B=torch.tensor(lanes or self._lanes).repeat_interleave(self._plan.chunk),
            bad=bad,
            cursor=self.cursor,
            stats=stats,
            thumbs=thumbs and self._plan.thumbnail_px > 0,
            pin_memory=self._pin_memory,
        )


def _skipped(part: Chunk | NotEnough | BudgetSpent | TailSamples) -> Mapping[str, int]:
    return part.skipped if isinstance(part, NotEnough) else part.stats.skipped
