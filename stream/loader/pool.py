"""Who answers the loader's requests: reader processes, or the calling process itself.

Readers are stateless, so a dead one is replaced and its requests are asked again. One that hangs, as reads
from storage that is away do, is killed first. A record in whose decoder one reader after the other dies is
not decoded any more: it is counted as unusable, and the cursor remembers it.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from stream.errors import WorkerFailed
from stream.loader import worker
from stream.loader.assemble import KILLS_DECODER
from stream.loader.fork_server import fork_server
from stream.loader.plan import InFlightRecord, ReadPlan, RecordRef
from stream.loader.shared_memory import BatchFrame, SharedBuffer
from stream.loader.step import Readiness
from stream.loader.tasks import Failed, Reply, Request, Result, Task, handle
from stream.source import Source, SourceSpec

logger = logging.getLogger(__name__)

DEATHS_OF_ONE_REQUEST = 3
"""So many readers in a row may die in the decoder of one record before that is taken for the cause."""
MOST_DEATHS_OF_ONE_REQUEST = 9
"""So many may die of one request at different places, or in no decoder, and no record of it be the cause."""
MOST_DEADLY = 100
"""With more records than this that kill their decoder, it is not the records."""
SILENCE_S = 300.0
"""A reader that was waited for so long hangs, if it neither answered nor began another record meanwhile."""
_GRACE_S = 1.0
"""A reader that ends has so long before it is killed; it is in the middle of a chunk at most."""


class Pool(Protocol):
    """Answers requests in any order; not thread-safe."""

    restarts: int
    """Readers that died and were replaced."""

    @property
    def pending(self) -> int:
        """Requests not answered yet."""
        ...

    def submit(self, request: Request) -> None:
        """Hand a request over; does not wait for the reply."""
        ...

    def collect(self, timeout_s: float) -> list[Reply]:
        """Replies that have come; waits so long at most for the first."""
        ...

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more, and forget the replies."""
        ...

    def close(self) -> None:
        """End the readers. May be called twice."""
        ...


