"""Runs that replay by prototypes: the same bits after any interruption, the same learning on any ranks."""

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner.augment import Views
from learner.learner import Learner
from learner.report import NonFinite, StepReport
from ops.errors import CheckpointDamaged, RunMismatch
from ops.inference import load_model
from ops.rundir.checkpoint import REPLAY, load, load_newest, read_meta
from ops.rundir.files import read_lines
from ops.rundir.summary import FINISHED, RunSummary
from ops.train import init_weights
from ops.train.anneal import prepare
from stream.errors import StreamDamaged
from stream.shards.source import ShardSource
from stream.source import Entry
from tests.ops.forked_ranks import Trace, start, traced
from tests.ops.small_runs import (
    STEPS,
    StopAfter,
    bits,
    config_of,
    kill_after,
    run,
    run_stopped_after_every_step,
    write_stream,
)
from tests.ops.train.test_ranks import assert_same_end, assert_same_trace

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 3
REPLAY_SETTINGS = (
    f"replay.updates={UPDATES}",
    "replay.window_samples=96",
    "replay.policy=prototypes",
    "swav.freeze_samples=0",
)


def members_of(run_dir: Path) -> Mapping[str, Tensor]:
    found = load_newest(run_dir)
    assert found is not None
    assert found.replay is not None
    return found.replay


def assert_same_members(run_dir: Path, other: Path) -> None:
    found, expected = members_of(run_dir), members_of(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, drawn_stream: str) -> tuple[Path, RunSummary]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, run(drawn_stream, run_dir, config_of(*REPLAY_SETTINGS, "passes=2"))


def test_a_run_does_all_updates_and_its_checkpoint_holds_the_images(whole: tuple[Path, RunSummary]) -> None:
    run_dir, summary = whole
    assert (summary.status, summary.steps) == (FINISHED, 2 * STEPS)
    assert summary.updates == UPDATES * summary.steps
    members = members_of(run_dir)
    assert members["prototypes"].shape == (8, 96 // 8)
    assert len(set(members["prototypes"].reshape(-1).tolist())) > 2
    found = load_newest(run_dir)
    assert found is not None
    images = sum(tensor.numel() for name, tensor in members.items() if name.startswith("images."))
    assert images < read_meta(found.path)["files"][REPLAY]["bytes"] < images + 40_000


def test_stopped_after_every_step_and_gone_on_it_ends_with_the_same_bits(
    tmp_path: Path, drawn_stream: str, whole: tuple[Path, RunSummary]
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY_SETTINGS, "passes=2")
    last = run_stopped_after_every_step(drawn_stream, run_dir, config, 2 * STEPS)
    assert bits(run_dir) == bits(whole[0])
    assert_same_members(run_dir, whole[0])
    assert (last.snapshot or {})["digest"] == (whole[1].snapshot or {})["digest"]


def test_killed_and_gone_on_with_other_readers_it_ends_with_the_same_bits(
    tmp_path: Path, drawn_stream: str, whole: tuple[Path, RunSummary]
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY_SETTINGS, "passes=2")
    kill_after(drawn_stream, run_dir, config, (5, 13))
    run(drawn_stream, run_dir, config_of(*REPLAY_SETTINGS, "passes=2", "workers=2"))
    assert bits(run_dir) == bits(whole[0])
    assert_same_members(run_dir, whole[0])


def test_no_record_is_read_from_the_stream_again(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, RunSummary]
) -> None:
    def gone(self: ShardSource, unit: int, index: int) -> Entry:
        raise StreamDamaged("the shard is gone")

    monkeypatch.setattr(ShardSource, "entry", gone)
    run_dir, config = tmp_path / "run", config_of(*REPLAY_SETTINGS, "passes=2")
    run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 9))
    run(drawn_stream, run_dir, config)
    assert bits(run_dir) == bits(whole[0])


def test_the_policy_belongs_to_the_run_and_its_images_to_the_checkpoint(
    tmp_path: Path, drawn_stream: str
) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY_SETTINGS)
    run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 1))
    with pytest.raises(RunMismatch, match=r"replay\.policy is 'prototypes' there and 'fifo' here"):
        run(drawn_stream, run_dir, config_of(*REPLAY_SETTINGS, "replay.policy=fifo"))


class Fragile(Learner):
    """An update of the fifth step is not finite, the first two times that it comes."""

    update = met = 0

    def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
        if self.updates == UPDATES * 4 + Fragile.update and Fragile.met < 2:
            Fragile.met += 1
            raise NonFinite("loss", float("nan"), self.updates)
        return super().step(views, accumulate=accumulate, fresh=fresh)


