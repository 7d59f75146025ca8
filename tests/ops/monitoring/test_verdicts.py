"""Constructed cases: each failure is named by its own verdict, and a healthy run by none."""

import pytest

from ops.monitoring import verdicts
from ops.monitoring.conditions import SHIPPED

HEALTHY: dict[str, float | None] = {
    "loss_over_ln_k": 0.7,
    "updates": 500,
    "prototypes": 100,
    "usage_perplexity": 80,
    "usage_window_fill": 1.0,
    "dead_prototypes": 1,
    "prototype_twins": 0,
    "feature_std_ratio": 0.9,
    "sinkhorn_residual": 0.01,
    "start_view_agreement": 0.1,
    "late_view_agreement": 0.4,
}


def states(**changes: float | None) -> dict[str, str]:
    return {verdict.name: verdict.state for verdict in verdicts.learning({**HEALTHY, **changes})}


def test_a_healthy_run_has_nothing_but_good_verdicts() -> None:
    assert set(states().values()) == {"ok"}


@pytest.mark.parametrize(
    ("name", "changes", "state"),
    [
        ("loss", {"loss_over_ln_k": 1.0}, "bad"),
        ("loss", {"loss_over_ln_k": 0.96}, "watch"),
        ("balance", {"usage_perplexity": 1}, "bad"),
        ("balance", {"usage_perplexity": 30}, "watch"),
        ("dead", {"dead_prototypes": 30}, "bad"),
        ("dead", {"dead_prototypes": 10}, "watch"),
        ("twins", {"prototype_twins": 20}, "bad"),
        ("twins", {"prototype_twins": 5}, "watch"),
        ("spread", {"feature_std_ratio": 0.001}, "bad"),
        ("spread", {"feature_std_ratio": 0.3}, "watch"),
        ("codes", {"sinkhorn_residual": 1.1}, "bad"),
        ("codes", {"sinkhorn_residual": 0.5}, "watch"),
    ],
)
def test_one_failure_is_named_by_its_verdict_alone(name: str, changes: dict[str, float], state: str) -> None:
    found = states(**changes)
    assert found.pop(name) == state
    assert set(found.values()) == {"ok"}


def test_usage_is_not_judged_before_its_window_is_full() -> None:
    found = states(usage_window_fill=0.3, usage_perplexity=3, dead_prototypes=60)
    assert (found["balance"], found["dead"]) == ("unknown", "unknown")


def test_a_loss_at_ln_k_is_no_finding_in_the_first_updates() -> None:
    assert states(loss_over_ln_k=1.0, updates=10)["loss"] == "unknown"


def test_a_loss_that_fell_is_good_from_the_first_updates_where_views_come_to_agree() -> None:
    assert states(loss_over_ln_k=0.8, updates=10)["loss"] == "ok"


def test_a_loss_that_fell_alone_is_no_evidence_of_learning() -> None:
    assert states(late_view_agreement=0.11)["loss"] == "watch"
    assert states(late_view_agreement=0.11, updates=10)["loss"] == "unknown"
    assert states(late_view_agreement=None, start_view_agreement=None)["loss"] == "unknown"


def test_a_run_that_began_with_learned_weights_need_not_rise() -> None:
    assert states(start_view_agreement=0.7, late_view_agreement=0.7)["loss"] == "ok"
    assert states(start_view_agreement=0.2, late_view_agreement=0.2)["loss"] == "watch"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_not_known_is_not_judged(value: float | None) -> None:
    assert set(verdicts.learning(dict.fromkeys(HEALTHY, value))) == set(verdicts.learning({}))
    assert {verdict.state for verdict in verdicts.learning({})} == {"unknown"}


def test_the_worst_state_stands_for_all() -> None:
    good, bad = verdicts.learning(HEALTHY), verdicts.learning({**HEALTHY, "feature_std_ratio": 0.0})
    assert verdicts.worst(good) == "ok"
    assert verdicts.worst([*good, *bad]) == "bad"
    assert verdicts.worst(verdicts.learning({})) == "unknown"


def test_waiting_is_well_and_a_stall_is_not() -> None:
    assert verdicts.stream(lag=5, waiting=True, since_step_s=1e6).state == "ok"
    assert verdicts.stream(lag=5, waiting=False, since_step_s=1e6).state == "bad"
    assert verdicts.stream(lag=0, waiting=False, since_step_s=1e6).state == "ok"
    assert verdicts.stream(lag=5, waiting=False, since_step_s=1.0, restarts=2).state == "watch"


def test_a_start_without_a_first_step_is_well_only_for_a_while() -> None:
    def state(since_start_s: float, *, waiting: bool = False) -> str:
        return verdicts.stream(
            lag=None, waiting=waiting, since_step_s=None, since_start_s=since_start_s
        ).state

    assert state(SHIPPED.start_s - 1) == "unknown"
    assert state(SHIPPED.start_s + 1) == "bad"
    assert state(SHIPPED.start_s + 1, waiting=True) == "unknown"


@pytest.mark.parametrize(
    ("result", "state"),
    [("", "unknown"), ("ok", "ok"), ("repeated", "ok"), ("unhealthy", "watch"), ("superseded", "watch"),
     ("error", "bad"), ("stale_epoch", "bad")],
)  # fmt: skip
def test_every_result_of_publishing_has_a_verdict(result: str, state: str) -> None:
    assert verdicts.snapshots(version=1, result=result, detail="why", age_s=300.0).state == state
