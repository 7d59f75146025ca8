"""Asks readers for chunks, a few steps ahead of the learner, from positions that are known.

Chunks of a lane follow from each other: the next is asked for when the position after the one before is
known. What was asked for or read ahead is not state: at a resume it is asked for again.

An order says which chunks make a step. In `LaneOrder` each lane gives one. In `ArrivalOrder` they are those
that came first: as many as the rank has lanes, from whichever are ready. So a lane without records does not
stop the others. Each lane's own chunks stay in order, so still nothing is lost or repeated. Which chunks make
a step depends on when they came.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

import torch

from stream.cursor import Cursor
from stream.lanes import LaneStats, Position
from stream.loader.assemble import Met
from stream.loader.budget import too_many_bad
from stream.loader.open_stream import OpenStream
from stream.loader.shared_memory import BatchFrame, joined_frame
from stream.loader.step import Readiness, Step
from stream.loader.tasks import BudgetSpent, Chunk, Failed, NotEnough, ReadChunk, Reply, availability_from

STRICT, AVAILABLE = "strict", "available"
"""Modes: see `LaneOrder` and `ArrivalOrder`."""
Slot = tuple[int, int]
"""Frame and first column of a chunk."""


@dataclass(slots=True)
class Head:
    """Where asking for one lane stands."""

    position: Position
    column: int
    step: int
    """Step that the lane's next chunk is for; stays as it is in `ArrivalOrder`."""
    asked: bool = False
    needs: int = 0
    """The next chunk is worth asking for once so many records may be read."""
    starved: bool = False
    ending: bool = False
    """No record comes beyond those that are there."""
    ended: bool = False
    """No further chunk comes."""
    last: NotEnough | None = None
    """What was found in the place of the chunk that a lane which has ended could not fill."""
    newest: float = 0.0
    """When the newest record of its last chunk was put on the stream; 0 = not known."""
    failure: Failed | BudgetSpent | None = None
    """Why the next chunk can never be had."""

    @property
    def idle(self) -> bool:
        """Whether asking for the next chunk can be of use now."""
        return not (self.asked or self.ended or self.starved or self.failure)


class LaneOrder:
    """Each lane gives one chunk to each step: a function of the data alone.

    Args:
        num_frames: so many steps may be in work at once; step s is laid out in frame s mod num_frames.
    """

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._heads: Sequence[Head] = ()
        self._step = 0
        self._chunks: dict[int, dict[int, Chunk]] = {}

    def begin(self, heads: Sequence[Head]) -> None:
        """Forget all chunks; these are the lanes of the rank."""
        self._heads = heads
        self._chunks.clear()
        for head in heads:
            head.step = self._step

    def turns(self) -> Iterable[Head]:
        """Lanes that there is memory for, in the order of asking: the nearest steps first."""
        heads = [head for head in self._heads if head.step < self._step + self._num_frames]
        return sorted(heads, key=lambda head: (head.step, head.column))

    def slot(self, head: Head) -> Slot:
        """Take memory for the next chunk of a lane."""
        return head.step % self._num_frames, head.column

    def keep(self, head: Head, slot: Slot, chunk: Chunk) -> None:
        """The lane's next chunk lies there."""
        self._chunks.setdefault(head.step, {})[chunk.after.lane] = chunk
        head.step += 1

    def release(self, slot: Slot) -> None:
        """No chunk lies there."""

    def here(self) -> Sequence[Head]:
        """Lanes that can still give a chunk to the current step."""
        return [head for head in self._heads if head.step == self._step]

    def complete(self) -> bool:
        """Whether the current step has all its chunks."""
        return len(self.came()) == len(self._heads)

    def ended(self) -> bool:
        """Whether some lane can never fill its chunk of the current step, because no record comes."""
        return any(head.ended for head in self.here())

    def came(self) -> Sequence[Chunk]:
        """What has come for the current step, complete or not."""
        return list(self._chunks.get(self._step, {}).values())

    def step(self, frames: Sequence[BatchFrame]) -> tuple[Sequence[Chunk], BatchFrame]:
        """The chunks of the current step, lanes ascending and in order in each, and the frame of them all."""
        chunks = sorted(self.came(), key=lambda chunk: chunk.after.lane)
        return chunks, frames[self._step % self._num_frames]

    def advance(self) -> None:
        """Go to the next step; the memory of this one is filled again."""
        del self._chunks[self._step]
        self._step += 1


