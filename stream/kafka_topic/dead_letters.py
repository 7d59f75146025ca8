"""Dead letters for the records of a topic that a run could not use, and the offsets of a consumer group.

A dead letter has the reason, topic, partition and offset of a record, which itself stays where it is until
its topic lets go of it. It is sent after the step that skipped the record, so a run that goes back after a
crash may send it twice: the key, which names the place, says so.
"""

import contextlib
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition, errors
from kafka.structs import OffsetAndMetadata

from stream.config import KafkaConfig
from stream.errors import StreamError
from stream.kafka_topic.address import TopicAddress
from stream.kafka_topic.client import client_options, kafka_as_stream_error, open_admin, patiently
from stream.lanes import LOST, BadRecordRef, Position

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Letters that wait while brokers are away; more are dropped, counted and reported."""
SEND_MS = 10_000
COMMIT_S = 2.0
"""Seconds between two commits of progress."""
_END = None


class KafkaProgress:
    """Takes what a run has used: dead letters, and progress for tools that show the lag of a group.

    A thread of its own sends them, best effort. No method but `close` blocks, and none raises for the world.

    Args:
        address: the topic that the run reads.
        kafka: how to reach it.
        dead_letters: topic for records that cannot be used; "" = none.
        group: consumer group that progress is committed to; "" = none. It is never read by a run.
        run: uuid of the run; goes with each dead letter.
    """

    def __init__(
        self, address: TopicAddress, kafka: KafkaConfig, *, dead_letters: str, group: str, run: str
    ) -> None:
        self._address, self._kafka = address, kafka
        self._dead_letters, self._group, self._run = dead_letters, group, run
        self.sent = 0
        """Dead letters acknowledged."""
        self.dropped = 0
        """Dead letters given up."""
        self._letters: queue.Queue[BadRecordRef | None] = queue.Queue(MOST_WAITING)
        self._positions: Mapping[int, Position] = {}
        self._committed: Mapping[int, Position] = {}
        self._admin: KafkaAdminClient | None = None
        self._producer: KafkaProducer | None = None
        self._warned = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="swavstream-kafka-progress", daemon=True)
        self._thread.start()

    def used(self, positions: Iterable[Position], bad: Iterable[BadRecordRef]) -> None:
        """Note the positions after a step, and the records that it left out."""
        # A new one each time: the thread reads it without a lock.
        self._positions = {**self._positions, **{position.lane: position for position in positions}}
        for place in bad:
            if not self._dead_letters or place.reason == LOST:
                continue
            try:
                self._letters.put_nowait(place)
            except queue.Full:
                self.dropped += 1

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what waits, within a time, and end. May be called twice."""
        self._ending.set()
        with contextlib.suppress(queue.Full):
            self._letters.put_nowait(_END)
        self._thread.join(timeout_s)
        if self.dropped:
            logger.warning("%d dead letters could not be sent to %s", self.dropped, self._dead_letters)
            self.dropped = 0

    def _follow(self) -> None:
        while True:
            waiting = self._waiting()
            if waiting:
                self._try(self._send, waiting)
            if self._group and self._positions is not self._committed:
                self._try(self._commit, self._positions)
            if self._ending.is_set() and self._letters.empty():
                break
        for client in (self._admin, self._producer):
            if client is not None:
                with contextlib.suppress(errors.KafkaError):
                    client.close()

    def _waiting(self) -> list[BadRecordRef]:
        """Letters that have come; waits a while for the first."""
        found: list[BadRecordRef] = []
        with contextlib.suppress(queue.Empty):
            place = self._letters.get(timeout=COMMIT_S)
            while True:
                if place is not _END:
                    found.append(place)
                place = self._letters.get_nowait()
        return found

    def _try(self, act: Callable[..., None], what: object) -> None:
        try:
            act(what)
            self._warned = False
        except (StreamError, errors.KafkaError, OSError) as error:
            if not self._warned:
                logger.warning("progress or dead letters cannot be sent to Kafka now: %s", error)
            self._warned = True
            if isinstance(what, list):
                self.dropped += len(what)

    def _send(self, places: list[BadRecordRef]) -> None:
        if self._producer is None:
            self._make_topic()
            with kafka_as_stream_error(self._address):
                self._producer = KafkaProducer(
                    **client_options(self._address, self._kafka),
                    acks="all",
                    allow_auto_create_topics=False,
                    delivery_timeout_ms=SEND_MS + 20_000,
                    max_block_ms=SEND_MS,
                )
        sent = [
            self._producer.send(
                self._dead_letters,
                key=f"{self._address.topic}/{place.lane}/{place.index}".encode(),
                value=json.dumps(self._letter(place), sort_keys=True).encode(),
                headers=[(name, str(value).encode()) for name, value in self._letter(place).items()],
            )
            for place in places
        ]
        with kafka_as_stream_error(self._address):
            for future in sent:
                future.get(timeout=SEND_MS / 1000 + 20)
        self.sent += len(sent)

    def _letter(self, place: BadRecordRef) -> Mapping[str, str | int]:
        return {
            "reason": place.reason,
            "topic": self._address.topic,
            "partition": place.lane,
            "offset": place.index,
            "run": self._run,
        }

    def _commit(self, positions: Mapping[int, Position]) -> None:
        if self._admin is None:
            self._admin = open_admin(self._address, self._kafka)
        # Within a block messages are used in another order: what counts is how many of them were.
        offsets = {
            TopicPartition(self._address.topic, p.lane): OffsetAndMetadata(p.base + p.idx, "", -1)
            for p in positions.values()
        }
        with kafka_as_stream_error(self._address):
            admin = self._admin
            results = patiently(lambda: admin.alter_group_offsets(self._group, offsets), seconds=COMMIT_S)
            for error in results.values():
                if error is not errors.NoError:
                    raise error(f"committing to group {self._group}")
        self._committed = positions

    def _make_topic(self) -> None:
        with (
            contextlib.closing(open_admin(self._address, self._kafka)) as admin,
            kafka_as_stream_error(self._address),
        ):
            (topic,) = admin.describe_topics([self._dead_letters])
            if topic["error_code"] == errors.UnknownTopicOrPartitionError.errno:
                with contextlib.suppress(errors.TopicAlreadyExistsError):
                    admin.create_topics({self._dead_letters: {"num_partitions": 1, "replication_factor": -1}})
                admin.wait_for_topics([self._dead_letters])
