"""Runs with `tail = "train"`: real ranks that learn from the last sample too, killed wherever they are."""

import os
import signal
from pathlib import Path

import pytest

from learner.augment import Views
from learner.learner import Learner
from learner.report import NonFinite, StepReport
from ops.config.schema import RunConfig
from ops.errors import ConfigError, RunMismatch
from ops.rundir.files import read_run
from ops.rundir.summary import FINISHED
from tests.ops.forked_ranks import Trace, start, traced
from tests.ops.small_runs import bits, config_of, run, write_stream
from tests.ops.train.test_ranks import assert_same_end, assert_same_trace

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDS = 112
"""Three steps of 32; then 14 good ones remain, of some of the 8 lanes two, of others one."""
GOOD = RECORDS - 2
WHOLE = "tail=train", "passes=2", "checkpoint.every_samples=1"
EXACT = (*WHOLE, "precision=float64", "model.bn_groups=4")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two of its records are bad."""
    return write_stream(tmp_path_factory.mktemp("stream") / "stream", RECORDS, bad_every=50)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, stream: str, one_thread: None) -> tuple[Path, Trace]:
    """One rank that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    ranks = start(1, stream, run_dir, config_of(*EXACT))
    assert ranks.wait()[0]["summary"]["status"] == FINISHED
    return run_dir, traced(ranks.folder)


def test_a_run_trains_every_good_record_and_knows_its_length(tmp_path: Path, stream: str) -> None:
    summary = run(stream, tmp_path / "run", config_of(*WHOLE))
    assert (summary.samples, summary.skipped, summary.left_over) == (2 * GOOD, 2 * 2, 0)
    assert (summary.steps, summary.updates) == (8, 8)
    assert read_run(tmp_path / "run").total_samples == 2 * RECORDS


def test_a_tail_gets_one_update_where_samples_are_replayed(tmp_path: Path, stream: str) -> None:
    config = config_of(*WHOLE, "replay.updates=3", "replay.window_samples=96")
    summary = run(stream, tmp_path / "run", config)
    assert (summary.samples, summary.left_over) == (2 * GOOD, 0)
    assert summary.updates == 2 * (3 * 3 + 1)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_ranks_and_parts_learn_from_the_tail_what_one_rank_learns(
    tmp_path: Path, stream: str, alone: tuple[Path, Trace], world: int, accumulate: int
) -> None:
    ranks = start(world, stream, tmp_path / "run", config_of(*EXACT, f"accumulate={accumulate}"))
    summary = ranks.wait()[0]["summary"]
    assert (summary["samples"], summary["skipped"], summary["left_over"]) == (2 * GOOD, 4, 0)
    assert sorted(len(names) for _, names in alone[1].values()) == [14, 14] + [32] * 6
    assert_same_trace(traced(ranks.folder), alone[1])
    assert_same_end(tmp_path / "run", alone[0])


def test_ranks_killed_in_tails_and_started_again_in_other_numbers_are_one_run(
    tmp_path: Path, stream: str, alone: tuple[Path, Trace]
) -> None:
    lives = []
    for world, victim, last in ((4, 1, 3), (2, 0, 7), (1, 0, 99)):

        def die(rank: int, update: int, victim: int = victim, last: int = last) -> None:
            if rank == victim and update == last:
                os.kill(os.getpid(), signal.SIGKILL)

        lives.append(start(world, stream, tmp_path / "run", config_of(*EXACT), at=die))
        lives[-1].wait()
        assert lives[-1].codes[victim] == (-signal.SIGKILL if last < 99 else 0)
    assert_same_trace(traced(*(life.folder for life in lives)), alone[1])
    assert_same_end(tmp_path / "run", alone[0])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, stream: str, one_thread: None) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run(stream, run_dir, config_of(*WHOLE))
    return run_dir


@pytest.mark.parametrize("update", [2, 3, 4])
def test_a_run_killed_before_in_or_after_a_tail_ends_the_same_bit_for_bit(
    tmp_path: Path, stream: str, whole_run: Path, update: int
) -> None:
    run_dir, config = tmp_path / "run", config_of(*WHOLE)

    def die(_rank: int, number: int) -> None:
        if number == update:
            os.kill(os.getpid(), signal.SIGKILL)

    life = start(1, stream, run_dir, config, at=die)
    life.wait()
    assert life.codes[0] == -signal.SIGKILL
    summary = run(stream, run_dir, config)
    assert (summary.status, summary.left_over) == (FINISHED, 0)
    assert bits(run_dir) == bits(whole_run)


def test_whether_the_tail_is_trained_belongs_to_the_run(tmp_path: Path, stream: str) -> None:
    run(stream, tmp_path / "run", config_of("end_samples=32"))
    with pytest.raises(RunMismatch, match="tail"):
        run(stream, tmp_path / "run", config_of("tail=train"))


def test_a_tail_that_is_neither_is_refused() -> None:
    with pytest.raises(ConfigError, match="tail must be drop or train, got 'keep'"):
        RunConfig(tail="keep")


def test_a_stream_of_less_than_a_batch_can_be_learned_from_but_not_one_of_less_than_the_lanes(
    tmp_path: Path,
) -> None:
    small = write_stream(tmp_path / "small", 20)
    assert run(small, tmp_path / "run", config_of("tail=train")).samples == 20
    with pytest.raises(ConfigError, match="fewer than one batch of 32"):
        run(small, tmp_path / "other", config_of())
    tiny = write_stream(tmp_path / "tiny", 7)
    with pytest.raises(ConfigError, match="7 records, fewer than the 8 lanes"):
        run(tiny, tmp_path / "another", config_of("tail=train"))


class Spoilt(Learner):
    """The fourth update is not finite, twice."""

    met = 0

    def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
        if self.updates == 3 and Spoilt.met < 2:
            Spoilt.met += 1
            raise NonFinite("loss", float("nan"), self.updates)
        return super().step(views, accumulate=accumulate, fresh=fresh)


def test_a_tail_that_is_not_finite_is_left_out_and_the_next_pass_goes_on(
    tmp_path: Path, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.train.resume.Learner", Spoilt)
    summary = run(stream, tmp_path / "run", config_of(*WHOLE, "on_nonfinite=skip"))
    assert (summary.status, summary.updates) == (FINISHED, 7)
    assert summary.skipped_by_reason["non_finite"] == 14
    assert (summary.samples + summary.skipped, summary.left_over) == (2 * RECORDS, 0)
