"""The library for programs that use the prototypes: it swaps, verifies, and keeps the last good snapshot."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch

from ops.errors import RedisUnavailable, SnapshotNotFound
from ops.rundir.files import RunRecord, write_run
from ops.snapshots import watch as snapshots_watch
from ops.snapshots.aliases import SnapshotNames
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.publisher import Publisher
from ops.snapshots.reader import LoadedSnapshot
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import SnapshotTaken
from ops.snapshots.watch import SnapshotWatch, watch_run
from tests.ops import synthetic
from tests.waiting import LIMIT_S, wait_for

NEVER_S = 60.0
"""A poll so rare that only a notification can have woken the watch."""


class Run:
    """A run directory whose learner publishes when told to."""

    def __init__(self, folder: Path, url: str, run: str = "run-1") -> None:
        self.client = connect(url)
        self.store = SnapshotStore(self.client, run)
        self.files = EncoderFiles(folder)
        self.publisher = Publisher(self.store, self.files)
        self.publisher.start()

    def publish(self, number: int, *, verdict: str = "healthy") -> None:
        before = self.publisher.version
        shot = synthetic.snapshot(number, verdict=verdict)
        self.publisher.publish(SnapshotTaken(shot, 100 * number, number))
        wait_for(lambda: self.publisher.version > before)

    def watch(self, which: str = "stable", *, poll_s: float = NEVER_S) -> SnapshotWatch:
        return SnapshotWatch(self.store, self.files, which, poll_s=poll_s)


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture
def run(embedded: EmbeddedRedis, tmp_path: Path) -> Iterator[Run]:
    one = Run(tmp_path, embedded.url)
    one.publish(1)
    yield one
    one.publisher.close(1)
    one.client.close()


@pytest.fixture
def opened(run: Run) -> Iterator[list[SnapshotWatch]]:
    watches: list[SnapshotWatch] = []
    yield watches
    for watch in watches:
        watch.close()


def subscribed(run: Run) -> bool:
    return bool(run.store.client.pubsub_numsub(run.store.key("notify"))[0][1])


def test_a_notification_swaps_at_once(run: Run, opened: list[SnapshotWatch]) -> None:
    watch = run.watch().open()
    opened.append(watch)
    first = watch.current
    wait_for(lambda: subscribed(run))
    run.publish(2)
    newer = watch.wait(LIMIT_S)
    assert newer is watch.current
    assert newer is not None
    assert (first.info.version, newer.info.version) == (1, 2)
    assert torch.equal(newer.tensors["prototypes"], synthetic.snapshot(2).tensors["prototypes"])
    assert newer.encoder.keys() == synthetic.snapshot(2).encoder.keys()
    assert watch.wait(0.05) is None, "each is given once"


def test_stable_is_not_swapped_for_an_unhealthy_snapshot_but_for_a_rollback(
    run: Run, opened: list[SnapshotWatch]
) -> None:
    run.publish(2)
    watch = run.watch().open()
    opened.append(watch)
    wait_for(lambda: subscribed(run))
    run.publish(3, verdict="unhealthy")
    assert watch.wait(0.3) is None
    SnapshotNames(run.store).rollback()
    found = watch.wait(LIMIT_S)
    assert found is not None
    assert found.info.version == 1


def test_without_notifications_polling_finds_what_is_new(run: Run, opened: list[SnapshotWatch]) -> None:
    watch = run.watch("pin:mine", poll_s=0.1)
    SnapshotNames(run.store).pin("mine", 1)
    opened.append(watch.open())
    run.publish(2)
    run.client.hset(run.store.key("pins"), "mine", 2)  # no notice is sent
    found = watch.wait(LIMIT_S)
    assert found is not None
    assert found.info.version == 2


def test_a_damaged_snapshot_is_not_taken_and_the_next_good_one_is(
    run: Run, opened: list[SnapshotWatch]
) -> None:
    watch = run.watch("pin:mine", poll_s=0.1)
    SnapshotNames(run.store).pin("mine", 1)
    opened.append(watch.open())
    run.publish(2)
    bad = run.store.show(2)
    run.client.setrange(run.store.key(f"blob:{bad.blob_sha256}"), bad.blob_bytes - 4, b"\x01\x02\x03\x04")
    SnapshotNames(run.store).pin("mine", 2)
    wait_for(lambda: "not what its digest says" in watch.error)
    assert watch.current.info.version == 1
    run.publish(3)
    SnapshotNames(run.store).pin("mine", 3)
    wait_for(lambda: watch.current.info.version == 3)
    assert watch.error == ""


def test_the_last_good_one_stays_while_redis_is_away_and_says_how_old_it_is(
    embedded: EmbeddedRedis, run: Run, opened: list[SnapshotWatch]
) -> None:
    watch = run.watch(poll_s=0.1).open()
    opened.append(watch)
    os.kill(int(run.store.client.info("server")["process_id"]), signal.SIGKILL)
    wait_for(lambda: "Redis does not answer" in watch.error)
    wait_for(lambda: watch.age_s > 0.2, "an age")
    assert watch.current.info.version == 1
    embedded.ensure()
    wait_for(lambda: watch.error == "")
    since = watch.age_s
    wait_for(lambda: watch.age_s < since, "another look")
    run.publish(2)
    found = watch.wait(LIMIT_S)
    assert found is not None
    assert found.info.version == 2


def test_a_server_that_lost_everything_leaves_the_last_good_one(
    run: Run, opened: list[SnapshotWatch]
) -> None:
    watch = run.watch(poll_s=0.1).open()
    opened.append(watch)
    run.client.flushall()
    wait_for(lambda: "has no snapshot 'stable'" in watch.error)
    assert watch.current.info.version == 1
    run.publish(2)
    wait_for(lambda: watch.current.info.version == 2)


def test_what_is_swapped_in_is_handed_to_a_callback(run: Run, opened: list[SnapshotWatch]) -> None:
    heard: list[LoadedSnapshot] = []
    watch = SnapshotWatch(run.store, run.files, "head", poll_s=0.1, on_swap=heard.append).open()
    opened.append(watch)
    run.publish(2)
    wait_for(lambda: [shot.info.version for shot in heard] == [2])


@pytest.mark.parametrize("error", [SnapshotNotFound("the program's own"), OSError("the program's own")])
def test_what_a_callback_raises_ends_the_watch_and_is_not_taken_for_trouble_with_redis(
    run: Run, opened: list[SnapshotWatch], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)

    def fail(shot: LoadedSnapshot) -> None:
        raise error

    watch = SnapshotWatch(run.store, run.files, "head", poll_s=0.1, on_swap=fail).open()
    opened.append(watch)
    run.publish(2)
    wait_for(lambda: bool(ended))
    assert [hook.exc_value for hook in ended] == [error]
    assert watch.error == ""


def test_closing_ends_a_wait_and_leaves_current_usable(run: Run) -> None:
    watch = run.watch().open()
    watch.close()
    watch.close()
    assert watch.wait(10_000) is None  # the limit of a test is far below
    assert watch.current.info.version == 1


def test_a_first_snapshot_can_be_waited_for(embedded: EmbeddedRedis, tmp_path: Path) -> None:
    record = RunRecord.new(stream="STREAM", config={})
    write_run(tmp_path, record)
    with pytest.raises(SnapshotNotFound, match="'stable'"), watch_run(tmp_path):
        pass
    one = Run(tmp_path, embedded.url, record.uuid)
    one.publisher.publish(SnapshotTaken(synthetic.snapshot(1), 100, 1))
    with watch_run(tmp_path, wait_s=10) as watch:
        assert watch.current.info.version == 1
    assert one.publisher.close()
    one.client.close()


def test_a_redis_that_is_away_at_the_start_is_one_clear_error(tmp_path: Path) -> None:
    write_run(tmp_path, RunRecord.new(stream="STREAM", config={}))
    with pytest.raises(RedisUnavailable, match="no answer"), watch_run(tmp_path, url="unix:///nowhere.sock"):
        pass


def example() -> str:
    """The lines of the module's text, which are those of ops/docs/snapshots.md."""
    assert snapshots_watch.__doc__ is not None
    found = re.search(r"\n\n((?:    .*\n|\n)+)\n", snapshots_watch.__doc__)
    assert found is not None
    return textwrap.dedent(found.group(1))


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    folder.mkdir()
    record = RunRecord.new(stream="STREAM", config={})
    write_run(folder, record)
    with EmbeddedRedis(folder) as server:
        one = Run(folder, server.url, record.uuid)
        one.publish(1)
        assert len([text for text in example().splitlines() if text]) <= 8
        with subprocess.Popen(
            [sys.executable, "-u", "-c", example()], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        ) as program:  # fmt: skip
            assert program.stdout is not None
            first = program.stdout.readline()
            one.publish(2)
            rest = program.stdout.read()
        assert program.returncode == 0
        assert one.publisher.close()
        one.client.close()
    assert first == "version 1: prototypes (8, 4)\n"
    assert rest.splitlines()[0] == "now version 2"
    assert re.fullmatch(r"confirmed \d s ago, Redis answers", rest.splitlines()[1])


def test_a_watch_that_is_not_open_says_so(embedded: EmbeddedRedis, tmp_path: Path) -> None:
    client: redis.Redis = connect(embedded.url)
    with client, pytest.raises(RuntimeError, match=r"call open\(\)"):
        _ = SnapshotWatch(SnapshotStore(client, "run-1"), EncoderFiles(tmp_path)).current
