"""Memory of a process and of everything that it started, as Linux counts it."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PAGE = os.sysconf("SC_PAGE_SIZE")


def family(root: int, proc: Path = Path("/proc")) -> dict[int, int]:
    """Resident bytes of a process and all its descendants, by process number; empty where there is no /proc.

    Pages that processes share count once for each: the sum is at least what is really taken.
    """
    resident: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for entry in proc.glob("[0-9]*"):
        try:
            # The name in parentheses may itself hold blanks and parentheses; fields count from behind it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            continue  # it ended while we looked
        resident[int(entry.name)] = int(fields[21]) * _PAGE
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: dict[int, int] = {}
    waiting = [root] if root in resident else []
    while waiting:
        process = waiting.pop()
        found[process] = resident[process]
        waiting += children.get(process, [])
    return found


class PeakMemory:
    """A context that watches this process and its descendants from a thread of its own.

    Args:
        interval_s: seconds between two looks.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self.peak_bytes = 0
        """Largest sum seen so far; 0 where it cannot be told."""
        self.peak_processes = 0
        """Processes at that moment."""
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def look(self) -> None:
        """Measure once, now."""
        found = family(os.getpid())
        if sum(found.values()) > self.peak_bytes:
            self.peak_bytes = sum(found.values())
            self.peak_processes = len(found)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        self.look()
        while not self._end.wait(self._interval_s):
            self.look()
