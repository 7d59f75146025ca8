"""Who answers the loader's questions: reader processes, or the calling process itself.

Readers are stateless, so a dead one is replaced and its questions are asked again. One that hangs, as reads
from storage that is away do, is killed first. A record in whose decoder one reader after the other dies is
not decoded any more: it is counted as unusable, and the cursor remembers it.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from stream.errors import WorkerFailed
from stream.loader import worker
from stream.loader.assemble import KILLS_DECODER
from stream.loader.fork_server import fork_server
from stream.loader.plan import Mark, Place, ReadPlan
from stream.loader.shared_memory import Frame, Slab
from stream.loader.tasks import Answer, Failed, Question, answer
from stream.source import Source, SourceSpec

logger = logging.getLogger(__name__)

DEATHS_OF_ONE_QUESTION = 3
"""So many readers in a row may die in the decoder of one record before that is taken for the cause."""
MOST_DEATHS_OF_ONE_QUESTION = 9
"""So many may die of one question at different places, or in no decoder, and no record of it be the cause."""
MOST_DEADLY = 100
"""With more records than this that kill their decoder, it is not the records."""
SILENCE_S = 300.0
"""A reader that was waited for so long hangs, if it neither answered nor began another record meanwhile."""
_GRACE_S = 1.0
"""A reader that ends has so long before it is killed; it is in the middle of a chunk at most."""


class Pool(Protocol):
    """Answers questions in any order; not thread-safe."""

    restarts: int
    """Readers that died and were replaced."""

    @property
    def pending(self) -> int:
        """Questions not answered yet."""
        ...

    def submit(self, question: Question) -> None:
        """Hand a question over; does not wait for the answer."""
        ...

    def collect(self, timeout_s: float) -> list[Answer]:
        """Answers that have come; waits so long at most for the first."""
        ...

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more, and forget the answers."""
        ...

    def close(self) -> None:
        """End the readers. May be called twice."""
        ...


class InlinePool:
    """Answers in the calling process, one question at a `collect`."""

    def __init__(self, source: Source, plan: ReadPlan, frames: Sequence[Frame]) -> None:
        self.restarts = 0
        self._source, self._plan, self._frames = source, plan, frames
        self._questions: deque[Question] = deque()

    @property
    def pending(self) -> int:
        """Questions not answered yet."""
        return len(self._questions)

    def submit(self, question: Question) -> None:
        """Keep a question for `collect`."""
        self._questions.append(question)

    def collect(self, timeout_s: float) -> list[Answer]:
        """Answer the oldest question; blocks as long as reading takes."""
        if not self._questions:
            return []
        return [answer(self._source, self._plan, self._frames, self._questions.popleft())]

    def drain(self) -> None:
        """Forget what was asked."""
        self._questions.clear()

    def close(self) -> None:
        """Forget what was asked."""
        self._questions.clear()


@dataclass(slots=True, eq=False)
class _Reader:
    """One reader process and what it was asked, oldest first."""

    process: BaseProcess
    connection: "Connection[Any, Any]"
    mark: Mark
    asked: deque[Question] = field(default_factory=deque)
    silent_s: float = 0.0
    """Seconds spent waiting since it last got on; time in which no caller waited does not count."""
    latest: Place = (0, 0)
    """The record that it had come to then."""

    def waited(self, seconds: float) -> None:
        """Note that a caller waited for it."""
        latest = self.mark.latest()
        self.silent_s = self.silent_s + seconds if self.asked and latest == self.latest else 0.0
        self.latest = latest


