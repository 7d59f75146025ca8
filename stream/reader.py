"""What a reader does: the chunk of a lane that starts at a position, as a pure function.

A reader holds no position. It is asked for the chunk of a lane from a position on, lays the samples out in a
frame, and answers with the position after them; any reader gives the same answer. (It may also be asked for
samples that were read before: recall.py.)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stream import crops
from stream.decode import decode_image
from stream.errors import BadRecord, StreamError, StreamMismatch
from stream.lanes import LaneStats, Position
from stream.marks import Place
from stream.plan import ReadPlan
from stream.record import Record
from stream.slabs import KEY_BYTES, Frame
from stream.source import Entry, Outlook, Source

BAD_PLACES = 10_000
"""So many places of unusable records are remembered of a chunk; the budget is spent before."""
KILLS_DECODER = "kills_decoder"
"""Reason of a record in whose decoder one reader after the other died."""


@dataclass(frozen=True, slots=True)
class BadPlace:
    """Where an unusable record stands, and why it is unusable."""

    lane: int
    unit: int
    index: int
    reason: str

    def __str__(self) -> str:
        return f"lane {self.lane}, unit {self.unit}, record {self.index}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """C samples lie in the frame."""

    after: Position
    stats: LaneStats
    bad: tuple[BadPlace, ...]
    deadly: tuple[Place, ...] = ()
    """Records that were left out because they kill their decoder."""
    newest: float = 0.0
    """When the newest of its records was put on the stream, seconds since 1970; 0 = not known."""


@dataclass(frozen=True, slots=True)
class Short:
    """The lane cannot fill a chunk from this position now; nothing was consumed."""

    lane: int
    needs: int
    """The question is worth asking again once so many records of the lane may be read."""
    ended: bool
    """It never will: no further record comes."""


@dataclass(frozen=True, slots=True)
class Spent:
    """So many records were unusable that this step alone is over the budget."""

    stats: LaneStats
    bad: tuple[BadPlace, ...]


@dataclass(frozen=True, slots=True)
class Recalled:
    """Samples that were read before lie in the frame again."""

    stats: LaneStats
    """Bytes and seconds; no record is counted twice."""


@dataclass(frozen=True, slots=True)
class Failed:
    """What was wanted cannot be had: what the source raised."""

    error: Exception


Result = Chunk | Short | Spent | Recalled | Failed


class Task(Protocol):
    """One thing that a reader may be asked for; small and picklable. Its text says where it lies."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[Frame]) -> Result:
        """Read it, and lay it out in its frame."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """One chunk: from where, and where its samples go (implements Task)."""

    position: Position
    pass_number: int
    frame: int
    column: int

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[Frame]) -> Result:
        """The chunk, or why it cannot be had."""
        return read_chunk(source, self.position, self.pass_number, plan, frames[self.frame], self.column)

    def __str__(self) -> str:
        position = self.position
        return f"lane {position.lane} at unit {position.unit}, place {position.base}+{position.idx}"


@dataclass(frozen=True, slots=True)
class Question:
    """What one reader is asked for at once."""

    ticket: int
    wanted: tuple[Task, ...]
    deadly: frozenset[Place] = frozenset()
    """Records that were found to kill their decoder, beside those of the plan."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One result for each task that was wanted."""

    ticket: int
    results: tuple[Result, ...]


