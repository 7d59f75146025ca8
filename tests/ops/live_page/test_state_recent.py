"""What is told of the last minutes, and what is forgotten."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ops.live_page.state import RECORDS_S, TROUBLE_S, LiveView, Recent
from tests.ops import synthetic


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patched:
        yield Clock(patched)


def test_records_of_long_ago_do_not_count_with_those_of_late(clock: Clock) -> None:
    recent = Recent()
    for _ in range(3):
        recent.step(synthetic.stats(1000), None)
    clock.passes(RECORDS_S + 1)
    recent.step(synthetic.stats(60, {"truncated": 4}), None)
    clock.passes(RECORDS_S / 2)
    recent.step(synthetic.stats(62, {"truncated": 1, "empty": 1}), None)
    told = recent.told()
    assert (told["used"], told["skipped"]) == (122, {"truncated": 5, "empty": 1})


def test_alikeness_is_the_mean_of_the_reports_of_late(clock: Clock) -> None:
    recent = Recent()
    health = synthetic.health_report(64, synthetic.shares(40), loss=2.0)
    assert recent.told()["batch_similarity"] is None
    for value in (0.1, 0.3, None):
        recent.step(synthetic.stats(), replace(health, batch_similarity=value))
        recent.step(synthetic.stats(), None)
    assert recent.told()["batch_similarity"] == pytest.approx(0.2)
    clock.passes(RECORDS_S + 1)
    assert recent.told()["batch_similarity"] is None


def test_a_trouble_is_forgotten_after_half_an_hour(clock: Clock) -> None:
    live = LiveView(run="r", run_dir="/run", prototypes=40)
    live.observe(synthetic.report(64, synthetic.shares(40)), synthetic.stats(), step_s=0.1, lag=0, restarts=3)
    live.checkpoint("error", samples=64)
    live.checkpoint("ok", samples=64)
    stream = live.status()["verdicts"][6]
    assert (stream["name"], stream["state"]) == ("stream", "watch")
    assert live.status()["recent"]["troubles"] == {"reader_restarts": 3, "checkpoint_error": 1}
    clock.passes(TROUBLE_S - TROUBLE_S / 30)
    assert live.status()["recent"]["troubles"]
    clock.passes(TROUBLE_S / 30 + 1)
    assert live.status()["recent"]["troubles"] == {}
    assert live.status()["verdicts"][6]["state"] == "ok"
