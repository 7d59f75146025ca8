"""Runs: interrupted anywhere and gone on with, they end with the same bits."""

import errno
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from learner.learner import Learner
from learner.report import NonFinite, StepReport
from ops.errors import ConfigError, NotFinite
from ops.rundir.checkpoint import load_newest
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.files import read_lines, read_run
from ops.rundir.status import read_status
from ops.rundir.summary import FINISHED, STOPPED, RunSummary, read_summary
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.store import SnapshotStore
from ops.train.events import Event, StepDone, StepTimings
from ops.train.reporting import RunReporter
from tests.ops.small_runs import (
    RECORDS,
    STEPS,
    PublishedThenKill,
    StopAfter,
    bits,
    config_of,
    killed,
    run,
    write_stream,
)  # fmt: skip
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_uses_every_record_that_fills_a_step_and_counts_the_rest(
    whole_run: tuple[Path, RunSummary],
) -> None:
    _, summary = whole_run
    assert summary.status == FINISHED
    assert (summary.steps, summary.updates, summary.samples) == (STEPS, STEPS, STEPS * 32)
    assert summary.samples + summary.skipped + summary.left_over == RECORDS
    assert summary.loss is not None
    assert summary.loss > 0
    assert summary.usage_perplexity is not None
    assert 1 <= summary.usage_perplexity <= 16


def test_a_run_leaves_checkpoint_snapshot_history_and_summary(whole_run: tuple[Path, RunSummary]) -> None:
    run_dir, summary = whole_run
    assert summary.checkpoint is not None
    assert Path(summary.checkpoint).is_dir()
    assert summary.snapshot is not None
    assert summary.snapshot["version"] == 1
    assert len(summary.snapshot["digest"]) == 64
    steps = [entry["steps"] for entry in read_lines(run_dir / "history.jsonl")]
    assert steps == list(range(1, STEPS + 1))
    assert read_summary(run_dir) == summary
    assert not (run_dir / "server.json").exists()


def test_a_finished_run_again_does_nothing_and_gives_the_same_summary(
    whole_run: tuple[Path, RunSummary], drawn_stream: str
) -> None:
    run_dir, summary = whole_run
    before = sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("ckpt-*"))
    assert run(drawn_stream, run_dir, config_of()) == summary
    assert sorted((path, path.stat().st_mtime_ns) for path in run_dir.rglob("ckpt-*")) == before


def test_a_finished_run_gives_its_summary_where_its_device_is_not(
    whole_run: tuple[Path, RunSummary], drawn_stream: str
) -> None:
    assert run(drawn_stream, whole_run[0], config_of("device=cuda:9")) == whole_run[1]
    with pytest.raises(ConfigError, match="cuda:9 is not there"):
        run(drawn_stream, whole_run[0].with_name("other"), config_of("device=cuda:9"))


def test_the_summary_is_plain_json_with_the_promised_names(whole_run: tuple[Path, RunSummary]) -> None:
    body = json.loads(json.dumps(whole_run[1].to_json()))
    for name in (
        "samples", "skipped", "left_over", "steps", "updates", "seconds", "loss", "loss_over_ln_k",
        "usage_perplexity", "checkpoint", "snapshot",
    ):  # fmt: skip
        assert name in body
    assert set(body["snapshot"]) == {"version", "digest"}


def test_stopped_after_every_step_and_gone_on_the_run_ends_with_the_same_bits(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary]
) -> None:
    run_dir = tmp_path / "run"
    for steps in range(1, STEPS + 1):
        part = run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, steps))
        assert (part.status, part.steps) == (STOPPED, steps)
    saved = load_newest(run_dir)
    assert saved is not None
    last = run(drawn_stream, run_dir, config_of())
    assert bits(run_dir) == bits(whole_run[0])
    assert last.snapshot is not None
    assert whole_run[1].snapshot is not None
    assert last.snapshot["digest"] == whole_run[1].snapshot["digest"]
    assert (last.loss, last.samples, last.left_over) == (
        whole_run[1].loss,
        whole_run[1].samples,
        whole_run[1].left_over,
    )
    assert last.seconds > saved.progress["seconds"]
    assert [entry["steps"] for entry in read_lines(run_dir / "history.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("steps", [1, 4, 7, 8])
def test_killed_without_a_chance_to_save_the_run_ends_with_the_same_bits(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary], steps: int
) -> None:
    run_dir = tmp_path / "run"
    assert killed(lambda: run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, steps, kill=True)))
    assert read_status(run_dir).status == "left"
    summary = run(drawn_stream, run_dir, config_of())
    assert summary.samples == whole_run[1].samples
    assert bits(run_dir) == bits(whole_run[0])
    assert [entry["steps"] for entry in read_lines(run_dir / "history.jsonl")] == list(range(1, STEPS + 1))


