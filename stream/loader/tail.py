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
from functools import partial

import torch

from stream.cursor import Cursor
from stream.lanes import LaneStats
from stream.loader.budget import too_many_bad
from stream.loader.open_stream import SAMPLES_OF_A_REQUEST, OpenStream
from stream.loader.step import Readiness, Step
from stream.loader.tasks import (
    BudgetSpent,
    Failed,
    ReadSamples,
    ReadTail,
    Reply,
    Reread,
    Sample,
    TailSamples,
)


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


class Tail:
    """One step of what remains (implements StepSource); it is no state: at a resume it is made again.

    First readers find out, by decoding, which of the records that come next are good. `state` is TAIL_FOUND
    when those of this rank's lanes are known. `deal`, given those of all ranks, asks for the samples that are
    this rank's in the batch. They may be of any lane: that is why they are read a second time.

    Args:
        stream: of this rank; nothing is in work.
        cursor: where its lanes stand.
        wanted: samples that are wanted at most, by lane, of all ranks.
    """

    def __init__(self, stream: OpenStream, cursor: Cursor, wanted: Mapping[int, int]) -> None:
        self._stream, self._cursor = stream, cursor
        self._missing = 0
        self._found: dict[int, TailSamples] = {}
        self._failures: dict[int, Failed | BudgetSpent] = {}
        """By lane, or by V + column: the first one is raised, whichever came first."""
        self._own: list[tuple[int, Sample]] | None = None
        """Samples that were dealt to this rank, with their lanes there; None before."""
        self._reread = LaneStats()
        for position in stream.positions(cursor):
            if position.lane in wanted:
                task = ReadTail(position, cursor.pass_number, wanted[position.lane])
                self._ask(position.lane, task)

    @property
    def samples(self) -> list[Sample]:
        """The good ones of the samples that remain, of this rank's lanes."""
        return [sample for part in self.parts() for sample in part.samples]

    def deal(self, found: Sequence[Sample]) -> bool:
        """Ask for this rank's samples; False when there are too few in all, and the pass ends.

        Args:
            found: `samples` of all ranks.
        """
        lanes = self._cursor.lanes
        if len(found) < lanes:
            return False
        own = [(lane, some) for lane, some in dealt(found, lanes) if lane in self._stream.lanes]
        at_once = SAMPLES_OF_A_REQUEST
        for column in range(0, len(own), at_once):
            some = tuple(sample for _, sample in own[column : column + at_once])
            self._ask(lanes + column, ReadSamples(some, draw=0, frame=0, column=column))
        self._own = own
        return True

    def state(self, cursor: Cursor) -> Readiness:
        """See StepSource."""
        if self._missing:
            return Readiness.WAITING
        for _, failure in sorted(self._failures.items()):
            if isinstance(failure, BudgetSpent):
                raise too_many_bad(cursor, failure.stats, failure.bad, self._stream.plan)
            raise failure.error
        return Readiness.TAIL_FOUND if self._own is None else Readiness.READY

    def stats(self) -> LaneStats:
        """Account of this rank's lanes' part of the batch, and of reading its own samples again."""
        return sum((part.stats for part in self.parts()), self._reread)

    def advance(self) -> None:
        """There is one step: another tail is another object."""

    def step(self) -> Step:
        """See StepSource."""
        assert self._own is not None
        return Step(
            frame=self._stream.frames[0].columns(slice(len(self._own))),
            lane_B=torch.tensor([lane for _, (lane, _, _, _) in self._own]),
            dealt_B=torch.tensor([lane for lane, _ in self._own]),
            parts=tuple(self.parts()),
        )

    def parts(self) -> list[TailSamples]:
        """What was found, in order of lanes."""
        return [self._found[lane] for lane in sorted(self._found)]

    def _ask(self, number: int, task: ReadTail | ReadSamples) -> None:
        self._missing += 1
        self._stream.requests.submit((task,), partial(self._take_in, number), accepted=self._cursor.accepted)

    def _take_in(self, number: int, results: Reply) -> None:
        self._missing -= 1
        for result in results:
            if isinstance(result, TailSamples):
                self._found[result.after.lane] = result
            elif isinstance(result, Reread):
                self._reread += result.stats
            elif isinstance(result, Failed | BudgetSpent):
                self._failures[number] = result


PassPolicy = Callable[[OpenStream, Cursor, Mapping[int, int]], Tail | None]
"""What becomes of the records that the chunks of a pass leave: gives the next step of them, or None when the
pass ends. It is given the stream of a rank, of which nothing is being read, the cursor, and the records that
each lane of all ranks has."""


def leave_over(_stream: OpenStream, _cursor: Cursor, _unread: Mapping[int, int]) -> Tail | None:
    """They are left over: a `PassPolicy`."""
    return None


def train_tail(stream: OpenStream, cursor: Cursor, unread: Mapping[int, int]) -> Tail | None:
    """They are trained, until fewer than V samples remain: a `PassPolicy`."""
    if sum(unread.values()) < cursor.lanes:
        return None
    return Tail(stream, cursor, quotas(unread, batch=stream.plan.batch))
