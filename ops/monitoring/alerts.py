"""Recording rules and alerts for Prometheus, generated; every duration can be scaled for a test.

Few alerts, each about something that a person must act on, each with a page in `ops/monitoring/runbooks/`.
They are those of `ops.monitoring.rules`: condition, limit and sentence stand there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ops.monitoring.catalog import PREFIX
from ops.monitoring.conditions import Scale
from ops.monitoring.rules import RULES

JOB = "swavstream"


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


def recordings(scale: Scale) -> dict[str, str]:
    """Name of each recorded series, and its expression; names follow level:metric:operations.

    Where nothing happened, and a share would divide by nothing, it is 0 and not NaN, which no alert sees and
    no panel draws.
    """
    by = "sum by (job, instance)"
    shipped = {
        "instance:swavstream_samples:rate5m": f"{by} (rate({PREFIX}samples_total[5m]))",
        "instance:swavstream_step_duration_seconds:p99_rate5m": (
            f"histogram_quantile(0.99, sum by (job, instance, le) "
            f"(rate({PREFIX}step_duration_seconds_bucket[5m]))) >= 0 "
            f"or 0 * {by} (rate({PREFIX}step_duration_seconds_count[5m]))"
        ),
        "instance_phase:swavstream_learner_seconds:share_rate5m": (
            f"sum by (job, instance, phase) (rate({PREFIX}learner_seconds_total[5m])) "
            f"/ on (job, instance) group_left () ({by} (rate({PREFIX}learner_seconds_total[5m])) > 0) "
            f"or 0 * sum by (job, instance, phase) (rate({PREFIX}learner_seconds_total[5m]))"
        ),
        "instance:swavstream_records_unusable:ratio_rate5m": (
            f'{by} (rate({PREFIX}records_total{{outcome="skipped",reason!="non_finite"}}[5m])) '
            f"/ ({by} (rate({PREFIX}records_total[5m])) > 0) "
            f"or 0 * {by} (rate({PREFIX}records_total[5m]))"
        ),
    }
    return {name: scale.scaled(expression) for name, expression in shipped.items()}


def alerts(scale: Scale) -> tuple[Alert, ...]:
    """An alert of every rule that is alerted."""
    return tuple(
        Alert(
            name=rule.runbook,
            severity=rule.alert.severity,
            expression=rule.promql(scale),
            for_s=rule.alert.for_s,
            summary=rule.text,
            dashboard=rule.alert.dashboard,
        )
        for rule in RULES
        if rule.alert is not None
    )


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
