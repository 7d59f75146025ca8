"""Processes that prepare images, with a limit on time and memory for each; results come in the order asked.

An image from outside can hang a decoder, exhaust the memory or crash the process; none of that may stop an
ingest or cost another image. A process that dies or hangs is replaced. The image that it was at is given up
with a reason; after a death only if it happens again, since it may have been killed for another's sake.

This module imports nothing heavy, and no decoder comes into the process that only hands out the work: that
would take seconds and memory. The decoders are imported once, by the process that the others are forked from.
"""

import contextlib
import importlib
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import TracebackType
from typing import Self

from ingest.config import IngestConfig
from ingest.errors import PreparersFailed
from ingest.sources import Found
from stream.errors import BadRecord
from stream.loader.fork_server import fork_server
from stream.machine import cores


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as it is stored."""

    payload: bytes
    sha256: str
    """Hex digest of `payload`."""
    media_type: str
    width: int
    """Pixels, upright."""
    height: int


Result = Prepared | BadRecord


DECODERS = "ingest.decode_worker"


def context() -> ForkServerContext:
    """Where to start processes: not forked from this one, whose threads might hold locks."""
    return fork_server([DECODERS])


def begin_imports() -> None:
    """Start that process now, so that it imports while this one does other things. Does not wait."""
    context()
    forkserver.ensure_running()


def serve(connection: Connection, config: IngestConfig) -> None:
    """What a process does, see `ingest.decode_worker.serve`."""
    importlib.import_module(DECODERS).serve(connection, config)


def attempt(found: Found, config: IngestConfig) -> Result:
    """Prepare one image in this process, see `ingest.decode_worker.attempt`."""
    result: Result = importlib.import_module(DECODERS).attempt(found, config)
    return result


BATCH_IMAGES = 32
"""Images sent to a process at once."""
BATCH_BYTES = 2 * 1024 * 1024
BATCH_AGE_S = 0.05
"""An idle process does not wait longer for a full batch."""
AHEAD_IMAGES = 4 * BATCH_IMAGES
"""Images, per process, that may be read before the first of them is given out."""
AHEAD_BYTES = 64 * 1024 * 1024
MOST_CPUS = 4
TICK_S = 0.2
FAILED_STARTS = 3
FAILED_IN_A_ROW = 20
"""Images that crash or hang one after the other until something else must be wrong."""


@dataclass(eq=False, slots=True)
class _Job:
    found: Found
    result: Result | None = None
    crashes: int = 0


@dataclass(eq=False, slots=True)
class _Worker:
    process: ForkServerProcess
    connection: Connection
    ready: bool = False
    jobs: deque[_Job] = field(default_factory=deque)
    """Asked and not yet answered."""
    silent_s: float = 0.0
    """Seconds waited for it since it last said something or was asked; a time in which this whole program was
    held up, by Ctrl-Z or a freezer, counts as one tick."""


def count_of(config: IngestConfig) -> int:
    """Processes that a setting of `workers` means on this machine."""
    if config.workers >= 0:
        return config.workers
    return min(MOST_CPUS, cores())


class Preparers:
    """A pool for one ingest; used from one thread. With no workers it prepares in this process, unguarded."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._count = count_of(config)
        self._workers: list[_Worker] = []
        self._order: deque[_Job] = deque()
        self._batches: deque[list[_Job]] = deque()
        self._filling: list[_Job] = []
        self._filling_since = 0.0
        self._filling_bytes = 0
        self._ahead_bytes = 0
        self._failed_starts = 0
        self._failed_in_a_row = 0
        self.replaced = 0
        """Processes that died or hung and were replaced."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, items: Iterator[Found | None]) -> Iterator[tuple[Found, Result] | None]:
        """Each item with what became of it, in order; None now and then while nothing is ready or comes.

        Raises:
            PreparersFailed: processes do not start, or every image brings one down.
        """
        if self._count == 0:
            for found in items:
                if found is None:
                    yield None
                else:
                    yield found, nothing_to_do(found) or attempt(found, self._config)
            return
        if not self._workers:
            self._workers = [self._start() for _ in range(self._count)]
        more = True
        while more or self._order:
            more = more and self._fill(items)
            self._dispatch(flush=not more)
            if self._order and self._order[0].result is None:
                self._listen()
            if not self._order or self._order[0].result is None:
                yield None
            while self._order and (result := self._order[0].result) is not None:
                found = self._order.popleft().found
                self._ahead_bytes -= len(found.payload)
                yield found, result

    def close(self) -> None:
        """End the processes; what they were at is dropped. May be called twice."""
        for worker in self._workers:
            worker.connection.close()
            if worker.jobs:
                worker.process.kill()  # it holds nothing but an image that no caller waits for
        for worker in self._workers:
            worker.process.join(timeout=1.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def busy(self) -> list[int]:
        """Process ids of those that are at work on an image."""
        return [worker.process.pid for worker in self._workers if worker.jobs and worker.process.pid]

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        process = context().Process(target=serve, args=(theirs, self._config), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _fill(self, items: Iterator[Found | None]) -> bool:
        """Read on until enough is on its way, or a result can be given out; False at the end of the items."""
        while len(self._order) < AHEAD_IMAGES * self._count and self._ahead_bytes < AHEAD_BYTES:
            try:
                found = next(items)
            except StopIteration:
                return False
            if found is None:  # nothing comes now: let the results out
                break
            job = _Job(found, nothing_to_do(found))
            self._order.append(job)
            self._ahead_bytes += len(found.payload)
            if job.result is None:
                self._add(job)
            if self._order[0].result is not None or self._has_waited():
                break
        return True

    def _add(self, job: _Job) -> None:
        if not self._filling:
            self._filling_since = time.monotonic()
            self._filling_bytes = 0
        self._filling.append(job)
        self._filling_bytes += len(job.found.payload)
        if len(self._filling) >= BATCH_IMAGES or self._filling_bytes >= BATCH_BYTES:
            self._batches.append(self._filling)
            self._filling = []

    def _has_waited(self) -> bool:
        return bool(self._filling) and time.monotonic() - self._filling_since > BATCH_AGE_S

    def _dispatch(self, *, flush: bool) -> None:
        """Give work to idle processes; they are reading, so that writing to them cannot block for long."""
        if self._filling and (flush or self._has_waited()):
            self._batches.append(self._filling)
            self._filling = []
        for worker in self._workers:
            if worker.ready and not worker.jobs and self._batches:
                batch = self._batches.popleft()
                worker.jobs.extend(batch)
                worker.silent_s = 0.0
                # A process that is gone shows when its answers are read.
                with contextlib.suppress(OSError):
                    worker.connection.send([(job.found.payload, job.found.path) for job in batch])

    def _listen(self) -> None:
        """Take the answers; replace processes that died, and those that say nothing for too long."""
        by_connection = {worker.connection: worker for worker in self._workers}
        began = time.monotonic()
        heard = wait(list(by_connection), timeout=TICK_S)
        for connection in heard:
            worker = by_connection[connection]  # type: ignore[index]  # wait gives back what it was given
            try:
                while worker.connection.poll():
                    self._take(worker, worker.connection.recv())
            except (EOFError, OSError):
                self._died(worker)
        waited = min(time.monotonic() - began, TICK_S)
        for worker in self._workers:
            worker.silent_s += waited if worker.jobs and worker.connection not in heard else 0.0
            if worker.silent_s > self._config.timeout_s and not worker.connection.poll():
                self._give_up(worker.jobs.popleft(), BadRecord("decode_timeout"))
                self._replace(worker)

    def _take(self, worker: _Worker, answer: Prepared | tuple[str, str] | None) -> None:
        worker.silent_s = 0.0
        if answer is None:
            worker.ready = True
            self._failed_starts = 0
            return
        worker.jobs.popleft().result = answer if isinstance(answer, Prepared) else BadRecord(*answer)
        self._failed_in_a_row = 0

    def _died(self, worker: _Worker) -> None:
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise PreparersFailed(
                    f"processes that decode images die as they start (exit code {worker.process.exitcode}); "
                    "`--set workers=0` decodes without them and shows why"
                )
        elif worker.jobs:
            suspect = worker.jobs[0]
            suspect.crashes += 1
            if suspect.crashes > 1:
                self._give_up(worker.jobs.popleft(), BadRecord("decoder_crashed"))
        self._replace(worker)

    def _give_up(self, job: _Job, reason: BadRecord) -> None:
        job.result = reason
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILED_IN_A_ROW:
            raise PreparersFailed(
                f"{FAILED_IN_A_ROW} images in a row crashed or hung the decoder ({reason.reason}), the last "
                f"is {job.found.name}; see whether memory_bytes ({self._config.memory_bytes}) and timeout_s "
                f"({self._config.timeout_s:g}) fit this machine"
            )

    def _replace(self, worker: _Worker) -> None:
        """A new process in place of a lost one; what was asked of it is asked again, a suspect by itself."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self.replaced += 1
        jobs = list(worker.jobs)
        if jobs and jobs[0].crashes:
            self._batches.extendleft([jobs[1:], jobs[:1]] if jobs[1:] else [jobs])
        elif jobs:
            self._batches.appendleft(jobs)
        self._workers[self._workers.index(worker)] = self._start()


def nothing_to_do(found: Found) -> BadRecord | None:
    """The result of something that holds no image to prepare; None when there is one."""
    return BadRecord(found.loss, found.detail) if found.loss or found.tar else None
