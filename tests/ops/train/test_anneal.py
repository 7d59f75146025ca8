"""An annealed copy: its rate falls to zero, it is a run of its own, and the run is left as it was."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from ops.cli.main import run as command
from ops.config.load import build
from ops.distributed import launcher
from ops.errors import ConfigError, RunMismatch, RunNotFound
from ops.inference import load_model
from ops.rundir.files import read_lines, read_run
from ops.rundir.lock import RunLock
from ops.rundir.summary import FINISHED, STOPPED
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.store import SnapshotStore
from ops.train import anneal
from tests.ops.forked_ranks import launch
from tests.ops.launching import summary_of
from tests.ops.small_runs import STEPS, StopAfter, bits, config_of, run, write_stream

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 32
HALF = 4 * BATCH


@pytest.fixture(scope="module")
def half_run(tmp_path_factory: pytest.TempPathFactory, drawn_stream: str, one_thread: None) -> Path:
    """A run that was stopped after four of its ten steps."""
    run_dir = tmp_path_factory.mktemp("half") / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 4))
    return run_dir


def rates(run_dir: Path) -> list[float]:
    return [entry["learning_rate"] for entry in read_lines(run_dir / "history.jsonl")]


def test_the_rate_falls_to_zero_and_the_copy_ends_there(half_run: Path, tmp_path: Path) -> None:
    copy = anneal.prepare(half_run, tmp_path / "copy", samples=4 * BATCH)
    summary = run(copy.stream, copy.run_dir, copy.config)
    assert (summary.status, summary.samples, summary.steps) == (FINISHED, 8 * BATCH, 8)
    peak = copy.config.optim.learning_rate
    wanted = [peak * (1 - (step / 4) ** 0.5) for step in range(4)]
    assert rates(copy.run_dir) == pytest.approx([peak] * 4 + wanted)
    assert copy.made
    assert summary.samples + summary.skipped + summary.left_over == 8 * BATCH


def test_the_run_is_left_as_it_was_and_goes_on_as_if_there_were_no_copy(
    half_run: Path, tmp_path: Path, drawn_stream: str
) -> None:
    before = {path: path.read_bytes() for path in half_run.rglob("*") if path.is_file()}
    with RunLock(half_run):  # its learner may be at work
        copy = anneal.prepare(half_run, tmp_path / "copy", samples=BATCH)
        run(copy.stream, copy.run_dir, copy.config)
    after = {path: path.read_bytes() for path in half_run.rglob("*") if path.is_file()}
    del before[half_run / "lock"], after[half_run / "lock"]
    assert after == before


def test_a_copy_stopped_after_every_step_ends_with_the_same_bits(half_run: Path, tmp_path: Path) -> None:
    whole = anneal.prepare(half_run, tmp_path / "whole", samples=3 * BATCH)
    run(whole.stream, whole.run_dir, whole.config)
    again = tmp_path / "again"
    for steps in (5, 6, 7):
        copy = anneal.prepare(half_run, again, samples=3 * BATCH)
        assert copy.made == (steps == 5)
        part = run(copy.stream, copy.run_dir, copy.config, stop=StopAfter(again, steps))
        assert (part.status, part.steps) == (STOPPED if steps < 7 else FINISHED, steps)
    assert bits(again) == bits(whole.run_dir)


def test_a_finished_copy_does_nothing_more(half_run: Path, tmp_path: Path) -> None:
    copy = anneal.prepare(half_run, tmp_path / "copy", samples=BATCH)
    first = run(copy.stream, copy.run_dir, copy.config)
    again = anneal.prepare(half_run, tmp_path / "copy")
    assert run(again.stream, again.run_dir, again.config) == first


def test_a_copy_is_a_run_of_its_own_that_says_where_it_comes_from(half_run: Path, tmp_path: Path) -> None:
    copy = anneal.prepare(half_run, tmp_path / "copy", samples=BATCH)
    run(copy.stream, copy.run_dir, copy.config)
    ours, theirs = read_run(copy.run_dir), read_run(half_run)
    assert ours.uuid != theirs.uuid
    assert ours.origin == {"kind": "anneal", "run": theirs.uuid, "run_dir": str(half_run), "samples": HALF}
    with open_redis(copy.run_dir) as client:
        (info,) = SnapshotStore(client, ours.uuid).versions()
        assert (info.version, info.samples, info.parent) == (1, HALF + BATCH, None)


def test_without_a_number_the_rate_falls_over_a_fifth_of_the_samples_in_whole_batches(
    half_run: Path, tmp_path: Path
) -> None:
    copy = anneal.prepare(half_run, tmp_path / "copy")
    assert copy.config.optim.anneal_samples == BATCH  # a fifth of 128, raised
    assert copy.end == HALF + BATCH


def test_a_copy_asks_for_no_more_than_a_sealed_stream_has(half_run: Path, tmp_path: Path) -> None:
    copy = anneal.prepare(half_run, tmp_path / "copy", samples=10_000)
    assert copy.end == STEPS * BATCH
    assert run(copy.stream, copy.run_dir, copy.config).samples == STEPS * BATCH


def test_a_run_that_has_used_its_stream_is_told_to_read_it_again(
    whole_run: tuple[Path, object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="give --set passes=2"):
        anneal.prepare(whole_run[0], tmp_path / "copy", samples=BATCH)
    copy = anneal.prepare(whole_run[0], tmp_path / "copy", samples=2 * BATCH, assignments=("passes=2",))
    summary = run(copy.stream, copy.run_dir, copy.config)
    assert (summary.status, summary.samples) == (FINISHED, (STEPS + 2) * BATCH)


def test_the_copy_of_a_run_over_an_open_stream_ends_all_the_same(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "open", 240, seal=False)
    run_dir = tmp_path / "run"
    run(stream, run_dir, config_of(), stop=StopAfter(run_dir, 3))
    copy = anneal.prepare(run_dir, tmp_path / "copy", samples=2 * BATCH)
    assert run(stream, copy.run_dir, copy.config).samples == 5 * BATCH


def test_the_copy_serves_on_a_port_of_its_own(half_run: Path, tmp_path: Path) -> None:
    config = build(config_of().to_dict(), ["server.port=9464"])
    assert anneal._with_free_port(config).server.port == 0
    assert anneal._with_free_port(config_of()).server.port == -1
    copy = anneal.prepare(half_run, tmp_path / "copy", assignments=("server.port=9500",))
    assert copy.config.server.port == 9500


def test_what_cannot_be_copied_is_refused(half_run: Path, tmp_path: Path, drawn_stream: str) -> None:
    with pytest.raises(ConfigError, match="batch cannot be otherwise"):
        anneal.prepare(half_run, tmp_path / "a", assignments=("batch=64",))
    other = tmp_path / "other"
    run(drawn_stream, other, config_of("optim.schedule=cosine"), stop=StopAfter(other, 1))
    with pytest.raises(ConfigError, match="schedule cosine"):
        anneal.prepare(other, tmp_path / "b")
    with pytest.raises(RunMismatch, match="give another --out"):
        anneal.prepare(half_run, other)
    with pytest.raises(RunNotFound, match="no run in"):
        anneal.prepare(tmp_path / "nothing", tmp_path / "c")
    anneal.prepare(half_run, tmp_path / "d", samples=BATCH)
    with pytest.raises(RunMismatch, match="anneals over 32 samples, not 64"):
        anneal.prepare(half_run, tmp_path / "d", samples=2 * BATCH)


def test_a_copy_that_was_killed_while_it_was_made_is_made_again(half_run: Path, tmp_path: Path) -> None:
    first = anneal.prepare(half_run, tmp_path / "copy", samples=BATCH)
    (tmp_path / "copy" / "run.json").unlink()
    second = anneal.prepare(half_run, tmp_path / "copy", samples=BATCH)
    assert second == replace(first, made=True)
    assert run(second.stream, second.run_dir, second.config).samples == HALF + BATCH


def test_the_command_prints_where_the_copy_is_and_its_summary(
    half_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["anneal", str(half_run), "--samples", "32", "--out", str(tmp_path / "c"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["samples"] == HALF + BATCH
    assert f"copy {tmp_path / 'c'} made at 128 samples, ends at 160" in printed.err


def test_several_ranks_anneal_as_one(
    half_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["anneal", str(half_run), "--samples", "64", "--json"]
    monkeypatch.setattr(launcher, "launch", launch)
    assert command([*arguments, "--out", str(tmp_path / "ranks"), "--nproc", "2"]) == 0
    out = capfd.readouterr().out
    assert command([*arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "ranks"))
    assert summary_of(out)["samples"] == one["samples"] == two["samples"] == HALF + 64
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_copy_may_be_made_only_and_the_printed_command_goes_on(
    half_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a copy"
    assert command(["anneal", str(half_run), "--samples", "32", "--out", str(out), "--make-only"]) == 0
    program, *arguments = shlex.split(capsys.readouterr().out)
    assert program == "swavstream"
    assert not (out / "summary.json").exists()
    assert command(arguments) == 0
    assert json.loads((out / "summary.json").read_text())["samples"] == HALF + BATCH


def test_a_run_may_be_given_an_end_in_samples_and_a_later_one(tmp_path: Path, drawn_stream: str) -> None:
    run_dir = tmp_path / "run"
    first = run(drawn_stream, run_dir, config_of("end_samples=65"))
    assert (first.status, first.samples) == (FINISHED, 3 * BATCH)
    assert run(drawn_stream, run_dir, config_of("end_samples=65")) == first
    assert run(drawn_stream, run_dir, config_of()).samples == STEPS * BATCH


def test_a_run_with_an_end_of_its_own_may_have_a_cosine_over_an_open_stream(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "open", 240, seal=False)
    run_dir = tmp_path / "run"
    more = ("optim.schedule=cosine", "optim.learning_rate=1.0")
    assert run(stream, run_dir, config_of(*more, "end_samples=128")).status == FINISHED
    assert rates(run_dir) == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])
    assert load_model.load(run_dir).samples == 128
    run(stream, run_dir, config_of(*more, "end_samples=192"))
    assert rates(run_dir)[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 6)) for step in (4, 5)])
