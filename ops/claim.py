"""A run directory that this process holds, and leaves as it was when its run does not begin."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from ops import initial
from ops.lock import RunLock
from ops.rundir import aside_of, write_whole

# What is made in a run directory before there is a learner, checkpoints/ apart.
MADE = ("run.json", "server.json", initial.FILE)
# So often a directory is made anew that another process removes, since its own run did not begin.
TRIES = 10


class RunClaim:
    """Makes the directory, holds its lock, and takes back what was made when an error comes before `begun`.

    A context of the process that starts a run, entered before all else that works in the directory. Only what
    this process has made is removed, and that while it holds the lock; run.json and first weights that were
    there are put back. A disk that does not let it is passed over: the error that ends the run is the one to
    tell.

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
        initial.settle(self.run_dir)

    def __enter__(self) -> Self:
        try:
            self._hold()
        except BaseException:
            self._remove_folders()
            raise
        initial.settle(self.run_dir)
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
        initial.restore_earlier(self.run_dir)
        for path in [self.run_dir / name for name in MADE]:
            for made in (path, aside_of(path)):
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
