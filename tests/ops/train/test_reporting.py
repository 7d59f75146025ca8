import io
import signal
import socket
from pathlib import Path

import pytest
import torch

from ops.config.schema import RunConfig
from ops.errors import PortInUse, RedisUnavailable
from ops.monitoring.metrics import Metrics
from ops.rundir.files import RunRecord, read_lines
from ops.rundir.summary import Progress
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.types import PublishResult, SnapshotTaken
from ops.train.events import CheckpointResult, Rewound, Started, StepDone, StepTimings, Waiting
from ops.train.listeners import ReportedRun
from ops.train.reporting import RunReporter
from ops.train.signals import StopRequest
from stream.cursor import Cursor
from stream.loader.batch import Batch
from tests.ops import synthetic
from tests.ops.drawn_runs import tiny_config
from tests.ops.redis_servers import Server
from tests.ops.small_runs import config_of, run, write_stream
from tests.waiting import wait_for


def reporter_of(
    run_dir: Path, config: RunConfig, *, samples: int = 0, out: io.StringIO | None = None
) -> RunReporter:
    record = RunRecord.new(stream="kafka://nowhere/topic", config=config.to_dict())
    cursor = cursor_at(samples) if samples else None
    run = ReportedRun(run_dir=run_dir, record=record, config=config, cursor=cursor)
    return RunReporter(run, out if out is not None else io.StringIO())


def cursor_at(samples: int, skipped: dict[str, int] | None = None) -> Cursor:
    return Cursor(
        source={}, seed=0, lanes=0, chunk=64, window=1, positions=(), samples=samples,
        steps=samples // 64, skipped=skipped or {},
    )  # fmt: skip


def step_of(samples: int, usage: torch.Tensor, *, lag: int = 0) -> StepDone:
    none = torch.zeros(0, dtype=torch.int64)
    batch = Batch(
        crops=(), uniforms=torch.zeros(0, 0, 16), lane_B=none, seq_B=none, dealt_B=none,
        refs_B2=none.view(0, 2), keys=(), thumbs=None, bad=(), cursor=cursor_at(samples),
        stats=synthetic.stats(64),
    )  # fmt: skip
    return StepDone(
        report=synthetic.report(samples, usage),
        batch=batch,
        stats=batch.stats,
        timings=StepTimings(step_s=1.0, load_s=0.1, save_s=0.1),
        lag=lag,
    )


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
    with reporter_of(tmp_path, config) as reporter:
        reporter.notify(Started(Progress(), 0))
    assert str(error) in caplog.text
    assert not (tmp_path / "server.json").exists(), "the rest is let go of all the same"


def test_a_server_that_may_lose_snapshots_is_an_event_on_the_live_page(tmp_path: Path) -> None:
    with Server(tmp_path / "server", maxmemory="100mb", maxmemory_policy="volatile-lru") as careless:
        config = tiny_config(["server.port=-1", f"snapshot.url={careless.url}"])
        with reporter_of(tmp_path, config) as reporter:
            reporter.notify(Started(Progress(snapshot_version=4), 0))
            assert "v4" in [row["value"] for row in reporter.live.status()["verdicts"]]
            wait_for(lambda: len(reporter.live.events()) == 2)
            told = [event["text"] for event in reporter.live.events() if event["kind"] == "redis"]
    assert "keeps nothing over a restart" in told[0]
    assert "volatile-lru" in told[1]


def test_prototypes_that_were_reseeded_are_an_event_on_the_live_page(tmp_path: Path) -> None:
    reporter = reporter_of(tmp_path, tiny_config(["server.port=-1"]))
    reporter.notify(PublishResult(result="ok", samples=100, digest="d", version=3, reseeded=tuple(range(10))))
    event = reporter.live.events()[0]
    assert event["kind"] == "reseed"
    assert event["text"] == "v3: 10 prototypes re-seeded: 0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_a_run_that_goes_on_shows_the_usage_of_its_earlier_session(tmp_path: Path) -> None:
    config = tiny_config(["server.port=-1"])
    usage = synthetic.shares(config.swav.prototypes[0])
    first = reporter_of(tmp_path, config)
    for samples in (64, 128, 192):
        report = synthetic.report(samples, usage)
        first.live.observe(report, synthetic.stats(64), step_s=0.1)
        first.live.usage(usage.numpy())
    first.notify(CheckpointResult("ok"))
    second = reporter_of(tmp_path, config, samples=128)
    assert second.live.prototypes.heatmap()["samples"] == [64, 128]
    assert second.live.events()[0]["text"] == "the run goes on from 128 samples"
    assert second.live.status()["start_samples"] == 128
    assert "swavstream_run_start_samples 128.0" in second.metrics.text()[0].decode()


