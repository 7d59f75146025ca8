"""The tail of a pass: what its whole chunks leave is dealt over all lanes again, down to the last sample.

A pass over a sealed stream ends where some lane can fill no further chunk. The records that remain then, of
whichever lanes, are made into batches of B, the last of them short. In such a batch a sample need not be
taken for one of its own lane: the samples are dealt to all lanes in turn, so that each lane has one at least
and C at most. That is all that batch norm (groups of lanes), the feature queue (kept by lanes) and ranks
(owners of lanes) ever rely on, so a tail is an update like any other, and the same for any number of ranks.
Its loss is the mean over its own samples, at the learning rate of the moment.

Fewer than V samples stay left over, for every number of ranks: dealt to V ranks they would leave one without
a sample, so what is trained would depend on the number. For the same reason no rank just trains what its own
lanes have left: some other number of ranks would have one without any.

Each pass has its tail, and leaves fewer than V good records over: samples + skipped + left over = records x
passes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

import torch

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor
from stream.lanes import LaneStats
from stream.loader.batch import Batch, copied
from stream.loader.loader import Loader, Readiness, too_many_bad
from stream.loader.tasks import (
    BudgetSpent,
    Chunk,
    Failed,
    NotEnough,
    ReadSamples,
    ReadTail,
    Reply,
    Request,
    Reread,
    Result,
    Sample,
    TailSamples,
)
from stream.source import SourceSpec


def quotas(unread: Mapping[int, int], *, batch: int) -> dict[int, int]:
    """How many samples the next batch takes of each lane: as even as can be, and all when they fit.

    Args:
        unread: records that each lane has, good or not.
        batch: B.

    Returns:
        For each lane with records, lanes ascending; together the smaller of B and all there are.
    """
    left, found = batch, {}
    lanes = sorted((lane for lane in unread if unread[lane]), key=lambda lane: (unread[lane], lane))
    for done, lane in enumerate(lanes):
        found[lane] = min(unread[lane], left // (len(lanes) - done))
        left -= found[lane]
    return dict(sorted(found.items()))


def dealt(found: Iterable[Sample], lanes: int) -> list[tuple[int, Sample]]:
    """Deal samples to lanes in turn: the first one of each lane, the second ones, and so on.

    So where all lanes have equally many, each sample stays with its own.

    Args:
        found: samples of all ranks; of each lane, the next ones by number.
        lanes: V.

    Returns:
        Each sample with the lane that it is dealt to; these ascending, in each in the order of dealing.
    """
    samples = sorted(found)
    first: dict[int, int] = {}
    for lane, seq, _, _ in samples:
        first.setdefault(lane, seq)
    samples.sort(key=lambda sample: (sample[1] - first[sample[0]], sample[0]))
    places = sorted(range(len(samples)), key=lambda place: (place % lanes, place))
    return [(place % lanes, samples[place]) for place in places]


def trainable(records: int, *, lanes: int, batch: int) -> int:
    """How many of so many remaining records a tail trains, if all of them are good."""
    short = records % batch
    return records if short >= lanes else records - short


_SAMPLES_OF_A_REQUEST = 32


class LoaderOptions(TypedDict, total=False):
    """What else a `Loader` may be given, and what it means there."""

    ranks: int
    rank: int
    passes: int
    pin_memory: bool
    should_stop: Callable[[], bool]
    mode: str
    groups: int


@dataclass(slots=True)
class _Tail:
    """One batch that is being made of what remains; it is no state: at a resume it is made again."""

    missing: set[int] = field(default_factory=set)
    """Ids of requests without a reply."""
    remains: dict[int, TailSamples] = field(default_factory=dict)
    """Of lanes of this rank."""
    failures: dict[int, Failed | BudgetSpent] = field(default_factory=dict)
    """By request_id."""
    own: list[tuple[int, Sample]] | None = None
    """Samples that were dealt to this rank, with their lanes there; None before."""
    recalled: LaneStats = field(default_factory=LaneStats)

    def parts(self) -> list[TailSamples]:
        """In order of lanes."""
        return [self.remains[lane] for lane in sorted(self.remains)]


class TailLoader(Loader):
    """A loader that can also train what the chunks of a pass leave.

    Then, where a pass has ended, `begin_tail` asks which of the next B remaining records are good: readers
    find that out by decoding. `ready` answers TAIL_FOUND when those of this rank's lanes are known, and
    `deal_tail`, given those of all ranks, asks for the samples that are this rank's in the batch, which may
    be of any lane: that is why they are read a second time. Then `ready` answers READY, and `take` gives the
    batch, with a cursor behind all of its records. So it goes on until fewer than V samples remain.

    Args:
        tail: whether; else it is a plain loader.
        spec: as for `Loader`.
        cursor: as for `Loader`.
        crops: as for `Loader`.
        config: as for `Loader`.
        workers: as for `Loader`.
        more_frames: as for `Loader`.
        options: as for `Loader`.

    Raises:
        ValueError, StreamMismatch, StreamPruned, StreamError: as `Loader`.
    """

    def __init__(
        self,
        spec: SourceSpec,
        *,
        cursor: Cursor,
        crops: Sequence[CropConfig],
        config: ReaderConfig,
        workers: int,
        tail: bool = False,
        more_frames: int = 0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        self._trains_tail = tail
        self._tail: _Tail | None = None
        super().__init__(
            spec,
            cursor=cursor,
            crops=crops,
            config=config,
            workers=workers,
            more_frames=more_frames,
            **options,
        )

    def unread_by_lane(self) -> dict[int, int]:
        """Records of each of this rank's lanes that the chunks of a pass which has ended leave unread."""
        self._source.refresh()  # a reader may have seen more of the stream than this process has
        pass_number = self.cursor.pass_number
        return {p.lane: self._source.unread((p,), pass_number) for p in self._positions()}

    def begin_tail(self, unread: Mapping[int, int]) -> bool:
        """Ask for the samples that remain; False when there cannot be enough, and the pass ends.

        Args:
            unread: `unread_by_lane` of all ranks.
        """
        if not self._trains_tail or sum(unread.values()) < self.cursor.lanes:
            return False
        self._ahead.begin(self._positions(), self.cursor.pass_number)
        self._tail = tail = _Tail()
        wanted = quotas(unread, batch=self._plan.batch)
        for position in self._positions():
            if position.lane in wanted:
                rest = ReadTail(position, self.cursor.pass_number, wanted[position.lane])
                self._ask(tail, position.lane + 1, rest)
        return True

    @property
    def tail_found(self) -> list[Sample]:
        """The good ones of the samples that remain, of this rank's lanes."""
        assert self._tail is not None
        return [sample for part in self._tail.parts() for sample in part.samples]

    def deal_tail(self, found: Sequence[Sample]) -> bool:
        """Ask for this rank's samples of the tail; False when there are too few in all: the pass ends.

        Args:
            found: `tail_found` of all ranks.
        """
        assert self._tail is not None
        tail, lanes = self._tail, self.cursor.lanes
        if len(found) < lanes:
            return False
        tail.own = [(lane, some) for lane, some in dealt(found, lanes) if lane in self._lanes]
        for column in range(0, len(tail.own), _SAMPLES_OF_A_REQUEST):
            some = tuple(sample for _, sample in tail.own[column : column + _SAMPLES_OF_A_REQUEST])
            self._ask(tail, lanes + column + 1, ReadSamples(some, draw=0, frame=0, column=column))
        return True

    @property
    def upcoming(self) -> LaneStats:
        """ReadStats of this rank's part of the batch that is ready; in a tail, of its lanes' part of it."""
        if self._tail is None:
            return super().upcoming
        return sum((part.stats for part in self._tail.parts()), self._tail.recalled)

    def take(self, of_all: LaneStats | None = None) -> Batch:
        """As `Loader.take`."""
        if self._tail is None:
            return super().take(of_all)
        tail, stats = self._tail, self.upcoming if of_all is None else of_all
        assert tail.own is not None
        cursor, bad = self._after(tail.parts(), stats)
        self.cursor = self._after_tail(cursor)
        batch = copied(
            self._frames[0].first(len(tail.own)),
            lane_B=torch.tensor([lane for _, (lane, _, _, _) in tail.own]),
            dealt_B=torch.tensor([lane for lane, _ in tail.own]),
            bad=bad,
            cursor=self.cursor,
            stats=stats,
            thumbs=self._plan.thumbnail_px > 0,
            pin_memory=self._pin_memory,
        )
        self._tail = None
        self._ahead.begin(self._positions(), self.cursor.pass_number)
        return batch

    def end_pass(self, unread: int | None = None, unusable: Mapping[str, int] | None = None) -> None:
        """As `Loader.end_pass`."""
        super().end_pass(unread, unusable)
        self._tail = None

    def _unfilled(self) -> Sequence[Chunk | NotEnough | BudgetSpent | TailSamples]:
        return super()._unfilled() if self._tail is None else self._tail.parts()

    def _end_chunks(self, state: Readiness) -> None:
        going_on = False
        if state is Readiness.PASS_ENDED:
            going_on = self.begin_tail(self.unread_by_lane())
        elif state is Readiness.TAIL_FOUND:
            going_on = self.deal_tail(self.tail_found)
        if not going_on:
            self.end_pass()

    def _after_tail(self, after: Cursor) -> Cursor:
        """The cursor after a tail."""
        return after

    def _ask(self, tail: _Tail, request_id: int, task: ReadTail | ReadSamples) -> None:
        tail.missing.add(request_id)
        self._pool.submit(Request(request_id, (task,), accepted=self.cursor.accepted))

    def _state(self) -> Readiness:
        tail = self._tail
        if tail is None:
            return super()._state()
        if tail.missing:
            return Readiness.WAITING
        for _, failure in sorted(tail.failures.items()):
            if isinstance(failure, BudgetSpent):
                raise too_many_bad(self.cursor, failure.stats, failure.bad, self._plan)
            raise failure.error
        return Readiness.TAIL_FOUND if tail.own is None else Readiness.READY

    def _take_in(self, reply: Reply) -> None:
        if self._tail is None:
            super()._take_in(reply)
            return
        self._tail.missing.remove(reply.request_id)
        for result in reply.results:
            self._keep(self._tail, reply.request_id, result)

    def _keep(self, tail: _Tail, request_id: int, result: Result) -> None:
        if isinstance(result, TailSamples):
            tail.remains[result.after.lane] = result
        elif isinstance(result, Reread):
            tail.recalled += result.stats
        elif isinstance(result, Failed | BudgetSpent):
            tail.failures[request_id] = result
