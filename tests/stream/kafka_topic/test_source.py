import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from stream.config import KafkaConfig, ReaderConfig, TopicWriterConfig
from stream.cursor import Cursor, joined, start_cursor
from stream.errors import StreamDamaged, StreamError, StreamMismatch
from stream.kafka_topic.address import read_address
from stream.kafka_topic.client import look_at
from stream.kafka_topic.message import encode_message
from stream.kafka_topic.source import TopicSpec
from stream.kafka_topic.writer import TopicWriter
from stream.lanes import Position
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.prefetch import AVAILABLE, STRICT
from stream.loader.step import Readiness
from stream.order import record_order
from stream.source import Source
from tests.kafka_broker import Broker
from tests.stream.kafka_topic.make_topic import (  # fmt: skip
    admin,
    fill,
    filled,
    made,
    make_anew,
    producer,
    record_of,
    spec_of,
)
from tests.stream.loader.driving import batches_of, steps_of, together
from tests.stream.loader.test_loader import KINDS, content
from tests.stream.loader.test_loader_elastic import samples
from tests.waiting import LIMIT_S

CONFIG = ReaderConfig(thumbnail_px=4, poll_s=0.02, max_bad_fraction=1.0)
LANES = 3
SKIP = KafkaConfig(on_gap="skip")


def read_all(source: Source, lane: int, position: Position | None = None) -> list[tuple[int, str]]:
    """Offset and reason of each entry of a lane."""
    position = position or Position(lane=lane, base=source.bounds()[lane][0])
    return [(entry.index, entry.reason) for entry, _ in source.read(position, 0)]


def begin(spec: TopicSpec, chunk: int = 4) -> tuple[TopicSpec, Cursor]:
    """A run's cursor, and the topic with the ends that it has for this run."""
    source = spec.open()
    cursor = start_cursor(source, seed=spec.seed, chunk=chunk, window=spec.window)
    source.close()
    return replace(spec, bounds=cursor.bounds), cursor


def load(spec: TopicSpec, cursor: Cursor, **options: Any) -> list[Batch]:
    options = {"workers": 0, **options}
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, **options) as loader:
        return batches_of(loader)


def names(batches: Sequence[Batch]) -> list[tuple[int, int]]:
    return sorted((unit, index) for batch in batches for unit, index in batch.refs_B2.tolist())


@pytest.fixture(scope="module")
def sixty(kafka_of_session: Broker) -> str:
    """A topic of 3 partitions with 20 records in each; no test changes it."""
    return filled(kafka_of_session, LANES, 60)


def test_a_lane_reads_its_partition_in_blocks_in_the_order_of_the_generator(sixty: str) -> None:
    source = spec_of(sixty, LANES, window=8).open()
    expected = []
    for base, count in ((0, 8), (8, 8), (16, 4)):
        order = record_order(seed=5, pass_number=0, lane=1, number=base, count=count)
        expected += (base + order).tolist()
    assert [index for index, _ in read_all(source, 1)] == expected
    assert sorted(expected) == list(range(20))
    source.close()


def test_records_come_back_as_they_were_sent(sixty: str) -> None:
    source = spec_of(sixty, LANES, window=1).open()
    entries = [entry for entry, _ in source.read(Position(lane=2), 0)]
    assert [entry.record for entry in entries] == [record_of(number) for number in range(2, 60, LANES)]
    assert all(abs(entry.time - time.time()) < 600 for entry in entries)
    assert source.entry(2, 7) == entries[7]
    source.close()


def test_a_record_larger_than_a_fetch_goes_there_and_back(kafka: Broker) -> None:
    url = made(kafka, 1, max_message_bytes=8 << 20)
    payload = record_of(3).payload + bytes(5 << 20)
    large = replace(record_of(3), payload=payload, sha256=hashlib.sha256(payload).hexdigest())
    address, config = read_address(url), KafkaConfig()
    writer = TopicWriter(address, look_at(address, config), config, TopicWriterConfig())
    for record in (record_of(1), large, record_of(2)):
        writer.send(record, partition=0, headers=[])
    writer.flush()
    writer.close()
    assert config.fetch_bytes < len(payload)
    source = spec_of(url, 1, window=1).open()
    entries = [entry for entry, _ in source.read(Position(lane=0), 0)]
    assert [entry.record for entry in entries] == [record_of(1), large, record_of(2)]
    source.close()