def answer(source: Source, plan: ReadPlan, frames: Sequence[Frame], question: Question) -> Answer:
    """Do all tasks of one question."""
    if question.deadly:
        plan = replace(plan, deadly=plan.deadly | question.deadly)
    results: list[Result] = []
    for wanted in question.wanted:
        try:
            result = wanted.result(source, plan, frames)
        except (StreamError, OSError) as error:  # raised by the loader, when the run comes to this place
            results.append(Failed(error))
        except Exception as error:  # noqa: BLE001  one bad record: the run saves what it has, and names it
            failure = StreamError(f"reading failed at {wanted}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            results.append(Failed(failure))
        else:
            results.append(result)
    return Answer(question.ticket, tuple(results))


def read_chunk(
    source: Source, position: Position, pass_number: int, plan: ReadPlan, frame: Frame, column: int
) -> Chunk | Short | Spent:
    """Read on from a position until a chunk of good samples is laid out.

    A function of its arguments and of what is committed. Unusable records are skipped and counted.

    Args:
        source: the stream.
        position: where the lane stands.
        pass_number: which pass over the stream.
        plan: how records become samples.
        frame: memory that the samples go to.
        column: of the frame, where the chunk's first sample goes.

    Returns:
        A Chunk; or Short or Spent, and then these columns of the frame hold no sample.

    Raises:
        StreamError: what the source raises.
    """
    outlook = outlook_from(source, position, pass_number)
    if outlook.available < plan.chunk and not outlook.ended:
        source.refresh()
        outlook = source.outlook(position, pass_number)
    if outlook.available < plan.chunk:
        return Short(position.lane, plan.chunk, outlook.ended)
    layout = Layout(plan, frame, column)
    clock = time.perf_counter()
    for entry, after in source.read(position, pass_number):
        layout.read_s += time.perf_counter() - clock
        layout.read += entry.count
        layout.newest = max(layout.newest, entry.time)
        layout.num_bytes += entry.size
        try:
            layout.add(entry, lane=position.lane, seq=position.seq + layout.used)
        except BadRecord as error:
            layout.skip(entry, position.lane, error.reason)
            bad = layout.stats().seen - layout.used
            # The other chunks of this step can only add good records up to a whole batch.
            if plan.over_budget(bad + plan.batch, bad):
                return Spent(layout.stats(), tuple(layout.bad))
        if layout.used == plan.chunk:
            layout.finish()
            return Chunk(
                replace(after, seq=position.seq + plan.chunk),
                layout.stats(),
                tuple(layout.bad),
                tuple(layout.deadly),
                layout.newest,
            )
        clock = time.perf_counter()
    known = max(layout.read, outlook.available)
    return Short(position.lane, known + plan.chunk - layout.used, outlook.ended)


def outlook_from(source: Source, position: Position, pass_number: int) -> Outlook:
    """What a lane still has after a position that another process may have found in newer commits."""
    try:
        return source.outlook(position, pass_number)
    except StreamMismatch:
        source.refresh()
    return source.outlook(position, pass_number)


@dataclass(slots=True)
class Layout:
    """Samples while they are laid out, with the account of what was met."""

    plan: ReadPlan
    frame: Frame
    column: int
    """Of the frame, where the first sample goes."""
    read: int = 0
    used: int = 0
    num_bytes: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    crop_s: float = 0.0
    newest: float = 0.0
    skipped: dict[str, int] = field(default_factory=dict)
    bad: list[BadPlace] = field(default_factory=list)
    deadly: list[Place] = field(default_factory=list)
    floats: list[NDArray[np.float64]] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    refs: list[tuple[int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    def add(self, entry: Entry, *, lane: int, seq: int, draw: int = 0) -> None:
        """Decode one record and cut its views into the next column; the thumbnail only at its first draw.

        Raises:
            BadRecord: it cannot be used; the column is still free.
        """
        record = entry.record
        if record is None:
            raise BadRecord(entry.reason)
        plan, column = self.plan, self.column + self.used
        if (entry.unit, entry.index) in plan.deadly:
            raise BadRecord(KILLS_DECODER)
        start = time.perf_counter()
        if plan.mark is not None:
            plan.mark.set(entry.unit, entry.index)
        try:
            image = decode_image(record.payload, max_pixels=plan.max_pixels)
        finally:
            if plan.mark is not None:
                plan.mark.clear()
            decoded = time.perf_counter()
            self.decode_s += decoded - start
        views = crops.num_views(plan.crops)
        floats = crops.draw(plan.seed, lane, seq, draw, views * crops.FLOATS_PER_VIEW)
        floats = floats.reshape(views, crops.FLOATS_PER_VIEW)
        crops.multi_crop_into(image, plan.crops, floats, self.frame.crops, column)
        if plan.thumbnail_px and draw == 0:
            self.frame.thumbs[column] = crops.thumbnail(image, plan.thumbnail_px)
        self.floats.append(floats)
        self.seqs.append(seq)
        self.refs.append((entry.unit, entry.index))
        self.keys.append(_key(record))
        self.used += 1
        self.crop_s += time.perf_counter() - decoded

    def skip(self, entry: Entry, lane: int, reason: str) -> None:
        """Count a record that cannot be used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + entry.count
        if reason == KILLS_DECODER:
            self.deadly.append((entry.unit, entry.index))
        if len(self.bad) < BAD_PLACES:
            self.bad.append(BadPlace(lane, entry.unit, entry.index, reason))

    def finish(self) -> None:
        """Write what is cheaper to write for all samples at once."""
        columns = slice(self.column, self.column + self.used)
        uniforms = crops.uniforms(np.stack(self.floats, axis=1))
        self.frame.uniforms[:, columns] = torch.from_numpy(uniforms)
        self.frame.seq_B[columns] = torch.tensor(self.seqs, dtype=torch.int64)
        self.frame.refs_B2[columns] = torch.tensor(self.refs, dtype=torch.int64)
        keys = torch.frombuffer(bytearray(b"".join(self.keys)), dtype=torch.uint8)
        self.frame.keys[columns] = keys.view(self.used, KEY_BYTES)

    def stats(self) -> LaneStats:
        """The account so far."""
        return LaneStats(
            read=self.read,
            used=self.used,
            skipped=dict(sorted(self.skipped.items())),
            bytes=self.num_bytes,
            read_s=self.read_s,
            decode_s=self.decode_s,
            crop_s=self.crop_s,
        )


def _key(record: Record) -> bytes:
    return record.sha256.encode("ascii", "replace")[:KEY_BYTES].ljust(KEY_BYTES, b"\0")
