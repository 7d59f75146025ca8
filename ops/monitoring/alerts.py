"""Recording rules and alerts for Prometheus, generated; every duration can be scaled for a test.

Few alerts, each about something that a person must act on, each with a page in `ops/monitoring/runbooks/`.
`page` wakes somebody: nothing is learned, or something is being lost. `ticket` can wait for the morning.
Thresholds are those of `learner.measure.LIMITS` and `ops.monitoring.verdicts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learner.measure import LIMITS
from ops.monitoring.catalog import PREFIX
from ops.monitoring.verdicts import RESIDUAL_MUCH, STALLED_S, START_S, WARM_UP_UPDATES, WINDOW_FULL

JOB = "swavstream"
DRIFT_MUCH = 0.25
"""Population stability index from which a shift is a large one, by common use."""
SORTED_COSINE = 0.2
"""How much closer neighbours in a lane may be than other pairs of their batch."""
ALIKE_COSINE = 0.08
"""How much closer samples of a batch may be than samples of different batches: a sorted stream of six kinds
gave 0.1 to 0.24, mixed ones stayed within 0.03."""
BAD_SHARE = 0.05
"""Unusable records, of all that were read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Makes time run faster in a test: 0.01 turns ten minutes into six seconds."""

    factor: float = 1.0
    warm_up_updates: int = WARM_UP_UPDATES
    """Updates before which a loss at ln K is no finding."""
    stalled_s: float = STALLED_S
    """Seconds without a step; not scaled, since a step takes as long as it takes."""
    start_s: float = START_S
    """Seconds from the start to the first step; not scaled either."""

    def span(self, seconds: float) -> str:
        """A duration in Prometheus' notation; at least a millisecond unless it is nothing."""
        if seconds == 0:
            return "0s"
        ms = max(1, round(seconds * self.factor * 1000))
        for size, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
            if ms % size == 0:
                return f"{ms // size}{unit}"
        return f"{ms}ms"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One alert."""

    name: str
    severity: str
    """page or ticket."""
    expression: str
    """PromQL; the value is the figure that is out of bounds."""
    for_s: float
    """Seconds that it has to hold, before scaling."""
    summary: str
    """One sentence: what is wrong."""
    dashboard: str
    """Name of the dashboard that shows it, see `ops.monitoring.export`."""


MINUTE = 60.0
DAY = 24 * 60 * MINUTE


def recordings(scale: Scale) -> dict[str, str]:
    """Name of each recorded series, and its expression; names follow level:metric:operations.

    Where nothing happened, and a share would divide by nothing, it is 0 and not NaN, which no alert sees and
    no panel draws.
    """
    span = scale.span(5 * MINUTE)
    by = "sum by (job, instance)"
    return {
        "instance:swavstream_samples:rate5m": f"{by} (rate({PREFIX}samples_total[{span}]))",
        "instance:swavstream_step_duration_seconds:p99_rate5m": (
            f"histogram_quantile(0.99, sum by (job, instance, le) "
            f"(rate({PREFIX}step_duration_seconds_bucket[{span}]))) >= 0 "
            f"or 0 * {by} (rate({PREFIX}step_duration_seconds_count[{span}]))"
        ),
        "instance_phase:swavstream_learner_seconds:share_rate5m": (
            f"sum by (job, instance, phase) (rate({PREFIX}learner_seconds_total[{span}])) "
            f"/ on (job, instance) group_left () ({by} (rate({PREFIX}learner_seconds_total[{span}])) > 0) "
            f"or 0 * sum by (job, instance, phase) (rate({PREFIX}learner_seconds_total[{span}]))"
        ),
        "instance:swavstream_records_unusable:ratio_rate5m": (
            f'{by} (rate({PREFIX}records_total{{outcome="skipped",reason!="non_finite"}}[{span}])) '
            f"/ ({by} (rate({PREFIX}records_total[{span}])) > 0) "
            f"or 0 * {by} (rate({PREFIX}records_total[{span}]))"
        ),
    }


def alerts(scale: Scale) -> tuple[Alert, ...]:
    """All alerts, the loop first, then what is learned, the stream, and what is kept."""
    return (*_loop(scale), *_learning(scale), *_stream(scale), *_keeping(scale))


def _alert(  # a row of the table
    name: str, severity: str, for_s: float, dashboard: str, expression: str, summary: str
) -> Alert:
    return Alert(
        name=f"Swavstream{name}",
        severity=severity,
        expression=expression,
        for_s=for_s,
        summary=summary,
        dashboard=dashboard,
    )


def _loop(scale: Scale) -> tuple[Alert, ...]:
    # Whatever name is given to the job: what has shown a learner within a day is one. It may be down, or its
    # target may be gone with it; then another target may have gone on with its run.
    seen = f"last_over_time({PREFIX}run_info[{scale.span(DAY)}])"
    ended = f"(last_over_time({PREFIX}run_ended[{scale.span(DAY)}]) == 1)"
    gone = f"{seen} unless on (job, instance) up unless on (run) {PREFIX}run_info"
    return (
        _alert(
            "MetricsAbsent", "page", 5 * MINUTE, "training",
            f"((up == 0) and on (job, instance) {seen} or ({gone})) unless on (job, instance) {ended}",
            "Prometheus gets no metrics from a learner whose run has not ended.",
        ),
        _alert(
            "LearnerStalled", "page", MINUTE, "training",
            f"(time() - {PREFIX}last_step_timestamp_seconds > {scale.stalled_s:g}) "
            f"and {PREFIX}learner_waiting == 0 and {PREFIX}stream_lag_records > 0 "
            f"or (time() - {PREFIX}learner_start_timestamp_seconds > {scale.start_s:g}) "
            f"and {PREFIX}learner_waiting == 0 unless {PREFIX}last_step_timestamp_seconds",
            "No step is done although records are unread, or none since the learner started.",
        ),
        _alert(
            "NotFinite", "page", 0, "training",
            f"increase({PREFIX}nan_steps_total[{scale.span(10 * MINUTE)}]) > 0",
            "Loss or gradient was not a finite number; the step was refused.",
        ),
    )  # fmt: skip


def _learning(scale: Scale) -> tuple[Alert, ...]:
    full = f"and {PREFIX}usage_window_fill_ratio >= {WINDOW_FULL:g}"
    stuck = 1 - LIMITS["loss_excess_ratio"][0]
    return (
        _alert(
            "FeatureCollapse", "page", 2 * MINUTE, "balance",
            f"{PREFIX}feature_std_ratio < {LIMITS['feature_std_ratio'][0]:g}",
            "All images have nearly the same feature: the encoder has collapsed.",
        ),
        _alert(
            "NotLearning", "page", 10 * MINUTE, "balance",
            f"{PREFIX}loss_over_ln_k_ratio > {stuck:g} "
            f"and {PREFIX}run_updates > {scale.warm_up_updates}",
            "The loss is at ln K: nothing is being learned.",
        ),
        _alert(
            "UsageCollapse", "page", 10 * MINUTE, "balance",
            f"{PREFIX}usage_perplexity_ratio < {LIMITS['usage_perplexity_ratio'][0]:g} {full}",
            "A few prototypes take nearly all images.",
        ),
        _alert(
            "PrototypesDying", "ticket", 30 * MINUTE, "balance",
            f"({PREFIX}dead_prototypes / {PREFIX}prototypes "
            f"> {LIMITS['dead_prototypes_ratio'][0]:g}) {full}",
            "Many prototypes get no images.",
        ),
        _alert(
            "PrototypeTwins", "ticket", 30 * MINUTE, "balance",
            f"{PREFIX}prototype_twins / {PREFIX}prototypes > {LIMITS['prototype_twins_ratio'][0]:g}",
            "Many prototypes are nearly the same vector: a partial collapse that usage does not show.",
        ),
        _alert(
            "CodesUnbalanced", "ticket", 10 * MINUTE, "balance",
            f"{PREFIX}sinkhorn_marginal_residual > {RESIDUAL_MUCH:g}",
            "Sinkhorn does not converge: codes are not balanced.",
        ),
    )  # fmt: skip


def _stream(scale: Scale) -> tuple[Alert, ...]:
    span = scale.span(5 * MINUTE)
    return (
        _alert(
            "StreamDrift", "ticket", 5 * MINUTE, "stream",
            f"{PREFIX}drift_psi > {DRIFT_MUCH:g}",
            "The stream has moved to other images than before.",
        ),
        _alert(
            "StreamSorted", "ticket", 15 * MINUTE, "stream",
            f"avg_over_time({PREFIX}batch_similarity[{span}]) > {ALIKE_COSINE:g} "
            f"or avg_over_time({PREFIX}stream_autocorrelation[{span}]) > {SORTED_COSINE:g}",
            "Images that arrive together are alike: the stream is sorted, or from a video.",
        ),
        _alert(
            "BadRecords", "ticket", 5 * MINUTE, "stream",
            f"instance:swavstream_records_unusable:ratio_rate5m > {BAD_SHARE:g}",
            "Many records cannot be used.",
        ),
        _alert(
            "Starved", "ticket", 10 * MINUTE, "stream",
            f"{PREFIX}stream_lag_records >= 2 * {PREFIX}batch_samples and {PREFIX}learner_waiting == 1",
            "The learner waits although enough records for a step are unread: a lane has none.",
        ),
        _alert(
            "FallingBehind", "ticket", 30 * MINUTE, "stream",
            f"delta({PREFIX}stream_lag_records[{scale.span(30 * MINUTE)}]) > 10 * {PREFIX}batch_samples "
            f"and {PREFIX}learner_waiting == 0",
            "More records arrive than are used, and have for some time.",
        ),
        _alert(
            "ReadersDying", "ticket", 0, "stream",
            f"increase({PREFIX}reader_restarts_total[{scale.span(30 * MINUTE)}]) > 2",
            "Reader processes die again and again.",
        ),
    )  # fmt: skip


def _keeping(scale: Scale) -> tuple[Alert, ...]:
    span, half_hour = scale.span(10 * MINUTE), scale.span(30 * MINUTE)
    # Those of an earlier life are not known to this one, which publishes its first in its own time.
    last = f"({PREFIX}snapshot_samples > {PREFIX}run_start_samples or {PREFIX}run_start_samples)"
    behind = f"{PREFIX}run_samples - {last}"
    return (
        _alert(
            "CheckpointFailing", "page", 0, "training",
            f'sum by (job, instance) (increase({PREFIX}checkpoints_total{{result!="ok"}}[{half_hour}])) > 0',
            "A checkpoint could not be written, or was found damaged.",
        ),
        _alert(
            "SnapshotsFailing", "ticket", 5 * MINUTE, "snapshots",
            f'increase({PREFIX}snapshots_published_total{{result="error"}}[{span}]) > 0',
            "Snapshots cannot be published: Redis or the disk does not take them.",
        ),
        _alert(
            "SnapshotStale", "ticket", 5 * MINUTE, "snapshots",
            f"{behind} > 2 * {PREFIX}snapshot_every_samples and {PREFIX}snapshot_every_samples > 0",
            "More than two snapshots in a row are missing.",
        ),
        _alert(
            "TwoLearners", "page", 0, "snapshots",
            f'increase({PREFIX}snapshots_published_total{{result="stale_epoch"}}[{span}]) > 0',
            "Another learner publishes for the same run; this one is refused.",
        ),
    )  # fmt: skip


def rules(scale: Scale | None = None, *, runbooks: str = "runbooks/") -> dict[str, Any]:
    """The rules file as plain values: dump it as YAML.

    Args:
        scale: of all durations; None = as shipped.
        runbooks: address before the name of a runbook page.
    """
    scale = scale or Scale()
    recorded = [{"record": name, "expr": expression} for name, expression in recordings(scale).items()]
    return {
        "groups": [
            {"name": "swavstream-recordings", "rules": recorded},
            {"name": "swavstream-alerts", "rules": [_rule(one, scale, runbooks) for one in alerts(scale)]},
        ]
    }


def _rule(alert: Alert, scale: Scale, runbooks: str) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": scale.span(alert.for_s),
        "labels": {"severity": alert.severity},
        "annotations": annotations(alert, runbooks=runbooks),
    }


def annotations(
    alert: Alert, *, runbooks: str = "runbooks/", value: str = '{{ printf "%.4g" $value }}'
) -> Mapping[str, str]:
    """What a message says of an alert; `value` is a template that Prometheus fills in."""
    return {
        "summary": alert.summary,
        "value": value,
        "runbook_url": f"{runbooks}{alert.name}.md",
        "dashboard": f"swavstream-{alert.dashboard}",
    }
