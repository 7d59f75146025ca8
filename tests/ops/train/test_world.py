"""Runs and the world around them: what is refused by name, what is survived, what is waited for."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import resource
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from learner.learner import Learner
from ops.demo.feed import encoded
from ops.errors import CheckpointFailed, ConfigError, NoRoom, PortInUse, RunLocked, RunMismatch
from ops.rundir.checkpoint import load_newest
from ops.rundir.files import read_json, read_lines, read_run
from ops.rundir.lock import RunLock
from ops.rundir.status import read_status
from ops.rundir.summary import FINISHED, STOPPED, RunSummary
from ops.train.data import source_spec
from ops.train.reporting import RunReporter
from ops.train.signals import StopRequest
from stream.config import ShardConfig
from stream.errors import StreamError, StreamMismatch, StreamNotFound, TooManyBadRecords
from stream.loader.loader import Loader
from stream.loader.step import Readiness
from stream.record import Record
from stream.shards.adopt import adopt_tar
from stream.shards.manifest import Manifest
from stream.shards.writer import ShardWriter
from tests.ops.small_runs import StopAfter, bits, config_of, full_disk, killed, run, write_stream
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed=3", "seed is 0 there and 3 here"),
        ("lanes=16", "lanes is 8 there and 16 here"),
        ("batch=64", "batch is 32 there and 64 here"),
        ("window=3", "window is 2 there and 3 here"),
        ("crops.0.size=20", "crops is"),
        ("model.backbone=resnet8-w48", "model.backbone is 'resnet8-w16' there and 'resnet8-w48' here"),
        ("swav.prototypes=17", "swav.prototypes is [16] there and [17] here"),
        ("model.projection_dim=8", "model.projection_dim is 16 there and 8 here"),
        ("order=shard", "order is 'window' there and 'shard' here"),
    ],
)
def test_a_setting_that_makes_the_run_what_it_is_cannot_change(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, change: str, told: str
) -> None:
    with pytest.raises(RunMismatch) as caught:
        run(drawn_stream, whole_run[0], config_of(change))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_stream_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "one", 80)
    other = write_stream(tmp_path / "other", 80)
    run_dir = tmp_path / "run"
    run(stream, run_dir, config_of(), stop=StopAfter(run_dir, 1))
    with pytest.raises(RunMismatch, match="over another stream"):
        run(other, run_dir, config_of())
    Path(stream).rename(tmp_path / "moved")
    assert run(str(tmp_path / "moved"), run_dir, config_of()).status == FINISHED
    assert read_run(run_dir).stream == str(tmp_path / "moved")


def test_a_tunable_setting_may_change_and_the_change_is_written_down(
    tmp_path: Path, drawn_stream: str
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 2))
    run(drawn_stream, run_dir, config_of("optim.learning_rate=0.01", "swav.epsilon=0.1"))
    changes = list(read_lines(run_dir / "changes.jsonl"))
    assert [(line["setting"], line["old"], line["new"]) for line in changes] == [
        ("swav.epsilon", 0.03, 0.1),
        ("optim.learning_rate", 0.002, 0.01),
    ]
    assert {(line["steps"], line["samples"]) for line in changes} == {(2, 64)}
    assert read_run(run_dir).config["swav"]["epsilon"] == 0.1
    assert [entry["learning_rate"] for entry in read_lines(run_dir / "history.jsonl")][-1] == 0.01


def killed_before_it_was_saved(stream: str, run_dir: Path) -> None:
    assert killed(lambda: run(stream, run_dir, config_of("seed=5"), stop=StopAfter(run_dir, 1, kill=True)))


def test_a_run_that_has_saved_nothing_takes_other_settings(
    tmp_path: Path, drawn_stream: str, one_thread: None
) -> None:
    run_dir = tmp_path / "run"
    killed_before_it_was_saved(drawn_stream, run_dir)
    uuid = read_run(run_dir).uuid
    run(drawn_stream, run_dir, config_of("seed=6"), stop=StopAfter(run_dir, 1))
    assert read_run(run_dir).config["seed"] == 6
    assert read_run(run_dir).uuid == uuid


def test_a_run_killed_in_its_first_checkpoint_takes_other_settings(
    tmp_path: Path, drawn_stream: str, one_thread: None
) -> None:
    run_dir = tmp_path / "run"
    killed_before_it_was_saved(drawn_stream, run_dir)
    (run_dir / "checkpoints" / ".tmp-4d").mkdir()
    assert run(drawn_stream, run_dir, config_of("seed=6"), stop=StopAfter(run_dir, 1)).steps == 1


def test_a_change_that_the_learner_refuses_is_not_written_down(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 2))

    def refuse(_learner: Learner, _state: object) -> None:
        raise ValueError("not this one")

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "load_state_dict", refuse)
        with pytest.raises(RunMismatch, match="not this one"):
            run(drawn_stream, run_dir, config_of("swav.epsilon=0.1"))
    assert read_run(run_dir).config["swav"]["epsilon"] == 0.03
    assert not (run_dir / "changes.jsonl").exists()
    assert (run_dir / "summary.json").exists()


def test_the_lock_is_taken_before_signals_become_requests(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(lock: RunLock) -> RunLock:
        handlers.append(signal.getsignal(signal.SIGINT))
        raise RunLocked("busy")

    handlers: list[object] = []
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(RunLock, "acquire", busy)
    with pytest.raises(RunLocked, match="busy"):
        run(drawn_stream, tmp_path / "run", config_of())
    assert handlers == [before]


def test_a_second_learner_is_refused(tmp_path: Path, drawn_stream: str) -> None:
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"), pytest.raises(RunLocked, match=f"in use by process {os.getpid()}"):
        run(drawn_stream, tmp_path / "run", config_of())


class RoomAgain(StopRequest):
    """Makes room on the full disk after some steps."""

    def __init__(self, run_dir: Path, steps: int) -> None:
        super().__init__()
        self._run_dir, self._steps = run_dir, steps

    def requested(self) -> bool:
        if sum(1 for _ in read_lines(self._run_dir / "history.jsonl")) >= self._steps:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return super().requested()


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_nothing_else(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    with caplog.at_level(logging.WARNING), full_disk(500_000):
        summary = run(drawn_stream, run_dir, config_of(), stop=RoomAgain(run_dir, 5))
    assert "ckpt-000001 could not be written" in caplog.text
    assert summary.status == FINISHED
    assert bits(run_dir) == bits(whole_run[0])


def test_a_disk_that_stays_full_ends_the_run_with_an_error_and_keeps_the_checkpoint_before(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary]
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 3))
    with full_disk(500_000), pytest.raises(CheckpointFailed, match="run the same command again"):
        run(drawn_stream, run_dir, config_of())
    run(drawn_stream, run_dir, config_of())
    assert bits(run_dir) == bits(whole_run[0])


class RoomAfterFailure(StopRequest):
    """Asks the run to end at the checkpoint that could not be written, and makes room for another."""

    def __init__(self, caplog: pytest.LogCaptureFixture, run_dir: Path) -> None:
        super().__init__()
        self._caplog, self._run_dir = caplog, run_dir

    def requested(self) -> bool:
        if sum(1 for _ in read_lines(self._run_dir / "history.jsonl")) == 3:
            wait_for(lambda: "could not be written" in self._caplog.text, "the failure")
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            self.ask()
        return super().requested()


@pytest.mark.parametrize("room", [0, 100])
def test_a_disk_that_is_full_at_the_start_is_one_line_with_the_directory_and_what_to_do(
    tmp_path: Path, drawn_stream: str, room: int
) -> None:
    run_dir = tmp_path / "run"
    told = rf"no room is left for the run directory {run_dir} \(File too large\): make room there and run"
    with full_disk(room), pytest.raises(NoRoom, match=told):
        run(drawn_stream, run_dir, config_of())
    assert run(drawn_stream, run_dir, config_of("end_samples=64")).samples == 64


def test_a_stop_after_a_save_that_failed_saves_once_more(
    tmp_path: Path, drawn_stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    stop = RoomAfterFailure(caplog, run_dir)
    with caplog.at_level(logging.WARNING), full_disk(500_000):
        summary = run(drawn_stream, run_dir, config_of(), stop=stop)
    assert (summary.status, summary.steps) == (STOPPED, 3)
    assert summary.checkpoint is not None
    found = load_newest(run_dir)
    assert found is not None
    assert found.cursor.steps == 3


def test_an_error_of_the_system_in_the_loop_costs_nothing_that_was_learned(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, ready = 0, Loader.ready

    def away(loader: Loader, timeout_s: float) -> Readiness:
        nonlocal batches
        if batches == 4:
            raise OSError(errno.EIO, "the stream is away")
        found = ready(loader, timeout_s)
        batches += found is Readiness.READY
        return found

    monkeypatch.setattr(Loader, "ready", away)
    with pytest.raises(OSError, match="the stream is away"):
        run(drawn_stream, tmp_path / "run", config_of("checkpoint.every_samples=100000"))
    found = load_newest(tmp_path / "run")
    assert found is not None
    assert found.cursor.steps == 4


def test_a_lag_that_cannot_be_counted_ends_no_run(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_loader: Loader) -> int:
        raise OSError(errno.EIO, "the stream is away")

    monkeypatch.setattr(Loader, "lag", away)
    assert run(drawn_stream, tmp_path / "run", config_of()).status == FINISHED
    assert "the lag cannot be told now" in caplog.text


def test_redis_that_is_away_does_not_stop_the_learner(
    tmp_path: Path, drawn_stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("snapshot.url=redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        summary = run(drawn_stream, tmp_path / "run", config, publish_s=0.3)
    assert summary.status == FINISHED
    assert summary.snapshot is None
    assert "snapshots cannot be published now, the learner goes on" in caplog.text


def test_a_stream_that_is_not_there_is_an_error_or_is_waited_for(tmp_path: Path) -> None:
    place = tmp_path / "late"
    with pytest.raises(StreamNotFound, match="late"):
        run(str(place), tmp_path / "run", config_of())
    writer = threading.Timer(0.7, write_stream, (place, 80))
    writer.start()
    summary = run(str(place), tmp_path / "run", config_of(), wait=True)
    writer.join()
    assert (summary.status, summary.samples) == (FINISHED, 64)


def test_waiting_for_a_stream_can_be_stopped(tmp_path: Path) -> None:
    stop = StopRequest()
    threading.Timer(0.3, stop.ask).start()
    summary = run(str(tmp_path / "never"), tmp_path / "run", config_of(), wait=True, stop=stop)
    assert (summary.status, summary.samples, summary.checkpoint) == (STOPPED, 0, None)


def test_an_open_stream_is_waited_on_and_then_learned_as_if_it_had_been_there(
    tmp_path: Path, whole_run: tuple[Path, RunSummary]
) -> None:
    place = write_stream(tmp_path / "open", 130, seal=False)

    def grow() -> None:
        manifest = Manifest.open(place)
        with ShardWriter(manifest, source_id="more", config=ShardConfig(max_records=60)) as writer:
            for number in range(130, 250):
                payload = encoded(5, number, 24)[0]
                digest = hashlib.sha256(payload).hexdigest()
                writer.write(Record(payload=payload, sha256=digest, media_type="image/jpeg"), number)
        manifest.refresh()
        manifest.seal()

    later = threading.Timer(1.0, grow)
    later.start()
    open_one = run(place, tmp_path / "run", config_of())
    later.join()
    assert open_one.samples + open_one.left_over == 250
    again = run(place, tmp_path / "again", config_of())
    assert bits(tmp_path / "again")[0] == bits(tmp_path / "run")[0]
    assert again.samples == open_one.samples


class GrowOnce(StopRequest):
    """Adds one record while the run waits, and asks it to end once that is seen in its lag."""

    def __init__(self, place: str, watched: list[RunReporter]) -> None:
        super().__init__()
        self._place, self._watched, self._lag = place, watched, -1
        self._deadline = time.monotonic() + LIMIT_S

    def requested(self) -> bool:
        status = self._watched[-1].live.status() if self._watched else {}
        if status.get("state") == "waiting" and self._lag < 0:
            self._lag = status["lag"]
            with ShardWriter(Manifest.open(self._place), source_id="more", config=ShardConfig()) as writer:
                payload = encoded(5, 999, 24)[0]
                digest = hashlib.sha256(payload).hexdigest()
                writer.write(Record(payload=payload, sha256=digest, media_type="image/jpeg"), 999)
        elif 0 <= self._lag < status.get("lag", 0):
            self.ask()
        return super().requested() or time.monotonic() > self._deadline


def test_records_that_arrive_while_the_run_waits_show_in_its_lag(
    tmp_path: Path, watched: list[RunReporter]
) -> None:
    place = write_stream(tmp_path / "open", 130, seal=False)
    stop = GrowOnce(place, watched)
    run(place, tmp_path / "run", config_of("window=8"), stop=stop)
    assert super(GrowOnce, stop).requested()
    lag = watched[-1].metrics.registry.get_sample_value("swavstream_stream_lag_records")
    assert lag == watched[-1].live.status()["lag"]


def test_a_sealed_stream_of_less_than_one_batch_says_what_to_do(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "tiny", 20)
    with pytest.raises(ConfigError, match=r"20 records, fewer than one batch of 32.*lower batch and lanes"):
        run(stream, tmp_path / "run", config_of())


def test_a_stream_gone_bad_stops_the_run_with_what_was_learned_saved(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "bad", 720, bad_from=180)
    config = config_of("reader.bad_window=40", "checkpoint.every_samples=100000")
    with pytest.raises(TooManyBadRecords):
        run(stream, tmp_path / "run", config)
    found = load_newest(tmp_path / "run")
    assert found is not None
    assert found.cursor.steps >= 3


def test_a_run_goes_past_a_spent_budget_where_it_is_told_to_and_keeps_the_budget_behind_it(
    tmp_path: Path,
) -> None:
    stream, run_dir = write_stream(tmp_path / "bad", 720, bad_every=3), tmp_path / "run"
    config = config_of("reader.bad_window=40", "reader.max_bad_fraction=0.2")
    with pytest.raises(TooManyBadRecords, match="--accept-bad-until now"):
        run(stream, run_dir, config)
    with pytest.raises(ConfigError, match="'soon'"):
        run(stream, run_dir, config, accept_bad_until="soon")
    with pytest.raises(TooManyBadRecords) as caught:
        run(stream, run_dir, config, accept_bad_until="400")
    found = load_newest(run_dir)
    assert found is not None
    assert 400 <= found.cursor.read <= 500
    assert f"has read {found.cursor.read} records" in str(caught.value)
    summary = run(stream, run_dir, config, accept_bad_until="now")
    assert summary.status == FINISHED
    assert summary.samples + summary.skipped + summary.left_over == 720
    changes = [
        line for line in read_lines(run_dir / "changes.jsonl") if line["setting"] == "accept_bad_until"
    ]
    assert [(line["old"], line["new"]) for line in changes] == [(0, 400), (400, 720)]
    free = config_of("reader.bad_window=40", "reader.max_bad_fraction=1.0")
    run(stream, tmp_path / "free", free)
    assert bits(tmp_path / "free")[0] == bits(run_dir)[0]


def test_a_run_over_odd_and_broken_tars_ends_and_its_counts_add_up(test_data: Path, tmp_path: Path) -> None:
    folder, stream = test_data / "tarmess", tmp_path / "stream"
    manifest = Manifest.open(str(stream), create=True)
    for path in sorted(folder.glob("*.tar")):
        with contextlib.suppress(StreamError):  # not a plain tar
            adopt_tar(manifest, str(path), source_id="tars")
    manifest.seal()
    before = sorted(path.name for path in tmp_path.iterdir())
    summary = run(str(stream), tmp_path / "run", config_of())
    assert summary.status == FINISHED
    assert manifest.records > 200
    assert summary.samples + summary.skipped + summary.left_over == manifest.records
    assert sum(summary.skipped_by_reason.values()) == summary.skipped
    assert summary.samples >= 192
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "run"])


def test_what_was_accepted_is_still_accepted_by_the_next_life(tmp_path: Path) -> None:
    stream, run_dir = write_stream(tmp_path / "bad", 720, bad_every=3), tmp_path / "run"
    config = config_of("reader.bad_window=40", "reader.max_bad_fraction=0.2")
    run(stream, run_dir, config, accept_bad_until="now", stop=StopAfter(run_dir, 2))
    assert run(stream, run_dir, config).status == FINISHED


def test_a_port_in_use_is_refused_before_anything_is_learned(tmp_path: Path, drawn_stream: str) -> None:
    first = tmp_path / "first"
    stop = StopRequest()
    place = write_stream(tmp_path / "open", 100, seal=False)
    learner = threading.Thread(
        target=run, args=(place, first, config_of("server.port=0")), kwargs={"stop": stop}
    )
    learner.start()
    wait_for(lambda: read_json(first / "server.json"), "the server")
    address = read_json(first / "server.json")
    assert address is not None
    port = address["url"].rstrip("/").rpartition(":")[2]
    with urllib.request.urlopen(f"{address['url']}healthz", timeout=LIMIT_S) as answer:
        assert answer.status == 200
    standing = read_status(first)
    assert standing.status == "running"
    assert standing.url == address["url"]
    with pytest.raises(PortInUse, match=f"port {port} .*server.port"):
        run(drawn_stream, tmp_path / "second", config_of(f"server.port={port}"))
    stop.ask()
    learner.join(LIMIT_S)
    assert read_status(first).status == STOPPED


def test_a_run_from_before_there_was_an_order_goes_on_shard_by_shard(
    tmp_path: Path, drawn_stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the command that began it, as often as it is stopped; a new run takes the default."""
    whole, old = tmp_path / "whole", tmp_path / "old"
    run(drawn_stream, whole, config_of("order=shard"))
    run(drawn_stream, old, config_of("order=shard"), stop=StopAfter(old, 2))
    record = json.loads((old / "run.json").read_text())
    del record["config"]["order"], record["order_unset"]
    (old / "run.json").write_text(json.dumps(record))
    assert '"order"' not in newest_saved_text(old)
    assert config_of().order == "window"
    run(drawn_stream, old, config_of("optim.weight_decay=2e-6"), stop=StopAfter(old, 3))
    assert "goes on as order = shard" in caplog.text
    run(drawn_stream, old, config_of())
    assert bits(old)[2] == bits(whole)[2]
    assert [line["setting"] for line in read_lines(old / "changes.jsonl")] == ["optim.weight_decay"] * 2
    assert read_run(old).config["order"] == "shard"


