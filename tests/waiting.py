"""Waits for events that come in their own time, however busy the machine is."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 240.0
"""What has not come by then never comes. A test may take longer, and says so what it waited for."""


def wait_for(good: Callable[[], object], what: str = "it") -> None:
    """Return once `good` holds."""
    deadline = time.monotonic() + LIMIT_S
    while not good():
        assert time.monotonic() < deadline, f"{what} has not come to pass in {LIMIT_S:.0f} s"
        time.sleep(0.02)


def freeze(pid: int) -> None:
    """Stop a process, and return once none of its threads runs; SIGCONT lets it go on.

    The signal stops a process when one of its threads is scheduled next. On a busy machine the others may
    have answered much by then.
    """
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    if tasks.exists():
        wait_for(lambda: all(_state(task) in "TZ" for task in tasks.iterdir()), f"the stop of process {pid}")


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # this thread has ended
        return "Z"
