"""The publisher against a real server that dies, empties, fills up or hangs; the learner must not notice."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.publisher import Publisher, pause_s
from ops.snapshots.reader import load_snapshot
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import PublishResult, SnapshotTaken
from ops.snapshots.writer import SnapshotWriter
from tests.ops import synthetic
from tests.waiting import LIMIT_S, freeze


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path) as server:
        yield server


class Listener:
    """Collects results and lets a test wait for one."""

    def __init__(self) -> None:
        self.results: list[PublishResult] = []
        self._changed = threading.Condition()

    def __call__(self, result: PublishResult) -> None:
        with self._changed:
            self.results.append(result)
            self._changed.notify_all()

    def about(self) -> list[tuple[str, int]]:
        return [(result.result, result.samples) for result in self.results]

    def kinds(self) -> list[str]:
        return [result.result for result in self.results]

    def wait_for(self, good: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(good, timeout=LIMIT_S), self.results


class Run:
    """A publisher of a run directory with its listener."""

    def __init__(
        self,
        embedded: EmbeddedRedis,
        *,
        url: str = "",
        revive: bool = False,
        epoch: int = 0,
        version: int = 0,
        keep: int = 20,
    ) -> None:
        self.client = connect(url or embedded.url)
        self.store = SnapshotStore(self.client, "run-1")
        self.files = EncoderFiles(embedded.folder.parent)
        self.heard = Listener()
        self.publisher = Publisher(
            self.store,
            self.files,
            config_hash="c",
            floor_epoch=epoch,
            floor_version=version,
            keep=keep,
            on_result=self.heard,
            revive=embedded.ensure if revive else None,
            retry_s=(0.05, 30.0),
        )
        self.publisher.start()

    def publish(self, number: int, *, verdict: str = "healthy") -> None:
        shot = synthetic.snapshot(number, verdict=verdict)
        self.publisher.publish(SnapshotTaken(shot, 100 * number, number))

    def publish_and_wait(self, number: int) -> PublishResult:
        self.publish(number)
        self.heard.wait_for(lambda: any(result.samples == 100 * number for result in self.heard.results))
        return self.heard.results[-1]

    def close(self, timeout_s: float = LIMIT_S) -> bool:
        done = self.publisher.close(timeout_s)
        self.client.close()
        return done


def kill(embedded: EmbeddedRedis) -> None:
    with connect(embedded.url) as client:
        os.kill(int(client.info("server")["process_id"]), signal.SIGKILL)


def test_a_published_snapshot_can_be_used_with_its_encoder(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    run.publish(1)
    assert run.close()
    loaded = load_snapshot(SnapshotStore(connect(embedded.url), "run-1"), run.files)
    assert loaded.info.digest == synthetic.snapshot(1).digest
    assert loaded.info.health["limits"]["twins"]["passed"]
    assert loaded.info.encoder == f"encoders/{loaded.info.encoder_digest}.safetensors"
    assert run.heard.kinds() == ["ok"]
    assert (run.publisher.last, run.publisher.version, run.publisher.epoch) == (run.heard.results[0], 1, 1)


def test_an_unhealthy_snapshot_is_published_and_said_to_be(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    run.publish(1, verdict="unhealthy")
    assert run.close()
    assert run.heard.kinds() == ["unhealthy"]


def test_close_waits_for_the_snapshot_that_was_handed_over_last(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    for number in range(1, 6):
        run.publish(number)
    assert run.close()
    last = run.publisher.last
    assert last is not None
    assert last.samples == 500
    assert set(run.heard.kinds()) <= {"ok", "superseded"}
    assert len(run.heard.results) == 5


def test_a_server_that_hangs_never_stalls_the_learner(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    first = run.publish_and_wait(1)
    pid = int(run.client.info("server")["process_id"])
    freeze(pid)
    try:
        for number in range(2, 50):
            run.publish(number)
        assert run.heard.kinds().count("error") == 0, "no answer was given up: none was waited for"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert run.close()
    assert first.result == "ok"
    assert run.publisher.last is not None
    assert run.publisher.last.samples == 4900


def test_every_snapshot_has_one_result_also_when_it_was_replaced_on_its_way(
    embedded: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun, publish = Run(embedded), threading.Event(), SnapshotWriter.publish

    def noted(writer: SnapshotWriter, *arguments: Any, **more: Any) -> Any:
        begun.set()
        return publish(writer, *arguments, **more)

    run.publish_and_wait(1)
    pid = int(run.client.info("server")["process_id"])
    freeze(pid)
    try:
        monkeypatch.setattr(SnapshotWriter, "publish", noted)
        run.publish(2)
        assert begun.wait(LIMIT_S)  # the second is on its way now, and hangs
        run.publish(3)
        run.publish(4)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert run.close()
    results = sorted((result.samples, result.result) for result in run.heard.results)
    assert results == [(100, "ok"), (200, "ok"), (300, "superseded"), (400, "ok")]


def test_after_a_reconnect_the_epoch_is_taken_again(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    run.publish_and_wait(1)
    kill(embedded)
    run.publish(2)
    run.heard.wait_for(lambda: "error" in run.heard.kinds())
    embedded.ensure()
    assert run.close()
    assert run.publisher.epoch == 2
    assert [info.epoch for info in SnapshotStore(connect(embedded.url), "run-1").versions()] == [2, 1]


def test_a_server_that_comes_late_gets_the_newest_snapshot(embedded: EmbeddedRedis) -> None:
    kill(embedded)
    run = Run(embedded)
    run.publish(1)
    run.heard.wait_for(lambda: "error" in run.heard.kinds())
    run.publish(2)
    embedded.ensure()
    assert run.close()
    assert run.publisher.last is not None
    assert run.publisher.last.samples == 200
    assert [info.samples for info in SnapshotStore(connect(embedded.url), "run-1").versions()] == [200]


def test_an_embedded_server_that_died_is_brought_back(embedded: EmbeddedRedis) -> None:
    run = Run(embedded, revive=True)
    run.publish_and_wait(1)
    kill(embedded)
    run.publish(2)
    run.heard.wait_for(lambda: run.heard.results[-1].samples == 200 and run.heard.results[-1].version == 2)
    assert [info.version for info in run.store.versions()] == [2, 1]
    assert run.close()


def test_a_server_restarted_empty_goes_on_with_the_next_number(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    run.publish_and_wait(1)
    run.client.flushall()
    assert run.publish_and_wait(2).version == 2
    assert run.publisher.epoch == 2
    assert run.close()


def test_two_publishers_of_one_run_end_with_the_older_one_fenced_off(embedded: EmbeddedRedis) -> None:
    old = Run(embedded)
    old.publish_and_wait(1)
    new = Run(embedded, epoch=1, version=1)
    new.publish_and_wait(2)
    assert old.publish_and_wait(3).result == "stale_epoch"
    assert old.publish_and_wait(4).result == "stale_epoch"
    assert new.publish_and_wait(5).version == 3
    assert not old.close()
    assert new.close()


def test_the_older_one_stays_fenced_off_when_the_server_was_emptied(embedded: EmbeddedRedis) -> None:
    old = Run(embedded)
    old.publish_and_wait(1)
    new = Run(embedded)
    new.publish_and_wait(2)
    with connect(embedded.url) as client:
        client.flushall()
    new.publish_and_wait(3)
    assert old.publish_and_wait(4).result == "stale_epoch"
    assert new.publish_and_wait(5).result == "ok"
    old.close()
    new.close()


def test_a_learner_that_resumes_publishes_under_a_higher_epoch_and_abandons_what_is_ahead(
    embedded: EmbeddedRedis,
) -> None:
    first = Run(embedded)
    for number in (1, 2, 3):
        first.publish_and_wait(number)
    resumed = Run(embedded, epoch=first.publisher.epoch, version=1)
    result = resumed.publish_and_wait(2)
    assert (result.version, result.abandoned, result.epoch) == (4, (3, 2), 2)
    first.close()
    assert resumed.close()


def test_a_finished_run_that_publishes_its_end_again_adds_nothing(embedded: EmbeddedRedis) -> None:
    first = Run(embedded)
    first.publish_and_wait(1)
    first.close()
    again = Run(embedded, epoch=1, version=1)
    assert again.publish_and_wait(1).result == "repeated"
    assert again.publisher.last is not None
    assert again.publisher.last.version == 1
    assert again.close()


def test_a_full_server_leaves_no_encoder_behind_for_each_snapshot_that_it_refuses(
    embedded: EmbeddedRedis,
) -> None:
    run = Run(embedded)
    run.publish_and_wait(1)
    run.client.config_set("maxmemory", "1")

    def refused(number: int) -> bool:
        return ("error", 100 * number) in run.heard.about()

    for number in range(2, 8):
        run.publish(number)
        run.heard.wait_for(functools.partial(refused, number))
    left = {path.stem for path in run.files.folder.glob("*.safetensors")}
    digests = [synthetic.snapshot(number).encoder_digest for number in (1, 6, 7)]
    assert left == set(digests), "of the one that stands, and the two newest"
    run.client.config_set("maxmemory", "0")
    assert run.close()


def test_a_full_server_is_an_error_and_publishing_goes_on_when_there_is_room(embedded: EmbeddedRedis) -> None:
    run = Run(embedded)
    run.publish_and_wait(1)
    run.client.config_set("maxmemory", "1")
    run.publish(2)
    run.heard.wait_for(lambda: run.heard.results[-1].result == "error")
    assert "maxmemory" in run.heard.results[-1].detail
    run.client.config_set("maxmemory", "0")
    assert run.close()
    assert run.publisher.last is not None
    assert run.publisher.last.samples == 200


def test_a_disk_that_takes_no_encoder_is_an_error_and_publishing_goes_on_when_it_does(
    embedded: EmbeddedRedis,
) -> None:
    run = Run(embedded)
    run.files.folder.write_text("in the way")
    run.publish(1)
    run.heard.wait_for(lambda: "error" in run.heard.kinds())
    run.files.folder.unlink()
    assert run.close()
    assert run.publisher.last is not None
    assert run.store.versions()


def test_old_snapshots_and_their_encoders_go(embedded: EmbeddedRedis) -> None:
    run = Run(embedded, keep=2)
    for number in range(1, 6):
        run.publish_and_wait(number)
    assert run.close()
    left = SnapshotStore(connect(embedded.url), "run-1").versions()
    assert [info.version for info in left] == [5, 4]
    assert {path.stem for path in run.files.folder.iterdir()} == {info.encoder_digest for info in left}


def test_closing_gives_up_in_time_when_no_server_comes(
    embedded: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    kill(embedded)
    run = Run(embedded)
    run.publish(1)
    assert not run.close(0.5)  # it would try for ever
    assert "the snapshot at 100 samples was not published" in caplog.text
    assert caplog.text.count("cannot be published now") == 1


def test_attempts_come_ever_more_rarely_but_also_after_days_without_a_server() -> None:
    waits = [pause_s(failures, first_s=1.0, longest_s=30.0) for failures in (1, 2, 3, 6, 2000)]
    assert waits == [1.0, 2.0, 4.0, 30.0, 30.0]


def test_no_server_is_brought_back_after_close(embedded: EmbeddedRedis) -> None:
    run = Run(embedded, url="unix:///nowhere/at.sock", revive=True)
    run.publish(1)
    assert not run.close(0.3)
    kill(embedded)
    time.sleep(0.3)
    with connect(embedded.url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
