"""Messages of a partition from an offset on, fetched when they are asked for and kept while they may be.

A reader answers for any lane, so it is one partition at a time that is assigned, sought and polled: no group,
no position of its own. What a fetch brings beyond what was asked for is kept, within a budget of bytes.

Some offsets hold no message and never did: control records of transactions, and records of transactions that
were given up. The client library passes over them without a word, and so it does over what a broker's
cleaner took away or a disk lost. Only the batches tell them apart, and only here are they looked at.
"""

import contextlib
import functools
import logging
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from kafka import KafkaConsumer, TopicPartition, errors
from kafka.consumer.fetcher import Fetcher
from kafka.structs import OffsetAndMetadata

from stream.config import KafkaConfig
from stream.errors import StreamError
from stream.kafka_topic.address import TopicAddress
from stream.kafka_topic.client import codec_errors, kafka_as_stream_error, open_consumer


class ControlOffsets:
    """Stretches of offsets without messages, as seen in what one consumer fetched."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def watch(self, consumer: KafkaConsumer) -> None:
        """Look at all that this consumer will parse."""
        # Of one object, not of the library: the class is looked up on the fetcher for each fetch.
        consumer._fetcher.PartitionRecords = functools.partial(_Batches, self)

    def clear(self) -> None:
        """Forget what was seen."""
        self._spans.clear()

    def add(self, batch: Any) -> None:
        """A batch that holds no message for a reader."""
        self._spans.append((batch.base_offset, batch.last_offset + 1))

    def missing(self, first: int, stop: int) -> int:
        """Offsets in first .. stop - 1 that are not of such batches: if no message is there, one is gone."""
        empty = (max(min(end, stop) - max(begin, first), 0) for begin, end in self._spans)
        return max(stop - first - sum(empty), 0)


class _Batches(Fetcher.PartitionRecords):  # type: ignore[misc]  # the library is not typed
    """Parses a fetch as the library does, and tells what it passes over."""

    def __init__(self, controls: ControlOffsets, *arguments: Any, **options: Any) -> None:
        self._controls = controls
        super().__init__(*arguments, **options)

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        found: Iterator[Any] = super()._unpack_records(tp, _Watched(records, self._controls), *deserializers)
        return found

    def _is_batch_aborted(self, batch: Any) -> bool:
        aborted = bool(super()._is_batch_aborted(batch))
        if aborted:
            self._controls.add(batch)
        return aborted

    def _contains_abort_marker(self, batch: Any) -> bool:
        # The cleaner may leave only the batch of a control record; the library expects a record in it.
        return batch.records_count > 0 and bool(super()._contains_abort_marker(batch))


class _Watched:
    """Batches, one after the other."""

    def __init__(self, records: Any, controls: ControlOffsets) -> None:
        self._records, self._controls = records, controls

    def next_batch(self) -> Any:
        """The next one; None after the last."""
        batch = self._records.next_batch()
        if batch is not None and batch.magic == 2 and batch.is_control_batch:
            self._controls.add(batch)
        return batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message, or a place whose message cannot be read."""

    offset: int
    epoch: int = -1
    """Leader epoch of its batch."""
    time: float = 0.0
    """When it was sent, seconds since 1970; 0 = not known."""
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    broken: bool = False
    """Its batch fails the check of Kafka, and it states no digest of its own."""
    gone: int = 0
    """Messages missing right before it: offsets that hold neither a message nor a control record."""

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.value or b"")


def message_of(one: Any) -> Message:
    """What the client library gives, as a message."""
    return Message(
        offset=one.offset,
        epoch=-1 if one.leader_epoch is None else one.leader_epoch,
        time=max(one.timestamp, 0) / 1000,
        value=one.value,
        headers=tuple(one.headers),
    )


