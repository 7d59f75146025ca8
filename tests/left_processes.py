"""Which processes the tests have started, and an end for them when the tests are killed.

A process of pytest marks the environment of the programs that it starts, and notes the children that it
forks. A watcher in a session of its own kills what still lives once pytest is gone, in whatever way: it reads
a pipe of which pytest alone has the writing end. Needs /proc.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SWAVSTREAM_TEST_SESSION"
"""Marks the programs that a process of pytest starts; the value names that process."""
END_S = 30.0
"""Processes that end with their parent, or with the last test, have so long to do it."""


@dataclass(frozen=True)
class Left:
    """A process of the tests that lives."""

    pid: int
    command: str
    test: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}), started by {self.test or 'no test'}"


class Started:
    """The processes that this process of pytest starts from now on, and those that they start."""

    def __init__(self, forked: Path) -> None:
        """Begin; `forked` is a file for the children that are forked."""
        self._mark, self._forked = f"{os.getpid()}-{uuid.uuid4().hex}", forked
        reading, self._pipe = os.pipe()
        self._watcher = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), self._mark, str(forked)],
            stdin=reading,
            env={name: value for name, value in os.environ.items() if name != VARIABLE},
            start_new_session=True,
        )
        os.close(reading)
        os.environ[VARIABLE] = self._mark
        os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        with suppress(OSError):
            os.close(self._pipe)
        with suppress(OSError), self._forked.open("a") as file:
            born = _state(Path("/proc/self"))[2]
            file.write(f"{os.getpid()} {born}\t{os.environ.get('PYTEST_CURRENT_TEST', '')}\n")

    def end(self) -> list[Left]:
        """The processes that do not end, which are killed then."""
        os.environ.pop(VARIABLE, None)
        deadline = time.monotonic() + END_S
        while (left := living(self._mark, self._forked, os.getpid())) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.close(self._pipe)
        self._watcher.wait(60)
        return left


def living(mark: str, forked: Path, parent: int) -> list[Left]:
    """The processes that were started with this mark, or forked, and that live.

    A fork server of `parent` is not counted: it ends with that process, as does a tracker of shared memory.
    """
    notes = dict(line.split("\t", 1) for line in _text(forked).splitlines() if "\t" in line)
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        environment = _text(place / "environ").split("\0")
        command = _text(place / "cmdline").replace("\0", " ").strip()
        state, above, born = _state(place)
        noted = notes.get(f"{place.name} {born}")
        ours = noted is not None or f"{VARIABLE}={mark}" in environment
        helper = "multiprocessing.resource_tracker" in command or (
            above == parent and "multiprocessing.forkserver" in command
        )
        if ours and not helper and state not in ("", "Z"):
            tests = (line for line in environment if line.startswith("PYTEST_CURRENT_TEST="))
            found.append(Left(int(place.name), command[:200], noted or next(tests, "").partition("=")[2]))
    return found


def _state(place: Path) -> tuple[str, int, str]:
    """State, parent and time of the start of a process; empty when it is gone."""
    fields = _text(place / "stat").rpartition(")")[2].split()
    return (fields[0], int(fields[1]), fields[19]) if fields else ("", 0, "")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # the process has ended, or is not ours
        return ""


def _watch(mark: str, forked: Path) -> None:
    sys.stdin.read()
    while left := living(mark, forked, parent=0):
        for one in left:
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        time.sleep(0.05)  # they may have started others


if __name__ == "__main__":
    _watch(sys.argv[1], Path(sys.argv[2]))
