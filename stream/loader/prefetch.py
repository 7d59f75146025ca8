"""Asks readers for chunks, a few steps ahead of the learner, from positions that are known.

Chunks of a lane follow from each other: the next is asked for when the position after the one before is
known. What was asked for or read ahead is not state: at a resume it is asked for again.

Without an order among lanes a step is made of the chunks that came first: as many as the rank has lanes, from
whichever are ready, so a lane without records does not stop the others. Each lane's own chunks stay in order,
so still nothing is lost or repeated; which chunks make a step depends on when they came.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch

from stream.lanes import Position
from stream.loader.pool import Pool
from stream.loader.shared_memory import BatchFrame
from stream.loader.tasks import (
    BudgetSpent,
    Chunk,
    Failed,
    NotEnough,
    ReadChunk,
    Reply,
    Request,
    availability_from,
)
from stream.source import Source

_SAMPLES_OF_A_REQUEST = 32
"""So many small images make a request long enough (about 5 ms at 32 pixels) that asking costs little."""
_REQUESTS_A_READER = 2
"""Each step gives each reader at least so many requests, if lanes allow, so that they finish together."""


@dataclass(slots=True)
class Head:
    """Where asking for one lane stands."""

    position: Position
    column: int
    step: int
    """Step that the lane's next chunk is for."""
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