class InlinePool:
    """Answers in the calling process, one request at a `collect`."""

    def __init__(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> None:
        self.restarts = 0
        self._source, self._plan, self._frames = source, plan, frames
        self._requests: deque[Request] = deque()

    @property
    def pending(self) -> int:
        """Requests not answered yet."""
        return len(self._requests)

    def submit(self, request: Request) -> None:
        """Keep a request for `collect`."""
        self._requests.append(request)

    def collect(self, timeout_s: float) -> list[Reply]:
        """Answer the oldest request; blocks as long as reading takes."""
        if not self._requests:
            return []
        return [handle(self._source, self._plan, self._frames, self._requests.popleft())]

    def drain(self) -> None:
        """Forget what was asked."""
        self._requests.clear()

    def close(self) -> None:
        """Forget what was asked."""
        self._requests.clear()


class Requests:
    """Requests in work, each with the function that takes its results; not thread-safe."""

    def __init__(self, pool: Pool) -> None:
        self.waiting = False
        """Nothing is in work: what is waited for has not arrived. May be read by any thread."""
        self._pool = pool
        self._last_id = 0
        self._takers: dict[int, Callable[[Sequence[Result]], None]] = {}

    @property
    def restarts(self) -> int:
        """Readers that died and were replaced."""
        return self._pool.restarts

    def submit(
        self, tasks: Sequence[Task], take: Callable[[Sequence[Result]], None], *, accepted: int = 0
    ) -> None:
        """Have one reader do some tasks; does not wait.

        Args:
            tasks: one after the other.
            take: called by `wait_for` with one result for each task.
            accepted: as in `Request`.
        """
        self._last_id += 1
        self._takers[self._last_id] = take
        self._pool.submit(Request(self._last_id, tuple(tasks), accepted=accepted))

    def wait_for(self, state: Callable[[], Readiness], timeout_s: float) -> Readiness:
        """Hand out results until a state is no longer WAITING, for so long at most; the state."""
        deadline = time.monotonic() + timeout_s
        left = timeout_s
        while (found := state()) is Readiness.WAITING and left >= 0:
            self.waiting = not self._pool.pending
            if self.waiting:
                time.sleep(left)
            else:
                for reply in self._pool.collect(left):
                    self._takers.pop(reply.request_id)(reply.results)
            left = deadline - time.monotonic()
        self.waiting = self.waiting and found is Readiness.WAITING
        return found

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more, and forget all that was submitted."""
        self._pool.drain()
        self._takers.clear()


@dataclass(slots=True, eq=False)
class _Reader:
    """One reader process and what it was asked, oldest first."""

    process: BaseProcess
    connection: "Connection[Any, Any]"
    in_flight: InFlightRecord
    requests: deque[Request] = field(default_factory=deque)
    silent_s: float = 0.0
    """Seconds spent waiting since it last got on; time in which no caller waited does not count."""
    latest: RecordRef = (0, 0)
    """The record that it had come to then."""

    def waited(self, seconds: float) -> None:
        """Note that a caller waited for it."""
        latest = self.in_flight.latest()
        self.silent_s = self.silent_s + seconds if self.requests and latest == self.latest else 0.0
        self.latest = latest


class ProcessPool:
    """Reader processes, forked from a server that has imported what they need.

    Requests are dealt at once, each to the least busy reader, so that all of them have work while the
    learner computes. Handing over never blocks: requests and replies are small, samples travel in the buffer.

    Args:
        spec: opens the stream in each process.
        plan: how records become samples.
        buffer: memory that replies are laid out in.
        workers: how many processes; >= 1.
    """

    def __init__(self, spec: SourceSpec, plan: ReadPlan, buffer: SharedBuffer, workers: int) -> None:
        self.restarts = 0
        self._arguments = (spec, plan, buffer)
        self._context = fork_server([worker.__name__])
        self._deaths: dict[int, list[RecordRef | None]] = {}
        """Of each request, where readers died of it: at which record's decoder, or elsewhere."""
        self._deadly = frozenset[RecordRef]()
        self._readers: list[_Reader] = []
        # multiprocessing joins its children at exit, and ours wait until their connections are closed: close
        # them before that, also when `close` was never called.
        self._end = util.Finalize(self, _end_readers, args=(self._readers,), exitpriority=100)
        for _ in range(workers):
            self._readers.append(self._start())

    @property
    def pending(self) -> int:
        """Requests not answered yet."""
        return sum(len(reader.requests) for reader in self._readers)

    def pids(self) -> list[int]:
        """Process ids of the readers."""
        return [reader.process.pid or 0 for reader in self._readers]

    def submit(self, request: Request) -> None:
        """Hand a request to the least busy reader."""
        self._ask(min(self._readers, key=lambda reader: len(reader.requests)), request)

    def collect(self, timeout_s: float) -> list[Reply]:
        """Replies that have come; readers that died or hang are replaced, their requests asked again."""
        by_connection = {reader.connection: reader for reader in self._readers}
        replies: list[Reply] = []
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
                    reply: Reply = reader.connection.recv()
                    reader.requests.popleft()
                    reader.silent_s = 0.0
                    self._deaths.pop(reply.request_id, None)
                    replies.append(reply)
            except (EOFError, OSError):
                replies += self._replace(reader)
        for reader in self._readers:
            if reader.silent_s > SILENCE_S:
                logger.warning("a reader did not get on for %.0f s: it is replaced", reader.silent_s)
                reader.process.kill()  # the next call finds it dead
                reader.silent_s = 0.0
        return replies

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more, and forget the replies."""
        while self.pending:
            self.collect(_GRACE_S)

    def close(self) -> None:
        """End all readers and wait for them."""
        self._end()

    def _start(self) -> _Reader:
        ours, theirs = self._context.Pipe()
        in_flight = InFlightRecord()
        process = self._context.Process(
            target=worker.serve,
            args=(theirs, in_flight, *self._arguments),
            daemon=True,
            name="swavstream-reader",
        )
        process.start()
        theirs.close()  # so that the reader's death is the end of the connection
        return _Reader(process, ours, in_flight)

    def _ask(self, reader: _Reader, request: Request) -> None:
        if request.deadly != self._deadly:
            request = replace(request, deadly=self._deadly)
        reader.requests.append(request)
        # A reader that has just died is noticed when replies are collected, and is replaced there.
        with contextlib.suppress(OSError):
            reader.connection.send(request)

    def _gives_up(self, request: Request, record: RecordRef | None) -> bool:
        """Note a death of a request; whether the request cannot be answered.

        A record in whose decoder three readers in a row died is left out from now on, and the request asked
        again: whenever and however often that happens, the same record is the one that is left out.
        """
        deaths = self._deaths.setdefault(request.request_id, [])
        deaths.append(record)
        # One that dies in no decoder, perhaps before it has begun, was killed or has too little memory.
        if record is None or deaths[-DEATHS_OF_ONE_REQUEST:] != [record] * DEATHS_OF_ONE_REQUEST:
            return len(deaths) >= MOST_DEATHS_OF_ONE_REQUEST
        if len(self._deadly) >= MOST_DEADLY:
            return True
        self._deadly |= {record}
        deaths.clear()
        logger.warning(
            "%d readers died while they decoded unit %d, record %d: it is skipped, with reason %s",
            DEATHS_OF_ONE_REQUEST,
            *record,
            KILLS_DECODER,
        )
        return False

    def _replace(self, reader: _Reader) -> list[Reply]:
        """Put a new reader in the place of a dead one; the reply for what readers die of, if they do."""
        reader.connection.close()
        reader.process.join(_GRACE_S)
        if reader.process.exitcode is None:
            reader.process.kill()
            reader.process.join()
        self.restarts += 1
        given_up = []
        if reader.requests and self._gives_up(reader.requests[0], reader.in_flight.current()):
            request = reader.requests.popleft()
            failed = Failed(
                _unreadable(request, self._deaths.pop(request.request_id), reader.process.exitcode)
            )
            given_up = [Reply(request.request_id, (failed,) * len(request.tasks))]
        reader.in_flight.close()
        fresh = self._start()
        self._readers[self._readers.index(reader)] = fresh
        for request in reader.requests:
            self._ask(fresh, request)
        return given_up


def _unreadable(request: Request, deaths: Sequence[object], exit_code: int | None) -> WorkerFailed:
    where = "; ".join(map(str, request.tasks))
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
        reader.in_flight.close()
    readers.clear()


def open_pool(spec: SourceSpec, source: Source, plan: ReadPlan, buffer: SharedBuffer, workers: int) -> Pool:
    """Reader processes; with 0 workers the calling process, which reads by its own view of the stream."""
    if workers:
        return ProcessPool(spec, plan, buffer, workers)
    return InlinePool(source, plan, buffer.frames)