def test_snapshots_ahead_of_a_resumed_run_are_abandoned_and_numbers_only_go_up(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary]
) -> None:
    run_dir, config = tmp_path / "run", config_of("snapshot.every_samples=32")
    assert killed(lambda: run(drawn_stream, run_dir, config, stop=PublishedThenKill(run_dir, 5)))
    with open_redis(run_dir) as client:
        before = SnapshotStore(client, read_run(run_dir).uuid).versions()
        assert max(info.samples for info in before) > 96  # the last checkpoint was at 96
    summary = run(drawn_stream, run_dir, config)
    with open_redis(run_dir) as client:
        after = SnapshotStore(client, read_run(run_dir).uuid).versions()
    versions = [info.version for info in after]
    assert versions == sorted(set(versions), reverse=True)
    assert (after[0].version, after[0].digest) == tuple((summary.snapshot or {}).values())
    assert after[0].digest == (whole_run[1].snapshot or {})["digest"]
    assert {info.version for info in after if info.abandoned} == {
        info.version for info in before if info.samples > 96
    }


def test_reader_processes_and_none_give_the_same_bits(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary]
) -> None:
    run(drawn_stream, tmp_path / "run", config_of("workers=2"))
    assert bits(tmp_path / "run") == bits(whole_run[0])


def test_two_passes_are_one_run_and_may_be_asked_for_afterwards(tmp_path: Path, drawn_stream: str) -> None:
    both = run(drawn_stream, tmp_path / "both", config_of("passes=2"))
    assert both.samples == 2 * STEPS * 32
    assert both.samples + both.left_over == 2 * RECORDS
    run(drawn_stream, tmp_path / "later", config_of())
    assert run(drawn_stream, tmp_path / "later", config_of("passes=2")).samples == both.samples
    assert bits(tmp_path / "later") == bits(tmp_path / "both")


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    first = run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 7))
    assert first.checkpoint is not None
    (Path(first.checkpoint) / "learner.safetensors").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        run(drawn_stream, run_dir, config_of())
    assert f"{Path(first.checkpoint).name} is damaged: learner.safetensors" in caplog.text
    assert bits(run_dir) == bits(whole_run[0])


def test_a_step_that_is_never_finite_is_tried_again_and_then_stops_naming_its_lanes(
    tmp_path: Path, drawn_stream: str
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 3))
    poison(run_dir)
    with pytest.raises(NotFinite, match=r"step 4 is nan, also after going back.*lanes 0 from \d+/\d+"):
        run(drawn_stream, run_dir, config_of())
    assert [line["steps"] for line in read_lines(run_dir / "nonfinite.jsonl")] == [4, 4]


def test_a_disk_that_takes_no_note_of_it_does_not_change_what_follows(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 3))
    poison(run_dir)
    monkeypatch.setattr("ops.train.nonfinite.append_line", full)
    with caplog.at_level(logging.WARNING), pytest.raises(NotFinite, match="step 4 is nan, also after going"):
        run(drawn_stream, run_dir, config_of())
    assert "nonfinite.jsonl cannot be written: [Errno 28]" in caplog.text


def test_batches_that_are_not_finite_may_be_left_out_but_not_all_of_them(
    tmp_path: Path, drawn_stream: str, watched: list[RunReporter]
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 3))
    poison(run_dir)
    summary = run(drawn_stream, run_dir, config_of("on_nonfinite=skip"))
    assert summary.skipped_by_reason == {"non_finite": (STEPS - 3) * 32}
    assert summary.samples + summary.skipped + summary.left_over == RECORDS
    assert summary.updates == 3
    assert len(list((run_dir / "nonfinite").iterdir())) == STEPS - 3
    told = watched[-1]
    labels = {"outcome": "skipped", "reason": "non_finite"}
    read = told.metrics.registry.get_sample_value("swavstream_records_total", labels)
    assert read == 32 * sum(range(1, STEPS - 2))  # each time that the run goes back they are read again
    assert told.live.status()["skipped"] == summary.skipped_by_reason


