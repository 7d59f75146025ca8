"""Sends records to a Kafka topic, within a budget of bytes, and knows which of them are safe.

The client library keeps what was sent and not yet acknowledged without any bound: the budget here is what
holds the source back. Safe is what the brokers acknowledged (all replicas in sync, idempotent).
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kafka import KafkaProducer, errors

from stream.config import KafkaConfig, TopicWriterConfig
from stream.errors import BadRecord, StreamError
from stream.kafka_topic.address import TopicAddress
from stream.kafka_topic.client import TopicFacts, client_options, kafka_as_stream_error
from stream.kafka_topic.message import Headers, encode_message
from stream.record import Record

ABOVE_LIMIT = "above_topic_limit"
OVERHEAD_BYTES = 512
"""Of a batch and of a record in it, beside key, value and headers; generous."""
_WAIT_S = 0.5


@dataclass(slots=True)
class _Sent:
    """A message on its way."""

    size: int
    safe: bool = False


class TopicWriter:
    """Sends messages to named partitions; to be used by one thread.

    `send` blocks while the budget is spent, `flush` until all is safe; both no longer than `patience_s`
    without any progress. After an exception only `close` may be called: what was on its way may or may not
    arrive.

    Raises, from every method: StreamError.
    """

    def __init__(
        self, address: TopicAddress, facts: TopicFacts, kafka: KafkaConfig, config: TopicWriterConfig
    ) -> None:
        self._address, self._kafka, self._config = address, kafka, config
        self.partitions = facts.partitions
        self.max_message_bytes = facts.max_message_bytes
        self.sent = 0
        """Messages handed over so far."""
        self._sent: deque[_Sent] = deque()
        self._safe = 0
        self._waiting_bytes = 0
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        with kafka_as_stream_error(address):
            self._producer = KafkaProducer(
                **client_options(address, kafka),
                enable_idempotence=True,
                acks="all",
                compression_type=None,  # images do not compress
                # A batch is what the topic's limit is about, too.
                batch_size=min(config.batch_bytes, self.max_message_bytes),
                linger_ms=int(config.linger_s * 1000),
                max_request_size=self.max_message_bytes,
                # Longer than brokers may be away: what is given up may be lost in the middle of a partition.
                delivery_timeout_ms=int(kafka.patience_s * 1000) + 30_000,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )

    @property
    def safe(self) -> int:
        """Messages acknowledged without any before them missing, counted from the first."""
        with self._changed:
            return self._safe

    def send(self, record: Record, *, partition: int, headers: Headers) -> None:
        """Hand a record over; it is safe when `safe` counts it.

        Args:
            record: what is sent.
            partition: where to. The key names the record and does not choose: one image that fills a
                twentieth of a crawl would fill one lane.
            headers: beside those of the record.

        Raises:
            BadRecord: reason `above_topic_limit`; nothing was sent.
            StreamError: it cannot be sent, or something before it was not.
        """
        key, known = encode_message(record)
        headers = [*known, *headers]
        size = len(key) + len(record.payload) + sum(len(name) + len(value) for name, value in headers)
        if size + OVERHEAD_BYTES > self.max_message_bytes:
            raise BadRecord(
                ABOVE_LIMIT,
                f"{record.source or record.sha256[:16]} is {size:,} bytes with its headers, topic "
                f"{self._address.topic} takes {self.max_message_bytes:,}: raise max.message.bytes of the "
                "topic, or lower short_side or quality",
            )
        self._await(lambda: self._waiting_bytes + size <= self._config.budget_bytes or not self._sent)
        sent = _Sent(size)
        with self._changed:
            self._sent.append(sent)
            self._waiting_bytes += size
        with kafka_as_stream_error(self._address):
            # No time stamp of ours: an image's own date would count for the retention of the topic.
            future = self._producer.send(
                self._address.topic, key=key, value=record.payload, headers=headers, partition=partition
            )
        self.sent += 1
        future.add_callback(self._arrived, sent)
        future.add_errback(self._failed)

    def flush(self) -> None:
        """Wait until all that was sent is safe."""
        with self._changed:
            idle = not self._sent
        if idle:
            self._check()
            return
        # The first half second without holding a lock that the client's thread wants.
        with kafka_as_stream_error(self._address), contextlib.suppress(errors.KafkaTimeoutError):
            self._producer.flush(timeout=_WAIT_S)
        self._await(lambda: not self._sent)

    def close(self, *, timeout_s: float = 0.0) -> None:
        """Let go; what is not safe yet is given up. May be called twice."""
        try:
            self._producer.close(timeout=timeout_s)
        except errors.KafkaError:
            # The library leaves off closing when it cannot flush, and would go on sending behind our back.
            self._producer._sender.force_close()
            with contextlib.suppress(errors.KafkaError):
                self._producer.close(timeout=1.0)

    def _arrived(self, sent: _Sent, _metadata: object) -> None:
        # In the client's thread.
        with self._changed:
            sent.safe = True
            self._waiting_bytes -= sent.size
            while self._sent and self._sent[0].safe:
                self._sent.popleft()
                self._safe += 1
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _check(self) -> None:
        with self._changed:
            failure = self._failure
        if failure is None:
            return
        with kafka_as_stream_error(self._address):
            if isinstance(failure, errors.KafkaError):
                raise failure
        raise StreamError(f"cannot send to {self._address}: {failure}") from failure

    def _await(self, done: Callable[[], bool]) -> None:
        """Wait until something holds, as long as acknowledgements come."""
        began, safe = time.monotonic(), -1
        with self._changed:
            while self._failure is None and not done():
                if self._safe != safe:
                    began, safe = time.monotonic(), self._safe
                elif time.monotonic() - began > self._kafka.patience_s:
                    raise StreamError(
                        f"Kafka at {self._address.place} acknowledges nothing of topic "
                        f"{self._address.topic!r} for {self._kafka.patience_s:.0f} s (kafka.patience_s): are "
                        "its brokers up, and min.insync.replicas of them in sync?"
                    )
                self._changed.wait(_WAIT_S)
        self._check()
