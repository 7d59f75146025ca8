"""What a reader does: the chunk of a lane that starts at a position, as a pure function.

A reader holds no position. It is asked for the chunk of a lane from a position on, lays the samples out in a
frame, and answers with the position after them; any reader gives the same reply.

For a tail it also names the samples that a lane still has. For a replay or a tail it reads samples again by
the place of their records, or takes their encoded images from memory. No pixels are kept anywhere: the record
is decoded again, and other views are cut from it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stream.errors import BadRecord, StreamDamaged, StreamError, StreamMismatch
from stream.lanes import LaneStats, Position
from stream.loader.assemble import BatchAssembler, Met, ReadStats
from stream.loader.plan import ReadPlan
from stream.loader.shared_memory import BatchFrame
from stream.processes import RecordRef
from stream.record import UNKNOWN_TYPE, Record
from stream.source import Availability, Entry, Source

Sample = tuple[int, int, int, int]
"""Lane and number in it, which are its name; unit and index of its record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(Met):
    """C samples lie in the frame."""

    after: Position
    images: tuple[bytes, ...] = ()
    """Their encoded images, where the plan wants them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotEnough(Met):
    """The lane cannot fill a chunk from this position now; nothing was consumed.

    Only of a lane that has ended it says what its records from the position on are.
    """

    lane: int
    needs: int
    """The request is worth asking again once so many records of the lane may be read."""
    ended: bool
    """It never will: no further record comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpent(Met):
    """So many records were unusable that this step alone is over the budget."""


