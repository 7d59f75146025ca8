"""One rule a verdict: gate, live page, doctor and alerts are made from the same rule, and agree."""

import math
from importlib import resources
from typing import Any

import pytest

from learner.step_stats import LIMITS, judge
from ops.config.binding import dotted_names
from ops.config.schema import RunConfig
from ops.doctor.diagnosis import CAUSES, SAID_BY, examine
from ops.monitoring import alerts, verdicts
from ops.monitoring.conditions import EXPRESSIONS, Scale, Term
from ops.monitoring.facts import Facts
from ops.monitoring.rules import RULES, Rule
from tests.ops import synthetic
from tests.ops.monitoring.test_verdicts import HEALTHY

ALERTED = [rule for rule in RULES if rule.alert is not None]
# Rule -> what the learner's gate calls its figure, and what the live page has it from: (field, share of K).
GATED = {
    "collapse": ("feature_std_ratio", "feature_std_ratio", 1),
    "not-learning": ("loss_excess_ratio", "loss_over_ln_k", 1),
    "usage": ("usage_perplexity_ratio", "usage_perplexity", 1000),
    "dead-prototypes": ("dead_prototypes_ratio", "dead_prototypes", 1000),
    "twins": ("prototype_twins_ratio", "prototype_twins", 1000),
}


def rule_named(name: str) -> Rule:
    return next(rule for rule in RULES if rule.name == name)


@pytest.mark.parametrize("beyond", [True, False])
@pytest.mark.parametrize("name", GATED)
def test_gate_page_doctor_and_alert_part_good_from_bad_at_one_limit(name: str, beyond: bool) -> None:
    rule = rule_named(name)
    gate, field, whole = GATED[name]
    term = rule.when[0][0]
    step = 0.001 if (term.compare == ">") == beyond else -0.001
    value = term.bound() + step
    gated = 1 - value if gate == "loss_excess_ratio" else value
    assert LIMITS[gate].passed(gated) != beyond

    figures = {**HEALTHY, "prototypes": 1000, "dead_prototypes": 1, "usage_perplexity": 800}
    page = verdicts.learning({**figures, field: value * whole})
    assert rule.shown is not None
    assert next(one.state for one in page if one.name == rule.shown.name) == ("bad" if beyond else "watch")

    known: dict[str, Any] = {"updates": 500, "usage_window_fill": 1.0, term.fact: value}
    facts = Facts(**known)
    assert (name in [finding.name for finding in examine(facts)]) == beyond
    (alert,) = [one for one in alerts.alerts(Scale()) if one.name == rule.runbook]
    assert f"{EXPRESSIONS[term.fact]} {term.compare} {term.bound():g}" in alert.expression


def test_the_learners_gate_has_the_limits_of_five_rules_and_no_other() -> None:
    report = synthetic.health_report(640, synthetic.shares(40), loss=0.8 * math.log(40))
    assert judge(report)["limits"].keys() == LIMITS.keys() == {gate for gate, _, _ in GATED.values()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_conditions_name_facts_that_exist_and_that_alerts_can_see(rule: Rule) -> None:
    for terms in rule.when:
        for term in terms:
            for name in filter(None, (term.fact, term.of)):
                assert hasattr(Facts(), name), name
                assert rule.alert is None or name in EXPRESSIONS, name
    assert rule.when or rule.also is not None


def test_nothing_is_wrong_where_nothing_is_known() -> None:
    assert [rule.name for rule in RULES if rule.holds(Facts())] == []


def test_names_are_given_once_and_the_doctor_orders_rules_that_exist() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    pages = [rule.runbook for rule in ALERTED]
    assert len(set(pages)) == len(pages)
    for table in (CAUSES, SAID_BY):
        assert set(names) >= {*table, *(other for others in table.values() for other in others)}


def test_settings_and_pages_of_the_rules_exist() -> None:
    known = {"", *dotted_names(RunConfig)}
    pages = {page.name for page in resources.files("ops.monitoring").joinpath("runbooks").iterdir()}
    for rule in RULES:
        if not callable(rule.advice):
            assert rule.advice[0] in known
        assert f"{rule.runbook}.md" in pages


def test_a_term_does_not_hold_of_what_is_not_known_or_not_a_number() -> None:
    term = Term("drift_psi", ">", 0.25)
    assert [term.holds(Facts(drift_psi=value)) for value in (None, math.nan, math.inf, 0.25, 0.26)] == [
        False, False, False, False, True,
    ]  # fmt: skip
    assert Term("since_step_s", "unknown").holds(Facts())
    lag = Term("lag", ">=", 2, of="batch")
    assert lag.holds(Facts(lag=128, config={"batch": 64}))
    assert not lag.holds(Facts(lag=128))


def test_a_scale_changes_durations_and_no_limit() -> None:
    shipped, quick = (
        {alert.name: alert for alert in alerts.alerts(scale)} for scale in (Scale(), Scale(factor=0.01))
    )
    readers = "SwavstreamReadersDying"
    assert shipped[readers].expression == "increase(swavstream_reader_restarts_total[30m]) > 2"
    assert quick[readers].expression == "increase(swavstream_reader_restarts_total[18s]) > 2"
    assert quick["SwavstreamStarved"].expression == shipped["SwavstreamStarved"].expression
    later = {alert.name: alert for alert in alerts.alerts(Scale(warm_up_updates=9))}
    assert later["SwavstreamNotLearning"].expression.endswith("swavstream_run_updates > 9")