def test_a_run_from_before_a_setting_goes_on_with_its_default(tmp_path: Path, drawn_stream: str) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    run(drawn_stream, whole, config_of())
    run(drawn_stream, old, config_of(), stop=StopAfter(old, 2))
    record = json.loads((old / "run.json").read_text())
    for name in [name for name in record["config"]["model"] if name.startswith("branch_")]:
        del record["config"]["model"][name]
    (old / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunMismatch, match="branch_centres is 0 there and 8 here"):
        run(drawn_stream, old, config_of("model.branch_centres=8"))
    run(drawn_stream, old, config_of())
    assert bits(old)[2] == bits(whole)[2]
    assert not (old / "changes.jsonl").exists()


def newest_saved_text(run_dir: Path) -> str:
    return (newest_checkpoint(run_dir) / "cursor.json").read_text()


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("ckpt-*"))


def test_a_cursor_of_another_order_than_its_run_is_refused(tmp_path: Path, drawn_stream: str) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 2))
    record = json.loads((run_dir / "run.json").read_text())
    record["config"]["order"] = "shard"
    (run_dir / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunMismatch, match="saved with order = window, and the run's order is shard"):
        run(drawn_stream, run_dir, config_of("order=shard"))


def test_a_window_of_all_commits_is_for_sealed_streams(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 80, seal=False)
    with pytest.raises(StreamMismatch, match=r"window = 0 shuffles all commits .* still open: seal it"):
        run(stream, tmp_path / "run", config_of("window=0"))
    with pytest.raises(ConfigError, match="window = 0 means all commits of a sealed stream of shards"):
        source_spec("kafka://host:1/t", config_of("window=0"))
    Manifest.open(stream).seal()
    assert run(stream, tmp_path / "run", config_of("window=0")).status == FINISHED
