"""Runs with several updates a step: interrupted anywhere and gone on with, they end with the same bits."""

import logging
from pathlib import Path

import pytest

from learner.augment import Views
from learner.learner import Learner
from learner.report import NonFinite, StepReport
from ops.config.schema import RunConfig
from ops.errors import ConfigError, NotFinite, RunMismatch
from ops.rundir.checkpoint import load_newest
from ops.rundir.files import read_lines
from ops.rundir.summary import FINISHED, RunSummary
from stream.errors import StreamDamaged
from stream.shards.source import ShardSource
from stream.source import Entry
from tests.ops.small_runs import (
    STEPS,
    StopAfter,
    bits,
    config_of,
    kill_after,
    run,
    run_stopped_after_every_step,
)

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 3
REPLAY = (f"replay.updates={UPDATES}", "replay.window_samples=96")


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, drawn_stream: str) -> tuple[Path, RunSummary]:
    run_dir = tmp_path_factory.mktemp("replayed") / "run"
    return run_dir, run(drawn_stream, run_dir, config_of(*REPLAY, "passes=2"))


def test_a_run_does_all_updates_of_each_step_and_counts_each_arrival_once(
    replayed: tuple[Path, RunSummary], whole_run: tuple[Path, RunSummary]
) -> None:
    run_dir, summary = replayed
    assert summary.status == FINISHED
    assert (summary.steps, summary.samples) == (2 * STEPS, 2 * STEPS * 32)
    assert summary.updates == UPDATES * summary.steps
    found = load_newest(run_dir)
    assert found is not None
    assert found.state["values"]["samples"] == summary.samples
    assert found.state["values"]["updates"] == summary.updates
    entries, plain = (list(read_lines(folder / "history.jsonl")) for folder in (run_dir, whole_run[0]))
    assert [(entry["samples"], entry["updates"]) for entry in entries] == [
        (32 * step, UPDATES * step) for step in range(1, summary.steps + 1)
    ]
    assert entries[0]["loss"] == plain[0]["loss"]
    assert entries[1]["loss"] != plain[1]["loss"]


def test_stopped_after_every_step_and_gone_on_a_run_with_replays_ends_with_the_same_bits(
    tmp_path: Path, drawn_stream: str, replayed: tuple[Path, RunSummary]
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY, "passes=2")
    last = run_stopped_after_every_step(drawn_stream, run_dir, config, 2 * STEPS)
    assert bits(run_dir) == bits(replayed[0])
    assert (last.snapshot or {})["digest"] == (replayed[1].snapshot or {})["digest"]


def test_killed_and_gone_on_with_other_readers_a_run_with_replays_ends_with_the_same_bits(
    tmp_path: Path, drawn_stream: str, replayed: tuple[Path, RunSummary]
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY, "passes=2")
    kill_after(drawn_stream, run_dir, config, (5, 13))
    run(drawn_stream, run_dir, config_of(*REPLAY, "passes=2", "workers=2"))
    assert bits(run_dir) == bits(replayed[0])


def test_updates_and_window_belong_to_the_run(tmp_path: Path, drawn_stream: str) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(*REPLAY), stop=StopAfter(run_dir, 1))
    for other in (config_of(), config_of(*REPLAY, "replay.window_samples=64")):
        with pytest.raises(RunMismatch, match=r"replay\.window_samples is 96 there"):
            run(drawn_stream, run_dir, other)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("replay.updates=0", "replay.updates must be >= 1"),
        ("replay.updates=2", "whole multiple of batch 32, got 0: take 32"),
        ("replay.window_samples=64", "replays nothing"),
    ],
)
def test_settings_of_replay_that_do_not_go_together_are_refused(setting: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_of(setting)


class Fragile(Learner):
    """Its second replay of one step is never finite."""

    def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
        if not fresh and self.updates == UPDATES * 4 + 2:
            raise NonFinite("loss", float("nan"), self.updates)
        return super().step(views, accumulate=accumulate, fresh=fresh)


def test_a_replay_that_is_never_finite_refuses_its_whole_step(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.train.resume.Learner", Fragile)
    run_dir = tmp_path / "run"
    with pytest.raises(NotFinite, match="loss of step 5 is nan, also after going back"):
        run(drawn_stream, run_dir, config_of(*REPLAY))
    assert [line["steps"] for line in read_lines(run_dir / "nonfinite.jsonl")] == [5, 5]
    found = load_newest(run_dir)
    assert found is not None
    assert (found.cursor.steps, found.state["values"]["updates"]) == (4, 4 * UPDATES)


def test_a_step_with_a_replay_that_is_never_finite_can_be_left_out(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY, "on_nonfinite=skip")
    run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 4))
    with monkeypatch.context() as patch:
        patch.setattr("ops.train.resume.Learner", OnceFragile)
        summary = run(drawn_stream, run_dir, config)
    assert summary.skipped_by_reason == {"non_finite": 32}
    assert summary.updates == UPDATES * (STEPS - 1)
    assert summary.steps == STEPS


class OnceFragile(Learner):
    """The second replay of the fifth step is not finite, the first two times that it comes."""

    met = 0

    def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
        if not fresh and self.updates == UPDATES * 4 + 2 and OnceFragile.met < 2:
            OnceFragile.met += 1
            raise NonFinite("loss", float("nan"), self.updates)
        return super().step(views, accumulate=accumulate, fresh=fresh)


def test_a_replay_that_cannot_be_read_ends_the_run_without_saving_half_a_step(
    tmp_path: Path,
    drawn_stream: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    replayed: tuple[Path, RunSummary],
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY, "passes=2")
    run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 2))

    def gone(self: ShardSource, unit: int, index: int) -> Entry:
        raise StreamDamaged("the shard is gone")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(ShardSource, "entry", gone)
        with pytest.raises(StreamDamaged, match="the shard is gone"):
            run(drawn_stream, run_dir, config)
    assert "goes on from its last checkpoint" in caplog.text
    run(drawn_stream, run_dir, config)
    assert bits(run_dir) == bits(replayed[0])


def test_no_replay_is_the_default() -> None:
    assert RunConfig().replay.updates == 1
