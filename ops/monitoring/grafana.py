"""Panels and dashboards as Grafana reads them: a few dataclasses, and their JSON.

A panel is one line of a table in `panels.py`. Places, numbers and colours are worked out here, so that
a panel can be put in or taken out without a thought for the others. The same input gives the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ops.monitoring.catalog import PREFIX

SCHEMA_VERSION = 39
"""Of the dashboard JSON: Grafana 10.4 and later read it, newer ones migrate it when they load it."""

COLUMNS = 24
"""Width of a dashboard in Grafana's grid."""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
INSTANCE = 'instance=~"$instance"'

LIVE_PAGE = "http://localhost:9464"
"""Where the live page is by default, as in compose.yaml."""
CLUSTERS = "/#h-clusters"
"""Where it has the clusters."""

GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One expression of a panel."""

    expression: str
    legend: str = ""
    may_be_empty: str = ""
    """Why there may be no data; empty = there must be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel."""

    title: str
    kind: str
    """timeseries, stat, bargauge or heatmap."""
    queries: tuple[Query, ...]
    help: str
    """What it shows and what to look for."""
    unit: str = "short"
    """In Grafana's names."""
    width: int = 8
    height: int = 7
    steps: tuple[tuple[float, str], ...] = ()
    """Colour from a value on; what lies below the first one is green."""
    base: str = GREEN
    """Colour below the first step."""
    low: float | None = None
    high: float | None = None
    """Ends of the axis; None = as the data are."""
    stacked: bool = False
    clusters: bool = False
    """Whether it leads to the clusters on the learner's live page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """One dashboard."""

    name: str
    """Of its file and address; stable."""
    title: str
    help: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels."""
        return tuple(panel for row in self.rows for panel in row.panels)


def metric(name: str, *labels: str) -> str:
    """A selector of a metric of the table, for the learners that are chosen on the dashboard."""
    return f"{PREFIX}{name}{{{', '.join((INSTANCE, *labels))}}}"


def rate(name: str, *labels: str) -> str:
    """Of a counter, a second."""
    return f"rate({metric(name, *labels)}[$__rate_interval])"


def share(part: str, whole: str) -> str:
    """One by the other; 0, and not NaN, where nothing has happened. Both have the same labels."""
    return f"{part} / ({whole} > 0) or 0 * {whole}"


def quantile(q: float, histogram: str) -> str:
    """A quantile of a histogram over all learners that are chosen; 0 where nothing was counted recently."""
    found = f"histogram_quantile({q}, sum by (le) ({rate(f'{histogram}_bucket')}))"
    return f"{found} >= 0 or 0 * sum({rate(f'{histogram}_count')})"


def query(expression: str, legend: str = "{{instance}}", *, may_be_empty: str = "") -> Query:
    """A query; its legend is the learner's name where nothing else is said."""
    return Query(expression=expression, legend=legend, may_be_empty=may_be_empty)


def number(
    title: str, expression: str, help: str, *, unit: str = "short", steps: Sequence[tuple[float, str]] = (),
    base: str = GREEN, may_be_empty: str = "",
) -> Panel:  # fmt: skip
    """A big number with a colour."""
    return Panel(
        title=title, kind="stat", queries=(query(expression, may_be_empty=may_be_empty),), help=help,
        unit=unit, width=3, height=4, steps=tuple(steps), base=base,
    )  # fmt: skip


def lines(
    title: str, *queries: Query, help: str, unit: str = "short", width: int = 8, stacked: bool = False,
    low: float | None = None, high: float | None = None, steps: Sequence[tuple[float, str]] = (),
) -> Panel:  # fmt: skip
    """Lines over time; limits are drawn as lines."""
    return Panel(
        title=title, kind="timeseries", queries=queries, help=help, unit=unit, width=width, stacked=stacked,
        low=low, high=high, steps=tuple(steps),
    )  # fmt: skip


def dashboard_json(
    dashboard: Dashboard, *, page: str = LIVE_PAGE, annotations: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A dashboard as Grafana provisions it.

    Args:
        dashboard: what is shown.
        page: address of the live page for the browser of whoever looks; a variable of the dashboard.
        annotations: what marks moments in all panels.
    """
    return {
        "uid": f"swavstream-{dashboard.name}",
        "title": f"swavstream / {dashboard.title}",
        "description": dashboard.help,
        "tags": ["swavstream"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_link("swavstream")],
        "templating": {"list": _variables(page)},
        "annotations": {"list": [*annotations]},
        "panels": _placed(dashboard.rows),
    }


def _link(title: str, *, url: str = "") -> dict[str, Any]:
    """To an address, or to all our dashboards, which keep what is looked at."""
    return {
        "title": title,
        "type": "link" if url else "dashboards",
        "tags": [] if url else ["swavstream"],
        "asDropdown": False,
        "includeVars": not url,
        "keepTime": not url,
        "targetBlank": bool(url),
        "icon": "external link",
        "tooltip": "",
        "url": url,
    }


def _variables(page: str) -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus"},
        {
            "name": "instance",
            "type": "query",
            "label": "Learner",
            "datasource": DATASOURCE,
            "query": f"label_values({PREFIX}build_info, instance)",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "sort": 1,
        },
        {
            "name": "page",
            "type": "textbox",
            "label": "Live page",
            "query": page,
            "current": {"text": page, "value": page},
        },
    ]


def _placed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Panels from left to right, a new line where one does not fit; numbered in their order."""
    placed: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        placed.append({
            "id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
            "gridPos": place,
        })  # fmt: skip
        top, left, tallest = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            placed.append({"id": len(placed) + 1, "gridPos": place, **_panel(panel)})
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return placed


def _panel(panel: Panel) -> dict[str, Any]:
    clusters = _link("The clusters, on the live page", url=f"${{page}}{CLUSTERS}")
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        **({"links": [clusters]} if panel.clusters else {}),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": one.expression,
                "legendFormat": "{{le}}" if panel.kind == "heatmap" else one.legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                "range": panel.kind != "bargauge",
                "instant": panel.kind == "bargauge",
            }
            for index, one in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": OPTIONS[panel.kind],
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, str | float | None]] = [{"color": panel.base, "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.steps]
    field: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "stat":
        field["noValue"] = "-"
    if panel.kind == "heatmap":
        field["custom"] = {"scaleDistribution": {"type": "linear"}}
    if panel.kind == "timeseries":
        field["color"] = {"mode": "palette-classic"}
        field["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 60 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
    for name, value in (("min", panel.low), ("max", panel.high)):
        if value is not None:
            field[name] = value
    return field


_REDUCE = {"calcs": ["lastNotNull"], "fields": "", "values": False}

OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCE,
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    },
    "bargauge": {
        "reduceOptions": _REDUCE,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "minVizWidth": 8,
        "minVizHeight": 10,
        "maxVizHeight": 40,
        "namePlacement": "auto",
        "sizing": "auto",
        "valueMode": "color",
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Turbo",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "unit": "short", "reverse": False},
    },
}
"""Options of each kind of panel, as Grafana's schema names them."""
