"""Small images on a topic of a real Kafka, and what a topic holds, read by other means."""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors

from stream.config import KafkaConfig, TopicWriterConfig
from stream.kafka_topic.address import read_address
from stream.kafka_topic.client import create_topic
from stream.kafka_topic.message import encode_message
from stream.kafka_topic.source import TopicSpec
from stream.record import Record, media_type_of
from tests.kafka_broker import Broker
from tests.stream.fake_source import picture
from tests.waiting import LIMIT_S


def record_of(number: int) -> Record:
    payload = picture(number)
    return Record(
        payload=payload,
        sha256=hashlib.sha256(payload).hexdigest(),
        media_type=media_type_of(payload) or "",
        source=f"image {number}",
    )


def made(broker: Broker, partitions: int, *, max_message_bytes: int = 2**20) -> str:
    """A new, empty topic; its address."""
    url = broker.url(broker.new_topic())
    config = TopicWriterConfig(max_message_bytes=max_message_bytes, linger_s=0.0)
    create_topic(read_address(url), KafkaConfig(), config, partitions=partitions)
    return url


@contextlib.contextmanager
def producer(url: str, **options: Any) -> Iterator[KafkaProducer]:
    client = KafkaProducer(bootstrap_servers=list(read_address(url).servers), **options)
    try:
        yield client
        client.flush(timeout=LIMIT_S)
    finally:
        client.close(timeout=5)


@contextlib.contextmanager
def admin(url: str) -> Iterator[KafkaAdminClient]:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=list(read_address(url).servers))) as client:
        yield client


def fill(url: str, partitions: int, numbers: Sequence[int]) -> None:
    """Send these images, image n to partition n mod `partitions`."""
    with producer(url) as client:
        for number in numbers:
            record = record_of(number)
            key, headers = encode_message(record)
            client.send(
                read_address(url).topic,
                key=key, value=record.payload, headers=headers, partition=number % partitions,
            )  # fmt: skip


def filled(broker: Broker, partitions: int, records: int) -> str:
    url = made(broker, partitions)
    fill(url, partitions, range(records))
    return url


def make_anew(url: str) -> None:
    """Delete a topic, and make another one of its name."""
    topic = read_address(url).topic
    with admin(url) as client:
        client.delete_topics([topic])
        while True:
            try:
                client.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
                break
            except errors.TopicAlreadyExistsError:  # the broker still deletes
                time.sleep(0.1)
        client.wait_for_topics([topic])


def spec_of(url: str, lanes: int, *, window: int = 4, until: str = "now", **options: Any) -> TopicSpec:
    return TopicSpec(url=url, lanes=lanes, window=window, seed=5, until=until, **options)


def messages(url: str) -> list[Any]:
    """All messages of a topic, partition by partition, by the client library alone."""
    address = read_address(url)
    found: list[Any] = []
    with contextlib.closing(
        KafkaConsumer(
            bootstrap_servers=list(address.servers),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
        )
    ) as consumer:
        for partition in sorted(consumer.partitions_for_topic(address.topic)):
            topic = TopicPartition(address.topic, partition)
            consumer.assign([topic])
            consumer.seek(topic, consumer.beginning_offsets([topic])[topic])
            end = consumer.end_offsets([topic])[topic]
            while consumer.position(topic) < end:
                found += consumer.poll(1000, max_records=10_000).get(topic, [])
    return found
