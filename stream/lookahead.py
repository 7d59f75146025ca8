"""Asks readers for chunks, a few steps ahead of the learner, from positions that are known.

Chunks of a lane follow from each other: the next is asked for when the position after the one before is
known. What was asked for or read ahead is not state: at a resume it is asked for again.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from stream.lanes import Position
from stream.pool import Pool
from stream.reader import Answer, Chunk, Failed, Question, Short, Spent, Wanted, outlook_from
from stream.slabs import Frame
from stream.source import Source

_SAMPLES_OF_A_QUESTION = 32
"""So many small images make a question long enough (about 5 ms at 32 pixels) that asking costs little."""
_QUESTIONS_A_READER = 2
"""Each step gives each reader at least so many questions, if lanes allow, so that they finish together."""


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
    last: Short | None = None
    """What was found in the place of the chunk that a lane which has ended could not fill."""
    newest: float = 0.0
    """When the newest record of its last chunk was put on the stream; 0 = not known."""
    failure: Failed | Spent | None = None
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
        by_reader = -(-len(lanes) // (_QUESTIONS_A_READER * max(1, workers)))
        self._lanes_at_once = min(by_reader, -(-_SAMPLES_OF_A_QUESTION // chunk))
        self._ticket = 0
        self._asked: dict[int, tuple[Wanted, ...]] = {}
        self._pass_number = 0
        self._step = 0
        self._chunks: dict[int, dict[int, Chunk]] = {}
        self._heads: dict[int, Head] = {}
        self._next_look = 0.0
        self.accepted = 0
        """Goes with each question: see `Question`."""

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
        # One step a question: when readers die of it, no chunk of an earlier step is lost with it.
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

    def take_in(self, reply: Answer) -> None:
        """Take in the answer to a question that was asked here."""
        wanted = self._asked.pop(reply.ticket)
        for one, result in zip(wanted, reply.results, strict=True):
            head = self._heads[one.position.lane]
            head.asked = False
            if isinstance(result, Chunk):
                self._chunks.setdefault(head.step, {})[result.after.lane] = result
                head.position, head.needs, head.newest = result.after, 0, result.newest
                head.step += 1
            elif isinstance(result, Short):
                head.needs, head.ended = result.needs, result.ended
                head.last = result if result.ended else None
            elif isinstance(result, Failed | Spent):
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

    def failure(self) -> Failed | Spent | None:
        """Why the current step can never be had. Told only now, so that it does not depend on look-ahead."""
        for head in self._heads.values():
            if head.failure is not None and head.step == self._step:
                return head.failure
        return None

    def unfilled(self) -> list[Chunk | Short | Spent]:
        """What reading found for the current step, of which a pass that ends here makes no batch."""
        here = [head for head in self._heads.values() if head.step == self._step]
        lasts = [head.last or head.failure for head in here]
        return [
            *self._chunks.get(self._step, {}).values(),
            *(x for x in lasts if isinstance(x, Short | Spent)),
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

    def batch(self, frames: Sequence[Frame]) -> Frame:
        """The frame of the current step."""
        return frames[self.frame]

    def fetched(self) -> dict[int, tuple[Position, float]]:
        """For each lane, the position that reading ahead has come to, and the time of its newest record."""
        return {lane: (head.position, head.newest) for lane, head in self._heads.items()}

    def _submit(self, heads: Sequence[Head]) -> None:
        wanted = tuple(
            Wanted(head.position, self._pass_number, head.step % self._num_frames, head.column, head.ending)
            for head in heads
        )
        for head in heads:
            head.asked = True
        self._ticket += 1
        self._asked[self._ticket] = wanted
        self._pool.submit(Question(self._ticket, wanted, accepted=self.accepted))

    def _look_for_the_starved(self) -> None:
        """Look for records that lanes wait for.

        At once when the pass can end here: a lane may only seem to wait because this process has not seen the
        end of the stream yet, and what its last records are worth is still to be asked.
        """
        if any(head.starved for head in self._heads.values()):
            self.look(at_once=self.ended())

    def _available(self, head: Head) -> bool:
        """Whether asking for the lane's next chunk is worth it: to fill it, or to see what the last holds."""
        outlook = outlook_from(self._source, head.position, self._pass_number)
        enough = outlook.available >= max(head.needs, self._chunk)
        head.starved = not outlook.ended and not enough
        head.ending = outlook.ended and not enough
        head.ended = head.ending and outlook.available == 0
        return enough or (head.ending and not head.ended)
