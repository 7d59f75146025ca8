"""The progress line on stderr: one that renews itself on a terminal, one every few seconds in a log."""

import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

TERMINAL_S = 0.5
LOG_S = 10.0
# The rate shown is over the last so many seconds, so that it follows changes.
RATE_S = 20.0
MARKS = 20


def time_left(seconds: float) -> str:
    """A duration in the unit that a person would say: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


class ProgressLine:
    """Writes how far a run is; call it from one thread, after every step, and `end` before other output."""

    def __init__(
        self,
        out: TextIO,
        *,
        total: int | None,
        clock: Callable[[], float] = time.monotonic,
        log_s: float = LOG_S,
    ) -> None:
        """Prepare to write.

        Args:
            out: where to; a terminal gets one line that is overwritten.
            total: samples of the whole run; None when it has no known end.
            clock: monotonic seconds.
            log_s: seconds between two lines where `out` is no terminal.
        """
        self._out = out
        self._total = total
        self._clock = clock
        self._log_s = log_s
        self._terminal = out.isatty()
        self._next = 0.0
        self._width = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)

    def due(self, samples: int) -> bool:
        """Note how far the run is; whether it is time to write again."""
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= RATE_S / MARKS:
            self._marks.append((now, samples))
        return now >= self._next

    def rate(self, samples: int) -> float:
        """Samples a second recently; 0 while that is not known."""
        if not self._marks:
            return 0.0
        began, first = self._marks[0]
        passed = self._clock() - began
        return (samples - first) / passed if passed > 0 else 0.0

    def show(self, *, samples: int, loss: float, over_ln_k: float, usage: float, k: int, lag: int) -> None:
        """Write the line of a run that learns."""
        share = f" of {self._total:,} ({100 * samples / self._total:.0f} %)" if self._total else ""
        self.say(
            f"{samples:,}{share} samples  {self.rate(samples):,.0f}/s  "
            f"loss {loss:.3f} ({over_ln_k:.3f} of ln K)  usage {usage:.0f} of {k}  lag {lag:,}"
        )

    def note(self, text: str) -> None:
        """Write a line that stays."""
        self.end()
        self._out.write(text + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """Write any text as the progress line."""
        self._next = self._clock() + (TERMINAL_S if self._terminal else self._log_s)
        if self._terminal:
            self._out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._out.write(text + "\n")
        self._out.flush()

    def end(self) -> None:
        """Leave the line standing, so that what follows begins on its own."""
        if self._terminal and self._width:
            self._out.write("\n")
            self._out.flush()
            self._width = 0
