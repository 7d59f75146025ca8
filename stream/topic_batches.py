"""Which offsets of a fetch hold no message and never did: marks of transactions, and records given up.

The client library passes over them without a word, and so it does over what a broker's cleaner took away or a
disk lost. Only the batches tell them apart, and only here are they looked at.
"""

import functools
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher


class Voids:
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
        """A batch without messages for anybody."""
        self._spans.append((batch.base_offset, batch.last_offset + 1))

    def missing(self, first: int, stop: int) -> int:
        """Offsets in first .. stop - 1 that are not of such batches: if no message is there, one is gone."""
        empty = (max(min(end, stop) - max(begin, first), 0) for begin, end in self._spans)
        return max(stop - first - sum(empty), 0)


class _Batches(Fetcher.PartitionRecords):  # type: ignore[misc]  # the library is not typed
    """Parses a fetch as the library does, and tells what it passes over."""

    def __init__(self, voids: Voids, *arguments: Any, **options: Any) -> None:
        self._voids = voids
        super().__init__(*arguments, **options)

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        found: Iterator[Any] = super()._unpack_records(tp, _Watched(records, self._voids), *deserializers)
        return found

    def _is_batch_aborted(self, batch: Any) -> bool:
        aborted = bool(super()._is_batch_aborted(batch))
        if aborted:
            self._voids.add(batch)
        return aborted

    def _contains_abort_marker(self, batch: Any) -> bool:
        # Of a transaction's mark the cleaner may leave the batch alone; the library expects a record in it.
        return batch.records_count > 0 and bool(super()._contains_abort_marker(batch))


class _Watched:
    """Batches, one after the other."""

    def __init__(self, records: Any, voids: Voids) -> None:
        self._records, self._voids = records, voids

    def next_batch(self) -> Any:
        """The next one; None after the last."""
        batch = self._records.next_batch()
        if batch is not None and batch.magic == 2 and batch.is_control_batch:
            self._voids.add(batch)
        return batch
