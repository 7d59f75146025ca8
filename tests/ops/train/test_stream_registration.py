"""The register of a stream's readers, kept by real runs: what a run needs is never pruned."""

import errno
import json
import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.rundir.files import RunRecord, read_run, write_json
from ops.rundir.summary import FINISHED, STOPPED, Progress, RunSummary, read_summary
from ops.train.events import CheckpointResult, Started
from ops.train.signals import StopRequest
from ops.train.stream_registration import StreamRegistration, first_needed, kept_cursors
from stream.config import RetentionConfig
from stream.cursor import Cursor, WindowStart
from stream.errors import StreamPruned
from stream.lanes import Position
from stream.shards.manifest import Manifest
from stream.shards.readers import ReaderRecord, read_readers, write_reader
from stream.shards.retention import forget, prune
from tests.ops.small_runs import RECORDS, StopAfter, bits, config_of, killed, run, write_stream
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.usefixtures("one_thread")

NOTHING = RetentionConfig(keep_hours=1e-9)


def cursor_at(*units: int, **more: object) -> Cursor:
    positions = tuple(Position(lane=lane, unit=unit) for lane, unit in enumerate(units))
    return Cursor(
        source={},
        seed=0,
        lanes=len(units),
        chunk=1,
        window=2,
        positions=positions,
        **more,  # type: ignore[arg-type]
    )


def test_a_cursor_needs_the_windows_in_which_its_lanes_stand() -> None:
    assert first_needed(cursor_at(6, 4, 8), 1) == 4


def test_a_cursor_needs_what_its_replay_window_is_rebuilt_from() -> None:
    start = WindowStart(pass_number=0, steps=1, positions=cursor_at(2, 4, 2).positions)
    assert first_needed(cursor_at(6, 4, 8, replay=start), 1) == 2


def test_while_passes_are_to_come_all_from_the_beginning_of_the_run_is_needed() -> None:
    assert first_needed(cursor_at(6, 4, begin=2), 2) == 2
    assert first_needed(cursor_at(6, 4, begin=2, pass_number=1), 2) == 4


def registered(run_dir: Path, stream: str) -> StreamRegistration:
    registration = StreamRegistration(run_dir, RunRecord.new(stream=stream, config={}), passes=1)
    registration.notify(Started(Progress(), samples=0))
    return registration


def readers(stream: str) -> list[ReaderRecord]:
    return read_readers(Manifest.open(stream).store)


def test_a_stopped_run_keeps_what_its_oldest_checkpoint_needs_and_ends_with_the_same_bits(
    tmp_path: Path, whole_run: tuple[Path, RunSummary]
) -> None:
    stream, run_dir = write_stream(tmp_path / "stream"), tmp_path / "run"
    # The same records in the same shards, so that the bits can be compared with those of the whole run.
    run(stream, run_dir, config_of("checkpoint.keep=2"), stop=StopAfter(run_dir, 8))
    (entry,) = readers(stream)
    cursors = kept_cursors(run_dir)
    assert len(cursors) == 2
    assert entry.run == read_run(run_dir).uuid
    assert entry.first <= min(position.unit for position in cursors[0].positions)
    assert entry.used == 8 * 32
    manifest = Manifest.open(stream)
    done = prune(manifest, NOTHING)
    assert done.first == entry.first > 0
    assert done.held_by == entry
    assert run(stream, run_dir, config_of("checkpoint.keep=2")).status == FINISHED
    assert bits(run_dir)[0] == bits(whole_run[0])[0]
    assert readers(stream) == [], "a run that is over needs nothing"


@pytest.mark.parametrize("policy", ["fifo", "prototypes"])
def test_a_run_with_replay_goes_on_over_a_pruned_stream(tmp_path: Path, policy: str) -> None:
    replay = ("replay.updates=2", "replay.window_samples=96", f"replay.policy={policy}")
    config = config_of(*replay, "checkpoint.keep=1")
    stream = write_stream(tmp_path / "stream")
    run(stream, tmp_path / "whole", config)
    run_dir = tmp_path / "run"
    run(stream, run_dir, config, stop=StopAfter(run_dir, 7))
    assert prune(Manifest.open(stream), NOTHING).commits > 0
    run(stream, run_dir, config)
    assert bits(run_dir)[0] == bits(tmp_path / "whole")[0]