def test_what_is_skipped_is_shown_once_after_going_back(
    tmp_path: Path, watched: list[RunReporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = write_stream(tmp_path / "bad", 400, bad_every=9)
    real, steps = Learner.step, iter(range(10**9))

    def once(learner: Learner, *arguments: Any, **more: Any) -> StepReport:
        if next(steps) == 5:  # the last checkpoint is two steps back
            raise NonFinite("loss", float("nan"), 5)
        return real(learner, *arguments, **more)

    monkeypatch.setattr(Learner, "step", once)
    summary = run(stream, tmp_path / "run", config_of())
    assert summary.skipped > 20
    assert watched[-1].live.status()["skipped"] == summary.skipped_by_reason


def test_saving_is_not_taken_for_waiting_on_the_readers(
    tmp_path: Path, drawn_stream: str, watched: list[RunReporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, notify = CheckpointWriter.save, RunReporter.notify
    timings: list[StepTimings] = []

    def slow(*arguments: Any) -> None:
        time.sleep(2.0)
        real(*arguments)

    def noted(reporter: RunReporter, event: Event) -> None:
        if isinstance(event, StepDone):
            timings.append(event.timings)
        notify(reporter, event)

    monkeypatch.setattr(CheckpointWriter, "save", slow)
    monkeypatch.setattr(RunReporter, "notify", noted)
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 4))  # saves in the loop at step 3
    assert timings[3].save_s >= 2.0
    assert timings[3].step_s >= timings[3].load_s + timings[3].save_s
    assert timings[3].load_s < 2.0
    seconds = watched[-1].metrics.registry.get_sample_value
    assert (seconds("swavstream_learner_seconds_total", {"phase": "checkpoint"}) or 0) >= 2.0


def test_a_disk_slower_than_checkpoints_are_apart_does_not_hold_learning_up(
    tmp_path: Path,
    whole_run: tuple[Path, RunSummary],
    drawn_stream: str,
    watched: list[RunReporter],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first checkpoint is written only once the last step is done."""
    real, run_dir = safetensors.torch.save_file, tmp_path / "run"
    done: list[int] = []

    def slow(*arguments: Any, **more: Any) -> None:
        deadline = time.monotonic() + LIMIT_S
        while (steps := len(list(read_lines(run_dir / "history.jsonl")))) < STEPS:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        done.append(steps)
        real(*arguments, **more)

    monkeypatch.setattr("ops.rundir.checkpoint_writer.safetensors.torch.save_file", slow)
    summary = run(drawn_stream, run_dir, config_of())
    assert done == [STEPS, STEPS], "the first that was due, and the last"
    assert bits(run_dir) == bits(whole_run[0])
    assert summary.checkpoint == str(run_dir / "checkpoints" / "ckpt-000002")
    told = [event["text"] for event in watched[-1].live.events() if event["kind"] == "checkpoint"]
    assert sum("still being written" in text for text in told) == 2
    assert caplog.text.count("still being written") == 1


def poison(run_dir: Path) -> None:
    """Make a weight of the checkpoint not a number, the way a broken memory bank would."""
    found = load_newest(run_dir)
    assert found is not None
    name = next(name for name in found.state["tensors"] if name.endswith("conv1.weight"))
    found.state["tensors"][name].view(-1)[0] = float("nan")
    writer = CheckpointWriter(run_dir, found.run, keep=1)
    writer.save(found.state, found.cursor, found.progress)
    writer.flush()


def test_unusable_records_behind_the_last_whole_step_are_counted_everywhere(
    tmp_path: Path, watched: list[RunReporter]
) -> None:
    stream = write_stream(tmp_path / "stream", 128, bad_from=100)
    summary = run(stream, tmp_path / "run", config_of("window=1"))
    assert summary.samples + summary.skipped + summary.left_over == 128
    bad = sum(summary.skipped_by_reason.values())
    assert bad == summary.skipped > 0
    exported = watched[-1].metrics.registry.get_sample_value
    labels = [{"outcome": "skipped", "reason": reason} for reason in summary.skipped_by_reason]
    assert sum(exported("swavstream_records_total", one) or 0 for one in labels) == bad
    assert watched[-1].live.status()["skipped"] == summary.skipped_by_reason
