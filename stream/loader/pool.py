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
from stream.loader.tasks import Failed, Reply, Request, Task, handle
from stream.processes import DEATHS_OF_ONE_RECORD, Job, Loss, NoStart, Processes, RecordRef
from stream.source import Source, SourceSpec

logger = logging.getLogger(__name__)

MOST_DEADLY = 100
"""With more records than this that kill their decoder, it is not the records."""
SILENCE_S = 300.0
"""A reader that was waited for so long hangs, if it neither answered nor began another record meanwhile."""
_DRAIN_S = 1.0

ReaderJob = Job[Request, Reply]
Lost = Callable[[ReaderJob, Loss], Reply | None]


class Pool(Protocol):
    """What `Requests` needs of `stream.processes.Processes`."""

    @property
    def restarts(self) -> int: ...  # noqa: D102

    @property
    def pending(self) -> int: ...  # noqa: D102

    def submit(self, jobs: Sequence[ReaderJob]) -> None: ...  # noqa: D102

    def collect(self, timeout_s: float) -> list[ReaderJob]: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class InlinePool:
    """Answers in the calling process (implements Pool), one request at a `collect`."""

    restarts = 0

    def __init__(self, source: Source, plan: ReadPlan, frames: Sequence[BatchFrame]) -> None:
        self._source, self._plan, self._frames = source, plan, frames
        self._jobs: deque[ReaderJob] = deque()

    @property
    def pending(self) -> int:
        """Jobs not answered yet."""
        return len(self._jobs)

    def submit(self, jobs: Sequence[ReaderJob]) -> None:
        """Keep jobs for `collect`."""
        self._jobs.extend(jobs)

    def collect(self, timeout_s: float) -> list[ReaderJob]:
        """Answer the oldest job; blocks as long as reading takes."""
        job = self._jobs.popleft()
        job.reply = handle(self._source, self._plan, self._frames, job.request)
        return [job]

    def close(self) -> None:
        """Forget what was asked."""
        self._jobs.clear()


def open_pool(
    spec: SourceSpec,
    source: Source,
    plan: ReadPlan,
    buffer: SharedBuffer,
    workers: int,
    lost: Lost,
    *,
    silence_s: float = SILENCE_S,
) -> Pool:
    """Reader processes; with 0 workers the calling process, which reads by its own view of the stream.

    Samples travel in the buffer, so requests are small, and so are replies, but for encoded images where the
    plan wants them. A reader whose reply is larger than a pipe's buffer reads no request on before the reply
    is taken; handing a request over does not wait for that.
    """
    if not workers:
        return InlinePool(source, plan, buffer.frames)
    return Processes(
        "stream.loader.worker:open_reader",
        (spec, plan, buffer),
        count=workers,
        silence_s=silence_s,
        lost=lost,
        name="swavstream-reader",
    )


class Requests:
    """Requests in work, each with the function that takes its reply; not thread-safe.

    Args:
        opened: opens the readers, given what decides about a request at which one of them was lost.
    """

    def __init__(self, opened: Callable[[Lost], Pool]) -> None:
        self.waiting = False
        """Nothing is in work: what is waited for has not arrived. May be read by any thread."""
        self._deadly = frozenset[RecordRef]()
        self._takers: dict[ReaderJob, Callable[[Reply], None]] = {}
        self._pool = opened(self._lost)
        self.close = self._pool.close

    @property
    def restarts(self) -> int:
        """Readers that died or hung and were replaced."""
        return self._pool.restarts

    def submit(self, tasks: Sequence[Task], take: Callable[[Reply], None], *, accepted: int = 0) -> None:
        """Have one reader do some tasks; does not wait.

        Args:
            tasks: one after the other.
            take: called by `wait_for` with the results.
            accepted: as in `Request`.
        """
        job = ReaderJob(Request(tuple(tasks), self._deadly, accepted))
        self._takers[job] = take
        self._pool.submit([job])

    def wait_for(self, state: Callable[[], Readiness], timeout_s: float) -> Readiness:
        """Hand out replies until a state is no longer WAITING, for so long at most; the state."""
        deadline = time.monotonic() + timeout_s
        left = timeout_s
        while (found := state()) is Readiness.WAITING and left >= 0:
            self.waiting = not self._pool.pending
            if self.waiting:
                time.sleep(left)
            else:
                for job in self._collect(left):
                    assert job.reply is not None
                    self._takers.pop(job)(job.reply)
            left = deadline - time.monotonic()
        self.waiting = self.waiting and found is Readiness.WAITING
        return found

    def take_replies(self) -> None:
        """Hand out the replies that have come; does not wait.

        A reader whose reply is larger than a pipe's buffer reads nothing on before that is taken. Requests
        that a reader had no room for are sent on.
        """
        for job in self._collect(0.0):
            assert job.reply is not None
            self._takers.pop(job)(job.reply)

    def drain(self) -> None:
        """Wait until no reader writes into a frame any more; no reply is handed out."""
        while self._pool.pending:
            self._collect(_DRAIN_S)
        self._takers.clear()

    def _collect(self, timeout_s: float) -> list[ReaderJob]:
        try:
            return self._pool.collect(timeout_s)
        except NoStart as error:
            raise WorkerFailed(f"of the reader processes {error}; is there too little memory?") from error

    def _lost(self, job: ReaderJob, loss: Loss) -> Reply | None:
        """A reader was lost at a request; the reply where it cannot be answered.

        A record in whose decoder three readers in a row died is left out from now on, and the request asked
        again: whenever and however often that happens, the same record is the one that is left out. One that
        dies in no decoder, perhaps before it has begun, was killed or has too little memory.
        """
        record = job.record_to_blame
        if record is None and not job.hopeless:
            return None
        if record is None or len(self._deadly) >= MOST_DEADLY:
            return (Failed(_unreadable(job, loss.exit_code)),) * len(job.request.tasks)
        self._deadly |= {record}
        job.request = replace(job.request, deadly=self._deadly)
        job.deaths.clear()
        logger.warning(
            "%d readers died while they decoded unit %d, record %d: it is skipped, with reason %s",
            DEATHS_OF_ONE_RECORD,
            *record,
            KILLS_DECODER,
        )
        return None


def _unreadable(job: ReaderJob, exit_code: int | None) -> WorkerFailed:
    where = "; ".join(map(str, job.request.tasks))
    return WorkerFailed(
        f"{len(job.deaths)} reader processes ended, the last with exit code {exit_code}, while they "
        f"read {where}: look there for a record that crashes its decoder, for storage that does not answer, "
        "or for too little memory"
    )
