"""The doctor looks at what a run does now: the past is not held against it, and hides nothing."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.doctor import facts as doctor_facts
from ops.doctor.diagnosis import examine
from ops.live_page.state import TROUBLE_S, LiveView
from ops.monitoring.conditions import SHIPPED
from ops.monitoring.facts import Facts
from ops.rundir.files import append_line
from ops.rundir.status import RUNNING, read_status
from ops.rundir.summary import RunSummary
from tests.ops import synthetic
from tests.ops.doctor.test_doctor import WELL

DAY_S = 86_400.0


def found(**change: Any) -> list[str]:
    return [finding.name for finding in examine(Facts(**{**WELL, **change}))]


def as_if_live(run_dir: Path, live: LiveView, monkeypatch: pytest.MonkeyPatch) -> Facts:
    """What the doctor gathers while the live page says this."""
    standing = replace(read_status(run_dir), status=RUNNING, url="http://here/")
    body = json.loads(json.dumps(live.status(), default=str))
    monkeypatch.setattr(doctor_facts, "read_status", lambda _run_dir: standing)
    monkeypatch.setattr(doctor_facts, "fetch_live_status", lambda _url: body)
    monkeypatch.setattr(doctor_facts, "_series", lambda _url: {})
    return doctor_facts.gather(run_dir)


def view(**more: Any) -> LiveView:
    return LiveView(run="r", run_dir="/run", prototypes=40, **more)


def step(live: LiveView, skipped: dict[str, int] | None = None, **more: Any) -> None:
    report = synthetic.report(64, synthetic.shares(40))
    live.observe(report, synthetic.stats(64, skipped), step_s=0.1, lag=0, **more)


@pytest.fixture
def place(tmp_path: Path, whole_run: tuple[Path, RunSummary]) -> Path:
    """A run directory of its own: a run that came to its end."""
    for name in ("run.json", "summary.json", "history.jsonl"):
        (tmp_path / name).write_bytes((whole_run[0] / name).read_bytes())
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def saved(place: Path, number: int, samples: int, skipped: dict[str, int]) -> None:
    folder = place / "checkpoints" / f"ckpt-{number:06d}"
    folder.mkdir()
    (folder / "cursor.json").write_text(json.dumps({"samples": samples, "steps": 1, "skipped": skipped}))


def test_bad_records_that_begin_late_are_seen_however_long_the_run_was_well(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = view(samples=10_000_000, skipped={"truncated": 10})
    step(live, {"truncated": 20})
    facts = as_if_live(place, live, monkeypatch)
    assert (facts.used, facts.skipped) == (64, {"truncated": 20})
    assert "bad-records" in [finding.name for finding in examine(facts)]


def test_bad_records_of_an_earlier_life_are_forgotten(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = view(samples=1000, skipped={"truncated": 900})
    step(live)
    assert "bad-records" not in [finding.name for finding in examine(as_if_live(place, live, monkeypatch))]


def test_of_a_run_that_is_not_live_the_records_between_its_checkpoints_count(place: Path) -> None:
    saved(place, 7, 10_000_000, {"truncated": 10})
    saved(place, 8, 10_001_000, {"truncated": 300, "empty": 2})
    facts = doctor_facts.gather(place)
    assert (facts.used, facts.skipped) == (1000, {"truncated": 290, "empty": 2})


def test_a_step_that_was_refused_long_ago_is_forgotten(place: Path) -> None:
    latest = max(json.loads(line)["time"] for line in (place / "history.jsonl").read_text().splitlines())
    append_line(place / "nonfinite.jsonl", {"what": "loss", "time": latest - TROUBLE_S - 60})
    assert doctor_facts.gather(place).not_finite == 0
    append_line(place / "nonfinite.jsonl", {"what": "loss", "time": latest - TROUBLE_S + 60})
    assert doctor_facts.gather(place).not_finite == 1


def test_of_a_live_run_steps_count_that_were_refused_within_half_an_hour(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ago in (DAY_S, 60.0):
        append_line(place / "nonfinite.jsonl", {"what": "loss", "time": time.time() - ago})
    assert as_if_live(place, view(), monkeypatch).not_finite == 1


def test_readers_and_checkpoints_that_failed_of_late_are_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = view()
    step(live, restarts=4)
    live.checkpoint("error", samples=64)
    facts = as_if_live(place, live, monkeypatch)
    assert (facts.reader_restarts, facts.checkpoint_errors) == (4, 1)


def test_a_damaged_checkpoint_is_told_until_a_good_one_has_followed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "checkpoints" / "damaged-000008").mkdir()
    saved(place, 7, 100, {})
    assert doctor_facts.gather(place).damaged == ("damaged-000008",)
    saved(place, 9, 200, {})
    assert doctor_facts.gather(place).damaged == ()
    live = view()
    live.checkpoint("damaged", samples=100)
    assert as_if_live(place, live, monkeypatch).damaged == ("damaged-000008",), "found in this life"


def test_alikeness_is_that_of_the_last_minutes_not_of_one_batch(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = view()
    for similarity in (0.5, 0.5, 0.0):
        report = synthetic.report(64, synthetic.shares(40))
        assert report.health is not None
        report = replace(report, health=replace(report.health, batch_similarity=similarity))
        live.observe(report, synthetic.stats(), step_s=0.1)
    assert as_if_live(place, live, monkeypatch).batch_similarity == pytest.approx(1 / 3)


def test_a_learner_that_hangs_before_its_first_step_is_found(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(since_step_s=None, lag=5000, since_start_s=SHIPPED.start_s - 1) == []
    assert found(since_step_s=None, lag=5000, since_start_s=SHIPPED.start_s + 1) == ["stalled"]
    assert found(since_step_s=None, lag=None, since_start_s=SHIPPED.start_s + 1) == ["stalled"]
    assert found(since_step_s=None, waiting=True, since_start_s=SHIPPED.start_s + 1) == []
    began = time.time()
    live = view(samples=640)
    monkeypatch.setattr(time, "time", lambda: began + SHIPPED.start_s + 10)
    facts = as_if_live(place, live, monkeypatch)
    assert (facts.since_step_s, facts.start_samples) == (None, 640)
    assert facts.since_start_s == pytest.approx(SHIPPED.start_s + 10, abs=5)


def test_a_run_that_was_just_resumed_is_not_late_with_snapshots() -> None:
    well = {"samples": 1_000_000, "snapshot_samples": None}
    assert found(**well, start_samples=999_000) == []
    assert found(**well, start_samples=990_000) == ["snapshots-late"]
