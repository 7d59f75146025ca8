"""Who answers the loader's requests: reader processes, or the calling process itself.

Readers are stateless, so a dead one is replaced and its requests are asked again. One that hangs, as reads
from storage that is away do, is killed first. A record in whose decoder one reader after the other dies is
not decoded any more: it is counted as unusable, and the cursor remembers it.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from stream.errors import WorkerFailed
from stream.loader.assemble import KILLS_DECODER
from stream.loader.plan import ReadPlan
from stream.loader.shared_memory import BatchFrame, SharedBuffer
from stream.loader.step import Readiness
from stream.loader.tasks import Failed, Reply, Request, Result, Task, handle
from stream.processes import DEATHS_OF_ONE_RECORD, Job, Loss, NoStart, Processes, RecordRef
from stream.source import Source, SourceSpec

logger = logging.getLogger(__name__)

MOST_DEADLY = 100
"""With more records than this that kill their decoder, it is not the records."""
SILENCE_S = 300.0
"""A reader that was waited for so long hangs, if it neither answered nor began another record meanwhile."""
_DRAIN_S = 1.0


class Pool(Protocol):
    """Answers requests in any order; not thread-safe."""

    @property
    def restarts(self) -> int:
        """Readers that died or hung and were replaced."""
        ...

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

    restarts = 0

    def __init__(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> None:
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


class ProcessPool:
    """Reader processes.

    Requests are dealt at once, each to the least busy reader, so that all of them have work while the
    learner computes. Handing over never blocks: requests and replies are small, samples travel in the buffer.

    Args:
        spec: opens the stream in each process.
        plan: how records become samples.
        buffer: memory that replies are laid out in.
        workers: how many processes; >= 1.
        silence_s: see SILENCE_S.
        most_deadly: see MOST_DEADLY.
    """

    def __init__(
        self,
        spec: SourceSpec,
        plan: ReadPlan,
        buffer: SharedBuffer,
        workers: int,
        *,
        silence_s: float = SILENCE_S,
        most_deadly: int = MOST_DEADLY,
    ) -> None:
        self._deadly = frozenset[RecordRef]()
        self._most_deadly = most_deadly
        self._processes = Processes[Request, Reply](
            "stream.loader.worker:open_reader",
            (spec, plan, buffer),
            count=workers,
            silence_s=silence_s,
            lost=self._lost,
            name="swavstream-reader",
        )
        self.pids = self._processes.pids

    @property
    def restarts(self) -> int:
        """Readers that died or hung and were replaced."""
        return self._processes.restarts

    @property
    def pending(self) -> int:
        """Requests not answered yet."""
        return self._processes.pending

    def submit(self, request: Request) -> None:
        """Hand a request to the least busy reader."""
        self._processes.submit([Job(replace(request, deadly=self._deadly))])

    def collect(self, timeout_s: float) -> list[Reply]:
        """Replies that have come; readers that died or hang are replaced, their requests asked again.

        Raises:
            WorkerFailed: none can be started.
        """
        try:
            return [job.answer for job in self._processes.collect(timeout_s) if job.answer is not None]
        except NoStart as error:
            raise WorkerFailed(f"of the reader processes {error}; is there too little memory?") from error

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more, and forget the replies."""
        while self.pending:
            self.collect(_DRAIN_S)

    def close(self) -> None:
        """End all readers and wait for them."""
        self._processes.close()

    def _lost(self, job: Job[Request, Reply], loss: Loss) -> Reply | None:
        """A reader was lost at a request; the reply where it cannot be answered.

        A record in whose decoder three readers in a row died is left out from now on, and the request asked
        again: whenever and however often that happens, the same record is the one that is left out. One that
        dies in no decoder, perhaps before it has begun, was killed or has too little memory.
        """
        record = job.record_to_blame
        if record is None and not job.hopeless:
            return None
        if record is None or len(self._deadly) >= self._most_deadly:
            failed = Failed(_unreadable(job, loss.exit_code))
            return Reply(job.asked.request_id, (failed,) * len(job.asked.tasks))
        self._deadly |= {record}
        job.asked = replace(job.asked, deadly=self._deadly)
        job.deaths.clear()
        logger.warning(
            "%d readers died while they decoded unit %d, record %d: it is skipped, with reason %s",
            DEATHS_OF_ONE_RECORD,
            *record,
            KILLS_DECODER,
        )
        return None


def _unreadable(job: Job[Request, Reply], exit_code: int | None) -> WorkerFailed:
    where = "; ".join(map(str, job.asked.tasks))
    return WorkerFailed(
        f"{len(job.deaths)} reader processes ended, the last with exit code {exit_code}, while they "
        f"read {where}: look there for a record that crashes its decoder, for storage that does not answer, "
        "or for too little memory"
    )


def open_pool(spec: SourceSpec, source: Source, plan: ReadPlan, buffer: SharedBuffer, workers: int) -> Pool:
    """Reader processes; with 0 workers the calling process, which reads by its own view of the stream."""
    if workers:
        return ProcessPool(spec, plan, buffer, workers)
    return InlinePool(source, plan, buffer.frames)
