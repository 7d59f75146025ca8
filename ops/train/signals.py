"""Requests to stop or to save: signals become flags that the loop looks at between two steps."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from ops.distributed.environment import WARNINGS
from ops.errors import EXIT_SIGTERM

NOTE = b"\nstopping: the run is being saved (Ctrl-C once more ends it at once, back to the last checkpoint)\n"

# Of a rank: what a further Ctrl-C does is up to its launcher.
RANK_NOTE = b"\nasked to stop: the ranks save together first, if all are there\n"


class StopRequest:
    """Whether the end of the run is requested; also a context that turns signals into such a request.

    As a context it takes SIGINT, SIGTERM and SIGHUP over, when entered in the main thread (elsewhere Python
    allows no handlers; then only `ask` asks). SIGHUP counts as SIGTERM; where it is ignored, as under nohup,
    it stays so. The first signal sets the flag, a second Ctrl-C raises KeyboardInterrupt. SIGUSR1 and SIGUSR2
    warn that the end is near: they ask for a save, or for the end as SIGTERM does, see `warned_by`.
    `requested` never blocks; any thread may call it and `ask`.
    """

    def __init__(self, note: bytes = NOTE, *, keep: bool = False, on_warning: str = "save") -> None:
        """Prepare; nothing is taken over yet.

        Args:
            note: written to stderr when a signal comes.
            keep: leave the handlers in place at the end: a launcher may still send SIGTERM to a rank that
                is leaving.
            on_warning: what SIGUSR1 and SIGUSR2 ask for until `warned_by` says otherwise: save or end.
        """
        self._note, self._keep = note, keep
        self.signal: int | None = None
        """The signal that requested it; None when none did."""
        self._event = threading.Event()
        self._before: dict[int, Any] = {}
        self._depth = 0
        self._save = False
        self._on_warning: dict[int, str] = dict.fromkeys(WARNINGS, on_warning)

    def warned_by(self, *, usr1: str, usr2: str) -> None:
        """What SIGUSR1 and SIGUSR2 ask for from now on: `save`, or `end`."""
        self._on_warning = {signal.SIGUSR1: usr1, signal.SIGUSR2: usr2}

    def take_save(self) -> bool:
        """Whether a save was requested since this was last called."""
        taken, self._save = self._save, False
        return taken

    def requested(self) -> bool:
        """Whether the run is to end."""
        return self._event.is_set()

    def ask(self, number: int | None = None) -> None:
        """Ask for the run to end after the current step, as if this signal had come; None is no signal."""
        if self.signal is None:
            self.signal = number
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until the end is requested; whether it is."""
        return self._event.wait(seconds)

    @property
    def exit_code(self) -> int:
        """0 after Ctrl-C or `ask`, 143 after SIGTERM."""
        return EXIT_SIGTERM if self.signal == signal.SIGTERM else 0

    def __enter__(self) -> Self:
        self._depth += 1  # the outermost context keeps the handlers
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *WARNINGS):
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and not self._keep:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before.clear()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._on_warning.get(number) == "save":
            self._save = True
            return
        number = signal.SIGTERM if number in {signal.SIGHUP, *WARNINGS} else number
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = number
            # Not print: a signal may come in the middle of another print.
            with contextlib.suppress(OSError):
                os.write(2, self._note)
        self.ask()