def test_a_run_that_was_forgotten_is_refused_with_what_it_missed(tmp_path: Path) -> None:
    stream, run_dir = write_stream(tmp_path / "stream"), tmp_path / "run"
    run(stream, run_dir, config_of(), stop=StopAfter(run_dir, 2))
    manifest = Manifest.open(stream)
    forget(manifest, readers(stream)[0].run)
    prune(manifest, NOTHING)
    with pytest.raises(StreamPruned, match=f"{RECORDS - 64} records that come next"):
        run(stream, run_dir, config_of())


def test_a_new_run_begins_at_the_first_window_that_is_kept(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream")
    manifest = Manifest.open(stream)
    sizes = [manifest.entry(number).bytes for number in range(len(manifest))]
    prune(manifest, RetentionConfig(keep_bytes=sum(sizes[3:])))
    summary = run(stream, tmp_path / "run", config_of("window=2", "passes=2"))
    kept = manifest.records - manifest.before(4)
    assert summary.samples + summary.left_over == 2 * kept


def test_a_run_that_has_saved_nothing_keeps_all_that_is_there(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 130, seal=False)
    registration = registered(tmp_path, stream)
    assert prune(Manifest.open(stream), NOTHING).commits == 0
    registration.close()
    assert len(readers(stream)) == 1


def test_a_run_that_waits_for_records_says_so_until_it_ends(tmp_path: Path) -> None:
    stream, stop = write_stream(tmp_path / "stream", 130, seal=False), StopRequest()
    learner = threading.Thread(
        target=run, args=(stream, tmp_path / "run", config_of("window=8")), kwargs={"stop": stop}
    )
    learner.start()
    wait_for(lambda: any(entry.waiting for entry in readers(stream)))
    assert [entry.waiting for entry in readers(stream)] == [True]
    stop.ask()
    learner.join(LIMIT_S)
    assert [entry.waiting for entry in readers(stream)] == [False]


def test_a_stream_that_takes_no_note_is_one_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = write_stream(tmp_path / "stream", 130)
    (tmp_path / "stream" / "readers").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        summary = run(stream, tmp_path / "run", config_of())
    assert summary.status == FINISHED
    assert caplog.text.count("takes no note") == 1


def test_a_run_is_out_of_the_register_before_it_is_announced_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, a finished run would hold its shards for ever: no process opens it again."""
    stream = write_stream(tmp_path / "stream", 96)
    there: list[list[ReaderRecord]] = []

    def look(path: Path, body: Mapping[str, Any]) -> None:
        there.append(read_readers(Manifest.open(stream).store))
        write_json(path, body)

    monkeypatch.setattr("ops.train.saving.write_json", look)
    run(stream, tmp_path / "run", config_of())
    assert there == [[]]


def test_a_run_that_ends_by_its_number_of_samples_leaves_an_open_stream(tmp_path: Path) -> None:
    stream, config = write_stream(tmp_path / "stream", seal=False), config_of("end_samples=64")
    assert run(stream, tmp_path / "run", config).status == FINISHED
    assert readers(stream) == []
    assert prune(Manifest.open(stream), NOTHING).commits > 0


def test_a_finished_run_that_the_stream_still_knows_is_taken_out_when_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    stream, run_dir = write_stream(tmp_path / "stream", seal=False), tmp_path / "run"
    config = config_of("end_samples=64")
    ended = run(stream, run_dir, config)
    entry = ReaderRecord(run=read_run(run_dir).uuid, where="of a time when the stream could not be written")
    write_reader(Manifest.open(stream).store, entry)
    assert run(stream, run_dir, config) == ended
    assert readers(stream) == []


def test_a_copy_of_a_run_has_an_entry_of_its_own_and_leaves_that_of_the_original(tmp_path: Path) -> None:
    stream, run_dir, copy = write_stream(tmp_path / "stream", seal=False), tmp_path / "run", tmp_path / "copy"
    config = config_of("end_samples=96", "checkpoint.every_samples=32")
    assert run(stream, run_dir, config, stop=StopAfter(run_dir, 1)).status == STOPPED
    (original,) = read_readers(Manifest.open(stream).store)
    shutil.copytree(run_dir, copy)
    assert run(stream, copy, config, stop=StopAfter(copy, 1)).status == STOPPED
    first, second = sorted(read_readers(Manifest.open(stream).store), key=lambda entry: len(entry.run))
    assert first == original
    assert second.run.startswith(original.run + "-")
    assert second.where.endswith(f":{copy}")
    assert run(stream, copy, config).status == FINISHED
    assert read_readers(Manifest.open(stream).store) == [original]
    assert run(stream, copy, config).status == FINISHED  # what leaves a finished run's entry behind again
    assert read_readers(Manifest.open(stream).store) == [original]
    assert run(stream, run_dir, config).status == FINISHED
    assert readers(stream) == []


def test_a_run_directory_that_was_moved_keeps_its_entry(tmp_path: Path) -> None:
    stream, run_dir, moved = (
        write_stream(tmp_path / "stream", seal=False),
        tmp_path / "run",
        tmp_path / "moved",
    )
    config = config_of("end_samples=96", "checkpoint.every_samples=32")
    assert run(stream, run_dir, config, stop=StopAfter(run_dir, 1)).status == STOPPED
    run_dir.rename(moved)
    assert run(stream, moved, config, stop=StopAfter(moved, 2)).status == STOPPED
    (entry,) = read_readers(Manifest.open(stream).store)
    assert (entry.run, entry.where.endswith(f":{moved}")) == (read_run(moved).uuid, True)


def test_a_finished_run_is_summed_up_where_its_stream_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream, run_dir = write_stream(tmp_path / "stream", 96), tmp_path / "run"
    ended = run(stream, run_dir, config_of())
    shutil.rmtree(stream)
    Path(stream).write_text("no folder")
    assert run(stream, run_dir, config_of()) == ended
    assert not caplog.records


@pytest.mark.parametrize("name", ["numbers", "first_needed"])
def test_a_run_directory_that_cannot_be_read_for_a_while_is_one_warning_and_the_run_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def away(*_args: object) -> list[int]:
        raise OSError(errno.ESTALE, "Stale file handle")

    stream, run_dir = write_stream(tmp_path / "stream", seal=False), tmp_path / "run"
    monkeypatch.setattr(f"ops.train.stream_registration.{name}", away)
    with caplog.at_level(logging.WARNING):
        summary = run(stream, run_dir, config_of(), stop=StopAfter(run_dir, 4))
    assert summary.status == STOPPED
    assert read_summary(run_dir) == summary
    assert caplog.text.count("Stale file handle") == 1


def test_a_run_that_saved_nothing_of_its_first_stream_leaves_it_for_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = write_stream(tmp_path / "first"), write_stream(tmp_path / "second", seal=False)
    run_dir, config = tmp_path / "run", config_of("checkpoint.every_samples=100000")
    assert killed(lambda: run(first, run_dir, config, stop=StopAfter(run_dir, 2, kill=True)))
    assert len(readers(first)) == 1
    run(second, run_dir, config, stop=StopAfter(run_dir, 2))
    assert readers(first) == []
    assert len(readers(second)) == 1
    assert f"was begun on {first}" in caplog.text
    again = tmp_path / "moved"
    Path(second).rename(again)
    run(str(again), run_dir, config, stop=StopAfter(run_dir, 4))
    assert len(readers(str(again))) == 1


def test_a_damaged_entry_is_written_again_by_its_run(tmp_path: Path) -> None:
    stream, run_dir = write_stream(tmp_path / "stream"), tmp_path / "run"
    assert run(stream, run_dir, config_of(), stop=StopAfter(run_dir, 2)).status == STOPPED
    place = tmp_path / "stream" / "readers" / f"{read_run(run_dir).uuid}.json"
    before = json.loads(place.read_text())
    place.write_text("{}")
    run(stream, run_dir, config_of(), stop=StopAfter(run_dir, 3))
    after = json.loads(place.read_text())
    new = {name: after[name] for name in ("seen", "check")}
    assert after == {**before, **new, "used": 96}


def test_a_topic_has_no_register(tmp_path: Path) -> None:
    registration = registered(tmp_path, "kafka://nowhere:1/topic")
    registration.notify(CheckpointResult("ok"))
    registration.close()


def test_a_damaged_checkpoint_needs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "ckpt-000001"
    folder.mkdir(parents=True)
    good = replace(cursor_at(2, 4), steps=3)
    (folder / "cursor.json").write_bytes(b"\xff{")
    (tmp_path / "checkpoints" / "ckpt-000002").mkdir()
    (tmp_path / "checkpoints" / "ckpt-000002" / "cursor.json").write_text(good.to_json())
    assert kept_cursors(tmp_path) == [good]
