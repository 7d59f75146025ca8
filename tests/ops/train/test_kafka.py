"""Runs over a topic of a real Kafka: from images to a model, over restarts and kills."""

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import TopicPartition

from ops.config.schema import RunConfig
from ops.errors import ConfigError, RunMismatch
from ops.rundir.files import newest_saved, read_run
from ops.rundir.status import read_status
from ops.rundir.summary import FINISHED, STOPPED
from ops.train.auto_trial import choice_for
from ops.train.data import reading_mode, source_spec
from ops.train.signals import StopRequest
from stream.cursor import Cursor
from stream.errors import StreamMismatch, TooManyBadRecords
from stream.kafka_topic.address import read_address
from stream.kafka_topic.source import TopicSpec
from tests.kafka_broker import Broker
from tests.ops import small_runs
from tests.ops.forked_ranks import start, traced
from tests.stream.kafka_topic.make_topic import admin, fill, filled, made, messages, producer

LANES = 4


def config_of(*more: str) -> RunConfig:
    return small_runs.config_of(f"lanes={LANES}", *more)


def cursor_of(run_dir: Path) -> Cursor:
    saved = newest_saved(run_dir)
    assert saved is not None
    return Cursor.from_json((saved[0] / "cursor.json").read_text())


@pytest.fixture(scope="module")
def images(kafka_of_session: Broker) -> str:
    """A topic of 4 partitions with 80 small images in each; no test changes it."""
    return filled(kafka_of_session, LANES, 320)


def test_a_run_learns_from_a_topic_to_the_end_that_it_had_when_it_began(
    kafka: Broker, tmp_path: Path, images: str
) -> None:
    summary = small_runs.run(images, tmp_path / "run", config_of(), until="now", stop=StopRequest())
    assert (summary.status, summary.samples, summary.left_over) == (FINISHED, 320, 0)
    assert cursor_of(tmp_path / "run").bounds == ((0, 80),) * LANES
    again = small_runs.run(images, tmp_path / "run", config_of(), until="now", stop=StopRequest())
    assert again == summary


def test_settings_are_chosen_from_a_topic_that_grows_or_has_an_end(kafka: Broker, images: str) -> None:
    grows = choice_for(images, given=("device=cpu",), cached=False)
    assert (grows.images.records, grows.images.partitions, grows.images.sealed) == (320, LANES, False)
    assert grows.images.short_side_px == 14
    assert (grows.config.lanes, grows.config.batch, grows.config.passes) == (LANES, 256, 1)
    assert (grows.config.optim.schedule, grows.config.replay.updates) == ("constant", 1)
    ends = choice_for(images, given=("device=cpu",), until="now", budget_minutes=0.1, cached=False)
    assert (ends.images.records, ends.images.sealed, ends.config.optim.schedule) == (320, True, "cosine")
    assert ends.config.lanes == LANES


def test_a_run_that_is_killed_ends_with_the_same_weights(
    kafka: Broker, tmp_path: Path, images: str, one_thread: None
) -> None:
    config = config_of()
    whole = small_runs.run(images, tmp_path / "whole", config, until="now")
    for steps in (2, 5):
        child = os.fork()
        if child == 0:
            stop = small_runs.StopAfter(tmp_path / "killed", steps, kill=True)
            small_runs.run(images, tmp_path / "killed", config, until="now", stop=stop)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
    killed = small_runs.run(images, tmp_path / "killed", config, until="now")
    assert (killed.samples, killed.status) == (whole.samples, FINISHED)
    assert small_runs.bits(tmp_path / "killed") == small_runs.bits(tmp_path / "whole")


def test_two_ranks_killed_and_one_are_one_run_over_a_topic(
    kafka: Broker, tmp_path: Path, images: str, one_thread: None
) -> None:
    def die(rank: int, update: int) -> None:
        if (rank, update) == (1, 5):
            os.kill(os.getpid(), signal.SIGKILL)

    config = config_of("precision=float64", "model.bn_groups=2")
    alone = start(1, images, tmp_path / "alone", config, until="now")
    assert alone.wait()[0]["summary"]["samples"] == 320
    two = start(2, images, tmp_path / "two", config, at=die, until="now")
    assert "rank 1 of 2 died" in two.wait()[0]["error"]
    one = start(1, images, tmp_path / "two", config, until="now")
    assert one.wait()[0]["summary"]["status"] == FINISHED
    found, expected = traced(two.folder, one.folder), traced(alone.folder)
    assert {update: names for update, (_, names) in found.items()} == {
        update: names for update, (_, names) in expected.items()
    }
    assert found[9][0] == pytest.approx(expected[9][0], rel=1e-9)
    assert cursor_of(tmp_path / "two") == cursor_of(tmp_path / "alone")


