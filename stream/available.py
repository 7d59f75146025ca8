"""Looking ahead without an order among lanes: a step is made of the chunks that came first.

A step is as many chunks as the rank has lanes, from whichever of them are ready, so a lane without records
does not stop the others. Each lane's own chunks stay in order, so still nothing is lost or repeated; which
chunks make a step depends on when they came.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import torch

from stream.lanes import Position
from stream.lookahead import Head, Lookahead
from stream.reader import Answer, Chunk, Failed, Question, Short, Spent, Wanted
from stream.slabs import Frame

Slot = tuple[int, int]
"""Frame and first column of a chunk."""


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
                wanted.append(Wanted(head.position, self._pass_number, frame, column, head.ending))
            self._ticket += 1
            self._asked[self._ticket] = tuple(wanted)
            self._pool.submit(Question(self._ticket, tuple(wanted), accepted=self.accepted))

    def take_in(self, reply: Answer) -> None:
        """Take in the answer to a question that was asked here."""
        wanted = self._asked.pop(reply.ticket)
        for one, result in zip(wanted, reply.results, strict=True):
            lane = one.position.lane
            head, slot = self._heads[lane], self._slots.pop(lane)
            head.asked = False
            if isinstance(result, Chunk):
                self._came.append((result, slot))
                head.position, head.needs, head.newest = result.after, 0, result.newest
                continue
            self._free.append(slot)
            if isinstance(result, Short):
                head.needs, head.ended = result.needs, result.ended
                head.last = result if result.ended else None
            elif isinstance(result, Failed | Spent):
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

    def failure(self) -> Failed | Spent | None:
        """Why a lane can give no further chunk, when the others do not fill the step."""
        return next((head.failure for head in self._heads.values() if head.failure is not None), None)

    def unfilled(self) -> list[Chunk | Short | Spent]:
        """What reading found that a pass which ends here makes no batch of."""
        lasts = [head.last or head.failure for head in self._heads.values()]
        return [*(chunk for chunk, _ in self._came), *(x for x in lasts if isinstance(x, Short | Spent))]

    def chunks(self) -> list[Chunk]:
        """The chunks of the step, in the order in which they came; those of a lane follow each other."""
        return [chunk for chunk, _ in islice(self._came, len(self._lanes))]

    def lanes(self) -> list[int]:
        """Lane of each chunk, in the order in which `batch` lays them out."""
        return [chunk.after.lane for chunk, _ in self._step_sorted()]

    def batch(self, frames: Sequence[Frame]) -> Frame:
        """The samples of the step, in memory of their own: lanes ascending, and in order in each."""
        places = [(frames[frame], slice(at, at + self._chunk)) for _, (frame, at) in self._step_sorted()]
        return Frame(
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
