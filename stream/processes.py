"""Supervised processes that answer jobs. One that dies or hangs is replaced, and its jobs are asked again.

The first job that a lost process had not answered is the suspect: its owner decides whether it is given up. A
process hangs when it was waited for too long and neither answered nor began another record. Time in which
this program did not wait does not count: one that was stopped, by Ctrl-Z or a freezer, loses no job.

This module imports nothing heavy. What the processes need is named by a string: it is imported once, by the
server that they are forked from.
"""

import contextlib
import importlib
import logging
import mmap
import os
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import parent_process, reduction, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from stream.fork_server import fork_server

logger = logging.getLogger(__name__)

DEATHS_OF_ONE_RECORD = 3
"""So many processes in a row may be lost at one record before that is taken for the cause."""
MOST_DEATHS_OF_ONE_JOB = 9
"""So many may be lost at one job, at different records or at none, and no record of it be the cause."""
FAILED_STARTS = 9
"""So many may be lost one after the other before they are ready."""
START_S = 300.0
"""A process that is not ready after so long hangs."""
_GRACE_S = 1.0
"""A process that ends has so long before it is killed."""
_HANDOVER_S = 1.0
"""So long is waited at most until a process that has nothing else to do has taken in what it is asked."""
_SIZE = struct.Struct("!Q")
"""Bytes of a message of jobs; it goes before the message."""
_BUFFER_BYTES = 2**16
"""A process reads so much of what it is asked at once."""

RecordRef = tuple[int, int]
"""Unit and index of a record, as in `stream.source.Entry`."""
_FORM = struct.Struct("<qqq")


class InFlightRecord:
    """The record that a process is at, in memory that outlives it; handed to it when it is started.

    A decoder that crashes takes its process with it; the entry that it leaves names the record.
    """

    def __init__(self) -> None:
        self._fd = anonymous_memory()
        os.ftruncate(self._fd, _FORM.size)
        self._memory = mmap.mmap(self._fd, _FORM.size)

    def set(self, unit: int, index: int) -> None:
        """This record is being decoded from now on."""
        _FORM.pack_into(self._memory, 0, 1, unit, index)

    def clear(self) -> None:
        """No record is."""
        self._memory[0] = 0

    def current(self) -> RecordRef | None:
        """The record that is being decoded, or was when the process died."""
        there, unit, index = _FORM.unpack_from(self._memory)
        return (unit, index) if there else None

    def latest(self) -> RecordRef:
        """The record that was decoded last, or is being decoded: it changes while a process gets on."""
        _, unit, index = _FORM.unpack_from(self._memory)
        return unit, index

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        if self._fd >= 0:
            self._memory.close()
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being started: the descriptor itself is passed on.
        return _received, (reduction.DupFd(self._fd),)


def _received(descriptor: Any) -> InFlightRecord:
    record = InFlightRecord.__new__(InFlightRecord)
    record._fd = descriptor.detach()
    record._memory = mmap.mmap(record._fd, _FORM.size)
    return record


def anonymous_memory() -> int:
    """Descriptor of memory without a name, empty yet."""
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("swavstream-memory")
        except OSError:
            pass  # forbidden in some sandboxes: the file serves as well
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(eq=False, slots=True)
class Job(Generic[Request, Reply]):
    """What one process is asked."""

    request: Request
    """Is sent; may be changed before it is asked again."""
    reply: Reply | None = None
    """None while it is not answered."""
    deaths: list[RecordRef | None] = field(default_factory=list)
    """For each process that was lost at it, the record that it was at; None = at none."""

    @property
    def record_to_blame(self) -> RecordRef | None:
        """The record at which process after process was lost."""
        latest = set(self.deaths[-DEATHS_OF_ONE_RECORD:])
        return latest.pop() if len(self.deaths) >= DEATHS_OF_ONE_RECORD and len(latest) == 1 else None

    @property
    def hopeless(self) -> bool:
        """Whether too many processes were lost at it, wherever."""
        return len(self.deaths) >= MOST_DEATHS_OF_ONE_JOB


@dataclass(frozen=True, slots=True)
class Loss:
    """How a process was lost."""

    hung: bool
    """It was killed because it did not get on."""
    exit_code: int | None


class NoStart(Exception):
    """Process after process is lost before it is ready; whoever started them raises an error of its own."""