def test_directions_are_shown_once_a_snapshot_is_taken_and_going_back_is_an_event(tmp_path: Path) -> None:
    config = tiny_config(["server.port=-1"])
    reporter = reporter_of(tmp_path, config)
    shot = synthetic.snapshot(prototypes=config.swav.prototypes[0])
    reporter.notify(SnapshotTaken(shot, 64, 1))
    one = reporter.live.prototypes.one(0)
    assert one["nearest_at"] == 64
    assert one["nearest"]
    assert one["generation"] == 0
    reporter.notify(Rewound(cursor_at(64, skipped={"empty": 2})))
    assert reporter.live.events()[0]["kind"] == "rewind"
    assert reporter.live.status()["skipped"] == {"empty": 2}


def test_a_step_is_told_to_metrics_live_page_history_and_terminal(tmp_path: Path) -> None:
    """With the same figures everywhere, and the next one only once it is due."""
    config, out = tiny_config(["server.port=-1"]), io.StringIO()
    with reporter_of(tmp_path, config, out=out) as reporter:
        usage = synthetic.shares(config.swav.prototypes[0])
        reporter.notify(Started(Progress(), 0))
        for number in (1, 2):
            step = step_of(64 * number, usage, lag=70)
            reporter.notify(step)
        value = reporter.metrics.registry.get_sample_value
        assert value("swavstream_steps_total") == 2
        assert value("swavstream_run_samples") == 128
        assert value("swavstream_stream_lag_records") == 70
        assert value("swavstream_learner_seconds_total", {"phase": "checkpoint"}) == pytest.approx(0.2)
        assert reporter.live.status()["samples"] == 128
        assert reporter.live.status()["lag"] == 70
        entries = list(read_lines(tmp_path / "history.jsonl"))
        assert [(entry["samples"], entry["lag"]) for entry in entries] == [(64, 70), (128, 70)]
        assert out.getvalue().count("lag 70") == 1, "one line in a log every few seconds"


def test_a_run_that_went_back_has_no_history_of_what_did_not_happen(tmp_path: Path) -> None:
    config = tiny_config(["server.port=-1"])
    with reporter_of(tmp_path, config) as reporter:
        usage = synthetic.shares(config.swav.prototypes[0])
        reporter.notify(Started(Progress(), 0))
        for number in (1, 2, 3):
            reporter.notify(step_of(64 * number, usage))
        reporter.notify(Rewound(cursor_at(64)))
        reporter.notify(step_of(128, usage))
    assert [entry["samples"] for entry in read_lines(tmp_path / "history.jsonl")] == [64, 128]


def test_waiting_is_seen_everywhere_and_ends_with_the_next_step(tmp_path: Path) -> None:
    out = io.StringIO()
    reporter = reporter_of(tmp_path, config := tiny_config(["server.port=-1"]), out=out)
    reporter.notify(Waiting(records=True, lag=7, samples=64))
    value = reporter.metrics.registry.get_sample_value
    assert value("swavstream_learner_waiting") == 1
    assert value("swavstream_stream_lag_records") == 7
    assert reporter.live.status()["state"] == "waiting"
    assert "64 samples  waiting for records" in out.getvalue()
    reporter.notify(step_of(64, synthetic.shares(config.swav.prototypes[0])))
    assert value("swavstream_learner_waiting") == 0
    assert reporter.live.status()["state"] == "learning"


def test_a_port_in_use_is_refused_and_nothing_is_left_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(PortInUse),
            reporter_of(tmp_path, tiny_config([f"server.port={port}"])),
        ):
            pass
    assert not (tmp_path / "server.json").exists()


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