@pytest.mark.parametrize("update", [0, 2])
def test_a_step_that_is_left_out_leaves_nothing_in_memory_and_a_replay_empties_it(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    monkeypatch.setattr(Fragile, "update", update)
    monkeypatch.setattr(Fragile, "met", 0)
    run_dir, config = tmp_path / "run", config_of(*REPLAY_SETTINGS, "on_nonfinite=skip")
    run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 4))
    before = members_of(run_dir)
    with monkeypatch.context() as patch:
        patch.setattr("ops.train.resume.Learner", Fragile)
        summary = run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 5))
    assert summary.skipped_by_reason == {"non_finite": 32}
    assert [line["steps"] for line in read_lines(run_dir / "nonfinite.jsonl")] == [5, 5]
    after = members_of(run_dir)
    # A lane had 12 images of 4 steps. Those of the fifth, numbers 16 to 19, did not come to them; those of
    # the sixth did. After a replay that was refused they are alone: any other may have been to blame.
    for lane in range(8):
        held, holds = (set(of[f"samples.{lane}"][:, 0].tolist()) for of in (before, after))
        assert len(held) == 12
        assert held <= set(range(16))
        if update:
            assert holds == {20, 21, 22, 23}
        else:
            assert len(holds) == 12
            assert holds <= held | {20, 21, 22, 23}
    summary = run(drawn_stream, run_dir, config)
    assert (summary.steps, summary.updates) == (STEPS, UPDATES * (STEPS - 1))


EXACT = ("precision=float64", "model.bn_groups=4", "checkpoint.every_samples=96", *REPLAY_SETTINGS)
RECORDS = 32 * 10 + 19


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[str, Path, Trace]:
    """A stream, and one rank on it that nothing interrupts."""
    folder = tmp_path_factory.mktemp("alone")
    stream = write_stream(folder / "stream", RECORDS + 6, bad_every=50)
    ranks = start(1, stream, folder / "run", config_of(*EXACT))
    assert ranks.wait()[0]["summary"]["status"] == FINISHED
    return stream, folder / "run", traced(ranks.folder)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_replay_what_one_replays_and_learn_the_same(
    tmp_path: Path, alone: tuple[str, Path, Trace], world: int
) -> None:
    stream, expected, trace = alone
    ranks = start(world, stream, tmp_path / "run", config_of(*EXACT))
    assert ranks.wait()[0]["summary"]["status"] == FINISHED
    assert len(trace) == 10 * UPDATES
    assert_same_trace(traced(ranks.folder), trace)
    assert_same_end(tmp_path / "run", expected)
    assert_same_members(tmp_path / "run", expected)


def test_four_ranks_killed_two_ranks_killed_and_one_are_one_run(
    tmp_path: Path, alone: tuple[str, Path, Trace]
) -> None:
    stream, expected, trace = alone
    run_dir, lives = tmp_path / "run", []
    for world, victim, last in ((4, 2, 11), (2, 0, 23), (1, 0, 999)):

        def die(rank: int, update: int, victim: int = victim, last: int = last) -> None:
            if rank == victim and update == last:
                os.kill(os.getpid(), signal.SIGKILL)

        ranks = start(world, stream, run_dir, config_of(*EXACT), at=die)
        ranks.wait()
        lives.append(ranks)
        if last < 999:
            assert ranks.codes[victim] == -signal.SIGKILL
    assert_same_trace(traced(*(life.folder for life in lives)), trace)
    assert_same_end(run_dir, expected)
    assert_same_members(run_dir, expected)


def test_who_looks_at_the_network_does_not_read_the_images(
    tmp_path: Path, whole: tuple[Path, RunSummary]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole[0], run_dir)
    found = load_newest(run_dir)
    assert found is not None
    (found.path / REPLAY).unlink()
    assert load_model.load(run_dir).weights == str(found.path)
    assert init_weights.read(f"{found.path}").origin["checkpoint"] == found.path.name
    with pytest.raises(CheckpointDamaged, match=REPLAY):
        load(found.path)


def test_an_annealed_copy_goes_on_with_the_images(tmp_path: Path, drawn_stream: str) -> None:
    run_dir, config = tmp_path / "run", config_of(*REPLAY_SETTINGS, "optim.schedule=constant")
    run(drawn_stream, run_dir, config, stop=StopAfter(run_dir, 4))
    copy = prepare(run_dir, out=tmp_path / "copy", samples=64)
    assert_same_members(tmp_path / "copy", run_dir)
    assert run(drawn_stream, tmp_path / "copy", copy.config).steps == 6