@dataclass(eq=False, slots=True)
class _Process(Generic[Request, Reply]):
    """One process and what it was asked, oldest first."""

    process: BaseProcess
    connection: "Connection[Any, Any]"
    """Its replies are read from here."""
    outlet: socket.socket
    """The same connection: jobs are written here, each message with its size before it."""
    in_flight: InFlightRecord
    ready: bool = False
    """It has begun to answer; before, nothing was sent to it."""
    jobs: deque[Job[Request, Reply]] = field(default_factory=deque)
    unsent: bytearray = field(default_factory=bytearray)
    """Rest of what was asked, which the socket had no room for."""
    silent_s: float = 0.0
    """Seconds spent waiting since it last got on."""
    latest: RecordRef = (0, 0)
    """The record that it had come to then."""

    def waited(self, seconds: float) -> None:
        """Note that a caller waited for it."""
        latest, busy = self.in_flight.latest(), self.jobs or not self.ready
        self.silent_s = self.silent_s + seconds if busy and latest == self.latest else 0.0
        self.latest = latest

    def send(self, jobs: Sequence[Job[Request, Reply]]) -> None:
        """Send jobs, or keep what does not go through now; does not wait."""
        if jobs:
            message = reduction.ForkingPickler.dumps([job.request for job in jobs])
            self.unsent += _SIZE.pack(len(message))
            self.unsent += message
            self.send_rest()

    def send_rest(self) -> None:
        """Send what there is room for; does not wait. That the process is gone shows when it is read from."""
        try:
            while self.unsent:
                # Only this way no send waits: a process that waits itself, until its reply is read, reads
                # nothing. The flag is of one send; the connection's own reads and writes do wait.
                sent = self.outlet.send(self.unsent, socket.MSG_DONTWAIT)
                del self.unsent[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.unsent.clear()

    def disconnect(self) -> None:
        """Close the connection: the process ends when it has read what was sent. May be called twice."""
        self.outlet.close()
        self.connection.close()

    def end(self) -> int | None:
        """Wait for its end, or bring it about; the exit code."""
        self.process.join(_GRACE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.in_flight.close()
        return self.process.exitcode


class Processes(Generic[Request, Reply]):
    """Processes that answer jobs in any order; each its own in the order asked. Not thread-safe.

    Jobs are sent at once, so that a process has work while this program does something else. One that has
    just been started gets them when it is ready. What the connection of a busy process has no room for is
    kept here, and sent as `collect` is called: handing jobs over never waits for a reply to be taken. So
    large jobs are better given to idle processes, which take them at once.

    Args:
        opener: "module:function". Each process calls it once with its `InFlightRecord` and `arguments`; it
            gives the function that answers what is asked.
        arguments: picklable.
        count: processes; >= 1.
        silence_s: one that was waited for so long, and did not get on, hangs.
        lost: decides about the suspect of a lost process: gives its reply, or None to ask it again.
        name: of the processes.
    """

    def __init__(
        self,
        opener: str,
        arguments: tuple[Any, ...],
        *,
        count: int,
        silence_s: float,
        lost: Callable[[Job[Request, Reply], Loss], Reply | None],
        name: str,
    ) -> None:
        self.restarts = 0
        """Processes that died or hung and were replaced."""
        self._opener, self._arguments, self._name = opener, arguments, name
        self._silence_s, self._lost = silence_s, lost
        self._context = fork_server([opener.partition(":")[0]])
        self._failed_starts = 0
        self._processes: list[_Process[Request, Reply]] = []
        # multiprocessing joins its children at exit, and ours wait until their connections are closed: close
        # them before that, also when `close` was never called.
        self._end = util.Finalize(self, _end_all, args=(self._processes,), exitpriority=100)
        for _ in range(count):
            self._processes.append(self._start())

    @property
    def pending(self) -> int:
        """Jobs not answered yet."""
        return sum(len(process.jobs) for process in self._processes)

    @property
    def idle(self) -> bool:
        """Whether some process is ready and has no job."""
        return any(process.ready and not process.jobs for process in self._processes)

    def pids(self, *, busy: bool = False) -> list[int]:
        """Process ids: of all, or of those that are at work on a job."""
        chosen = [process for process in self._processes if not busy or (process.ready and process.jobs)]
        return [process.process.pid or 0 for process in chosen]

    def submit(self, jobs: Sequence[Job[Request, Reply]]) -> None:
        """Hand jobs to the least busy process, in one message."""
        process = min(self._processes, key=lambda process: (len(process.jobs), not process.ready))
        idle = process.ready and not process.jobs
        process.jobs.extend(jobs)
        if process.ready:
            process.send(jobs)
        if idle and process.unsent:
            _wait_for([process], _HANDOVER_S, replies=False)

    def collect(self, timeout_s: float) -> list[Job[Request, Reply]]:
        """Jobs that have been answered; waits so long at most for the first.

        Raises:
            NoStart: processes die as they start.
        """
        answered: list[Job[Request, Reply]] = []
        began = time.monotonic()
        heard = _wait_for(self._processes, timeout_s)
        # No longer than was asked for: what stopped this program, or the machine, is no process's fault.
        waited = min(time.monotonic() - began, timeout_s)
        for process in self._processes:
            process.waited(waited)
        for process in heard:
            try:
                while process.connection.poll():
                    answered += self._take(process, process.connection.recv())
            except (EOFError, OSError):
                answered += self._replace(process, hung=False)
        for process in list(self._processes):
            limit = self._silence_s if process.ready else START_S
            if process.silent_s > limit and not process.connection.poll():
                logger.warning("%s did not get on for %.0f s: it is replaced", self._name, process.silent_s)
                answered += self._replace(process, hung=True)
        return answered

    def close(self) -> None:
        """End all processes; what they are at is dropped. May be called twice."""
        self._end()

    def _start(self) -> _Process[Request, Reply]:
        ours, theirs = self._context.Pipe()
        in_flight = InFlightRecord()
        process = self._context.Process(
            target=_serve,
            args=(theirs, in_flight, self._opener, self._arguments),
            daemon=True,
            name=self._name,
        )
        process.start()
        theirs.close()  # so that the process's death is the end of the connection
        return _Process(process, ours, socket.socket(fileno=os.dup(ours.fileno())), in_flight)

    def _take(self, process: _Process[Request, Reply], message: Reply | None) -> list[Job[Request, Reply]]:
        """Take in what a process says: that it is ready, or a reply."""
        process.silent_s = 0.0
        if message is None:
            process.ready, self._failed_starts = True, 0
            process.send(process.jobs)
            return []
        job = process.jobs.popleft()
        job.reply = message
        return [job]

    def _replace(self, lost: _Process[Request, Reply], *, hung: bool) -> list[Job[Request, Reply]]:
        """Put a new process in the place of a lost one; the suspect, where it is given up."""
        if hung:
            lost.process.kill()
        lost.disconnect()
        record = lost.in_flight.current()
        exit_code = lost.end()
        self.restarts += 1
        fresh = self._processes[self._processes.index(lost)] = self._start()
        fresh.jobs = lost.jobs
        if not lost.ready:
            self._failed_starts += 1
            if self._failed_starts >= FAILED_STARTS:
                raise NoStart(
                    f"{self._failed_starts} died as they started, the last with exit code {exit_code}"
                )
        elif fresh.jobs:
            suspect = fresh.jobs[0]
            suspect.deaths.append(record)
            suspect.reply = self._lost(suspect, Loss(hung, exit_code))
            if suspect.reply is not None:
                return [fresh.jobs.popleft()]
        return []


def _wait_for(
    processes: Sequence[_Process[Request, Reply]], timeout_s: float, *, replies: bool = True
) -> list[_Process[Request, Reply]]:
    """Send what is unsent as processes read on, for so long at most, and until one of them says something.

    Args:
        processes: that are waited for.
        timeout_s: so long at most.
        replies: False: what they say is let be, and only until all is sent.

    Returns:
        Those that have said something, or have ended.
    """
    deadline = time.monotonic() + timeout_s
    while replies or any(process.unsent for process in processes):
        with selectors.PollSelector() as selector:
            for process in processes:
                events = selectors.EVENT_READ * replies | selectors.EVENT_WRITE * bool(process.unsent)
                if events:
                    selector.register(process.connection, events, process)
            found = selector.select(max(0.0, deadline - time.monotonic()))
        for key, events in found:
            if events & selectors.EVENT_WRITE:
                key.data.send_rest()
        heard = [key.data for key, events in found if events & selectors.EVENT_READ and replies]
        if heard or time.monotonic() >= deadline:
            return heard
    return []


def _end_all(processes: list[_Process[Any, Any]]) -> None:
    for process in processes:
        process.disconnect()
        if process.jobs:
            process.process.kill()  # it holds nothing but a job that no caller waits for
    for process in processes:
        process.end()
    processes.clear()


def _serve(
    connection: "Connection[Any, Any]", in_flight: InFlightRecord, opener: str, arguments: tuple[Any, ...]
) -> None:
    """Main function of a process: say that it is ready, then answer each job of each message.

    Ends when the other end of the connection is closed or the parent process is gone. Signals go to the whole
    process group, or job; they are left to the parent, which decides when its processes end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, function = opener.partition(":")
    with (
        decoders_silenced(),
        os.fdopen(connection.fileno(), "rb", _BUFFER_BYTES, closefd=False) as asked,
        contextlib.suppress(EOFError, ConnectionError),
    ):  # the parent has closed its end, perhaps within a message
        answer = getattr(importlib.import_module(module), function)(in_flight, *arguments)
        connection.send(None)
        while True:
            for request in _next_message(asked):
                connection.send(answer(request))


def _next_message(asked: BinaryIO) -> list[Any]:
    """What `_Process.send` was given; waits for it.

    Raises:
        EOFError: the other end is closed.
    """
    (size,) = _SIZE.unpack(_exactly(asked, _SIZE.size))
    requests: list[Any] = reduction.ForkingPickler.loads(_exactly(asked, size))
    return requests


def _exactly(asked: BinaryIO, size: int) -> bytes:
    found = asked.read(size)
    if len(found) < size:
        raise EOFError
    return found


def _end_with_parent() -> None:
    """A parent that was killed cannot close anything: leave, even out of the middle of a read."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def decoders_silenced() -> Iterator[None]:
    """Image libraries write what they think of bad files to descriptor 2: only Python can meanwhile."""
    python, kept = sys.stderr, os.dup(2)
    with (
        Path(os.devnull).open("wb") as nothing,
        os.fdopen(kept, "w", buffering=1, errors="backslashreplace") as aside,
    ):
        try:
            own = python.fileno() == 2
        except (OSError, ValueError, AttributeError):  # a stand-in without a file
            own = False
        python.flush()
        if own:
            sys.stderr = aside
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            aside.flush()
            os.dup2(kept, 2)
            sys.stderr = python
