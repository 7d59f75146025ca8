"""Alerts as promtool judges them: they fire after the shipped duration, not before, not when healthy."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.config.binding import dotted_names
from ops.config.schema import RunConfig
from ops.monitoring import alerts
from ops.monitoring.catalog import METRICS, PREFIX
from ops.monitoring.conditions import Scale
from ops.monitoring.export import DASHBOARDS
from tests.ops.alert_cases import CASES, HEALTHY, POINTS, STEP_S, Case
from tests.ops.prometheus import promtool

LABELS = {"job": "swavstream", "instance": "learner"}
ALERTS = {alert.name: alert for alert in alerts.alerts(Scale())}


def series(name: str) -> str:
    """A series of the learner's target, named with prefix and labels."""
    bare, _, labels = name.partition("{")
    if bare == "up":
        return name
    given = labels.removesuffix("}")
    return f'{PREFIX}{bare}{{job="swavstream",instance="learner"{"," + given if given else ""}}}'


def unit_test(case: Case | None, when: list[tuple[str, int, bool]]) -> dict[str, Any]:
    """One promtool test: the healthy series but for those of the case; whether alerts fire at moments."""
    values = {**HEALTHY, **(case.sick if case else {})}
    return {
        "interval": f"{STEP_S}s",
        "input_series": [
            {"series": series(name), "values": text.replace("{n}", str(POINTS))}
            for name, text in values.items()
            if text is not None
        ],
        "alert_rule_test": [
            {
                "eval_time": f"{at}s",
                "alertname": name,
                "exp_alerts": [_expected(name, case)] if fires and case else [],
            }
            for name, at, fires in when
        ],
    }


def _expected(name: str, case: Case) -> dict[str, Any]:
    labels = LABELS | case.labels
    return {
        "exp_labels": labels | {"severity": ALERTS[name].severity},
        "exp_annotations": dict(alerts.annotations(ALERTS[name], value=case.value)),
    }


