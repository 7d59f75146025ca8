"""What the page is told: state, rate, history, events, health, and what people read in it."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ops.live_page.exemplars import Exemplars
from ops.live_page.state import BEAT_S, COLUMNS, WAITING_S, LiveHistory, LiveView
from ops.snapshots.types import PublishResult
from tests.ops import synthetic


def view(prototypes: int = 40) -> LiveView:
    exemplars = Exemplars(prototypes, each=3, thumbnail_px=16)
    return LiveView(
        run="run-1", run_dir="/run", prototypes=prototypes, total_samples=6400, exemplars=exemplars
    )


def step(live: LiveView, samples: int, *, lag: int = 100, prototypes: int = 40) -> None:
    usage = synthetic.shares(prototypes)
    live.observe(synthetic.report(samples, usage), synthetic.stats(64, {"empty": 1}), step_s=0.4, lag=lag)


def verdict(live: LiveView, name: str) -> str:
    return str(next(row["state"] for row in live.status()["verdicts"] if row["name"] == name))


def test_before_the_first_step_nothing_is_claimed() -> None:
    live = view()
    body = live.status()
    assert body["state"] == "starting"
    assert {row["state"] for row in body["verdicts"]} == {"unknown"}
    assert body["verdict"] == "unknown"
    assert live.ready() == (False, "no step is done yet")
    assert live.healthy()[0]
    assert live.prototypes.busiest(5)["histogram"] == [0] * 12


def test_a_step_shows_at_once() -> None:
    live = view()
    step(live, 640)
    body = live.status()
    assert (body["state"], body["samples"], body["lag"]) == ("learning", 640, 100)
    assert body["loss_over_ln_k"] == pytest.approx(0.8)
    assert body["ln_k"] == pytest.approx(np.log(40))
    assert body["skipped"] == {"empty": 1}
    assert live.ready() == (True, "learning")


def test_what_was_skipped_before_a_restart_is_counted_on() -> None:
    live = LiveView(run="r", run_dir="/run", prototypes=40, samples=640, skipped={"empty": 4, "truncated": 1})
    step(live, 704)
    assert live.status()["skipped"] == {"empty": 5, "truncated": 1}


def test_the_rate_is_that_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    live = view()
    for number in range(1, 200):
        step(live, 64 * number)
        now[0] += 0.5 if number < 100 else 1.0
    assert live.status()["rate"] == pytest.approx(64.0, rel=0.02)
    live.state("waiting")
    assert live.status()["rate"] == 0


def test_phases_add_up_to_the_step() -> None:
    live = view()
    step(live, 64)
    assert sum(live.status()["phases"].values()) == pytest.approx(0.4)


def test_waiting_is_healthy_and_ready_but_stopping_is_not_ready() -> None:
    live = view()
    step(live, 64)
    live.state("waiting")
    assert live.healthy() == (True, "waiting")
    assert live.ready() == (True, "waiting")
    assert verdict(live, "stream") == "ok"
    live.state("stopping", "signal")
    assert live.ready() == (False, "stopping")
    step(live, 128)
    assert live.status()["state"] == "stopping"


def test_a_loop_that_hangs_is_not_healthy_and_one_beat_makes_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    live = view()
    later = time.monotonic() + BEAT_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    good, text = live.healthy()
    assert not good
    assert "no sign of life for 12" in text
    live.beat()
    assert live.healthy()[0]


def test_a_learner_with_unread_records_and_no_steps_counts_as_stalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = view()
    step(live, 64, lag=100)
    later = time.time() + 500
    monkeypatch.setattr(time, "time", lambda: later)
    assert verdict(live, "stream") == "bad"


def test_no_unread_records_is_not_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    live = view()
    step(live, 64, lag=0)
    later = time.time() + 500
    monkeypatch.setattr(time, "time", lambda: later)
    assert verdict(live, "stream") == "ok"


def test_snapshots_of_an_earlier_life_are_not_denied() -> None:
    live = view()
    live.published_before = 7
    row = next(row for row in live.status()["verdicts"] if row["name"] == "snapshots")
    assert (row["state"], row["value"]) == ("unknown", "v7")
    assert row["text"].startswith("Published before this start")


def test_publishing_shows_in_the_verdict_and_the_events() -> None:
    live = view()
    live.published(PublishResult(result="ok", samples=64, digest="d", version=3, time=time.time()))
    assert verdict(live, "snapshots") == "ok"
    live.published(PublishResult(result="error", samples=128, digest="e", detail="Connection refused"))
    live.published(PublishResult(result="error", samples=128, digest="e", detail="Connection refused"))
    assert verdict(live, "snapshots") == "bad"
    assert live.status()["snapshot"]["version"] == 3
    assert [event["kind"] for event in live.events()] == ["error", "snapshot"]


def test_only_waiting_that_lasts_is_an_event_and_then_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    live = view()
    for number in range(1, 50):  # a stream that trickles
        live.state("waiting")
        now[0] += 0.4 * WAITING_S
        live.state("waiting")
        step(live, 64 * number)
    assert live.events() == []
    for _ in range(5):
        live.state("waiting", "no stream yet")
        now[0] += WAITING_S
    assert [(event["kind"], event["text"]) for event in live.events()] == [("waiting", "no stream yet")]
    live.state("stopping")
    assert [event["kind"] for event in live.events()] == ["stopping", "waiting"]


def test_a_rewind_is_an_event() -> None:
    live = view()
    live.published(PublishResult(result="ok", samples=64, digest="d", version=4, abandoned=(3, 2)))
    assert live.events()[0]["text"].startswith("v3, v2 abandoned")


def test_readers_that_were_replaced_are_an_event() -> None:
    live = view()
    for restarts in (0, 2, 2, 3):
        live.observe(
            synthetic.report(64, synthetic.shares(40)), synthetic.stats(64), step_s=0.4, restarts=restarts
        )
    told = [event["text"] for event in live.events()]
    assert told == ["1 reader process died and replaced", "2 reader processes died and replaced"]
    assert live.status()["restarts"] == 3


def test_prototypes_that_are_reseeded_again_and_again_are_one_event() -> None:
    live = view()
    for number, reseeded in enumerate((0, 2, 0, 5)):
        report = synthetic.report(64 * (number + 1), synthetic.shares(40), reseeded=reseeded)
        live.observe(report, synthetic.stats(64), step_s=0.4)
    live.checkpoint("ok", samples=256)
    live.observe(synthetic.report(320, synthetic.shares(40), reseeded=1), synthetic.stats(64), step_s=0.4)
    told = [event["text"] for event in live.events() if event["kind"] == "re-seed"]
    assert told == ["1 prototype re-seeded", "7 prototypes re-seeded"]


def test_change_is_told_against_the_usage_window_of_the_health_report() -> None:
    live = view()
    for number in range(1, 41):  # a window of 1,000 samples is 15.6 steps
        step(live, 64 * number)
        live.usage(synthetic.shares(40, seed=number).numpy())
    since = live.prototypes.table()["changed_since"]
    assert 64 * 40 - 1000 - 1000 // 8 - 64 <= since <= 64 * 40 - 1000 + 64


def test_events_are_bounded_newest_first() -> None:
    live = view()
    for number in range(500):
        live.event("note", str(number))
    assert [event["text"] for event in live.events(2)] == ["499", "498"]
    assert len(live.events(1000)) == 200


def test_the_histogram_and_the_busiest_are_of_the_usage_given() -> None:
    live = view(4)
    live.usage(np.array([0.0, 0.25, 0.7, 0.05], np.float32))
    body = live.prototypes.busiest(2)
    assert [row["id"] for row in body["busiest"]] == [2, 1]
    # In even shares: 0, 1, 2.8 and 0.2.
    assert dict(zip(body["edges"], body["histogram"], strict=False)) == {
        0.0: 1, 0.01: 0, 0.03: 0, 0.1: 0, 0.3: 1, 0.5: 0, 1.0: 1, 2.0: 0, 3.0: 1, 10.0: 0, 30.0: 0,
    }  # fmt: skip
    assert live.prototypes.all()["usage"] == pytest.approx([0.0, 0.25, 0.7, 0.05])


def test_thumbnails_of_a_step_become_typical_images() -> None:
    live = view(4)
    report = synthetic.report(
        64,
        synthetic.shares(4),
        batch=3,
        assigned=torch.tensor([1, 1, 3]),
        score=torch.tensor([0.3, 0.5, 0.9]),
    )
    live.observe(report, synthetic.stats(3), step_s=0.4, keys=["a", "b", "c"], thumbs=synthetic.thumbs(3))
    live.usage(np.array([0.1, 0.5, 0.2, 0.2], np.float32))
    assert live.prototypes.all()["images"] == [0, 2, 0, 1]
    assert live.prototypes.busiest(1)["busiest"][0]["images"] == 2


def test_history_has_a_column_for_each_figure() -> None:
    live = view()
    live.remember({"samples": 64, "time": 1.0, "loss_over_ln_k": 0.99})
    step(live, 128)
    columns = live.history()
    assert columns.keys() == set(COLUMNS)
    assert columns["samples"] == [64, 128]
    assert columns["loss_over_ln_k"] == [0.99, pytest.approx(0.8)]
    assert columns["lag"] == [None, 100]


def test_a_long_history_stays_bounded_and_keeps_its_ends_and_means() -> None:
    history = LiveHistory(points=16)
    for number in range(1, 1001):
        history.add({"samples": number, "loss": float(number)})
    columns = history.columns()
    samples = [value for value in columns["samples"] if value is not None]
    assert len(samples) <= 16
    assert samples == sorted(samples)
    assert samples[-1] == 1000
    begins = [0, *samples[:-1]]
    expected = [(first + 1 + last) / 2 for first, last in zip(begins, samples, strict=True)]
    assert columns["loss"] == pytest.approx(expected)


def test_gaps_in_the_history_do_not_spoil_a_mean() -> None:
    history = LiveHistory(points=4)
    for number in range(8):
        history.add({"samples": number, "lag": 10.0 if number % 2 else None})
    assert set(history.columns()["lag"]) <= {10.0, None}
    assert 10.0 in history.columns()["lag"]


def test_agreement_is_that_of_the_first_and_of_the_latest_steps_however_long_the_run() -> None:
    history = LiveHistory(points=8)
    assert history.agreement() == {"start_view_agreement": None, "late_view_agreement": None}
    for number in range(4):
        history.add({"samples": number, "view_agreement": number / 10})
    assert history.agreement() == {"start_view_agreement": 0.0, "late_view_agreement": 0.3}
    for number in range(4, 1000):
        history.add({"samples": number, "view_agreement": 0.2 if number < 20 else 0.6})
    found = history.agreement()
    assert found["start_view_agreement"] == pytest.approx((0.1 + 0.2 + 0.3 + 16 * 0.2) / 20)
    assert found["late_view_agreement"] == pytest.approx(0.6)


def test_the_verdict_on_learning_needs_views_that_agree() -> None:
    live = view()
    usage = synthetic.shares(40)
    for number in range(1, 400):
        report = synthetic.report(64 * number, usage)
        live.observe(replace(report, view_agreement=0.1), synthetic.stats(64), step_s=0.1)
    assert verdict(live, "loss") == "watch"
    for number in range(400, 430):
        report = synthetic.report(64 * number, usage)
        live.observe(replace(report, view_agreement=0.4), synthetic.stats(64), step_s=0.1)
    assert verdict(live, "loss") == "ok"
