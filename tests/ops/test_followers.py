import signal
from pathlib import Path

import pytest

from ops.errors import RedisUnavailable
from ops.monitoring.metrics import Metrics
from ops.rundir.files import RunRecord
from ops.rundir.summary import Progress
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.types import PublishResult
from ops.train.reporting import Followers
from ops.train.signals import StopRequest
from tests.ops import synthetic
from tests.ops.drawn_runs import tiny_config
from tests.ops.redis_servers import Server
from tests.ops.small_runs import config_of, run, write_stream
from tests.waiting import wait_for


@pytest.mark.parametrize("error", [RedisUnavailable("the server is busy"), OSError(28, "no room is left")])
def test_trouble_with_the_server_at_the_very_end_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def close(_: EmbeddedRedis) -> None:
        raise error

    monkeypatch.setattr(EmbeddedRedis, "start", lambda embedded: embedded.url)
    monkeypatch.setattr(EmbeddedRedis, "ensure", lambda _: None)
    monkeypatch.setattr(EmbeddedRedis, "close", close)
    config = tiny_config(["server.port=0"])
    record = RunRecord.new(stream="nowhere", config=config.to_dict())
    with Followers(
        tmp_path, record, config, samples=0, skipped={}, history=[], total_samples=None
    ) as followers:
        followers.start_publishing(Progress())
    assert str(error) in caplog.text
    assert not (tmp_path / "server.json").exists(), "the rest is let go of all the same"


def test_a_server_that_may_lose_snapshots_is_an_event_on_the_live_page(tmp_path: Path) -> None:
    with Server(tmp_path / "server", maxmemory="100mb", maxmemory_policy="volatile-lru") as careless:
        config = tiny_config(["server.port=-1", f"snapshot.url={careless.url}"])
        record = RunRecord.new(stream="nowhere", config=config.to_dict())
        with Followers(
            tmp_path, record, config, samples=0, skipped={}, history=[], total_samples=None
        ) as followers:
            followers.start_publishing(Progress(snapshot_version=4))
            assert "v4" in [row["value"] for row in followers.live.status()["verdicts"]]
            wait_for(lambda: len(followers.live.events()) == 2)
            told = [event["text"] for event in followers.live.events() if event["kind"] == "redis"]
    assert "keeps nothing over a restart" in told[0]
    assert "volatile-lru" in told[1]


def test_prototypes_that_began_anew_are_an_event_on_the_live_page(tmp_path: Path) -> None:
    config = tiny_config(["server.port=-1"])
    record = RunRecord.new(stream="nowhere", config=config.to_dict())
    followers = Followers(tmp_path, record, config, samples=0, skipped={}, history=[], total_samples=None)
    followers._published(
        PublishResult(result="ok", samples=100, digest="d", version=3, reseeded=tuple(range(10)))
    )
    event = followers.live.events()[0]
    assert event["kind"] == "reseed"
    assert event["text"] == "v3: 10 prototypes began anew: 0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_a_run_that_goes_on_shows_the_usage_of_its_earlier_life(tmp_path: Path) -> None:
    config = tiny_config(["server.port=-1"])
    record = RunRecord.new(stream="nowhere", config=config.to_dict())
    usage = synthetic.shares(config.swav.prototypes[0])

    def follow(samples: int) -> Followers:
        return Followers(
            tmp_path, record, config, samples=samples, skipped={}, history=[], total_samples=None
        )

    first = follow(0)
    for samples in (64, 128, 192):
        first.live.observe(synthetic.report(samples, usage), synthetic.stats(64), step_s=0.1)
        first.usage(usage.numpy())
    first.checkpointed("ok")
    second = follow(128)
    assert second.live.prototypes.heatmap()["samples"] == [64, 128]
    assert second.live.events()[0]["text"] == "the run goes on from 128 samples"
    assert second.live.status()["start_samples"] == 128
    assert "swavstream_run_start_samples 128.0" in second.metrics.text()[0].decode()


def test_directions_are_shown_once_a_snapshot_is_handed_over_and_going_back_is_told(tmp_path: Path) -> None:
    config = tiny_config(["server.port=-1"])
    record = RunRecord.new(stream="nowhere", config=config.to_dict())
    follower = Followers(tmp_path, record, config, samples=0, skipped={}, history=[], total_samples=None)
    shot = synthetic.snapshot(prototypes=config.swav.prototypes[0])
    follower.publish(shot, samples=64, updates=1)
    one = follower.live.prototypes.one(0)
    assert one["nearest_at"] == 64
    assert one["nearest"]
    assert one["generation"] == 0
    follower.skipped({"empty": 2})
    assert follower.live.events()[0]["kind"] == "rewind"


@pytest.mark.parametrize(
    ("asked", "told"), [(None, [True]), ("by hand", [True]), ("by a scheduler", [])], ids=str
)
def test_a_run_that_ended_as_it_should_says_so_to_monitoring(
    asked: str | None, told: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    monkeypatch.setattr(Metrics, "ended", lambda _self, yes: said.append(yes))
    stop = StopRequest()
    if asked is not None:
        stop.ask(signal.SIGTERM if asked == "by a scheduler" else None)
    summary = run(write_stream(tmp_path / "stream", 64), tmp_path / "run", config_of(), stop=stop)
    assert summary.status == ("stopped" if asked else "finished")
    assert said == told