def test_two_ranks_stop_at_what_is_gone_or_count_it_and_the_accounts_add_up(
    kafka: Broker, tmp_path: Path, one_thread: None
) -> None:
    def die(rank: int, update: int) -> None:
        if (rank, update) == (0, 5):
            os.kill(os.getpid(), signal.SIGKILL)

    url = filled(kafka, LANES, 320)
    start(2, url, tmp_path / "run", config_of("window=4"), at=die, until="now").wait()
    stands = cursor_of(tmp_path / "run").positions[2].base
    with admin(url) as client:
        client.delete_records({TopicPartition(read_address(url).topic, 2): 70})
    stopped = start(2, url, tmp_path / "run", config_of("window=4"), until="now").wait()
    assert all(f"{70 - stands} messages of {url}, partition 2" in told["error"] for told in stopped)
    skip = config_of("window=4", "kafka.on_gap=skip")
    summary = start(2, url, tmp_path / "run", skip, until="now").wait()[0]["summary"]
    assert summary["skipped_by_reason"] == {"lost": 70 - stands}
    assert summary["samples"] + 70 - stands + summary["left_over"] == 320


def test_a_live_topic_is_read_as_records_come_until_it_is_stopped(kafka: Broker, tmp_path: Path) -> None:
    url = filled(kafka, LANES, 64)
    run_dir = tmp_path / "run"
    stop = small_runs.StopAfter(run_dir, 2)
    summary = small_runs.run(url, run_dir, config_of("window=1"), stop=stop)
    assert (summary.status, summary.samples) == (STOPPED, 64)
    assert cursor_of(run_dir).bounds == ((0, -1),) * LANES


class RestartAt(small_runs.StopAfter):
    """Has the broker restarted once the run has made so many steps, and asks for nothing."""

    def __init__(self, broker: Broker, run_dir: Path, steps: int) -> None:
        super().__init__(run_dir, steps)
        self.restart = threading.Thread(target=broker.restart)

    def requested(self) -> bool:
        if self.restart.ident is None and super().requested():
            self.restart.start()
        return False


def test_the_broker_may_be_restarted_in_the_middle_of_a_run(kafka: Broker, tmp_path: Path) -> None:
    kafka.own()
    url = filled(kafka, LANES, 320)
    stop = RestartAt(kafka, tmp_path / "run", 2)
    summary = small_runs.run(
        url, tmp_path / "run", config_of("kafka.fetch_bytes=1000"), until="now", stop=stop
    )
    stop.restart.join()
    assert (summary.status, summary.samples) == (FINISHED, 320)


def test_poison_goes_to_the_dead_letter_topic_and_progress_to_a_group(kafka: Broker, tmp_path: Path) -> None:
    url = filled(kafka, LANES, 32)
    topic = read_address(url).topic
    with producer(url) as client:
        for partition in range(LANES):
            client.send(topic, value=b"no image at all", partition=partition)
    fill(url, LANES, range(32, 64))
    config = config_of("kafka.group=watched")
    summary = small_runs.run(url, tmp_path / "run", config, until="now", stop=StopRequest())
    assert (summary.samples, summary.skipped_by_reason) == (64, {"not_an_image": LANES})
    letters = sorted((json.loads(message.value) for message in messages(f"{url}.dead")), key=place)
    run = read_run(tmp_path / "run").uuid
    assert letters == [
        {"reason": "not_an_image", "topic": topic, "partition": partition, "offset": 8, "run": run}
        for partition in range(LANES)
    ]
    with admin(url) as client:
        offsets = client.list_group_offsets(["watched"])["watched"]
    assert {tp.partition: entry.offset for tp, entry in offsets.items()} == dict.fromkeys(range(LANES), 17)