class ArrivalOrder:
    """A step is as many chunks as the rank has lanes, in the order of their arrival. Methods as `LaneOrder`.

    Args:
        num_frames: memory for so many steps.
        chunk: C.
    """

    def __init__(self, num_frames: int, chunk: int) -> None:
        self._num_frames, self._chunk = num_frames, chunk
        self._heads: Sequence[Head] = ()
        self._came: deque[tuple[Chunk, Slot]] = deque()

    def begin(self, heads: Sequence[Head]) -> None:
        """Lanes take turns, else the first ones would be read alone where frames are few."""
        self._heads, self._turns = heads, deque(heads)
        self._came.clear()
        self._free = deque((frame, head.column) for frame in range(self._num_frames) for head in heads)

    def turns(self) -> Iterable[Head]:
        """All lanes, as long as memory is free; the next call begins with the lane after the last."""
        for _ in range(len(self._turns)):
            if not self._free:
                return
            self._turns.rotate(-1)
            yield self._turns[-1]

    def slot(self, head: Head) -> Slot:
        """Any that is free."""
        return self._free.popleft()

    def keep(self, head: Head, slot: Slot, chunk: Chunk) -> None:
        """Its place in a step is its place in the queue."""
        self._came.append((chunk, slot))

    def release(self, slot: Slot) -> None:
        """It is free again."""
        self._free.append(slot)

    def here(self) -> Sequence[Head]:
        """All lanes."""
        return self._heads

    def complete(self) -> bool:
        """Whether there are chunks for a step."""
        return len(self._came) >= len(self._heads)

    def ended(self) -> bool:
        """Whether no lane gives a further chunk."""
        return all(head.ended for head in self._heads)

    def came(self) -> Sequence[Chunk]:
        """The oldest chunks, as many as make a step."""
        return [chunk for chunk, _ in islice(self._came, len(self._heads))]

    def step(self, frames: Sequence[BatchFrame]) -> tuple[Sequence[Chunk], BatchFrame]:
        """The frame is memory of its own."""
        oldest = islice(self._came, len(self._heads))
        pairs = sorted(oldest, key=lambda pair: (pair[0].after.lane, pair[0].after.seq))
        parts = [frames[frame].columns(slice(at, at + self._chunk)) for _, (frame, at) in pairs]
        return [chunk for chunk, _ in pairs], joined_frame(parts)

    def advance(self) -> None:
        """The oldest chunks leave their memory."""
        for _ in range(len(self._heads)):
            self._free.append(self._came.popleft()[1])