def test_reading_resumes_from_every_position_with_the_same_tail(sixty: str) -> None:
    source = spec_of(sixty, LANES, window=8).open()
    whole = list(source.read(Position(lane=0), 3))
    for number, (_, after) in enumerate(whole):
        assert list(source.read(after, 3)) == whole[number + 1 :]
        assert source.availability(after, 3).available == source.unread([after], 3) == len(whole) - number - 1
    source.close()


def test_a_run_killed_after_any_batch_goes_on_with_the_same_batches(sixty: str) -> None:
    spec, cursor = begin(spec_of(sixty, LANES, window=8))
    whole = load(spec, cursor)
    assert len(whole) == 5
    for number, batch in enumerate(whole):
        tail = load(spec, Cursor.from_json(batch.cursor.to_json()))
        assert list(map(content, tail)) == list(map(content, whole[number + 1 :]))
    assert len(names(whole)) == len(set(names(whole))) == 60


def test_reader_processes_give_the_same_batches(sixty: str) -> None:
    spec, cursor = begin(spec_of(sixty, LANES))
    with_readers = load(spec, cursor, workers=2)
    assert list(map(content, with_readers)) == list(map(content, load(spec, cursor)))


def test_two_ranks_share_the_partitions_and_give_the_same_batches(sixty: str) -> None:
    spec, cursor = begin(spec_of(sixty, LANES))
    whole = [samples([batch]) for batch in load(spec, cursor)]
    got = []
    for ranks, steps in ((2, 2), (3, 1), (1, 9)):  # a crash, and other ranks, in between
        loaders = [
            Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=0, ranks=ranks, rank=rank)
            for rank in range(ranks)
        ]
        got += [samples([batch for (batch,) in step]) for step in together(loaders, steps)]
        cursor = joined([loader.cursor for loader in loaders])
    assert got == whole


def test_a_second_pass_begins_where_the_lanes_begin(kafka: Broker) -> None:
    url = filled(kafka, 1, 12)
    cut_before(url, 4)
    spec, cursor = begin(spec_of(url, 1))
    batches = load(spec, cursor, passes=2)
    assert names(batches) == sorted(2 * [(0, offset) for offset in range(4, 12)])
    assert batches[-1].cursor.samples == 16


def test_what_is_left_over_and_used_is_all_there_was(sixty: str) -> None:
    spec, cursor = begin(spec_of(sixty, LANES), chunk=7)
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=0) as loader:
        used = sum(batch.stats.used for batch in steps_of(loader))
        assert used + loader.cursor.left_over == 60


def test_a_block_of_an_open_topic_is_read_once_it_is_full(kafka: Broker) -> None:
    url = filled(kafka, 1, 7)
    source = spec_of(url, 1, until="").open()
    assert len(read_all(source, 0)) == source.availability(Position(lane=0), 0).available == 4
    assert source.unread([Position(lane=0)]) == 7
    fill(url, 1, range(7, 8))
    assert source.refresh()
    assert len(read_all(source, 0)) == 8
    assert not source.sealed()
    source.close()


def test_a_run_ends_where_the_topic_ended_when_it_began(kafka: Broker) -> None:
    url = filled(kafka, 2, 10)
    spec, cursor = begin(spec_of(url, 2))
    fill(url, 2, range(10, 30))
    assert cursor.bounds == ((0, 5), (0, 5))
    assert names(load(spec, cursor)) == [(lane, index) for lane in range(2) for index in range(4)]
    assert Cursor.from_json(cursor.to_json()) == cursor


def test_a_run_may_end_at_an_offset_or_a_time(kafka: Broker) -> None:
    url = filled(kafka, 2, 8)
    time.sleep(0.05)
    moment = time.time()
    fill(url, 2, range(8, 12))
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1e6):06d}+00:00"
    assert begin(spec_of(url, 2, until=text))[1].bounds == ((0, 4), (0, 4))
    assert begin(spec_of(url, 2, until="3"))[1].bounds == ((0, 3), (0, 3))
    beyond = spec_of(url, 2, until="9").open()
    assert not beyond.availability(Position(lane=0), 0).ended
    beyond.close()
    with pytest.raises(ValueError, match="`now`, an offset, or a time"):
        spec_of(url, 2, until="tomorrow").open()


def test_partitions_are_the_lanes_and_another_number_is_refused(sixty: str) -> None:
    for lanes in (2, 4):
        with pytest.raises(StreamMismatch, match="--set lanes=3"):
            spec_of(sixty, lanes).open()


