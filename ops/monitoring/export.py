"""All dashboards, and everything that Prometheus and Grafana need, written into a directory.

A new metric needs a line in one of the tables in `panels.py`, or its reason in NOT_SHOWN here; a test
says so by name. Nothing is written that is not generated or copied from this package.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ops.monitoring import alerts
from ops.monitoring.grafana import (
    DATASOURCE,
    GREEN,
    INSTANCE,
    LIVE_PAGE,
    RED,
    YELLOW,
    Dashboard,
    dashboard_json,
    metric,
)
from ops.monitoring.panels import BALANCE, SNAPSHOTS, STREAM, TRAINING

DASHBOARDS: tuple[Dashboard, ...] = (BALANCE, TRAINING, STREAM, SNAPSHOTS)

NOT_SHOWN: Mapping[str, str] = {
    "run_ended": "it only keeps alerts quiet about the absent metrics of a run that is over",
}
"""Metric without prefix: why no panel shows it."""

DATASOURCE_UID = "swavstream-prometheus"
PUBLISHED = 'result=~"ok|unhealthy"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Moments that are marked in all panels of a dashboard."""

    name: str
    expression: str
    """Has a value above 0 at these moments."""
    text: str
    """What the mark says; labels of the series in double braces."""
    color: str


MARKS = (
    Mark(
        name="Re-seeded",
        expression=f"increase({metric('prototypes_reseeded_total')}[$__interval]) > 0",
        text="{{instance}}: prototypes re-seeded",
        color=YELLOW,
    ),
    Mark(
        name="Published",
        expression=f"increase({metric('snapshots_published_total', PUBLISHED)}[$__interval]) > 0",
        text="{{instance}}: a snapshot was published",
        color=GREEN,
    ),
    Mark(
        name="Drift",
        expression=f'ALERTS{{alertname="SwavstreamStreamDrift", alertstate="firing", {INSTANCE}}}',
        text="{{instance}}: the stream has moved to other images than before",
        color=RED,
    ),
)
"""On every dashboard: what happened to prototypes, snapshots and stream."""

KUBERNETES_NOTE = """\
# How a Prometheus in the cluster finds the learner of kubernetes.yaml, where it does not follow annotations
# of Services: take this file up under `scrape_config_files`. The metrics of all ranks come from pod 0.
"""


def files(
    *, targets: tuple[str, ...], prometheus: str, runbooks: str, page: str = LIVE_PAGE
) -> dict[str, str]:
    """Name and content of everything, as `swavstream dashboards export` writes it.

    Args:
        targets: host:port of each learner that Prometheus asks.
        prometheus: address at which Grafana finds Prometheus.
        runbooks: address before the name of a runbook page; alerts carry it.
        page: address of the learner's live page, for whoever looks at the dashboards.
    """
    found = {
        "prometheus/prometheus.yml": _yaml(_prometheus(targets)),
        "prometheus/kubernetes.yml": KUBERNETES_NOTE + _yaml({"scrape_configs": [_kubernetes()]}),
        "prometheus/rules/swavstream.rules.yml": _yaml(alerts.rules(runbooks=runbooks)),
        "grafana/provisioning/datasources/swavstream.yml": _yaml(_datasource(prometheus)),
        "grafana/provisioning/dashboards/swavstream.yml": _yaml(_provider()),
    }
    for dashboard in DASHBOARDS:
        body = json.dumps(body_of(dashboard, page=page), indent=1)
        found[f"grafana/dashboards/swavstream-{dashboard.name}.json"] = body + "\n"
    for runbook in sorted(
        resources.files("ops.monitoring").joinpath("runbooks").iterdir(), key=lambda one: one.name
    ):
        found[f"runbooks/{runbook.name}"] = runbook.read_text(encoding="utf-8")
    for name in ("compose.yaml", "kubernetes.yaml", "Dockerfile"):
        found[name] = resources.files("ops").joinpath("deploy", name).read_text(encoding="utf-8")
    return found


def body_of(dashboard: Dashboard, *, page: str = LIVE_PAGE) -> dict[str, Any]:
    """A dashboard with its marks, as Grafana provisions it."""
    return dashboard_json(dashboard, page=page, annotations=[_annotation(mark) for mark in MARKS])


def _annotation(mark: Mark) -> dict[str, Any]:
    return {
        "name": mark.name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": mark.color,
        "expr": mark.expression,
        "step": "60s",
        "titleFormat": mark.name,
        "textFormat": mark.text,
        "useValueForTime": False,
    }


def export(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write files below a folder, made when missing; what is there under other names stays."""
    written = []
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _prometheus(targets: tuple[str, ...]) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [{"job_name": alerts.JOB, "static_configs": [{"targets": list(targets)}]}],
    }


def _kubernetes() -> dict[str, Any]:
    """The pod that has the metrics, under the job name that the alerts know."""
    pod = "__meta_kubernetes_pod"
    index = f"{pod}_label_batch_kubernetes_io_job_completion_index"
    return {
        "job_name": alerts.JOB,
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": [
            _only("swavstream-learner;0;http", f"{pod}_label_app", index, f"{pod}_container_port_name"),
            # One that has ended is listed for as long as its Job is.
            _only("Pending|Running|Unknown", f"{pod}_phase"),
            # A pod that replaces another one goes on with its series.
            {"source_labels": [f"{pod}_name"], "regex": r"(.*)-\w+", "target_label": "instance"},
        ],
    }


def _only(values: str, *labels: str) -> dict[str, Any]:
    return {"source_labels": [*labels], "regex": values, "action": "keep"}


def _datasource(address: str) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "uid": DATASOURCE_UID,
        "type": "prometheus",
        "access": "proxy",
        "url": address,
        "isDefault": True,
        "jsonData": {"timeInterval": "10s"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _provider() -> dict[str, Any]:
    provider = {
        "name": "swavstream",
        "folder": "swavstream",
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": "/var/lib/grafana/dashboards"},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _yaml(body: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(body), sort_keys=False, width=110)