class ChunkSource:
    """Steps made of chunks: what is asked for, and what has come (implements StepSource).

    Args:
        stream: of this rank.
        cursor: where reading begins.
        mode: STRICT or AVAILABLE.
    """

    def __init__(self, stream: OpenStream, cursor: Cursor, mode: str = STRICT) -> None:
        self._stream, self._plan = stream, stream.plan
        by_lane = mode == STRICT
        frames = stream.num_ahead
        self._order = LaneOrder(frames) if by_lane else ArrivalOrder(frames, self._plan.chunk)
        self._lanes_at_once = stream.per_request(self._plan.chunk)
        self._next_look = 0.0
        self.begin(cursor)

    @property
    def starving(self) -> tuple[int, ...]:
        """Lanes of which the next chunk cannot be read before records arrive."""
        return tuple(head.position.lane for head in self._heads if head.starved)

    def begin(self, cursor: Cursor) -> None:
        """Forget what was read ahead, and read on from there."""
        self._stream.requests.drain()  # readers still write into the frames
        self._cursor = cursor
        self._heads = [
            Head(position, number * self._plan.chunk, 0)
            for number, position in enumerate(self._stream.positions(cursor))
        ]
        self._order.begin(self._heads)

    def look(self, *, at_once: bool = False) -> None:
        """Look for new records, but not more often than `poll_s` unless at once. May block on I/O."""
        now = time.monotonic()
        if at_once or now >= self._next_look:
            self._next_look = now + self._stream.config.poll_s
            self._stream.source.refresh()
            for head in self._heads:
                head.starved = False

    def state(self, cursor: Cursor) -> Readiness:
        """See StepSource. A failure is raised when the run has come to it: reading ahead must not count."""
        self._cursor = cursor
        self._ask()
        if self._order.complete():
            return Readiness.READY
        here = self._order.here()
        if any(head.asked for head in here):
            return Readiness.WAITING
        if self._order.ended():
            return Readiness.PASS_ENDED
        failure = next((head.failure for head in here if head.failure is not None), None)
        if isinstance(failure, BudgetSpent):
            raise too_many_bad(cursor, failure.stats, failure.bad, self._plan)
        if failure is not None:
            raise failure.error
        return Readiness.WAITING

    def stats(self) -> LaneStats:
        """See StepSource."""
        return sum((chunk.stats for chunk in self._order.came()), LaneStats())

    def step(self) -> Step:
        """See StepSource."""
        chunks, frame = self._order.step(self._stream.frames)
        lane_B = torch.tensor([chunk.after.lane for chunk in chunks]).repeat_interleave(self._plan.chunk)
        return Step(frame=frame, lane_B=lane_B, dealt_B=lane_B, parts=tuple(chunks))

    def advance(self) -> None:
        """See StepSource."""
        self._order.advance()
        self._ask()

    def unfilled(self) -> list[Met]:
        """What reading found for the current step, of which a pass that ends here makes no batch."""
        lasts = [head.last or head.failure for head in self._order.here()]
        return [*self._order.came(), *(last for last in lasts if isinstance(last, Met))]

    def fetched(self) -> dict[int, tuple[Position, float]]:
        """For each lane, the position that reading ahead has come to, and the time of its newest record."""
        return {head.position.lane: (head.position, head.newest) for head in self._heads}

    def _ask(self) -> None:
        """Ask for every chunk that may be asked for now."""
        if any(head.starved for head in self._heads):
            # At once when the pass can end here: a lane may only seem to wait because this process has not
            # seen the end of the stream yet, and what its last records are worth is still to be asked.
            self.look(at_once=self._order.ended())
        asked = [
            (head, self._order.slot(head))
            for head in self._order.turns()
            if head.idle and self._available(head)
        ]
        # One step a request: when readers die of it, no chunk of an earlier step is lost with it.
        for _, same_step in groupby(asked, key=lambda pair: pair[0].step):
            while group := list(islice(same_step, self._lanes_at_once)):
                self._submit(group)

    def _submit(self, group: Sequence[tuple[Head, Slot]]) -> None:
        tasks = []
        for head, (frame, column) in group:
            head.asked = True
            tasks.append(ReadChunk(head.position, self._cursor.pass_number, frame, column, head.ending))
        self._stream.requests.submit(tasks, partial(self._take_in, group), accepted=self._cursor.accepted)

    def _take_in(self, group: Sequence[tuple[Head, Slot]], results: Reply) -> None:
        for (head, slot), result in zip(group, results, strict=True):
            head.asked = False
            if isinstance(result, Chunk):
                self._order.keep(head, slot, result)
                head.position, head.needs, head.newest = result.after, 0, result.newest
                continue
            self._order.release(slot)
            if isinstance(result, NotEnough):
                head.needs, head.ended = result.needs, result.ended
                head.last = result if result.ended else None
            elif isinstance(result, Failed | BudgetSpent):
                head.failure = result

    def _available(self, head: Head) -> bool:
        """Whether asking for the lane's next chunk is worth it: to fill it, or to see what the last holds."""
        left = availability_from(self._stream.source, head.position, self._cursor.pass_number)
        enough = left.available >= max(head.needs, self._plan.chunk)
        head.starved = not left.ended and not enough
        head.ending = left.ended and not enough
        head.ended = head.ending and left.available == 0
        return enough or (head.ending and not head.ended)