class ProcessPool:
    """Reader processes, forked from a server that has imported what they need.

    Questions are dealt at once, each to the least busy reader, so that all of them have work while the
    learner computes. Handing over never blocks: questions and answers are small, samples travel in the slab.

    Args:
        spec: opens the stream in each process.
        plan: how records become samples.
        slab: memory that answers are laid out in.
        workers: how many processes; >= 1.
    """

    def __init__(self, spec: SourceSpec, plan: ReadPlan, slab: Slab, workers: int) -> None:
        self.restarts = 0
        self._arguments = (spec, plan, slab)
        self._context = fork_server([worker.__name__])
        self._deaths: dict[int, list[Place | None]] = {}
        """Of each question, where readers died of it: at which record's decoder, or elsewhere."""
        self._deadly = frozenset[Place]()
        self._readers: list[_Reader] = []
        # multiprocessing joins its children at exit, and ours wait until their connections are closed: close
        # them before that, also when `close` was never called.
        self._end = util.Finalize(self, _end_readers, args=(self._readers,), exitpriority=100)
        for _ in range(workers):
            self._readers.append(self._start())

    @property
    def pending(self) -> int:
        """Questions not answered yet."""
        return sum(len(reader.asked) for reader in self._readers)

    def pids(self) -> list[int]:
        """Process ids of the readers."""
        return [reader.process.pid or 0 for reader in self._readers]

    def submit(self, question: Question) -> None:
        """Hand a question to the least busy reader."""
        self._ask(min(self._readers, key=lambda reader: len(reader.asked)), question)

    def collect(self, timeout_s: float) -> list[Answer]:
        """Answers that have come; readers that died or hang are replaced, their questions asked again."""
        by_connection = {reader.connection: reader for reader in self._readers}
        answers: list[Answer] = []
        began = time.monotonic()
        with_news = wait(list(by_connection), timeout_s)
        # No longer than was asked for: a machine that slept meanwhile is no reader's fault.
        waited = min(time.monotonic() - began, timeout_s)
        for reader in self._readers:
            reader.waited(waited)
        for ready in with_news:
            reader = by_connection[ready]  # type: ignore[index]  # wait() is typed for sockets and numbers too
            try:
                while reader.connection.poll():
                    reply: Answer = reader.connection.recv()
                    reader.asked.popleft()
                    reader.silent_s = 0.0
                    self._deaths.pop(reply.ticket, None)
                    answers.append(reply)
            except (EOFError, OSError):
                answers += self._replace(reader)
        for reader in self._readers:
            if reader.silent_s > SILENCE_S:
                logger.warning("a reader did not get on for %.0f s: it is replaced", reader.silent_s)
                reader.process.kill()  # the next call finds it dead
                reader.silent_s = 0.0
        return answers

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more, and forget the answers."""
        while self.pending:
            self.collect(_GRACE_S)

    def close(self) -> None:
        """End all readers and wait for them."""
        self._end()

    def _start(self) -> _Reader:
        ours, theirs = self._context.Pipe()
        mark = Mark()
        process = self._context.Process(
            target=worker.serve, args=(theirs, mark, *self._arguments), daemon=True, name="swavstream-reader"
        )
        process.start()
        theirs.close()  # so that the reader's death is the end of the connection
        return _Reader(process, ours, mark)

    def _ask(self, reader: _Reader, question: Question) -> None:
        if question.deadly != self._deadly:
            question = replace(question, deadly=self._deadly)
        reader.asked.append(question)
        # A reader that has just died is noticed when answers are collected, and is replaced there.
        with contextlib.suppress(OSError):
            reader.connection.send(question)

    def _gives_up(self, question: Question, place: Place | None) -> bool:
        """Note a death of a question; whether the question cannot be answered.

        A record in whose decoder three readers in a row died is left out from now on, and the question asked
        again: whenever and however often that happens, the same record is the one that is left out.
        """
        deaths = self._deaths.setdefault(question.ticket, [])
        deaths.append(place)
        # One that dies in no decoder, perhaps before it has begun, was killed or has too little memory.
        if place is None or deaths[-DEATHS_OF_ONE_QUESTION:] != [place] * DEATHS_OF_ONE_QUESTION:
            return len(deaths) >= MOST_DEATHS_OF_ONE_QUESTION
        if len(self._deadly) >= MOST_DEADLY:
            return True
        self._deadly |= {place}
        deaths.clear()
        logger.warning(
            "%d readers died while they decoded unit %d, record %d: it is skipped, with reason %s",
            DEATHS_OF_ONE_QUESTION,
            *place,
            KILLS_DECODER,
        )
        return False

    def _replace(self, reader: _Reader) -> list[Answer]:
        """Put a new reader in the place of a dead one; the answer for what readers die of, if they do."""
        reader.connection.close()
        reader.process.join(_GRACE_S)
        if reader.process.exitcode is None:
            reader.process.kill()
            reader.process.join()
        self.restarts += 1
        given_up = []
        if reader.asked and self._gives_up(reader.asked[0], reader.mark.place()):
            question = reader.asked.popleft()
            failed = Failed(_unreadable(question, self._deaths.pop(question.ticket), reader.process.exitcode))
            given_up = [Answer(question.ticket, (failed,) * len(question.wanted))]
        reader.mark.close()
        fresh = self._start()
        self._readers[self._readers.index(reader)] = fresh
        for question in reader.asked:
            self._ask(fresh, question)
        return given_up


def _unreadable(question: Question, deaths: Sequence[object], exit_code: int | None) -> WorkerFailed:
    where = "; ".join(map(str, question.wanted))
    return WorkerFailed(
        f"{len(deaths)} reader processes ended, the last with exit code {exit_code}, while they "
        f"read {where}: look there for a record that crashes its decoder, for storage that does not answer, "
        "or for too little memory"
    )


def _end_readers(readers: list[_Reader]) -> None:
    for reader in readers:
        reader.connection.close()
    for reader in readers:
        reader.process.join(_GRACE_S)
        if reader.process.exitcode is None:
            reader.process.kill()
            reader.process.join()
        reader.mark.close()
    readers.clear()
