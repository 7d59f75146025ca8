"""Whoever does what doctor and runbooks say is not refused, and it has an effect."""

import re
from importlib import resources
from typing import Any

import pytest

from ops.config.binding import dotted_names
from ops.config.schema import IDENTITY, RunConfig
from ops.doctor.diagnosis import examine
from ops.monitoring.facts import Facts
from tests.ops.doctor.test_doctor import WELL
from tests.ops.small_runs import config_of

AT_THE_BEGINNING = ("optim.warmup_samples", "swav.freeze_samples", "swav.queue_start_samples")
"""May be changed on the way, but do nothing once so many samples are over."""
OF_A_NEW_RUN = {*IDENTITY, *AT_THE_BEGINNING}
PAGES = sorted(page.name for page in resources.files("ops.monitoring").joinpath("runbooks").iterdir())


def advised(page: str) -> list[str]:
    """What is to be done, point by point."""
    text = resources.files("ops.monitoring").joinpath("runbooks", page).read_text(encoding="utf-8")
    return re.split(r"^- ", text.partition("## What to do\n")[2], flags=re.MULTILINE)[1:]


EACH: tuple[dict[str, Any], ...] = (
    {"status": "left"}, {"stale_epochs": 1}, {"since_step_s": 500.0}, {"loss_over_ln_k": 1.6},
    {"not_finite": 1}, {"feature_std_ratio": 0.01}, {"loss_over_ln_k": 0.999},
    {"usage_perplexity_ratio": 0.02}, {"dead_prototypes_ratio": 0.4},
    {
        "dead_prototypes_ratio": 0.4,
        "config": config_of("swav.prototypes=200", "swav.queue_samples=64").to_dict(),
    },
    {"prototype_twins_ratio": 0.3}, {"sinkhorn_residual": 1.1}, {"batch_similarity": 0.3}, {"drift_psi": 0.6},
    {"skipped": {"truncated": 4000}}, {"skipped": {"too_large": 4000}}, {"waiting": True, "lag": 500},
    {"reader_restarts": 5}, {"checkpoint_errors": 1}, {"redis_error": "away"}, {"snapshot_samples": 640},
    {"since_step_s": None, "since_start_s": 1000.0}, {"same_images_ratio": 0.9},
    {"loss_over_ln_k": 0.999, "config": config_of("swav.epsilon=0.05").to_dict()},
    {"loss_over_ln_k": 0.999, "config": config_of("batch=8", "swav.prototypes=300").to_dict()},
    {"loss_over_ln_k": 0.999, "status": "finished", "updates": 9},
    {"loss_over_ln_k": 0.999, "config": config_of("optim.warmup_samples=99999").to_dict()},
    {"prototype_twins_ratio": 0.3, "config": config_of("swav.epsilon=0.05").to_dict()},
)  # fmt: skip
"""Changes to the facts of a run that is well, for each thing that the doctor can say."""


def says_so(text: str) -> bool:
    return "new run" in text or "next run" in text


def test_the_settings_of_a_new_run_exist() -> None:
    assert set(dotted_names(RunConfig)) >= OF_A_NEW_RUN


@pytest.mark.parametrize("page", PAGES)
def test_a_runbook_says_of_each_setting_that_takes_a_new_run_that_it_does(page: str) -> None:
    points = advised(page)
    assert points
    for point in points:
        named = OF_A_NEW_RUN.intersection(re.findall(r"`([a-z0-9_.]+)`", point))
        assert not named or says_so(" ".join(point.split())), point


@pytest.mark.parametrize("change", EACH, ids=lambda change: next(iter(change)))
def test_the_doctor_says_of_each_setting_that_takes_a_new_run_that_it_does(change: dict[str, Any]) -> None:
    findings = examine(Facts(**{**WELL, **change}))
    assert findings
    for finding in findings:
        # Those without a dot are words of everyday: they are looked for where a setting is named as such.
        named = OF_A_NEW_RUN.intersection(re.findall(r"[a-z0-9_]+\.[a-z0-9_]+", finding.advice))
        if named or finding.setting in OF_A_NEW_RUN:
            assert says_so(finding.advice), finding


def test_who_publishes_is_told_by_the_command_that_is_named() -> None:
    page = (
        resources.files("ops.monitoring")
        .joinpath("runbooks", "SwavstreamTwoLearners.md")
        .read_text(encoding="utf-8")
    )
    (finding,) = examine(Facts(stale_epochs=1))
    for text in (" ".join(page.split()), finding.advice):
        assert "`swavstream snapshots show RUN` names" in text
        assert "`swavstream snapshots list RUN`" not in text