class Lookahead:
    """What is asked for and what has come.

    Args:
        source: this process's view of the stream.
        pool: who answers.
        lanes: of this rank, ascending; lane number n has columns n x chunk and on.
        chunk: C.
        num_frames: so many steps may be in work at once; step s is laid out in frame s mod num_frames.
        workers: readers that answer at once.
        poll_s: seconds between two looks for new records.
    """

    def __init__(
        self,
        source: Source,
        pool: Pool,
        *,
        lanes: Sequence[int],
        chunk: int,
        num_frames: int,
        workers: int,
        poll_s: float,
    ) -> None:
        self._source, self._pool = source, pool
        self._lanes, self._chunk, self._num_frames, self._poll_s = lanes, chunk, num_frames, poll_s
        by_reader = -(-len(lanes) // (_REQUESTS_A_READER * max(1, workers)))
        self._lanes_at_once = min(by_reader, -(-_SAMPLES_OF_A_REQUEST // chunk))
        self._request_id = 0
        self._asked: dict[int, tuple[ReadChunk, ...]] = {}
        self._pass_number = 0
        self._step = 0
        self._chunks: dict[int, dict[int, Chunk]] = {}
        self._heads: dict[int, Head] = {}
        self._next_look = 0.0
        self.accepted = 0
        """Goes with each request: see `Request`."""

    @property
    def frame(self) -> int:
        """Number of the frame in which the current step is laid out."""
        return self._step % self._num_frames

    @property
    def starving(self) -> tuple[int, ...]:
        """Lanes of which the next chunk cannot be read before records arrive."""
        return tuple(lane for lane, head in self._heads.items() if head.starved)

    def begin(self, positions: Iterable[Position], pass_number: int) -> None:
        """Forget what was read ahead, and ask from these positions on, one a lane."""
        self._pool.drain()  # readers still write into the frames
        self._asked.clear()
        self._chunks.clear()
        self._pass_number = pass_number
        self._heads = {
            position.lane: Head(position, number * self._chunk, self._step)
            for number, position in enumerate(positions)
        }

    def ask(self) -> None:
        """Ask for every chunk that may be asked for now, the nearest steps first. Does not wait."""
        self._look_for_the_starved()
        end = self._step + self._num_frames
        heads = [
            head
            for head in self._heads.values()
            if head.step < end
            and not (head.asked or head.ended or head.starved or head.failure)
            and self._available(head)
        ]
        heads.sort(key=lambda head: (head.step, head.column))
        # One step a request: when readers die of it, no chunk of an earlier step is lost with it.
        for _, same_step in groupby(heads, key=lambda head: head.step):
            while group := list(islice(same_step, self._lanes_at_once)):
                self._submit(group)

    def look(self, *, at_once: bool = False) -> None:
        """Look for new records, but not more often than `poll_s` unless at once. May block on I/O."""
        now = time.monotonic()
        if at_once or now >= self._next_look:
            self._next_look = now + self._poll_s
            self._source.refresh()
            for head in self._heads.values():
                head.starved = False

    def take_in(self, reply: Reply) -> None:
        """Take in the reply to a request that was asked here."""
        wanted = self._asked.pop(reply.request_id)
        for one, result in zip(wanted, reply.results, strict=True):
            head = self._heads[one.position.lane]
            head.asked = False
            if isinstance(result, Chunk):
                self._chunks.setdefault(head.step, {})[result.after.lane] = result
                head.position, head.needs, head.newest = result.after, 0, result.newest
                head.step += 1
            elif isinstance(result, NotEnough):
                head.needs, head.ended = result.needs, result.ended
                head.last = result if result.ended else None
            elif isinstance(result, Failed | BudgetSpent):
                head.failure = result

    def complete(self) -> bool:
        """Whether every lane has its chunk of the current step."""
        return len(self._chunks.get(self._step, ())) == len(self._lanes)

    def settled(self) -> bool:
        """Whether no chunk of the current step is in work, so that what is known of it will not change."""
        return not any(head.asked and head.step == self._step for head in self._heads.values())

    def ended(self) -> bool:
        """Whether some lane can never fill its chunk of the current step, because no record comes."""
        return any(head.ended and head.step == self._step for head in self._heads.values())

    def failure(self) -> Failed | BudgetSpent | None:
        """Why the current step can never be had. Told only now, so that it does not depend on look-ahead."""
        for head in self._heads.values():
            if head.failure is not None and head.step == self._step:
                return head.failure
        return None

    def unfilled(self) -> list[Chunk | NotEnough | BudgetSpent]:
        """What reading found for the current step, of which a pass that ends here makes no batch."""
        here = [head for head in self._heads.values() if head.step == self._step]
        lasts = [head.last or head.failure for head in here]
        return [
            *self._chunks.get(self._step, {}).values(),
            *(x for x in lasts if isinstance(x, NotEnough | BudgetSpent)),
        ]

    def chunks(self) -> list[Chunk]:
        """The current step's chunks, in lane order."""
        chunks = self._chunks[self._step]
        return [chunks[lane] for lane in self._lanes]

    def advance(self) -> None:
        """Go to the next step; the frame of this one is filled again."""
        del self._chunks[self._step]
        self._step += 1
        self.ask()

    def lanes(self) -> list[int]:
        """Lane of each chunk of the current step, as `batch` lays them out."""
        return list(self._lanes)

    def batch(self, frames: Sequence[BatchFrame]) -> BatchFrame:
        """The frame of the current step."""
        return frames[self.frame]

    def fetched(self) -> dict[int, tuple[Position, float]]:
        """For each lane, the position that reading ahead has come to, and the time of its newest record."""
        return {lane: (head.position, head.newest) for lane, head in self._heads.items()}

    def _submit(self, heads: Sequence[Head]) -> None:
        wanted = tuple(
            ReadChunk(
                head.position, self._pass_number, head.step % self._num_frames, head.column, head.ending
            )
            for head in heads
        )
        for head in heads:
            head.asked = True
        self._request_id += 1
        self._asked[self._request_id] = wanted
        self._pool.submit(Request(self._request_id, wanted, accepted=self.accepted))

    def _look_for_the_starved(self) -> None:
        """Look for records that lanes wait for.

        At once when the pass can end here: a lane may only seem to wait because this process has not seen the
        end of the stream yet, and what its last records are worth is still to be asked.
        """
        if any(head.starved for head in self._heads.values()):
            self.look(at_once=self.ended())

    def _available(self, head: Head) -> bool:
        """Whether asking for the lane's next chunk is worth it: to fill it, or to see what the last holds."""
        availability = availability_from(self._source, head.position, self._pass_number)
        enough = availability.available >= max(head.needs, self._chunk)
        head.starved = not availability.ended and not enough
        head.ending = availability.ended and not enough
        head.ended = head.ending and availability.available == 0
        return enough or (head.ending and not head.ended)


Slot = tuple[int, int]
"""BatchFrame and first column of a chunk."""


class AvailableLookahead(Lookahead):
    """What is asked for and what has come; arguments as for `Lookahead`."""

    def begin(self, positions: Iterable[Position], pass_number: int) -> None:
        """As `Lookahead.begin`."""
        super().begin(positions, pass_number)
        self._came: deque[tuple[Chunk, Slot]] = deque()
        self._slots: dict[int, Slot] = {}
        self._free: deque[Slot] = deque(
            (frame, number * self._chunk)
            for frame in range(self._num_frames)
            for number in range(len(self._lanes))
        )
        # Lanes take turns, else the first ones would be read alone where frames are few.
        self._turns = deque(self._heads)

    def ask(self) -> None:
        """Ask for a chunk of each lane that has records, as far as there is memory. Does not wait."""
        self._look_for_the_starved()
        heads: list[Head] = []
        for _ in range(len(self._turns)):
            if len(heads) == len(self._free):
                break
            lane = self._turns[0]
            self._turns.rotate(-1)
            head = self._heads[lane]
            busy = head.asked or head.ended or head.starved or head.failure
            if not busy and self._available(head):
                heads.append(head)
        waiting = iter(heads)
        while group := list(islice(waiting, self._lanes_at_once)):
            wanted = []
            for head in group:
                head.asked = True
                frame, column = self._slots[head.position.lane] = self._free.popleft()
                wanted.append(ReadChunk(head.position, self._pass_number, frame, column, head.ending))
            self._request_id += 1
            self._asked[self._request_id] = tuple(wanted)
            self._pool.submit(Request(self._request_id, tuple(wanted), accepted=self.accepted))

    def take_in(self, reply: Reply) -> None:
        """Take in the reply to a request that was asked here."""
        wanted = self._asked.pop(reply.request_id)
        for one, result in zip(wanted, reply.results, strict=True):
            lane = one.position.lane
            head, slot = self._heads[lane], self._slots.pop(lane)
            head.asked = False
            if isinstance(result, Chunk):
                self._came.append((result, slot))
                head.position, head.needs, head.newest = result.after, 0, result.newest
                continue
            self._free.append(slot)
            if isinstance(result, NotEnough):
                head.needs, head.ended = result.needs, result.ended
                head.last = result if result.ended else None
            elif isinstance(result, Failed | BudgetSpent):
                head.failure = result

    def complete(self) -> bool:
        """Whether there are chunks for a step."""
        return len(self._came) >= len(self._lanes)

    def settled(self) -> bool:
        """Whether no chunk is in work."""
        return not any(head.asked for head in self._heads.values())

    def ended(self) -> bool:
        """Whether no lane gives a further chunk, and those that came do not fill a step."""
        return all(head.ended for head in self._heads.values())

    def failure(self) -> Failed | BudgetSpent | None:
        """Why a lane can give no further chunk, when the others do not fill the step."""
        return next((head.failure for head in self._heads.values() if head.failure is not None), None)

    def unfilled(self) -> list[Chunk | NotEnough | BudgetSpent]:
        """What reading found that a pass which ends here makes no batch of."""
        lasts = [head.last or head.failure for head in self._heads.values()]
        return [
            *(chunk for chunk, _ in self._came),
            *(x for x in lasts if isinstance(x, NotEnough | BudgetSpent)),
        ]

    def chunks(self) -> list[Chunk]:
        """The chunks of the step, in the order in which they came; those of a lane follow each other."""
        return [chunk for chunk, _ in islice(self._came, len(self._lanes))]

    def lanes(self) -> list[int]:
        """Lane of each chunk, in the order in which `batch` lays them out."""
        return [chunk.after.lane for chunk, _ in self._step_sorted()]

    def batch(self, frames: Sequence[BatchFrame]) -> BatchFrame:
        """The samples of the step, in memory of their own: lanes ascending, and in order in each."""
        places = [(frames[frame], slice(at, at + self._chunk)) for _, (frame, at) in self._step_sorted()]
        return BatchFrame(
            crops=tuple(
                torch.cat([frame.crops[kind][:, columns] for frame, columns in places], 1)
                for kind in range(len(frames[0].crops))
            ),
            uniforms=torch.cat([frame.uniforms[:, columns] for frame, columns in places], 1),
            thumbs=torch.cat([frame.thumbs[columns] for frame, columns in places]),
            seq_B=torch.cat([frame.seq_B[columns] for frame, columns in places]),
            refs_B2=torch.cat([frame.refs_B2[columns] for frame, columns in places]),
            keys=torch.cat([frame.keys[columns] for frame, columns in places]),
        )

    def advance(self) -> None:
        """Go to the next step; the memory of this one is filled again."""
        for _ in range(len(self._lanes)):
            _, slot = self._came.popleft()
            self._free.append(slot)
        self.ask()

    def _step_sorted(self) -> list[tuple[Chunk, Slot]]:
        step = list(islice(self._came, len(self._lanes)))
        return sorted(step, key=lambda pair: (pair[0].after.lane, pair[0].after.seq))