@dataclass(frozen=True, slots=True)
class Reread:
    """Samples that were read before lie in the frame again."""

    stats: LaneStats
    """Bytes and seconds; no record is counted twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailSamples(Met):
    """What a lane still has, by name: no frame holds it yet."""

    after: Position
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """What was wanted cannot be had: what the source raised."""

    error: Exception


Result = Chunk | NotEnough | BudgetSpent | Reread | TailSamples | Failed


class Task(Protocol):
    """One thing that a reader may be asked for; small and picklable. Its text says where it lies."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> Result:
        """Read it, and lay it out in its frame."""
        ...


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """One chunk: from where, and where its samples go (implements Task)."""

    position: Position
    pass_number: int
    frame: int
    column: int
    ended: bool = False
    """The asker knows that the lane ends before a chunk is full; which of its records are bad is asked."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> Result:
        """The chunk, or why it cannot be had."""
        found = read_chunk(
            source, self.position, self.pass_number, plan, frames[self.frame], self.column, ended=self.ended
        )
        # This process may not see the end yet, although it has just looked: asking again would not help.
        return replace(found, ended=True) if self.ended and isinstance(found, NotEnough) else found

    def __str__(self) -> str:
        position = self.position
        return f"lane {position.lane} at unit {position.unit}, place {position.base}+{position.idx}"


@dataclass(frozen=True, slots=True)
class Request:
    """What one reader is asked for at once."""

    tasks: tuple[Task, ...]
    deadly: frozenset[RecordRef] = frozenset()
    """Records that were found to kill their decoder, beside those of the plan."""
    accepted: int = 0
    """As of a `ReadPlan`: the run has so many records still to read, on all its lanes, without a budget."""


Reply = tuple[Result, ...]
"""One result for each task of a request."""


def handle(source: Source, plan: ReadPlan, frames: Sequence[BatchFrame], request: Request) -> Reply:
    """Do all tasks of one request."""
    if request.deadly:
        plan = replace(plan, deadly=plan.deadly | request.deadly)
    if request.accepted:
        plan = replace(plan, accepted=request.accepted)
    results: list[Result] = []
    for task in request.tasks:
        try:
            result = task.result(source, plan, frames)
        except (StreamError, OSError) as error:  # raised by the loader, when the run comes to this place
            results.append(Failed(error))
        except Exception as error:  # noqa: BLE001  one bad record: the run saves what it has, and names it
            failure = StreamError(f"reading failed at {task}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            results.append(Failed(failure))
        else:
            results.append(result)
    return tuple(results)


def read_chunk(
    source: Source,
    position: Position,
    pass_number: int,
    plan: ReadPlan,
    frame: BatchFrame,
    column: int,
    *,
    ended: bool = False,
) -> Chunk | NotEnough | BudgetSpent:
    """Read on from a position until a chunk of good samples is laid out.

    A function of its arguments and of what is committed. Unusable records are skipped and counted, also those
    of a lane that ends before the chunk is full.

    Args:
        source: the stream.
        position: where the lane stands.
        pass_number: which pass over the stream.
        plan: how records become samples.
        frame: memory that the samples go to.
        column: of the frame, where the chunk's first sample goes.
        ended: another process has seen the end of the lane.

    Returns:
        A Chunk; or NotEnough or BudgetSpent, and then these columns of the frame hold no sample.

    Raises:
        StreamError: what the source raises.
    """
    availability = availability_from(source, position, pass_number)
    if not availability.ended and (ended or availability.available < plan.chunk):
        source.refresh()
        availability = source.availability(position, pass_number)
    if availability.available < plan.chunk and not availability.ended:
        return NotEnough(lane=position.lane, needs=plan.chunk, ended=False)
    batch = BatchAssembler(plan=plan, frame=frame, column=column)
    clock = time.perf_counter()
    for entry, after in source.read(position, pass_number):
        batch.read_s += time.perf_counter() - clock
        batch.count(entry)
        try:
            batch.add(entry, lane=position.lane, seq=position.seq + batch.used)
        except BadRecord as error:
            batch.skip(entry, position.lane, error.reason)
            if batch.spent():
                return BudgetSpent(**batch.met())
        if batch.used == plan.chunk:
            batch.finish()
            end = replace(after, seq=position.seq + plan.chunk)
            return Chunk(after=end, images=tuple(batch.images), **batch.met())
        clock = time.perf_counter()
    needs = max(batch.read, availability.available) + plan.chunk - batch.used
    met = batch.met() if availability.ended else {}
    return NotEnough(lane=position.lane, needs=needs, ended=availability.ended, **met)


def availability_from(source: Source, position: Position, pass_number: int) -> Availability:
    """What a lane still has after a position that another process may have found in newer commits."""
    try:
        return source.availability(position, pass_number)
    except StreamMismatch:
        source.refresh()
    return source.availability(position, pass_number)


@dataclass(frozen=True, slots=True)
class ReadSamples:
    """Samples that were read before, and where they go (implements Task)."""

    samples: tuple[Sample, ...]
    draw: int
    """0: the views of its arrival, and its thumbnail. Another one at each replay: it gives other views."""
    frame: int
    column: int
    """Of the first one; the others follow."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> Reread:
        """Lay the samples out.

        Raises:
            StreamDamaged: a record can no longer be used.
            StreamError: what the source raises.
        """
        batch = BatchAssembler(plan=plan, frame=frames[self.frame], column=self.column)
        for lane, seq, unit, index in self.samples:
            clock = time.perf_counter()
            entry = source.entry(unit, index)
            batch.read_s += time.perf_counter() - clock
            batch.num_bytes += entry.size
            _add_again(batch, entry, lane=lane, seq=seq, draw=self.draw, help_="mend the stream")
        batch.finish()
        # Counted as read and used when it arrived.
        return Reread(replace(batch.lane_stats(), used=0))

    def __str__(self) -> str:
        places = ", ".join(f"{unit}/{index}" for _, _, unit, index in self.samples)
        return f"lane {self.samples[0][0]} and on, again, unit/record {places}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayImages:
    """Samples whose encoded images lie in `ReadPlan.images`, and where they go (implements Task)."""

    samples: tuple[Sample, ...]
    keys: tuple[str, ...]
    """SHA-256 of each image as its record stated it; empty where it stated none."""
    start: int
    """Where the first image lies; the others follow."""
    sizes: tuple[int, ...]
    """Of each image, bytes."""
    draw: int
    """As of `ReadSamples`; > 0."""
    frame: int
    column: int
    """Of the first one; the others follow."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> Reread:
        """Lay the samples out; nothing of the stream is read.

        Raises:
            StreamDamaged: an image can no longer be used.
        """
        assert plan.images is not None, "who asks has put them there"
        batch = BatchAssembler(plan=plan, frame=frames[self.frame], column=self.column)
        start = self.start
        for (lane, seq, unit, index), key, size in zip(self.samples, self.keys, self.sizes, strict=True):
            record = Record(payload=plan.images.read(start, size), sha256=key, media_type=UNKNOWN_TYPE)
            entry = Entry(unit=unit, index=index, record=record)
            _add_again(
                batch, entry, lane=lane, seq=seq, draw=self.draw, help_="is reader.max_pixels lower now?"
            )
            start += size
        batch.finish()
        return Reread(replace(batch.lane_stats(), used=0))

    def __str__(self) -> str:
        places = ", ".join(f"{unit}/{index}" for _, _, unit, index in self.samples)
        return f"lane {self.samples[0][0]} and on, from memory, unit/record {places}"


def _add_again(batch: BatchAssembler, entry: Entry, *, lane: int, seq: int, draw: int, help_: str) -> None:
    """Lay out a sample that was good before.

    Raises:
        StreamDamaged: it is not now.
    """
    try:
        batch.add(entry, lane=lane, seq=seq, draw=draw)
    except BadRecord as error:
        raise StreamDamaged(
            f"lane {lane}, unit {entry.unit}, record {entry.index} was used before and is now unusable: "
            f"{error}; {help_}"
        ) from error


@dataclass(frozen=True, slots=True)
class ReadTail:
    """The next samples of a lane, or all that it has up to its end (implements Task)."""

    position: Position
    pass_number: int
    most: int
    """Samples that are wanted at most; >= 1."""

    def result(
        self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]
    ) -> TailSamples | BudgetSpent:
        """Read on, and see by decoding which records are good; where no sample is missing, to the end.

        Raises:
            StreamError: this process does not see the end of the stream; what the source raises.
        """
        position = after = self.position
        if not availability_from(source, position, self.pass_number).ended:
            source.refresh()
            if not source.availability(position, self.pass_number).ended:
                raise StreamError(f"{self}: the stream was seen sealed, and is not now; run the same again")
        stats, samples = ReadStats(plan=plan), list[Sample]()
        clock = time.perf_counter()
        for entry, after in source.read(position, self.pass_number):  # noqa: B007  the last one counts
            stats.read_s += time.perf_counter() - clock
            stats.count(entry)
            try:
                stats.image(entry)
            except BadRecord as error:
                stats.skip(entry, position.lane, error.reason)
                if stats.spent():
                    return BudgetSpent(**stats.met())
            else:
                samples.append((position.lane, position.seq + stats.used, entry.unit, entry.index))
                stats.used += 1
            if stats.used == self.most:
                break
            clock = time.perf_counter()
        after = replace(after, seq=position.seq + stats.used)
        return TailSamples(after=after, samples=tuple(samples), **stats.met())

    def __str__(self) -> str:
        position = self.position
        return f"lane {position.lane} from unit {position.unit}, place {position.base}+{position.idx}, on"
