"""Conditions in two languages: a term over facts is a predicate on one run, and PromQL in an alert."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ops.monitoring.catalog import JUDGED, PREFIX
from ops.monitoring.facts import Facts

_LAST_STEP, _START = f"{PREFIX}last_step_timestamp_seconds", f"{PREFIX}learner_start_timestamp_seconds"
_PUBLISHED, _SAVED = f"{PREFIX}snapshots_published_total", f"{PREFIX}checkpoints_total"
_SNAPSHOT, _RUN_START = f"{PREFIX}snapshot_samples", f"{PREFIX}run_start_samples"
EXPRESSIONS: Mapping[str, str] = {name: row.expression for name, row in JUDGED.items()} | {
    "batch_similarity": f"avg_over_time({PREFIX}batch_similarity[5m])",
    "stream_autocorrelation": f"avg_over_time({PREFIX}stream_autocorrelation[5m])",
    "updates": f"{PREFIX}run_updates",
    "since_step_s": f"time() - {_LAST_STEP}",
    "since_start_s": f"time() - {_START}",
    "waiting": f"{PREFIX}learner_waiting",
    "lag": f"{PREFIX}stream_lag_records",
    "lag_growth": f"delta({PREFIX}stream_lag_records[30m])",
    "batch": f"{PREFIX}batch_samples",
    "bad_records_ratio": "instance:swavstream_records_unusable:ratio_rate5m",
    "reader_restarts": f"increase({PREFIX}reader_restarts_total[30m])",
    "not_finite": f"increase({PREFIX}nan_steps_total[10m])",
    "checkpoint_troubles": f'sum by (job, instance) (increase({_SAVED}{{result!="ok"}}[30m]))',
    "publishing_fails": f'increase({_PUBLISHED}{{result="error"}}[10m])',
    "stale_epochs": f'increase({_PUBLISHED}{{result="stale_epoch"}}[10m])',
    # Snapshots of an earlier session are not known to this one, which publishes its first in its own time.
    "snapshot_behind": f"{PREFIX}run_samples - ({_SNAPSHOT} > {_RUN_START} or {_RUN_START})",
    "snapshot_every": f"{PREFIX}snapshot_every_samples",
}
"""Facts that a condition can name -> PromQL; durations in brackets are scaled for a test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Limits in time, and how fast it runs: in a test a factor of 0.01 turns ten minutes into six seconds."""

    factor: float = 1.0
    """Of the durations of alerts."""
    warm_up_updates: int = 300
    """Updates before which a loss at ln K is no finding."""
    stalled_s: float = 120.0
    """Seconds without a step, with unread records, after which the learner counts as stalled; not scaled,
    since a step takes as long as it takes."""
    start_s: float = 300.0
    """Seconds from the start of a learner, which waits for nothing, to its first step after which it counts
    as stalled: by then a state is loaded, ranks have met and readers have brought a batch. Not scaled."""

    def span(self, seconds: float) -> str:
        """A duration in Prometheus' notation; at least a millisecond unless it is nothing."""
        if seconds == 0:
            return "0s"
        ms = max(1, round(seconds * self.factor * 1000))
        for size, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
            if ms % size == 0:
                return f"{ms // size}{unit}"
        return f"{ms}ms"

    def scaled(self, promql: str) -> str:
        """An expression with the durations that stand in brackets scaled."""
        return re.sub(r"\[(\d+)([mh])\]", lambda at: f"[{self.span(int(at[1]) * _SECONDS[at[2]])}]", promql)


_SECONDS = {"m": 60, "h": 3600}
SHIPPED = Scale()

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Term:
    """A comparison of one fact with a limit; it does not hold of what is not known."""

    fact: str
    """A field or property of Facts; where alerts use it, a key of EXPRESSIONS."""
    compare: str
    """>, <, >=, == or unknown."""
    limit: float | str = 0.0
    """A number, or a field of Scale."""
    of: str = ""
    """The limit is so many times this fact."""

    def holds(self, facts: Facts, scale: Scale = SHIPPED) -> bool:
        """Whether it holds of a run."""
        value, whole = facts.value(self.fact), facts.value(self.of) if self.of else 1.0
        if self.compare == "unknown":
            return value is None
        if value is None or whole is None:
            return False
        return _COMPARE[self.compare](value, self.bound(scale) * whole)

    def promql(self, scale: Scale = SHIPPED) -> str:
        """The same for Prometheus."""
        fact = scale.scaled(EXPRESSIONS[self.fact])
        if self.compare == "unknown":
            return f"unless ({fact})"
        whole = f" * {EXPRESSIONS[self.of]}" if self.of else ""
        return f"{fact} {self.compare} {self.bound(scale):g}{whole}"

    def bound(self, scale: Scale = SHIPPED) -> float:
        """The limit as a number."""
        return float(getattr(scale, self.limit)) if isinstance(self.limit, str) else self.limit
