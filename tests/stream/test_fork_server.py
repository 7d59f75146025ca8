"""The fork server's socket: gone with its program, or with the next one when that was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
# Starts the server, says so, and ends when no process holds its input any more.
PROGRAM = """
import pathlib, sys
from multiprocessing import forkserver
from stream import socket_folder
socket_folder.parents = lambda: (pathlib.Path(sys.argv[1]),)
from stream.fork_server import fork_server
fork_server([])
forkserver.ensure_running()
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: addresses of sockets have little room."""
    with tempfile.TemporaryDirectory(prefix="sws-", dir="/tmp") as place:
        yield Path(place)


def long_folder(folder: Path) -> Path:
    """One as batch systems give it to each job."""
    long = folder / ("d" * 120)
    long.mkdir(exist_ok=True)
    return long


def started(folder: Path) -> subprocess.Popen[str]:
    """The program, with its own folder for sockets and a long temporary one, once its server is there."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(long_folder(folder))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "started\n"
    return program


def end(program: subprocess.Popen[str]) -> None:
    program.communicate(timeout=LIMIT_S)
    assert program.returncode == 0


def left(folder: Path) -> list[str]:
    assert not list(long_folder(folder).iterdir())
    return sorted(path.name for path in home_of(folder).iterdir())


def home_of(folder: Path) -> Path:
    return folder / f"swavstream-{os.getuid()}"


def test_what_a_killed_program_leaves_is_removed_by_the_next_and_that_of_a_live_one_is_not(
    folder: Path,
) -> None:
    lives, killed = started(folder), started(folder)
    both = left(folder)
    assert len(both) == 2
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert left(folder) == both
    next_one = started(folder)
    after = left(folder)
    assert len(after) == 2
    assert len(set(both) & set(after)) == 1, "of the one that lives"
    end(next_one)
    end(lives)
    assert left(folder) == []


@pytest.mark.parametrize("name", ["fork-x", "0123456789abcdef.sock", "pymp-abc"])
def test_what_is_not_ours_stays(folder: Path, name: str) -> None:
    home_of(folder).mkdir(mode=0o700)
    (home_of(folder) / name).mkdir()
    (home_of(folder) / name / "file").write_text("of another program")
    end(started(folder))
    assert left(folder) == [name]
