"""Whoever does what doctor and runbooks say is not refused, and it has an effect."""

import re
from importlib import resources

import pytest

from ops.config import IDENTITY, RunConfig
from ops.settings import dotted_names

AT_THE_BEGINNING = ("optim.warmup_samples", "swav.freeze_samples", "swav.queue_start_samples")
"""May be changed on the way, but do nothing once so many samples are over."""
OF_A_NEW_RUN = {*IDENTITY, *AT_THE_BEGINNING}
PAGES = sorted(page.name for page in resources.files("ops").joinpath("runbooks").iterdir())


def advised(page: str) -> list[str]:
    """What is to be done, point by point."""
    text = resources.files("ops").joinpath("runbooks", page).read_text(encoding="utf-8")
    return re.split(r"^- ", text.partition("## What to do\n")[2], flags=re.MULTILINE)[1:]


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


def test_who_publishes_is_told_by_the_command_that_a_runbook_names() -> None:
    page = resources.files("ops").joinpath("runbooks", "SwavstreamTwoLearners.md").read_text(encoding="utf-8")
    assert "`swavstream snapshots show RUN` names host and process of the publisher" in " ".join(page.split())
