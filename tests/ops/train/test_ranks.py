"""Runs on several ranks: real processes that learn what one learns, and end together whatever happens."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.augment import Views
from learner.learner import Learner
from learner.report import StepReport
from ops.rundir.checkpoint import load_newest
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.summary import FINISHED, STOPPED
from tests.ops.forked_ranks import Trace, start, traced
from tests.ops.small_runs import config_of, write_stream

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = ("precision=float64", "model.bn_groups=4", "checkpoint.every_samples=96")
STEPS = 15
BAD = 10
RECORDS = 32 * STEPS + 19


@pytest.fixture(scope="module")
def long_stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Enough for its steps of 32, with a bad record here and there."""
    return write_stream(tmp_path_factory.mktemp("long") / "stream", RECORDS + BAD, bad_every=50)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, long_stream: str, one_thread: None) -> tuple[Path, Trace]:
    """One rank that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    ranks = start(1, long_stream, run_dir, config_of(*EXACT))
    assert ranks.wait()[0]["summary"]["status"] == FINISHED
    return run_dir, traced(ranks.folder)


def state(run_dir: Path) -> tuple[dict[str, torch.Tensor], Any]:
    found = load_newest(run_dir)
    assert found is not None
    return found.state["tensors"], found.cursor


def assert_same_end(run_dir: Path, other: Path) -> None:
    """The cursors are equal, weights and all other tensors to 1e-9."""
    (tensors, cursor), (expected, whole) = state(run_dir), state(other)
    assert cursor == whole
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        if not name.startswith("usage"):  # the order within a batch is free there
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def assert_same_trace(trace: Trace, expected: Trace) -> None:
    assert {update: names for update, (_, names) in trace.items()} == {
        update: names for update, (_, names) in expected.items()
    }
    for update, (loss, _) in expected.items():
        assert trace[update][0] == pytest.approx(loss, rel=1e-9), f"update {update}"


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_get_the_batches_of_one_and_learn_the_same(
    tmp_path: Path, long_stream: str, alone: tuple[Path, Trace], world: int
) -> None:
    ranks = start(world, long_stream, tmp_path / "run", config_of(*EXACT))
    outcomes = ranks.wait()
    assert len(alone[1]) == STEPS
    assert_same_trace(traced(ranks.folder), alone[1])
    assert_same_end(tmp_path / "run", alone[0])
    summary = outcomes[0]["summary"]
    assert summary["samples"] + summary["skipped"] + summary["left_over"] == RECORDS + BAD
    assert all(outcome["summary"]["samples"] == summary["samples"] for outcome in outcomes)


def test_replays_and_passes_are_the_same_on_ranks(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 140)
    config = config_of(*EXACT, "replay.updates=3", "replay.window_samples=96", "passes=2")
    traces = []
    for world in (1, 2):
        ranks = start(world, stream, tmp_path / f"run{world}", config)
        assert ranks.wait()[0]["summary"]["status"] == FINISHED
        traces.append(traced(ranks.folder))
    assert_same_trace(traces[1], traces[0])
    assert_same_end(tmp_path / "run2", tmp_path / "run1")


def test_four_ranks_killed_two_ranks_killed_and_one_are_one_run(
    tmp_path: Path, long_stream: str, alone: tuple[Path, Trace]
) -> None:
    run_dir = tmp_path / "run"
    lives = []
    for world, victim, last in ((4, 2, 5), (2, 0, 10), (1, 0, 99)):

        def die(rank: int, update: int, victim: int = victim, last: int = last) -> None:
            if rank == victim and update == last:
                os.kill(os.getpid(), signal.SIGKILL)

        ranks = start(world, long_stream, run_dir, config_of(*EXACT), at=die)
        outcomes = ranks.wait()
        lives.append(ranks)
        if last < 99:
            assert ranks.codes[victim] == -signal.SIGKILL
            told = [outcome["error"] for rank, outcome in enumerate(outcomes) if rank != victim]
            for error in told:
                assert f"rank {victim} of {world} died" in error
    assert_same_trace(traced(*(life.folder for life in lives)), alone[1])
    assert_same_end(run_dir, alone[0])


@pytest.mark.parametrize(("asked", "number"), [(0, signal.SIGUSR2), (1, signal.SIGTERM)])
def test_a_signal_to_any_rank_that_ends_a_run_saves_once_and_ends_all(
    tmp_path: Path, long_stream: str, alone: tuple[Path, Trace], asked: int, number: signal.Signals
) -> None:
    def ask(rank: int, update: int) -> None:
        if (rank, update) == (asked, 4):
            os.kill(os.getpid(), number)

    run_dir = tmp_path / "run"
    config = config_of(*EXACT, "checkpoint.every_samples=100000", "signals.usr2=end")
    ranks = start(2, long_stream, run_dir, config, at=ask)
    outcomes = ranks.wait()
    assert ranks.codes == {0: 143, 1: 143}
    assert outcomes[0]["summary"]["status"] == STOPPED
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["ckpt-000001"]
    again = start(2, long_stream, run_dir, config)
    assert again.wait()[0]["summary"]["status"] == FINISHED
    assert_same_trace(traced(ranks.folder, again.folder), alone[1])


def test_a_warning_to_any_rank_saves_once_on_all_and_changes_nothing(
    tmp_path: Path, long_stream: str, alone: tuple[Path, Trace]
) -> None:
    def ask(rank: int, update: int) -> None:
        if (rank, update) == (1, 4):
            os.kill(os.getpid(), signal.SIGUSR1)

    run_dir, config = tmp_path / "run", config_of(*EXACT, "checkpoint.every_samples=100000")
    ranks = start(2, long_stream, run_dir, config, at=ask)
    assert ranks.wait()[0]["summary"]["status"] == FINISHED
    assert ranks.codes == {0: 0, 1: 0}
    saved = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert saved == ["ckpt-000001", "ckpt-000002"], "as asked, and at the end"
    assert_same_trace(traced(ranks.folder), alone[1])


def test_no_rank_leaves_before_the_first_one_has_saved(
    tmp_path: Path, long_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = CheckpointWriter.flush

    def slow(writer: CheckpointWriter) -> Path | None:
        time.sleep(2.0)
        path = flush(writer)
        (tmp_path / "saved").touch()
        return path

    def ask(rank: int, update: int) -> None:
        if (rank, update) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(CheckpointWriter, "flush", slow)
    ranks = start(2, long_stream, tmp_path / "run", config_of(*EXACT), at=ask)
    ranks.codes[1] = os.waitstatus_to_exitcode(os.waitpid(ranks.pids[1], 0)[1])
    assert (tmp_path / "saved").exists()
    ranks.wait()
    assert ranks.codes == {0: 143, 1: 143}


def test_a_rank_that_hangs_is_named_within_the_time_limit(tmp_path: Path, long_stream: str) -> None:
    def hang(rank: int, update: int) -> None:
        if (rank, update) == (1, 5):
            os.kill(os.getpid(), signal.SIGSTOP)

    config = config_of(*EXACT, "ranks.timeout_s=3")
    ranks = start(2, long_stream, tmp_path / "run", config, at=hang)
    ranks.await_update(4)
    _, status = os.waitpid(ranks.pids[0], 0)
    ranks.codes[0] = os.waitstatus_to_exitcode(status)
    ranks.kill(1)
    assert "rank 1 of 2 died, or did not answer for 3 s" in ranks.wait()[0]["error"]


def test_what_keeps_one_rank_from_going_on_is_told_by_it_and_saved_by_all(tmp_path: Path) -> None:
    stream, run_dir = write_stream(tmp_path / "stream", 700), tmp_path / "run"

    def lose(rank: int, update: int) -> None:
        if rank == 0 and update == 3:
            for shard in sorted((Path(stream) / "shards").glob("*.tar"))[4:]:
                shard.unlink()

    config = config_of(*EXACT, "checkpoint.every_samples=100000", "window=1")
    ranks = start(2, stream, run_dir, config, at=lose)
    outcomes = ranks.wait()
    assert all("error" in outcome for outcome in outcomes)
    assert not all(outcome["told_by_another"] for outcome in outcomes)
    saved = load_newest(run_dir)
    assert saved is not None, outcomes
    assert saved.cursor.steps == max(traced(ranks.folder)) + 1


def test_the_budget_of_bad_records_is_that_of_all_ranks(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 600, bad_every=4)
    config = config_of(*EXACT, "reader.bad_window=160", "reader.max_bad_fraction=0.2")
    ends = []
    for world in (1, 2, 4):
        ranks = start(world, stream, tmp_path / f"run{world}", config)
        outcomes = ranks.wait()
        assert "TooManyBadRecords" in outcomes[0]["error"]
        assert all(outcome.get("told_by_another", True) for outcome in outcomes[1:])
        ends.append(state(tmp_path / f"run{world}")[1])
    assert ends[0] == ends[1] == ends[2]


class OfTheFirst(Learner):
    """Only the rank that writes a checkpoint copies the weights."""

    def state_dict(self, *, send_only: bool = False) -> dict[str, Any]:
        assert send_only == (os.environ["RANK"] != "0")
        return super().state_dict(send_only=send_only)


def test_ranks_that_write_no_checkpoint_copy_no_weights(
    tmp_path: Path, long_stream: str, alone: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.ops.forked_ranks.Learner", OfTheFirst)
    ranks = start(2, long_stream, tmp_path / "run", config_of(*EXACT))
    assert [outcome["summary"]["status"] for outcome in ranks.wait()] == [FINISHED, FINISHED]
    assert_same_end(tmp_path / "run", alone[0])


class Spoilt(Learner):
    """The fifth update meets a weight that is not a number, twice: on the rank of lane 5."""

    met = 0

    def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
        assert views.lane_B is not None
        here = self.updates == 4 and Spoilt.met < 2
        Spoilt.met += here
        if not here or 5 not in views.lane_B:
            return super().step(views, accumulate=accumulate, fresh=fresh)
        weight = next(self._model.parameters())
        before = weight.detach().clone()
        try:
            weight.data[0] = float("nan")
            return super().step(views, accumulate=accumulate, fresh=fresh)
        finally:
            weight.data.copy_(before)


def test_an_update_that_is_not_finite_is_left_out_by_all_ranks(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.ops.forked_ranks.Learner", Spoilt)
    config, ends = config_of(*EXACT, "on_nonfinite=skip"), []
    for world in (1, 2):
        ranks = start(world, drawn_stream, tmp_path / f"run{world}", config)
        assert ranks.wait()[0]["summary"]["skipped_by_reason"] == {"non_finite": 32}
        ends.append(state(tmp_path / f"run{world}")[1])
    assert ends[0] == ends[1]