@dataclass(slots=True)
class FetchBuffer:
    """Messages of a partition that follow each other."""

    first: int
    after: int
    """Offset to go on from; no message lies between the last one and it."""
    messages: list[Message] = field(default_factory=list)
    num_bytes: int = 0
    gone: int = 0
    """Messages missing between the last one and `after`."""
    epoch: int = -1
    """Leader epoch of the last message; -1 = not known."""

    def add(self, message: Message, controls: ControlOffsets) -> None:
        """Take in the next message."""
        gone = self.gone + controls.missing(self.after, message.offset)
        self.messages.append(replace(message, gone=gone) if gone else message)
        self.num_bytes += message.size
        self.after, self.gone, self.epoch = message.offset + 1, 0, message.epoch

    def reach(self, after: int, controls: ControlOffsets) -> None:
        """No further message comes before this offset."""
        if after > self.after:
            self.gone += controls.missing(self.after, after)
            self.after = after

    def drop_before(self, offset: int) -> None:
        """Forget what lies before an offset in first .. after."""
        while self.messages and self.messages[0].offset < offset:
            self.num_bytes -= self.messages.pop(0).size
        if not self.messages:
            self.gone = min(self.gone, self.after - offset)
        elif self.messages[0].gone > self.messages[0].offset - offset:
            self.messages[0] = replace(self.messages[0], gone=self.messages[0].offset - offset)
        self.first = offset


logger = logging.getLogger(__name__)

POLL_MS = 1000
LOOK_MS = 3000
"""Longest time that looking for new records takes while brokers are away."""
PARSE_ERRORS = (
    errors.CorruptRecordError,
    *codec_errors(),
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    MemoryError,
    EOFError,
    struct.error,
)
"""What the client library raises for bytes that are no batch, or not the batch that was written."""


class Gone(Exception):
    """The log does not hold an offset: it begins later, ends before, or has other messages before it."""