def test_partitions_that_are_added_later_are_named_and_not_read(
    kafka: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka_topic.client.METADATA_MS", 100)
    url = filled(kafka, 2, 8)
    spec, cursor = begin(spec_of(url, 2))
    source = spec.open()
    with admin(url) as client:
        client.create_partitions({read_address(url).topic: 4})
    while not source.added:
        time.sleep(0.1)
        source.refresh()
    source.close()
    assert source.added == (2, 3)
    assert "partitions 2, 3 of" in caplog.text
    assert len(load(spec, cursor)) == 1  # and a run that goes on is not refused


def test_a_topic_made_again_under_the_same_name_is_another_one(kafka: Broker) -> None:
    url = filled(kafka, 1, 8)
    spec, cursor = begin(spec_of(url, 1))
    make_anew(url)
    fill(url, 1, range(8))
    with pytest.raises(StreamMismatch, match="the cursor is of"):
        load(spec, cursor)


def cut_before(url: str, offset: int, partition: int = 0) -> None:
    """Let the broker forget the records before an offset, as retention does."""
    with admin(url) as client:
        client.delete_records({TopicPartition(read_address(url).topic, partition): offset})


def test_records_that_are_gone_stop_a_run_by_name(kafka: Broker) -> None:
    url = filled(kafka, 1, 20)
    spec, cursor = begin(spec_of(url, 1))
    cut_before(url, 6)
    with pytest.raises(StreamDamaged, match=r"6 messages .*retention\.ms .*kafka\.on_gap=skip"):
        load(spec, cursor)


def test_records_that_are_gone_are_skipped_and_counted_when_asked(kafka: Broker) -> None:
    url = filled(kafka, 1, 20)
    spec, cursor = begin(spec_of(url, 1, kafka=SKIP), chunk=2)
    first = load(spec, cursor)[0]  # two of the block 0..3 are used
    cut_before(url, 6)
    rest = load(spec, first.cursor)
    last = rest[-1].cursor
    assert dict(last.skipped) == {"lost": 4}
    assert names([first, *rest]) == sorted(names([first]) + [(0, offset) for offset in range(6, 20)])
    assert last.samples + sum(last.skipped.values()) == 20
    assert [load(spec, batch.cursor)[-1].cursor for batch in rest[:-1]] == [last] * (len(rest) - 1)


def test_records_that_go_while_they_are_read_are_noticed(kafka: Broker) -> None:
    url = filled(kafka, 1, 20)
    source = spec_of(url, 1).open()
    cut_before(url, 6)
    with pytest.raises(StreamDamaged, match="the partition begins at 6 now"):
        read_all(source, 0)
    source.close()


def test_a_log_that_ends_before_the_cursor_is_refused(sixty: str) -> None:
    source = spec_of(sixty, LANES, until="").open()
    with pytest.raises(StreamDamaged, match="cut off"):
        source.availability(Position(lane=0, base=400), 0)
    source.close()


@pytest.mark.parametrize(
    "position",
    [
        Position(lane=3),
        Position(lane=0, idx=2),
        Position(lane=0, base=0, end=3, idx=9),
        Position(lane=0, base=-4),
    ],
)
def test_a_position_of_another_reading_is_refused(sixty: str, position: Position) -> None:
    source = spec_of(sixty, LANES).open()
    with pytest.raises(StreamMismatch, match="another topic, number of lanes or window"):
        source.availability(position, 0)
    source.close()


def test_poison_is_skipped_by_reason_and_its_places_are_told(kafka: Broker) -> None:
    url = filled(kafka, 1, 8)
    topic, good = read_address(url).topic, record_of(50)
    _, headers = encode_message(good)
    wrong = [(name, b"9" if name == "format" else value) for name, value in headers]
    with producer(url) as client:
        client.send(topic, value=b"no image at all", partition=0)
        client.send(topic, value=good.payload, headers=wrong, partition=0)
        client.send(topic, value=good.payload[:-3] + b"abc", headers=headers, partition=0)
        client.send(topic, value=good.payload * 9, partition=0)
        client.send(topic, key=b"tombstone", value=None, partition=0)
    fill(url, 1, range(8, 16))
    spec, cursor = begin(spec_of(url, 1, window=1, max_record_bytes=len(good.payload) * 4))
    batches = load(spec, cursor)
    told = {place.index: place.reason for batch in batches for place in batch.bad}
    assert told == {
        8: "not_an_image", 9: "unknown_format", 10: "bad_checksum", 11: "too_large", 12: "empty",
    }  # fmt: skip
    assert sum(batch.stats.used for batch in batches) == 16
    assert sum(batches[-1].cursor.skipped.values()) == 5


def damage(broker: Broker, url: str, payload: bytes) -> None:
    """Flip one bit of an image on the broker's disk."""
    log = broker.own() / "data" / f"{read_address(url).topic}-0" / "00000000000000000000.log"
    content = log.read_bytes()
    at = content.index(payload) + len(payload) // 2
    with log.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 1]))


