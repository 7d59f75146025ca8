"""What happened of late: sums over the last minutes, which the past of a long run cannot outweigh."""

import time
from collections import deque
from typing import Any

from learner.report import HealthReport
from stream.lanes import LaneStats

RECORDS_S = 300.0
"""Seconds that records, and how alike batches are, are told of: as long as in the alerts."""
TROUBLE_S = 1800.0
"""Seconds that troubles are told of."""
BOXES = 60
"""Parts of the span, each forgotten as a whole."""

ALIKE = ("batch_similarity", "stream_autocorrelation")
"""Fields of the health report whose mean is told."""


class Sums:
    """Sums by name over the last `span_s` seconds, or up to a sixtieth less; not for several threads."""

    def __init__(self, span_s: float) -> None:
        self.span_s = span_s
        self._boxes: deque[tuple[int, dict[str, float]]] = deque()

    def add(self, name: str, amount: float = 1.0) -> None:
        """Something happened now."""
        number = self._forget()
        if not self._boxes or self._boxes[-1][0] != number:
            self._boxes.append((number, {}))
        sums = self._boxes[-1][1]
        sums[name] = sums.get(name, 0.0) + amount

    def totals(self) -> dict[str, float]:
        """The sum of each name that was met."""
        self._forget()
        found: dict[str, float] = {}
        for _, sums in self._boxes:
            for name, amount in sums.items():
                found[name] = found.get(name, 0.0) + amount
        return found

    def _forget(self) -> int:
        number = int(time.monotonic() // (self.span_s / BOXES))
        while self._boxes and self._boxes[0][0] <= number - BOXES:
            self._boxes.popleft()
        return number


class Recent:
    """The last minutes of one life of a run; whoever writes and reads holds one lock."""

    def __init__(self) -> None:
        self._records, self._troubles = Sums(RECORDS_S), Sums(TROUBLE_S)

    def step(self, stats: LaneStats, health: HealthReport | None) -> None:
        """A step was done; `health` when it brought a report."""
        self._records.add("used", stats.used)
        for reason, count in stats.skipped.items():
            self._records.add(f"skipped {reason}", count)
        for name in ALIKE:
            value = None if health is None else getattr(health, name)
            if value is not None:
                self._records.add(name, value)
                self._records.add(f"reports of {name}")

    def trouble(self, name: str, count: int = 1) -> None:
        """Something went wrong so many times: reader_restarts, checkpoint_error, checkpoint_damaged."""
        if count > 0:
            self._troubles.add(name, count)

    def told(self) -> dict[str, Any]:
        """Plain values: `used` and `skipped` by reason, means of `ALIKE` (None = not seen), `troubles`."""
        sums = self._records.totals()
        means = {
            name: sums[name] / sums[f"reports of {name}"] if f"reports of {name}" in sums else None
            for name in ALIKE
        }
        return {
            "used": int(sums.get("used", 0)),
            "skipped": {
                name.removeprefix("skipped "): int(count)
                for name, count in sums.items()
                if name.startswith("skipped ")
            },
            **means,
            "troubles": {name: int(count) for name, count in self._troubles.totals().items()},
        }
