"""What the live page and the HTTP API show: a small copy of the run's state, kept beside the learner.

The learner writes a few numbers under a lock after each step; requests copy them out under the same lock
and do all their work outside of it, so that neither waits for the other for longer than a copy takes.

Figures over the length of a run are kept in a fixed number of points: the longer the run, the wider each
point. What happened in the last minutes is kept as sums, which the past of a long run cannot outweigh.

The file is long because all that the page shows is kept under one lock.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.report import HealthReport, StepReport
from ops.live_page.exemplars import Exemplars
from ops.live_page.prototypes import LivePrototypes
from ops.live_page.series import Series
from ops.monitoring import verdicts
from ops.monitoring.catalog import CHARTED, figures_of
from ops.rundir.history import EDGE, edge
from ops.snapshots.types import PublishResult
from stream.lanes import LaneLag, LaneStats, add_counts

POINTS = 480
"""Most points kept; when they are full, neighbours are merged and each new point takes twice as many
steps."""

COLUMNS = ("samples", "time", *CHARTED, "rate", "lag")
"""What is kept of each point; samples and time are of its end, the others are means over it."""

ENDS = {"samples", "time"}


class LiveHistory:
    """A bounded history; not thread-safe, its owner holds a lock."""

    def __init__(self, points: int = POINTS) -> None:
        self._series = Series(points, _merged)
        self._entries = 0
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=EDGE)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take one step in; what is missing or None is a gap."""
        self._agreement(entry.get("view_agreement"))
        self._series.add({name: entry.get(name) for name in COLUMNS})

    def columns(self) -> dict[str, list[float | None]]:
        """One list for each of COLUMNS, oldest first."""
        return {name: [point[name] for point in self._series.points] for name in COLUMNS}

    def agreement(self) -> dict[str, float | None]:
        """Mean agreement of views over the first steps and over the latest; None before there are any.

        They are kept apart: the first point of a long run is a mean over many steps.
        """
        count = edge(self._entries)
        return {
            "start_view_agreement": _mean(self._first[:count]),
            "late_view_agreement": _mean(list(self._last)[-count:]),
        }

    def _agreement(self, value: float | None) -> None:
        if value is None:
            return
        self._entries += 1
        self._last.append(value)
        if len(self._first) < EDGE:
            self._first.append(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _merged(
    one: dict[str, float | None], weight: int, other: dict[str, float | None], added: int
) -> dict[str, float | None]:
    """Both as one point: ends of the later, means of the rest; a gap takes the other's value."""
    merged: dict[str, float | None] = {}
    for name in COLUMNS:
        a, b = one[name], other[name]
        if name in ENDS or a is None or b is None:
            merged[name] = a if b is None else b
        else:
            merged[name] = (a * weight + b * added) / (weight + added)
    return merged


RECORDS_S = 300.0
"""Seconds that records, and how alike batches are, are reported: as long as in the alerts."""
TROUBLE_S = 1800.0
"""Seconds that troubles are reported."""
BOXES = 60
"""Parts of the span, each forgotten as a whole."""

ALIKE = ("batch_similarity", "stream_autocorrelation")
"""Fields of the health report whose mean is shown."""


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
    """The last minutes of one session of a run; writers and readers hold one lock."""

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


RATE_S = 30.0
"""The rate is taken over about so many seconds."""
EVENTS = 200
"""Events that are remembered."""
WAITING_S = 10.0
"""Waiting becomes an event after so many seconds: on a stream that trickles every step waits a little."""
BEAT_S = 120.0
"""Seconds without a sign of life of the loop after which it counts as hung, ..."""
BEAT_STEPS = 20.0
"""... or so many times the length of the last step, whichever is longer."""


class LiveView:
    """State of one run, for people.

    Writing methods are called by the learner (`published` also by the publisher) and take microseconds, but
    for what `Exemplars.observe` takes. Reading methods are for the HTTP server's threads and return plain
    values.

    Args:
        run: uuid.
        run_dir: as people should read it.
        prototypes: K of the first head.
        facts: what else is worth a line on the page: stream, recipe, network, batch, ...
        total_samples: length of the run; None when it has no known end.
        samples: where the run goes on from.
        skipped: records skipped until there, by reason.
        exemplars: typical images; None shows none.
    """

    def __init__(
        self,
        *,
        run: str,
        run_dir: str,
        prototypes: int,
        facts: Mapping[str, str] | None = None,
        total_samples: int | None = None,
        samples: int = 0,
        skipped: Mapping[str, int] | None = None,
        exemplars: Exemplars | None = None,
    ) -> None:
        self.exemplars = exemplars
        self.prototypes = LivePrototypes(prototypes, exemplars)
        self.ranks = 1
        """Learners that share the run; set once, before it is looked at."""
        self.published_before = 0
        """Snapshot that earlier sessions of the run published last; set once."""
        self._lock = threading.Lock()
        self._started = time.time()
        self._fixed = {
            "run": run,
            "run_dir": run_dir,
            "prototypes": prototypes,
            "facts": dict(facts or {}),
            "total_samples": total_samples,
            "start_samples": samples,
            "started": self._started,
        }
        self._history = LiveHistory()
        self._figures: dict[str, float | None] = {"samples": samples, "prototypes": prototypes}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._marks: deque[tuple[float, float]] = deque()
        self._skipped: Mapping[str, int] = dict(skipped or {})
        self._phases: dict[str, float] = {}
        self._health: HealthReport | None = None
        self._published: PublishResult | None = None
        self._snapshot: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] = {}
        self._state = "starting"
        self._reason = ""
        self._beat = time.monotonic()
        self._tell_waiting = math.inf  # when, on the clock of `_beat`
        self._last_step: float | None = None
        self._step_s = 0.0
        self._lag: int | None = None
        self._lanes: list[dict[str, Any]] = []
        self._restarts = 0
        self._recent = Recent()

    def observe(
        self,
        report: StepReport,
        stats: LaneStats,
        *,
        step_s: float,
        lag: int | None = None,
        restarts: int = 0,
        keys: Sequence[str] = (),
        thumbs: NDArray[np.uint8] | None = None,
    ) -> None:
        """Take one step in.

        Args:
            report: of the learner.
            stats: of the batch.
            step_s: length of the step, seconds.
            lag: records committed but not yet used, when known.
            restarts: reader processes replaced so far.
            keys: hex digests of the batch's samples, for `thumbs`.
            thumbs: [B, 3, T, T] uint8 of the batch.
        """
        now = time.time()
        with self._lock:
            self._beat = time.monotonic()
            self._last_step, self._step_s = now, step_s
            self._state = "learning" if self._state != "stopping" else self._state
            died, self._lag, self._restarts = restarts - self._restarts, lag, restarts
            self._recent.trouble("reader_restarts", died)
            self._recent.step(stats, report.health)
            self._skipped = add_counts(self._skipped, stats.skipped)
            self._marks.append((now, report.samples))
            while len(self._marks) > 2 and now - self._marks[0][0] > RATE_S:
                self._marks.popleft()
            spent = {**report.seconds, "load and other": max(0.0, step_s - sum(report.seconds.values()))}
            for phase, seconds in spent.items():
                self._phases[phase] = 0.9 * self._phases.get(phase, seconds) + 0.1 * seconds
            self._health = report.health or self._health
            self._figures |= figures_of(report, self._health)
            self._history.add({**self._figures, "time": now, "rate": self._rate() or None, "lag": lag})
        if died > 0:
            self.event("restart", f"{died} reader process{'es' if died > 1 else ''} died and replaced")
        if report.reseeded:
            self._reseeded(report.reseeded)
        if self.exemplars is not None and thumbs is not None:
            self.exemplars.observe(
                report.assigned_B.numpy(), report.score_B.numpy(), keys, thumbs, samples=report.samples
            )

    def lag(self, records: int) -> None:
        """Records committed but not yet used; also while the loop waits."""
        with self._lock:
            self._lag = records

    def lanes(self, lags: Sequence[LaneLag]) -> None:
        """How far each lane is behind; also while the loop waits."""
        rows = [asdict(lag) for lag in lags]
        with self._lock:
            self._lanes = rows

    def skipped(self, counts: Mapping[str, int]) -> None:
        """All records skipped by the run, by reason: after it went back, or left a batch out."""
        with self._lock:
            self._skipped = dict(counts)

    def usage(self, usage_K: NDArray[np.float32]) -> None:
        """Take the shares of all prototypes in; call it when a step brought a health report."""
        with self._lock:
            samples, health = int(self._figures["samples"] or 0), self._health
        window = 0 if health is None else health.usage_window_samples
        self.prototypes.counted(usage_K, samples=samples, window=window)

    def beat(self) -> None:
        """The loop is alive; call it while it waits."""
        with self._lock:
            self._beat = time.monotonic()

    def state(self, name: str, reason: str = "") -> None:
        """Say what the learner does: starting, learning, waiting (again and again) or stopping."""
        with self._lock:
            self._beat = time.monotonic()
            changed = name != self._state
            self._state, self._reason = name, reason
            if changed:
                self._tell_waiting = self._beat + WAITING_S if name == "waiting" else math.inf
            long = self._beat >= self._tell_waiting
            if long:
                self._tell_waiting = math.inf
        if long:
            self.event(name, reason or "waiting for records")
        elif changed and name == "stopping":
            self.event(name, reason or "the run is stopping")

    def published(self, result: PublishResult) -> None:
        """What became of a snapshot; given to `Publisher` as `on_result`."""
        with self._lock:
            repeated_error = (
                self._published is not None and self._published.result == result.result == "error"
            )
            self._published = result
            if result.version:
                self._snapshot = asdict(result)
        if result.version:
            self.event("snapshot", f"v{result.version} at {result.samples:,} samples ({result.result})")
            if result.abandoned:
                gone = ", ".join(f"v{version}" for version in result.abandoned)
                self.event("rewind", f"{gone} abandoned: the run went on from an earlier checkpoint")
        elif not repeated_error:
            self.event(result.result, result.detail or f"snapshot at {result.samples:,} samples")

    def checkpoint(self, result: str, *, samples: int, seconds: float = 0.0, detail: str = "") -> None:
        """A checkpoint was written (ok), could not be (error), or was found damaged (damaged)."""
        now = time.time()
        with self._lock:
            if result != "ok":
                self._recent.trouble(f"checkpoint_{result}")
            self._checkpoint = {
                "result": result, "samples": samples, "seconds": seconds, "time": now, "detail": detail,
            }  # fmt: skip
        self.event("checkpoint", f"{result} at {samples:,} samples{': ' + detail if detail else ''}")

    def event(self, kind: str, text: str, *, count: int = 1) -> None:
        """Remember something that people should see, which happened so many times."""
        with self._lock:
            samples = self._figures["samples"]
            self._events.append(
                {"time": time.time(), "kind": kind, "text": text, "samples": samples, "count": count}
            )

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Take a point of an earlier session into the history: `samples`, `time` and any figures."""
        with self._lock:
            self._history.add(entry)

    def status(self) -> dict[str, Any]:
        """Everything about the run but history, prototypes and events."""
        now = time.time()
        with self._lock:
            since = None if self._last_step is None else now - self._last_step
            shot, last = dict(self._snapshot), self._published
            body: dict[str, Any] = {
                **self._fixed,
                **self._figures,
                **self._history.agreement(),
                "now": now,
                "state": self._state,
                "reason": self._reason,
                "rate": 0.0 if self._state == "waiting" else self._rate(),
                "lag": self._lag,
                "lanes": self._lanes,
                "ranks": self.ranks,
                "restarts": self._restarts,
                "usage_reports": self.prototypes.reports,
                "since_step_s": since,
                "step_s": self._step_s,
                "skipped": dict(self._skipped),
                "recent": self._recent.told(),
                "phases": dict(self._phases),
                "snapshot": shot,
                "checkpoint": dict(self._checkpoint),
                "health": None if self._health is None else asdict(self._health),
            }
            waiting = self._state == "waiting"
        found = [
            *verdicts.learning(body),
            verdicts.stream(
                lag=body["lag"],
                waiting=waiting,
                since_step_s=since,
                since_start_s=now - self._started,
                restarts=body["recent"]["troubles"].get("reader_restarts", 0),
            ),
            verdicts.snapshots(
                version=shot.get("version", self.published_before),
                result="" if last is None else last.result,
                detail="" if last is None else last.detail,
                age_s=now - shot["time"] if shot else None,
            ),
        ]
        body["verdict"] = verdicts.worst(found)
        body["verdicts"] = [asdict(verdict) for verdict in found]
        return body

    def history(self) -> dict[str, list[float | None]]:
        """Columns over time, see `LiveHistory.COLUMNS`."""
        with self._lock:
            return self._history.columns()

    def events(self, count: int = 50) -> list[dict[str, Any]]:
        """The latest events, newest first."""
        with self._lock:
            return list(self._events)[::-1][:count]

    def healthy(self) -> tuple[bool, str]:
        """Whether the loop answers, also while it waits; and a sentence."""
        with self._lock:
            silent, allowed = time.monotonic() - self._beat, max(BEAT_S, BEAT_STEPS * self._step_s)
            state = self._state
        if silent <= allowed:
            return True, state
        return False, f"{state}: no sign of life for {silent:.0f} s, {allowed:.0f} s are allowed"

    def ready(self) -> tuple[bool, str]:
        """Whether the first step is done and the run is not stopping; and a sentence."""
        with self._lock:
            if self._state == "stopping":
                return False, "stopping"
            return (True, self._state) if self._last_step is not None else (False, "no step is done yet")

    def _rate(self) -> float:
        """Samples a second over the last seconds; 0 = not known. The lock is held."""
        if len(self._marks) < 2:
            return 0.0
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - began) if ended > began else 0.0

    def _reseeded(self, count: int) -> None:
        """An event; several in a row become one, so that they push nothing else out."""
        with self._lock:
            last = self._events[-1] if self._events else {}
            if last.get("kind") == "re-seed":
                count += last["count"]
                self._events.pop()
        self.event("re-seed", f"{count:,} prototype{'s' if count > 1 else ''} re-seeded", count=count)