def run(folder: Path, tests: list[dict[str, Any]]) -> None:
    (folder / "rules.yml").write_text(yaml.safe_dump(alerts.rules(), sort_keys=False))
    rules = yaml.safe_load((folder / "rules.yml").read_text())
    body = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{STEP_S}s",
        # Else in any order, and an alert on a recorded series may come one point later.
        "group_eval_order": [group["name"] for group in rules["groups"]],
        "tests": tests,
    }
    (folder / "tests.yml").write_text(yaml.safe_dump(body, sort_keys=False))
    done = promtool("test", "rules", folder / "tests.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("factor", [1.0, 1 / 300])
def test_promtool_accepts_the_rules_at_any_scale(tmp_path: Path, factor: float) -> None:
    rules = alerts.rules(Scale(factor=factor))
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules, sort_keys=False))
    done = promtool("check", "rules", tmp_path / "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS) + len(alerts.recordings(Scale()))} rules found" in done.stdout


def test_every_alert_fires_after_its_duration_and_not_before(tmp_path: Path) -> None:
    tests = []
    for name, case in CASES.items():
        tests.append(unit_test(case, [(name, case.fires_s - STEP_S, False), (name, case.fires_s, True)]))
    run(tmp_path, tests)


def test_no_alert_fires_for_a_healthy_learner(tmp_path: Path) -> None:
    every = 10 * 60
    when = [(name, at, False) for name in ALERTS for at in range(0, STEP_S * POINTS, every)]
    run(tmp_path, [unit_test(None, when)])


def test_a_learner_that_waits_for_records_is_healthy(tmp_path: Path) -> None:
    waits = Case(
        sick={
            "learner_waiting": "1x{n}",
            "stream_lag_records": "200x{n}",
            "last_step_timestamp_seconds": "0x{n}",
        },
        fires_s=0,
        value="",
    )  # fmt: skip
    run(tmp_path, [unit_test(waits, [(name, 5400, False) for name in ALERTS])])


DOWN, GONE = {"job": "pods", "instance": "a"}, {"job": "pods", "instance": "a", "run": "r"}


@pytest.mark.parametrize(
    ("up", "known", "ended", "expected"),
    [
        ("1x480", "1x480", "0x480", None),
        ("1x40 0x440", "1x40", "0x40", DOWN),
        ("1x40", "1x40", "0x40", GONE),  # the target is gone with the learner
        ("1x480", None, None, None),  # something else is scraped
        ("0x480", None, None, None),  # no learner has been seen there
        ("1x40 0x440", "1x40", None, DOWN),  # one of an earlier version, which does not say how it ends
        ("1x40 0x440", "1x40", "0x39 1", None),  # the run has ended, and said so
        ("1x40", "1x40", "0x39 1", None),  # and its target is gone too
        (
            "1x40 0x100 1x60 0x280",
            "1x40 _x100 1x60",
            "0x39 1 _x100 0x60",
            DOWN,
        ),  # it went on, and then was lost
    ],
)
def test_missing_metrics_are_noticed_unless_the_run_has_ended(
    tmp_path: Path, up: str, known: str | None, ended: str | None, expected: dict[str, str] | None
) -> None:
    given = {'up{job="pods",instance="a"}': up}
    if known is not None:
        given[f'{PREFIX}run_info{{job="pods",instance="a",run="r"}}'] = known
    if ended is not None:
        given[f'{PREFIX}run_ended{{job="pods",instance="a"}}'] = ended
    run(tmp_path, [absent(given, expected)])


def test_a_run_that_goes_on_in_another_place_is_not_missed_in_the_first(tmp_path: Path) -> None:
    given = {
        'up{job="pods",instance="a"}': "1x40",
        f'{PREFIX}run_info{{job="pods",instance="a",run="r"}}': "1x40",
        'up{job="pods",instance="b"}': "_x60 1x420",
        f'{PREFIX}run_info{{job="pods",instance="b",run="r"}}': "_x60 1x420",
    }
    run(tmp_path, [absent(given, None)])


def absent(given: dict[str, str], expected: dict[str, str] | None) -> dict[str, Any]:
    """A promtool test: whether MetricsAbsent fires after all of these series, and with which labels."""
    name = "SwavstreamMetricsAbsent"
    fired = []
    if expected is not None:
        value = "1" if "run" in expected else "0"
        fired.append(
            {
                "exp_labels": expected | {"severity": ALERTS[name].severity},
                "exp_annotations": dict(alerts.annotations(ALERTS[name], value=value)),
            }
        )
    at = {"eval_time": "7000s", "alertname": name, "exp_alerts": fired}
    series = [{"series": one, "values": values} for one, values in given.items()]
    return {"interval": f"{STEP_S}s", "input_series": series, "alert_rule_test": [at]}


def test_what_divides_by_nothing_is_recorded_as_0(tmp_path: Path) -> None:
    """A learner that waits does no step, reads no record and spends no second."""
    of = 'job="swavstream",instance="learner"'
    still = {
        f'{PREFIX}step_duration_seconds_bucket{{{of},le="1"}}': "5x{n}",
        f'{PREFIX}step_duration_seconds_bucket{{{of},le="+Inf"}}': "5x{n}",
        f"{PREFIX}step_duration_seconds_count{{{of}}}": "5x{n}",
        f'{PREFIX}learner_seconds_total{{{of},phase="load"}}': "9x{n}",
        f'{PREFIX}records_total{{{of},outcome="used",reason=""}}': "64x{n}",
        f'{PREFIX}records_total{{{of},outcome="skipped",reason="truncated"}}': "1x{n}",
        f"{PREFIX}samples_total{{{of}}}": "64x{n}",
    }
    checks = []
    for name in alerts.recordings(Scale()):
        phase = ',phase="load"' if name.startswith("instance_phase") else ""
        wanted = [{"labels": f"{name}{{{of}{phase}}}", "value": 0}]
        checks.append({"expr": name, "eval_time": "3600s", "exp_samples": wanted})
    series = [{"series": one, "values": text.replace("{n}", str(POINTS))} for one, text in still.items()]
    run(tmp_path, [{"interval": f"{STEP_S}s", "input_series": series, "promql_expr_test": checks}])


def test_panels_show_0_and_not_nan_where_nothing_happens(tmp_path: Path) -> None:
    of = 'job="swavstream",instance="learner"'
    still: dict[str, str] = {}
    for name in ("step_duration_seconds", "publish_duration_seconds", "checkpoint_duration_seconds"):
        still |= {f"{PREFIX}{name}_{part}{{{of}}}": "5x{n}" for part in ("sum", "count")}
        still |= {f'{PREFIX}{name}_bucket{{{of},le="{le}"}}': "5x{n}" for le in ("1", "+Inf")}
    still[f'{PREFIX}records_total{{{of},outcome="skipped",reason="truncated"}}'] = "1x{n}"
    every = [query.expression for board in DASHBOARDS for panel in board.panels for query in panel.queries]
    shown = [one for one in every if "rate(" in one and re.search(r"histogram_quantile| / ", one)]
    assert len(shown) >= 5
    checks = []
    for expression in shown:
        plain = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
        wanted = [{"labels": "{}", "value": 0}]
        checks.append({"expr": f"max({plain})", "eval_time": "3600s", "exp_samples": wanted})
    series = [{"series": one, "values": text.replace("{n}", str(POINTS))} for one, text in still.items()]
    run(tmp_path, [{"interval": f"{STEP_S}s", "input_series": series, "promql_expr_test": checks}])


def test_a_learner_that_never_makes_its_first_step_is_seen(tmp_path: Path) -> None:
    begun: dict[str, str | None] = {"last_step_timestamp_seconds": None, "stream_lag_records": None}
    # Later than 300 s is 315 s, the next point; and then it has to hold for a minute.
    hangs = Case(sick=begun, fires_s=375, value="375")
    waits = Case(sick=begun | {"learner_waiting": "1x{n}"}, fires_s=0, value="")
    name = "SwavstreamLearnerStalled"
    run(
        tmp_path,
        [
            unit_test(hangs, [(name, hangs.fires_s - STEP_S, False), (name, hangs.fires_s, True)]),
            unit_test(waits, [(name, 5400, False)]),
        ],
    )


@pytest.mark.parametrize("published", [None, "4000000x{n}"], ids=["unknown", "of the life before"])
def test_a_run_that_was_resumed_is_stale_only_after_two_intervals_of_its_own(
    tmp_path: Path, published: str | None
) -> None:
    # 400 samples in each point: two intervals of 50,000 are over after 3,750 s, or more at 3,765 s.
    resumed: dict[str, str | None] = {
        "run_start_samples": "5000000x{n}", "run_samples": "5000000+400x{n}", "snapshot_samples": published,
    }  # fmt: skip
    name, case = "SwavstreamSnapshotStale", Case(sick=resumed, fires_s=4065, value="1.084e+05")
    run(tmp_path, [unit_test(case, [(name, case.fires_s - STEP_S, False), (name, case.fires_s, True)])])


def test_every_alert_has_a_case_and_a_name_of_its_own() -> None:
    assert CASES.keys() == ALERTS.keys()


def test_expressions_name_metrics_that_exist() -> None:
    recorded = alerts.recordings(Scale())
    known = {PREFIX + metric.name for metric in METRICS}
    for metric in METRICS:
        if metric.kind == "histogram":
            known |= {f"{PREFIX}{metric.name}_{part}" for part in ("bucket", "count", "sum")}
    for expression in [alert.expression for alert in ALERTS.values()] + list(recorded.values()):
        for name in re.findall(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", expression):
            assert name in recorded, name
        bare = re.sub(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", "", expression)
        for name in re.findall(rf"\b{PREFIX}[a-z_]+", bare):
            assert name in known, name


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook_whose_metrics_and_settings_exist(name: str) -> None:
    page = resources.files("ops.monitoring").joinpath("runbooks", f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        "What it means", "How to confirm", "What to do",
    ]  # fmt: skip
    metrics = {PREFIX + metric.name for metric in METRICS} | alerts.recordings(Scale()).keys()
    settings = set(dotted_names(RunConfig))
    for word in re.findall(r"`([a-z0-9_.:]+)`", page):
        if word.startswith(PREFIX) or ":" in word:
            assert word in metrics, word
        elif "." in word and not word.endswith((".json", ".jsonl")) and not word[0].isdigit():
            assert word in settings, word
    for other in re.findall(r"\bSwavstream\w+", page):
        assert other in ALERTS, other


def test_no_runbook_is_left_without_an_alert() -> None:
    pages = {
        page.name.removesuffix(".md")
        for page in resources.files("ops.monitoring").joinpath("runbooks").iterdir()
    }
    assert pages == ALERTS.keys()
