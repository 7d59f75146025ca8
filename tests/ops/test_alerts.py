"""Alerts as promtool judges them: they fire after the shipped duration, not before, not when healthy."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops import alerts
from ops.alerts import Scale
from ops.config import RunConfig
from ops.metric_table import METRICS, PREFIX
from ops.settings import dotted_names
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
    labels = case.labels if name == "SwavstreamMetricsAbsent" else LABELS | case.labels
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


@pytest.mark.parametrize(
    ("up", "known", "expected"),
    [
        ("1x480", "1x480", []),
        ("1x40 0x440", "1x40", [{"job": "pods", "instance": "a"}]),  # down
        ("1x40", "1x40", [{}]),  # the target is gone with the learner
        ("1x480", None, [{}]),  # something else is scraped
    ],
)
def test_missing_metrics_are_noticed_whatever_the_scraping_job_is_called(
    tmp_path: Path, up: str, known: str | None, expected: list[dict[str, str]]
) -> None:
    name = "SwavstreamMetricsAbsent"
    series = [{"series": 'up{job="pods",instance="a"}', "values": up}]
    if known is not None:
        run_info = f'{PREFIX}run_info{{job="pods",instance="a",run="r"}}'
        series.append({"series": run_info, "values": known})
    fired = [
        {
            "exp_labels": labels | {"severity": ALERTS[name].severity},
            "exp_annotations": dict(alerts.annotations(ALERTS[name], value="0" if labels else "1")),
        }
        for labels in expected
    ]
    at = {"eval_time": "7000s", "alertname": name, "exp_alerts": fired}
    run(tmp_path, [{"interval": f"{STEP_S}s", "input_series": series, "alert_rule_test": [at]}])


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
    known |= {PREFIX + metric.name + "_bucket" for metric in METRICS if metric.kind == "histogram"}
    for expression in [alert.expression for alert in ALERTS.values()] + list(recorded.values()):
        for name in re.findall(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", expression):
            assert name in recorded, name
        bare = re.sub(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", "", expression)
        for name in re.findall(rf"\b{PREFIX}[a-z_]+", bare):
            assert name in known, name


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_runbook_whose_metrics_and_settings_exist(name: str) -> None:
    page = resources.files("ops").joinpath("runbooks", f"{name}.md").read_text(encoding="utf-8")
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
    pages = {page.name.removesuffix(".md") for page in resources.files("ops").joinpath("runbooks").iterdir()}
    assert pages == ALERTS.keys()