def test_a_broker_that_goes_away_at_the_second_look_costs_no_record(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was seen of the batch then but that it failed a check, perhaps on the way."""
    url, real = filled(kafka, 1, 12), KafkaConsumer.poll

    def silent(consumer: KafkaConsumer, *arguments: Any, **more: Any) -> Any:
        if consumer.config["check_crcs"]:
            return real(consumer, *arguments, **more)
        time.sleep(0.1)
        return {}

    damage(kafka, url, record_of(5).payload)
    monkeypatch.setattr(KafkaConsumer, "poll", silent)
    source = spec_of(url, 1, kafka=KafkaConfig(patience_s=1.0)).open()
    with pytest.raises(StreamError, match=r"partition 0: no answer for 1 s .* second look at offset"):
        read_all(source, 0)
    monkeypatch.undo()
    assert len(read_all(source, 0)) == 12
    source.close()


def test_a_batch_that_fails_the_check_of_kafka_costs_only_what_was_damaged(kafka: Broker) -> None:
    """kafka-python 3.0 goes round for ever in the second poll after such a batch."""
    url = made(kafka, 1)
    with producer(url, linger_ms=200, batch_size=2**20) as client:  # one batch
        for number in range(12):
            key, headers = encode_message(record_of(number))
            client.send(
                read_address(url).topic,
                key=key,
                value=record_of(number).payload,
                headers=headers,
                partition=0,
            )
    damage(kafka, url, record_of(5).payload)
    source = spec_of(url, 1, kafka=KafkaConfig(patience_s=LIMIT_S)).open()
    assert sorted(read_all(source, 0)) == [(n, "bad_checksum" if n == 5 else "") for n in range(12)]
    source.close()


def test_of_a_strangers_batch_that_fails_the_check_nothing_is_trusted(kafka: Broker) -> None:
    url = made(kafka, 1)
    topic = read_address(url).topic
    with producer(url, linger_ms=200) as client:
        for number in range(3):
            client.send(topic, value=record_of(number).payload, partition=0)
    with producer(url) as client:
        client.send(topic, value=record_of(3).payload, partition=0)
    damage(kafka, url, record_of(1).payload)
    source = spec_of(url, 1).open()
    assert sorted(read_all(source, 0)) == [
        (0, "bad_checksum"),
        (1, "bad_checksum"),
        (2, "bad_checksum"),
        (3, ""),
    ]
    source.close()


def test_a_lane_without_records_does_not_stop_the_others_in_available_mode(kafka: Broker) -> None:
    url = made(kafka, 3)
    fill(url, 3, [number for number in range(60) if number % 3])  # partition 0 has none
    spec, cursor = begin(spec_of(url, 3, window=1, until=""))
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=1, mode=AVAILABLE) as loader:
        batches = list(islice(steps_of(loader), 3))
        assert loader.ready(0.3) is Readiness.WAITING
    assert all(len(batch.keys) == 12 for batch in batches)
    got = names(batches)
    assert len(got) == len(set(got)) == 36
    assert {unit for unit, _ in got} == {1, 2}


def test_available_mode_uses_every_record_once_over_crashes_and_ranks(kafka: Broker) -> None:
    url = made(kafka, 3)
    fill(url, 3, [n for n in range(120) if n % 3 != 1 or n < 90])  # 40, 30 and 40 records
    spec, cursor = begin(spec_of(url, 3, window=4), chunk=5)
    got: list[tuple[int, int]] = []
    for ranks, steps in ((1, 1), (3, 1), (2, 1), (1, 99)):
        loaders = [
            Loader(
                spec,
                cursor=cursor,
                crops=KINDS,
                config=CONFIG,
                workers=0,
                ranks=ranks,
                rank=rank,
                mode=AVAILABLE,
            )
            for rank in range(ranks)
        ]
        for step in together(loaders, steps):
            batches = [batch for (batch,) in step]
            assert sum(len(batch.keys) for batch in batches) == 15
            for batch in batches:
                assert batch.lane_B.tolist() == [unit for unit, _ in batch.refs_B2.tolist()]
                got += names([batch])
        cursor = joined([loader.cursor for loader in loaders])
    assert len(got) == len(set(got)) == 105 == cursor.samples
    assert cursor.left_over == 5


@pytest.mark.parametrize("mode", [STRICT, AVAILABLE])
def test_the_tail_of_a_topic_is_trained_also_where_lanes_are_uneven(kafka: Broker, mode: str) -> None:
    url = made(kafka, 3)
    fill(url, 3, [n for n in range(120) if n % 3 != 1 or n < 90])  # 40, 30 and 40 records
    spec, cursor = begin(spec_of(url, 3, window=4), chunk=5)
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=0, mode=mode, tail=True) as loader:
        batches = batches_of(loader)
        assert loader.lag() == 0
    assert len(names(batches)) == len(set(names(batches))) == 110
    assert sorted(len(batch.keys) for batch in batches) == [5] + [15] * 7
    assert (loader.cursor.samples, loader.cursor.left_over) == (110, 0)


def test_lag_is_told_by_lane_in_records_and_seconds(kafka: Broker) -> None:
    url = filled(kafka, 2, 24)
    spec, cursor = begin(spec_of(url, 2, window=1))
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=1) as loader:
        assert [lag.trained_records for lag in loader.lane_lags()] == [12, 12]
        assert loader.lane_lags()[0].trained_s is None
        steps = steps_of(loader)
        next(iter(steps))
        lag = loader.lane_lags()[1]
        assert (lag.lane, lag.trained_records) == (1, 8)
        assert lag.trained_s is not None
        assert 0 <= lag.trained_s < 60
        assert lag.fetched_records <= 8
        list(steps)
    assert loader.cursor.left_over == 0


def test_brokers_that_stay_away_are_an_error_after_the_patience_that_was_set(
    kafka: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka_topic.fetch.LOOK_MS", 300)
    url = filled(kafka, 1, 8)
    source = spec_of(url, 1, kafka=KafkaConfig(patience_s=1.0)).open()
    with kafka.frozen(), caplog.at_level(logging.WARNING), pytest.raises(StreamError, match="up"):  # noqa: PT012
        for _ in range(9):
            source.refresh()
    assert "does not answer" in caplog.text
    assert len(read_all(source, 0)) == 8
    source.close()


def test_the_broker_may_be_restarted_while_a_topic_is_read(kafka: Broker, tmp_path: Path) -> None:
    kafka.own()
    url = filled(kafka, 2, 80)
    # Fetches of a record or two, so that most are made after the restart.
    spec, cursor = begin(spec_of(url, 2, window=1, kafka=KafkaConfig(fetch_bytes=1000)))
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=1) as loader:
        steps = steps_of(loader)
        first = list(islice(steps, 2))
        kafka.restart()
        rest = list(steps)
    assert len(set(names([*first, *rest]))) == len(names([*first, *rest])) == 80


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_a_compressed_topic_of_another_program_gives_every_image(
    kafka: Broker, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = made(kafka, 1)
    images = [record_of(number).payload for number in range(12)]
    with producer(url, compression_type=codec, linger_ms=200) as client:
        for image in images:
            client.send(read_address(url).topic, value=image, partition=0)
    source = spec_of(url, 1, window=12).open()
    found = [entry for entry, _ in source.read(Position(lane=0), 0)]
    assert [entry.reason for entry in found] == [""] * 12
    assert sorted(entry.record.payload for entry in found if entry.record) == sorted(images)
    source.close()
    if codec == "gzip":  # of Python itself
        return
    monkeypatch.setattr(f"kafka.codec.{'zstd' if codec == 'zstd' else codec}", None)
    source = spec_of(url, 1, window=12).open()
    with pytest.raises(StreamError, match=rf"{codec} compression codec not found. Install it beside"):
        list(source.read(Position(lane=0), 0))
    source.close()


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_damage_of_a_compressed_batch_is_damage_whatever_the_codec(kafka: Broker, codec: str) -> None:
    url = made(kafka, 1)
    with producer(url, compression_type=codec, linger_ms=200) as client:
        for number in range(4):
            client.send(read_address(url).topic, value=record_of(number).payload, partition=0)
    log = kafka.own() / "data" / f"{read_address(url).topic}-0" / "00000000000000000000.log"
    content = log.read_bytes()
    with log.open("r+b") as file:
        file.seek(61)  # behind the header of the first batch
        file.write(bytes(byte ^ 0xFF for byte in content[61:161]))
    source = spec_of(url, 1, window=4).open()
    found = [entry.reason for entry, _ in source.read(Position(lane=0), 0)]
    assert found
    assert set(found) <= {"bad_checksum", ""}
    assert found[0] == "bad_checksum" or "bad_checksum" in found
    source.close()