def test_the_poison_that_stops_a_run_goes_to_the_dead_letter_topic_too(kafka: Broker, tmp_path: Path) -> None:
    url = filled(kafka, LANES, 32)
    with producer(url) as client:
        for _ in range(50):
            for partition in range(LANES):
                client.send(read_address(url).topic, value=b"no image at all", partition=partition)
    config = config_of("reader.bad_window=20", "reader.max_bad_fraction=0.2")
    with pytest.raises(TooManyBadRecords):
        small_runs.run(url, tmp_path / "run", config, stop=StopRequest())
    letters = [json.loads(message.value) for message in messages(f"{url}.dead")]
    assert len(letters) > 0
    assert {letter["reason"] for letter in letters} == {"not_an_image"}
    assert min(letter["offset"] for letter in letters) == 32 // LANES


def place(letter: dict[str, int]) -> int:
    return letter["partition"]


def test_dead_letters_and_the_group_can_be_left_out(kafka: Broker, tmp_path: Path) -> None:
    url = filled(kafka, LANES, 32)
    with producer(url) as client:
        client.send(read_address(url).topic, value=b"no image at all", partition=0)
    config = config_of("kafka.group=-", "kafka.dead_letters=-", "window=64")
    small_runs.run(url, tmp_path / "run", config, until="now", stop=StopRequest())
    with admin(url) as client:
        (found,) = client.describe_topics([f"{read_address(url).topic}.dead"])
    assert not found["partitions"]


def test_status_and_metrics_tell_the_lag_of_each_lane(kafka: Broker, tmp_path: Path, images: str) -> None:
    run_dir = tmp_path / "run"
    seen: list[str] = []

    class Watching(small_runs.StopAfter):
        def requested(self) -> bool:
            done = super().requested()
            if done and not seen:
                seen.append(read_status(run_dir).render())
                seen.append(json.dumps(read_status(run_dir).live["lanes"]))
            return done

    config = config_of("server.port=0", "window=1")
    small_runs.run(images, run_dir, config, until="now", stop=Watching(run_dir, 3), lag_s=0.0)
    lanes = json.loads(seen[1])
    assert [lane["lane"] for lane in lanes] == list(range(LANES))
    assert all(0 < lane["trained_records"] < 80 and lane["trained_s"] >= 0 for lane in lanes)
    assert all(lane["fetched_records"] <= lane["trained_records"] for lane in lanes)
    assert "records behind in learning" in seen[0]


def test_a_topic_of_another_number_of_partitions_is_refused_with_the_setting(
    kafka: Broker, tmp_path: Path
) -> None:
    with pytest.raises(StreamMismatch, match="--set lanes=2"):
        small_runs.run(made(kafka, 2), tmp_path / "run", config_of(), stop=StopRequest())


def test_a_run_over_one_topic_refuses_another(kafka: Broker, tmp_path: Path) -> None:
    url, other = filled(kafka, LANES, 64), filled(kafka, LANES, 64)
    stop = small_runs.StopAfter(tmp_path / "run", 1)
    small_runs.run(url, tmp_path / "run", config_of(), until="now", stop=stop)
    with pytest.raises(RunMismatch, match="another stream"):
        small_runs.run(other, tmp_path / "run", config_of(), until="now", stop=StopRequest())


def test_an_end_is_for_topics_and_must_be_one() -> None:
    with pytest.raises(ConfigError, match="--until is for Kafka topics"):
        source_spec("/data/shards", config_of(), until="now")
    with pytest.raises(ConfigError, match="`now`, an offset, or a time"):
        source_spec("kafka://host:1/t", config_of(), until="soon")


def test_live_topics_are_read_as_they_come_and_all_else_in_order() -> None:
    config = config_of()
    topic = source_spec("kafka://host:1/t", config)
    assert isinstance(topic, TopicSpec)
    live = replace(topic, bounds=((0, -1),) * LANES)
    sealed = replace(live, bounds=((0, 9),) * LANES)
    shards = source_spec("/data/shards", config)
    assert [reading_mode(config, spec) for spec in (live, sealed, shards)] == [
        "available",
        "strict",
        "strict",
    ]
    assert reading_mode(config_of("mode=strict"), live) == "strict"
    assert reading_mode(config_of("mode=available"), sealed) == "available"


def test_a_replay_is_never_drawn_in_available_mode() -> None:
    with pytest.raises(ConfigError, match="mode = strict"):
        config_of("mode=available", "replay.updates=2", "replay.window_samples=64")
