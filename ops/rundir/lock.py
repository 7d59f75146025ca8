"""One learner in a run directory: a lock file with a heartbeat, and the undoing of a refused start."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ops.durations import duration
from ops.errors import RunLocked
from ops.rundir.files import FIRST_WEIGHTS, restore_first_weights, settle_first_weights
from stream.storage import part_of, write_whole

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
# A holder on another host counts as gone after so many seconds without a heartbeat: six missed ones.
STALE_S = 30.0
# A command that asks who holds the lock takes it for a moment; that is not a reason to refuse.
RETRIES = 4
RETRY_S = 0.05
# Some network file systems have no locks; then the heartbeat alone decides.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds, or last held, a run directory."""

    host: str
    pid: int
    started: float
    """Unix seconds."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunLock:
    """Exclusive use of a run directory, from `acquire` to `release` or the death of the process.

    The kernel's file lock decides between processes of one host, so a killed holder leaves nothing stale and
    a recycled process number cannot deceive. Where the directory is shared between hosts whose file system
    keeps locks to itself, the heartbeat (the file's modification time) decides.

    `acquire` waits only for a holder on another host, and then no longer than it takes to see that its
    heartbeat moves or has stopped. A thread of its own touches the file; it never raises.
    """

    def __init__(self, run_dir: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.path = run_dir / "lock"
        self.made = False
        """The file was not there before."""
        self._heartbeat_s = heartbeat_s
        self._stale_s = stale_s
        self._handle: int | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> Self:
        """Take the directory.

        Raises:
            RunLocked: another process has it; the message names it, and when it was last seen.
            FileNotFoundError: there is no such directory.
        """
        while self._handle is None:
            self.made = not self.path.exists()
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._take(handle)
                # Whoever held it before may have removed it, and another one be there already.
                if _is_at(self.path, handle):
                    self._handle = handle
            finally:
                if self._handle is None:
                    os.close(handle)
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()
        return self

    def _take(self, handle: int) -> None:
        locked = _try_lock(handle)
        for _ in range(RETRIES):
            if locked is False:
                time.sleep(RETRY_S)
                locked = _try_lock(handle)
        holder = read_holder(self.path)
        if locked is False or (holder is not None and self._lives(holder, kernel_knows=locked is not None)):
            raise RunLocked(self._refusal(holder))
        if holder is not None:
            logger.warning("%s was left locked by %s, which is gone: taken over", self.path.parent, holder)
        me = Holder(host=socket.gethostname(), pid=os.getpid(), started=time.time())
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(me)).encode(), 0)

    def _lives(self, holder: Holder, *, kernel_knows: bool) -> bool:
        """Whether a holder that does not hold the kernel's lock is alive all the same."""
        if holder.host == socket.gethostname():
            return not kernel_knows and _is_running(holder.pid)
        seen = self.path.stat().st_mtime
        age = max(0.0, time.time() - seen)  # below zero where the other host's clock is ahead of ours
        deadline = time.monotonic() + self._stale_s - age
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._stale_s / 4))
            if _last_seen(self.path) != seen:
                return True
        return False

    def release(self, *, remove: bool = False) -> None:
        """Give the directory back, as if it had never been taken if the file is to be removed.

        May be called twice.
        """
        if self._handle is None:
            return
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            if remove:
                self.path.unlink()
        os.close(self._handle)
        self._handle = None

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_s):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _refusal(self, holder: Holder | None) -> str:
        age = max(time.time() - _last_seen(self.path), 0.0)
        return (
            f"run directory {self.path.parent} is in use by {holder or 'another process'}, seen "
            f"{duration(age)} ago: stop that one first, or give --run another directory"
        )

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_holder(path: Path) -> Holder | None:
    """The holder in a lock file; None when there is none, or the file cannot be read."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return Holder(host=str(body["host"]), pid=int(body["pid"]), started=float(body["started"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def holder_of(run_dir: Path) -> Holder | None:
    """The learner that works in a run directory now; None when none does. Takes nothing, changes nothing."""
    path = run_dir / "lock"
    holder = read_holder(path)
    if holder is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        locked = _try_lock(handle, shared=True)
        fresh = time.time() - os.fstat(handle).st_mtime < STALE_S
    finally:
        os.close(handle)
    if locked is False:
        return holder
    elsewhere = holder.host != socket.gethostname()
    return holder if fresh and (elsewhere or (locked is None and _is_running(holder.pid))) else None


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is the one under a name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _last_seen(path: Path) -> float:
    # Opened again each time: only then do network file systems ask the server.
    with path.open("rb") as handle:
        return os.fstat(handle.fileno()).st_mtime


def _try_lock(handle: int, *, shared: bool = False) -> bool | None:
    """True: locked now. False: another process has it. None: this file system has no locks."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# What is made in a run directory before there is a learner, checkpoints/ apart.
MADE = ("run.json", "server.json", "auto.json", FIRST_WEIGHTS)
# So often a directory is made again that another process removes, since its own run did not begin.
TRIES = 10


class RunClaim:
    """Makes the directory, holds its lock, and takes back what was made when an error comes before `begun`.

    A context of the process that starts a run, entered before all else that works in the directory. Only what
    this process has made is removed, and that while it holds the lock; run.json and first weights that were
    there are put back. A disk that does not let it is passed over: the error that ends the run is the one to
    report.

    Args:
        run_dir: the run directory; made when missing, with the folders above it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._lock = RunLock(run_dir)
        self._folders: list[Path] = []
        self._there: set[str] = set()
        self._record: bytes | None = None
        self._begun = False

    def begun(self) -> None:
        """The learner is made, and nothing was refused: from here on everything stays."""
        self._begun = True
        settle_first_weights(self.run_dir)

    def __enter__(self) -> Self:
        try:
            self._hold()
        except BaseException:
            self._remove_folders()
            raise
        settle_first_weights(self.run_dir)
        self._there = {path.name for path in self.run_dir.iterdir()}
        with contextlib.suppress(FileNotFoundError):
            self._record = (self.run_dir / "run.json").read_bytes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = error is not None and not self._begun
        if refused:
            with contextlib.suppress(OSError):
                self._take_back()
        self._lock.release(remove=refused and self._lock.made)
        if refused:
            self._remove_folders()

    def _hold(self) -> None:
        for _ in range(TRIES):
            self._make_folders()
            with contextlib.suppress(FileNotFoundError):
                self._lock.acquire()
                return
        self._lock.acquire()

    def _make_folders(self) -> None:
        for folder in (*reversed(self.run_dir.parents), self.run_dir):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                self._folders.append(folder)

    def _take_back(self) -> None:
        restore_first_weights(self.run_dir)
        for path in [self.run_dir / name for name in MADE]:
            for made in (path, part_of(path)):
                if made.name not in self._there:
                    made.unlink(missing_ok=True)
        if "checkpoints" not in self._there:
            with contextlib.suppress(FileNotFoundError):
                (self.run_dir / "checkpoints").rmdir()
        path = self.run_dir / "run.json"
        if self._record is not None and path.read_bytes() != self._record:
            write_whole(path, self._record)

    def _remove_folders(self) -> None:
        """Those that were made here, as far as they are empty: another process may have begun there since."""
        with contextlib.suppress(OSError):
            for folder in dict.fromkeys(reversed(self._folders)):
                folder.rmdir()
