"""What is missing from the middle of a real topic, and logs that are no longer what they were."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from stream.config import KafkaConfig
from stream.cursor import Cursor
from stream.errors import StreamDamaged, StreamMismatch
from stream.kafka_topic.address import read_address
from stream.kafka_topic.blocks import proof_of
from stream.kafka_topic.fetch import Message
from stream.kafka_topic.message import encode_message
from stream.lanes import Position
from tests.kafka_broker import Broker
from tests.stream.kafka_topic.make_topic import (  # fmt: skip
    admin,
    fill,
    filled,
    made,
    make_anew,
    messages,
    producer,
    record_of,
    spec_of,
)
from tests.stream.kafka_topic.test_source import SKIP, begin, cut_before, load, names, read_all
from tests.waiting import wait_for

COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "50",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "100",
}


def compacted(broker: Broker) -> str:
    """A topic that keeps the newest message of each key, and cleans itself at once."""
    url = broker.url(broker.new_topic())
    with admin(url) as client:
        wanted = {"num_partitions": 1, "replication_factor": 1, "configs": COMPACTED}
        client.create_topics({read_address(url).topic: wanted})
        client.wait_for_topics([read_address(url).topic])
    return url


def transactions(url: str, *parts: tuple[Sequence[int], bool]) -> None:
    """Send images, each group of them in a transaction that is kept or given up."""
    topic = read_address(url).topic
    with producer(url, transactional_id=topic) as client:
        client.init_transactions()
        for numbers, keep in parts:
            client.begin_transaction()
            for number in numbers:
                key, headers = encode_message(record_of(number))
                client.send(topic, key=key, value=record_of(number).payload, headers=headers, partition=0)
            client.flush(timeout=30)  # else what is given up is never sent
            if keep:
                client.commit_transaction()
            else:
                client.abort_transaction()


def await_offsets(url: str, expected: Sequence[int]) -> None:
    """Until the cleaner has left these; it begins when a later message closes the segment."""
    wait_for(lambda: [message.offset for message in messages(url)] == list(expected), "the cleaner")


def close_segment(url: str, number: int) -> None:
    time.sleep(0.1)  # longer than segment.ms
    fill(url, 1, [number])


def test_a_compacted_topic_is_refused_unless_gaps_are_allowed(kafka: Broker) -> None:
    url = compacted(kafka)
    with pytest.raises(StreamDamaged, match=r"cleanup\.policy=compact"):
        spec_of(url, 1).open()
    assert begin(spec_of(url, 1, kafka=SKIP))[1].bounds == ((0, 0),)


def test_what_a_cleaner_took_out_of_blocks_is_counted_apart_from_marks_of_transactions(kafka: Broker) -> None:
    url = compacted(kafka)
    # Offsets 0..4, mark 5; 6..8, mark 9; 10..12, mark 13; and two that close segments.
    transactions(url, (range(5), True), (range(20, 23), True), (range(1, 4), True))
    close_segment(url, 30)
    await_offsets(url, [0, 4, 6, 7, 8, 10, 11, 12, 14])
    spec, cursor = begin(spec_of(url, 1, window=3, kafka=SKIP), chunk=1)
    batches = load(spec, cursor)
    assert names(batches) == [(0, offset) for offset in (0, 4, 6, 7, 8, 10, 11, 12, 14)]
    last = batches[-1].cursor
    assert (dict(last.skipped), last.samples, last.read) == ({"lost": 3}, 9, 12)
    assert last.read + len([5, 9, 13]) == spec.bounds[0][1]  # and nothing is left over
    assert sum(batch.stats.read for batch in batches) == last.read
    for number, batch in enumerate(batches):
        tail = load(spec, Cursor.from_json(batch.cursor.to_json()))
        assert [one.keys for one in tail] == [one.keys for one in batches[number + 1 :]]
        assert not tail or tail[-1].cursor == last


def test_every_position_over_gaps_resumes_with_the_same_tail(kafka: Broker) -> None:
    url = compacted(kafka)
    fill(url, 1, [0, 1, 2, 3, 1, 4, 2, 5])
    close_segment(url, 30)
    await_offsets(url, [0, 3, 4, 5, 6, 7, 8])
    source = spec_of(url, 1, window=4, kafka=SKIP).open()
    whole = list(source.read(Position(lane=0), 0))
    assert [(entry.index, entry.count) for entry, _ in whole if entry.reason == "lost"] == [(0, 2)]
    for number, (_, after) in enumerate(whole):
        assert list(source.read(after, 0)) == whole[number + 1 :]
    source.close()


def test_a_hole_that_no_cleaner_and_no_transaction_accounts_for_stops_a_run_by_name(kafka: Broker) -> None:
    url = compacted(kafka)
    fill(url, 1, [0, 1, 2, 1, 3, 4])
    close_segment(url, 30)
    await_offsets(url, [0, 2, 3, 4, 5, 6])
    with admin(url) as client:  # as after a damage: the topic says that it keeps everything
        resource = ConfigResource(
            ConfigResourceType.TOPIC, read_address(url).topic, configs={"cleanup.policy": "delete"}
        )
        client.alter_configs([resource])
    spec, cursor = begin(spec_of(url, 1), chunk=1)
    with pytest.raises(StreamDamaged, match=r"1 messages .* offset 1 and before 2.*kafka\.on_gap=skip"):
        load(spec, cursor)
    assert load(replace(spec, kafka=SKIP), cursor)[-1].cursor.skipped == {"lost": 1}


def test_a_block_that_was_cleaned_after_it_was_begun_is_gone_as_a_whole(kafka: Broker) -> None:
    url = compacted(kafka)
    fill(url, 1, range(8))
    spec, cursor = begin(spec_of(url, 1, kafka=SKIP), chunk=2)
    first = load(spec, cursor)[0]
    close_segment(url, 1)
    close_segment(url, 2)
    close_segment(url, 30)
    await_offsets(url, [0, 3, 4, 5, 6, 7, 8, 9, 10])
    rest = load(spec, first.cursor)
    assert names(rest) == [(0, offset) for offset in range(4, 8)]
    assert rest[-1].cursor.skipped == {"lost": 2}
    assert rest[-1].cursor.read == 8


def test_transactions_leave_gaps_that_do_no_harm_and_given_up_records_are_not_read(kafka: Broker) -> None:
    url = made(kafka, 1)
    transactions(url, (range(5), True), (range(5, 10), False), (range(10, 15), True))
    spec, cursor = begin(spec_of(url, 1, window=3), chunk=2)
    assert cursor.bounds == ((0, 18),)  # fifteen records, three marks
    batches = load(spec, cursor)
    kept = {record_of(number).sha256 for number in (*range(5), *range(10, 15))}
    assert sorted(key for batch in batches for key in batch.keys) == sorted(kept)
    assert batches[-1].cursor.read == 10


@pytest.mark.parametrize("used", [2, 4, 6])
def test_a_position_of_a_log_with_other_records_is_refused(kafka: Broker, used: int) -> None:
    """Inside a block and between two: the same offsets are there, and nothing else tells."""
    url, other = filled(kafka, 1, 12), made(kafka, 1)
    fill(other, 1, range(50, 62))
    source, stranger = spec_of(url, 1).open(), spec_of(other, 1).open()
    positions = [after for _, after in source.read(Position(lane=0), 0)]
    with pytest.raises(StreamDamaged, match=r"cut off or rewritten before offset .* Begin a new run"):
        read_all(stranger, 0, positions[used - 1])
    assert len(read_all(source, 0, positions[used - 1])) == 12 - used
    source.close()
    stranger.close()


def test_a_position_whose_message_before_is_gone_reads_on(kafka: Broker) -> None:
    url = filled(kafka, 1, 12)
    source = spec_of(url, 1).open()
    position = [after for _, after in source.read(Position(lane=0), 0)][3]
    source.close()
    cut_before(url, 4)
    source = spec_of(url, 1).open()
    assert sorted(read_all(source, 0, position)) == [(offset, "") for offset in range(4, 12)]
    source.close()


def test_a_cursor_from_before_there_were_proofs_reads_on(kafka: Broker) -> None:
    spec, cursor = begin(spec_of(filled(kafka, 1, 12), 1), chunk=2)
    whole = load(spec, cursor)
    for number, batch in enumerate(whole):
        body = json.loads(batch.cursor.to_json())
        body["positions"] = [row[:6] for row in body["positions"]]
        tail = load(spec, Cursor.from_json(json.dumps(body)))
        assert [one.keys for one in tail] == [one.keys for one in whole[number + 1 :]]


def test_a_proof_is_of_the_content_and_its_place_and_not_of_when_it_was_sent() -> None:
    one = Message(offset=3, value=b"image", time=1.0)
    assert proof_of([one]) == proof_of([replace(one, time=2.0, epoch=4)])
    others = [replace(one, offset=4), replace(one, value=b"other"), replace(one, value=None)]
    assert len({proof_of([one]), proof_of([]), *(proof_of([other]) for other in others)}) == 5
    assert 0 < proof_of([one]) < 2**63


def test_a_topic_that_is_made_again_while_it_is_read_is_noticed(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka_topic.client.METADATA_MS", 100)
    url = filled(kafka, 1, 8)
    source = spec_of(url, 1, until="").open()
    source.refresh()
    make_anew(url)
    fill(url, 1, range(20, 40))

    def look_on() -> None:
        while True:
            source.refresh()
            time.sleep(0.1)

    with pytest.raises(StreamMismatch, match="deleted and created again while it was read"):
        look_on()
    source.close()


def cut_log(broker: Broker, url: str, size: int) -> None:
    """As after the election of a leader that has so many bytes of the log and no more."""
    partition = broker.own() / "data" / f"{read_address(url).topic}-0"
    broker.stop(kill=True)
    with (partition / "00000000000000000000.log").open("r+b") as log:
        log.truncate(size)
    broker.start()


def log_size(broker: Broker, url: str) -> int:
    log: Path = broker.own() / "data" / f"{read_address(url).topic}-0" / "00000000000000000000.log"
    return log.stat().st_size


def test_a_log_that_is_written_again_is_noticed_while_it_is_read_and_at_a_resume(kafka: Broker) -> None:
    url = filled(kafka, 1, 5)
    size = log_size(kafka, url)
    for number in range(5, 20):  # batches of one
        fill(url, 1, [number])
    spec = spec_of(url, 1, until="", window=2, kafka=KafkaConfig(fetch_bytes=1))
    source = spec.open()
    reading = source.read(Position(lane=0), 0)
    position = [next(reading) for _ in range(10)][-1][1]
    cut_log(kafka, url, size)
    for number in range(60, 80):
        fill(url, 1, [number])
    with pytest.raises(StreamDamaged, match="cut off or rewritten before offset 10"):
        list(reading)
    source.close()
    source = spec.open()
    with pytest.raises(StreamDamaged, match="cut off or rewritten before offset 10"):
        read_all(source, 0, position)
    source.close()