class TopicFetcher:
    """Reads partitions of one topic; one per process, not thread-safe.

    Waits for brokers that are away, up to `patience_s`, and then raises StreamError.
    """

    def __init__(self, address: TopicAddress, config: KafkaConfig) -> None:
        self._address, self._config = address, config
        self._consumer: KafkaConsumer | None = None
        self._buffers: OrderedDict[int, FetchBuffer] = OrderedDict()
        self._controls = ControlOffsets()
        self._away_since: float | None = None

    def ends(self, partitions: Iterable[int]) -> dict[int, int] | None:
        """Offset after the last readable message of each partition; None while brokers are away."""
        return self._ask(partitions, lambda c, tps: c.end_offsets(tps, timeout_ms=LOOK_MS))

    def starts(self, partitions: Iterable[int]) -> dict[int, int] | None:
        """Offset of the first message that each partition still has; None while brokers are away."""
        return self._ask(partitions, lambda c, tps: c.beginning_offsets(tps, timeout_ms=LOOK_MS))

    def at_time(self, partitions: Iterable[int], seconds: float) -> dict[int, int] | None:
        """Offset of the first message of each partition sent then or later; -1 where there is none."""

        def ask(consumer: KafkaConsumer, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
            found = consumer.offsets_for_times(dict.fromkeys(tps, int(seconds * 1000)))
            return {tp: -1 if found.get(tp) is None else found[tp].offset for tp in tps}

        return self._ask(partitions, ask)

    def partitions(self) -> int:
        """Partitions that the topic has by now, as of the client's last look."""
        with kafka_as_stream_error(self._address):
            return len(self._client().partitions_for_topic(self._address.topic) or ())

    def uuid(self) -> str:
        """Of the topic that has this name, as of the client's last look; empty when it does not say."""
        with kafka_as_stream_error(self._address):
            found = self._client()._cluster.topic_id(self._address.topic)
        return "" if found is None else str(found)

    def messages(self, partition: int, offset: int, *, count: int, stop: int) -> tuple[list[Message], int]:
        """Messages from `offset` on, in order; at most `count`, and none at `stop` or later.

        Args:
            partition: of the topic.
            offset: where to begin.
            count: >= 1.
            stop: <= the end of the log; until there is waited for messages.

        Returns:
            The messages, and the offset to go on from: of the message after them, or `stop`.

        Raises:
            Gone: the log does not hold `offset`.
            StreamError: brokers are away for too long, or do not permit reading.
        """
        buffer = self._from(partition, offset)
        began = time.monotonic()
        while len(buffer.messages) < count and buffer.after < stop:
            before = buffer.after
            self._fetch(partition, buffer)
            if buffer.after > before:
                began = time.monotonic()
                self._shrink(partition)
            elif time.monotonic() - began > self._config.patience_s:
                raise StreamError(
                    f"Kafka at {self._address.place} gives nothing of topic {self._address.topic!r}, "
                    f"partition {partition}, offset {before}, for {self._config.patience_s:.0f} s "
                    "(kafka.patience_s): are its brokers up?"
                )
        found = [message for message in buffer.messages[:count] if message.offset < stop]
        return found, found[-1].offset + 1 if len(found) == count else stop

    def message(self, partition: int, offset: int) -> Message | None:
        """One message, again; None when it is gone."""
        buffer = self._buffers.get(partition)
        if buffer is not None and buffer.first <= offset < buffer.after:
            return next((message for message in buffer.messages if message.offset == offset), None)
        aside = self._buffers.pop(partition, None)
        try:
            found, _ = self.messages(partition, offset, count=1, stop=offset + 1)
        except Gone:
            return None
        finally:
            if aside is not None:
                self._buffers[partition] = aside
        return found[0] if found else None

    def close(self) -> None:
        """Let go of connections and messages. May be called twice."""
        self._buffers.clear()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(errors.KafkaError):
                consumer.close(autocommit=False, timeout_ms=1000)

    def _client(self) -> KafkaConsumer:
        # Here, and not in the constructor: its thread must begin in the process that reads.
        if self._consumer is None:
            self._consumer = open_consumer(self._address, self._config)
            self._controls.watch(self._consumer)
        return self._consumer

    def _topic(self, partition: int) -> TopicPartition:
        return TopicPartition(self._address.topic, partition)

    def _ask(
        self, partitions: Iterable[int], ask: Callable[[KafkaConsumer, list[TopicPartition]], dict[Any, int]]
    ) -> dict[int, int] | None:
        topics = [self._topic(partition) for partition in partitions]
        with kafka_as_stream_error(self._address):
            try:
                found = ask(self._client(), topics)
            except errors.RetriableError as error:
                now = time.monotonic()
                if self._away_since is None:
                    self._away_since = now
                    logger.warning(
                        "Kafka at %s does not answer: %s", self._address.place, type(error).__name__
                    )
                if now - self._away_since > self._config.patience_s:
                    raise
                return None
        self._away_since = None
        return {topic.partition: offset for topic, offset in found.items()}

    def _from(self, partition: int, offset: int) -> FetchBuffer:
        """What is kept of a partition from an offset on."""
        buffer = self._buffers.get(partition)
        if buffer is None or not buffer.first <= offset <= buffer.after:
            buffer = self._buffers[partition] = FetchBuffer(offset, offset)
        buffer.drop_before(offset)
        self._buffers.move_to_end(partition)
        return buffer

    def _shrink(self, partition: int) -> None:
        """Forget the partitions that were read longest ago, when too much is kept."""
        while sum(buffer.num_bytes for buffer in self._buffers.values()) > self._config.buffer_bytes:
            oldest = next(iter(self._buffers))
            if oldest == partition:
                return
            del self._buffers[oldest]

    def _fetch(self, partition: int, buffer: FetchBuffer) -> None:
        """One fetch; what it brings is kept."""
        topic = self._topic(partition)
        with kafka_as_stream_error(self._address):
            consumer = self._client()
            try:
                self._seek(consumer, topic, buffer)
                self._controls.clear()
                got = consumer.poll(POLL_MS)
                # Past markers of transactions, which are never given out.
                after = consumer.position(topic, timeout_ms=POLL_MS)
            except errors.OffsetOutOfRangeError as error:
                del self._buffers[partition]
                raise Gone from error
            except errors.LogTruncationError as error:
                if topic not in error.divergent_offsets:  # told late, of one that was read before
                    return
                del self._buffers[partition]
                raise Gone from error
            except errors.RetriableError:
                time.sleep(0.1)
                return
            except errors.UnsupportedCodecError as error:
                raise self._no_codec(topic, buffer.after, error) from error
            except PARSE_ERRORS as error:
                # The client would find the same batch in its buffer and go round for ever in its next poll:
                # it is not asked again.
                self._drop_client()
                logger.warning(
                    "topic %s, partition %d, offset %d: a batch that cannot be trusted (%s)",
                    self._address.topic, partition, buffer.after, type(error).__name__,
                )  # fmt: skip
                self._salvage(topic, buffer)
                return
        for one in got.get(topic, ()):
            buffer.add(message_of(one), self._controls)
        buffer.reach(after or 0, self._controls)

    def _seek(self, consumer: KafkaConsumer, topic: TopicPartition, buffer: FetchBuffer) -> None:
        """Ask for what comes next, and say of which epoch the message before was.

        After an election the broker then tells when its log parts from what was read. The library's `seek`
        takes no epoch; and given one, it would first ask in a request of its own, 0.1 s for every fetch
        after an election, while the fetch itself asks the same.
        """
        consumer.assign([topic])
        state = consumer._subscription.assignment[topic]
        state.seek(OffsetAndMetadata(buffer.after, "", buffer.epoch))
        led = consumer._cluster.leader_epoch_for_partition(topic)
        state._current_leader_epoch = -1 if led is None else led

    def _salvage(self, topic: TopicPartition, buffer: FetchBuffer) -> None:
        """Go on past a batch that fails Kafka's check, or is no batch.

        Messages that state their own digest are taken: it is compared later, and is the better check. Of
        others only the first, as broken; whether the next belongs to the same batch is seen when it is read.

        Raises:
            StreamError: the broker gave no answer at all, which proves nothing against a message.
        """
        offset = buffer.after
        self._controls.clear()
        consumer = open_consumer(self._address, self._config, check_crcs=False)
        self._controls.watch(consumer)
        try:
            consumer.assign([topic])
            consumer.seek(topic, offset)
            deadline = time.monotonic() + self._config.patience_s
            got: list[Any] = []
            while not got and time.monotonic() < deadline:
                got = consumer.poll(POLL_MS).get(topic, [])
            answered = bool(got) or consumer.highwater(topic) is not None  # comes with every answer
        except errors.UnsupportedCodecError as error:
            raise self._no_codec(topic, offset, error) from error
        except PARSE_ERRORS:
            got, answered = [], True
        finally:
            with contextlib.suppress(errors.KafkaError):
                consumer.close(autocommit=False, timeout_ms=1000)
        if not answered:
            raise StreamError(
                f"topic {self._address.topic}, partition {topic.partition}: no answer for "
                f"{self._config.patience_s:g} s (kafka.patience_s) to a second look at offset {offset}, "
                "whose batch failed Kafka's check: "
                "see whether its brokers run, and run the same command again"
            )
        first = got[0] if got else None
        if first is None or first.offset > offset:
            buffer.add(Message(offset=offset, broken=True), self._controls)
            return
        for one in got:
            message = message_of(one)
            if not any(name == "sha256" for name, _ in message.headers):
                if one is first:
                    buffer.add(Message(offset=offset, time=message.time, broken=True), self._controls)
                return
            buffer.add(message, self._controls)

    def _no_codec(self, topic: TopicPartition, offset: int, error: errors.KafkaError) -> StreamError:
        """This installation cannot read a batch; nothing is wrong with its messages."""
        self._drop_client()
        return StreamError(
            f"topic {self._address.topic}, partition {topic.partition}, offset {offset}: {error}. Install "
            "it beside this program (pip install 'kafka-python[lz4,snappy,zstd]') and run the command again"
        )

    def _drop_client(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(errors.KafkaError):
                consumer.close(autocommit=False, timeout_ms=1000)
