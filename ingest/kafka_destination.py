"""A Kafka topic as the destination of an ingest: every record once, over kills and restarts.

Records go to partitions in turn. A restarted ingest reads each partition's end back to its own last record,
goes on in the source where all before were acknowledged, and sends only what is not there yet.
"""

import contextlib
import hashlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from kafka import TopicPartition, errors
from kafka.structs import OffsetAndMetadata

from ingest.config import IngestConfig
from ingest.kafka_history import Stamp, TopicHistory
from ingest.kafka_lease import GROUP_S, TopicLease
from ingest.rejects import Listed, Reject, RejectList, state_list
from ingest.shard_destination import Resume, destination_errors, is_source_locked, lock_source
from stream.kafka_topic.address import read_address
from stream.kafka_topic.client import create_topic, look_at, open_admin, patiently
from stream.kafka_topic.fetch import TopicFetcher
from stream.kafka_topic.writer import TopicWriter
from stream.record import Record
from stream.shards.adopt import Adoption
from stream.shards.commits import Accounts
from stream.shards.digests import DigestSet
from stream.shards.taken import TakenList
from stream.storage import LocalStore, local_path

logger = logging.getLogger(__name__)

LARGEST_REENCODED = 2 * 1024 * 1024
"""Bytes of an image of 384 pixels on the shorter side that was encoded again, at the very most."""
LONG_LOOK = 10_000
"""Messages to look through that are worth a line."""


class TopicDestination:
    """A topic. One process at a time writes one source; others may write other sources meanwhile.

    Implements destination.Destination.

    Args:
        url: kafka://HOST:PORT/TOPIC.
        source_id: identity of the source.
        config: of the ingest.
        create_partitions: make the topic with so many partitions when it is not there; 0 = it must be.
        state: folder for the list of what was taken and for that of what was rejected; empty = there are
            none, and a source is refused that has more files before its place than it had. The list of what
            was rejected is exact over kills of this process; after a loss of power its last lines may be
            missing, which the next start tells.

    Raises, from every method: StreamError; StreamNotFound when there is no topic. SourceBusy from `resume`,
    and from `write` and `tick` when this process was not heard of for so long that another one took over.
    """

    def __init__(
        self, url: str, source_id: str, config: IngestConfig, *, create_partitions: int = 0, state: str = ""
    ) -> None:
        self._address, self._config = read_address(url), config
        self._ingest = _ingest_id(source_id)
        if create_partitions:
            create_topic(self._address, config.kafka, config.topic, partitions=create_partitions)
        self._facts = look_at(self._address, config.kafka)
        self._check_limit()
        self._list: TakenList | None = None
        self._rejects: RejectList | None = None
        self._lock = -1
        if state:
            # Of this very topic: another one, also one made again under its name, has none of these images.
            folder = local_path(state)
            if folder is None:
                raise ValueError(f"--state must be a folder of this machine, got {state}")
            self._list = TakenList(LocalStore(folder / f"{self._address.topic}-{self._facts.uuid}"))
            self._rejects = state_list(folder, self.url, source_id)
            self._lock = lock_source(self._list.store, source_id)
        self._fetcher = TopicFetcher(self._address, config.kafka)
        self._lease = TopicLease(self._address, config.kafka, self._ingest, source_id)
        self._history: TopicHistory | None = None
        self._writer: TopicWriter | None = None
        self._known: DigestSet | None = None
        self._accounts = Accounts()
        self._begin = self._number = 0
        self._there: Counter[str] = Counter()
        self._taken: set[int] = set()
        self._unsafe: deque[tuple[int, int]] = deque()
        self._seen_safe = 0
        self._told_of_list = False

    @property
    def url(self) -> str:
        """See Destination."""
        return str(self._address)

    @property
    def shards(self) -> int:
        """See Destination: a topic has none."""
        return 0

    @property
    def sealed(self) -> bool:
        """See Destination: a topic has no end; a run that reads it may give it one."""
        return False

    @property
    def pending(self) -> Accounts:
        """See Destination: what the brokers have not acknowledged."""
        self._settle()
        return Accounts(written=len(self._unsafe), bytes=sum(size for _, size in self._unsafe))

    def held_up(self) -> str:
        """See Destination. The brokers keep what they keep, whoever reads: nothing to wait for."""
        return ""

    def resume(self) -> Resume:
        """See Destination."""
        self._lease.take()
        self._history = self._history_of(self._ingest)
        past = self._history.past()
        self._begin = self._number = past.next
        self._there = Counter(past.beyond.values())
        self._taken = set(past.beyond)
        self._resume_rejects(None if past.last is None else past.last.position)
        if past.last is None:
            return Resume()
        self._accounts = past.last.accounts
        return Resume(position=past.last.position, accounts=past.last.accounts)

    @property
    def taken(self) -> TakenList | None:
        """See Destination: in the folder of `state`."""
        return self._list

    def place_of(self, source_id: str) -> Any:
        """See Destination: read back from the topic."""
        last = self._history_of(_ingest_id(source_id)).past().last
        position = last.position if last is not None else None
        return position.get("source") if isinstance(position, dict) else None

    def at_work(self, source_id: str) -> bool:
        """See Destination: on this machine, by its lock."""
        return self._list is not None and is_source_locked(self._list.store, source_id)

    def as_ingest_error(self) -> contextlib.AbstractContextManager[None]:
        """See Destination."""
        return destination_errors(f"the list of what was taken for {self.url}")

    def is_new(self, sha256: str) -> bool:
        """See Destination. Known is what this ingest has sent; a restart reads its records back for that."""
        if self._known is None:
            self._known = DigestSet()
            if self._begin and self._history is not None:
                for known in self._history.digests(self._begin):
                    self._known.add(bytes.fromhex(known))
        digest = bytes.fromhex(sha256)
        if digest in self._known:
            return False
        self._known.add(digest)
        return True

    def write(self, record: Record, position: Any) -> None:
        """See Destination. Waits while the budget of what is not acknowledged is spent."""
        accounts = self._accounts + Accounts(written=1, bytes=len(record.payload))
        if self._there[record.sha256]:  # an earlier start has sent it, behind one that was lost
            self._there[record.sha256] -= 1
            self._accounts = accounts
            return
        self._lease.check()
        while self._number in self._taken:
            self._number += 1
        self._settle()
        stamp = Stamp(
            number=self._number,
            acked=self._unsafe[0][0] if self._unsafe else self._number,
            position=position,
            accounts=accounts,
        )
        if self._rejects is not None:
            self._rejects.flush(durable=False)
        writer = self._open_writer()
        writer.send(
            record,
            partition=self._number % self._facts.partitions,
            headers=stamp.headers(self._ingest),
        )
        self._unsafe.append((self._number, len(record.payload)))
        self._accounts = accounts
        self._number += 1

    def skip(self, reason: str, position: Any) -> None:
        """See Destination: sent with the next record; a restart finds it again."""
        self._accounts += Accounts(skipped={reason: 1})

    def reject(self, reject: Reject) -> None:
        """See Destination."""
        if self._rejects is not None:
            self._rejects.add(reject)
        elif not self._told_of_list:
            self._told_of_list = True
            logger.warning("a topic has no place for a list of what is not written: --state DIR makes one")

    @property
    def listed(self) -> Listed | None:
        """See Destination."""
        return None if self._rejects is None else self._rejects.listed

    def flush(self) -> None:
        """See Destination."""
        if self._rejects is not None:
            self._rejects.flush()
        if self._writer is not None:
            self._writer.flush()
            self._settle()

    def adopt(self, tar: str, position: Callable[[Adoption], Any]) -> Accounts:
        """See Destination: a topic holds records, not places of tars."""
        raise ValueError(
            f"tars cannot be adopted by reference into a topic ({self.url}): leave out --reference"
        )

    def tick(self) -> None:
        """See Destination: records do not wait longer than `topic.linger_s`."""
        self._lease.check()

    def seal(self) -> None:
        """See Destination: nothing to do."""

    def close(self) -> None:
        """See Destination."""
        try:
            self.flush()
            if any(self._there.values()):
                logger.warning(
                    "%d records that an earlier start has sent were not found in the source again: they "
                    "stay on %s and are not counted here",
                    sum(self._there.values()), self.url,
                )  # fmt: skip
                self._there.clear()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """See Destination."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self._lease.release()
        self._fetcher.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _resume_rejects(self, position: Any) -> None:
        if self._rejects is None:
            return
        missing = self._rejects.resume(Listed.of(position) or Listed())
        if missing:
            logger.warning(
                "%s lines of what this source had rejected are not in the folder of --state; the list goes "
                "on without them", f"{missing:,}",
            )  # fmt: skip

    def _open_writer(self) -> TopicWriter:
        if self._writer is None:
            self._writer = TopicWriter(self._address, self._facts, self._config.kafka, self._config.topic)
            self._seen_safe = 0
        return self._writer

    def _settle(self) -> None:
        """Take note of what was acknowledged."""
        if self._writer is None:
            return
        safe = self._writer.safe
        while self._seen_safe < safe:
            self._unsafe.popleft()
            self._seen_safe += 1

    def _check_limit(self) -> None:
        """Say what the topic will not take, before it happens."""
        config, limit = self._config, self._facts.max_message_bytes
        shrunk = config.short_side and config.short_side <= 384 and config.reencode != "never"
        largest = min(LARGEST_REENCODED, config.max_bytes) if shrunk else config.max_bytes
        if limit < largest:
            logger.warning(
                "topic %s takes messages up to %s bytes, records may have up to %s: larger ones will be "
                "skipped as above_topic_limit. Raise max.message.bytes of the topic, or lower max_bytes",
                self._address.topic, f"{limit:,}", f"{largest:,}",
            )  # fmt: skip

    def _history_of(self, ingest: str) -> TopicHistory:
        return TopicHistory(self._fetcher, self._facts.partitions, ingest, self._floor(ingest))

    def _floor(self, ingest: str) -> dict[int, int]:
        """Offset in each partition below which nothing of this ingest lies.

        Where an ingest begins is noted as the offsets of a group of its own, so that no user has to look
        through a topic for what was never sent. Brokers forget such a group after some days: then the whole
        topic is looked through.
        """
        group = f"swavstream-ingest-{ingest}"
        partitions = range(self._facts.partitions)
        starts, ends = self._all(self._fetcher.starts), self._all(self._fetcher.ends)
        with contextlib.closing(open_admin(self._address, self._config.kafka)) as admin:
            try:
                told = patiently(lambda: admin.list_group_offsets([group]), seconds=GROUP_S).get(group, {})
            except errors.KafkaError:  # forbidden, or unknown to this cluster
                told = {}
            noted = {
                tp.partition: entry.offset
                for tp, entry in told.items()
                if tp.topic == self._address.topic and getattr(entry, "offset", -1) >= 0
            }
            if noted:
                return {p: max(starts[p], min(noted.get(p, starts[p]), ends[p])) for p in partitions}
            history = TopicHistory(self._fetcher, self._facts.partitions, ingest, starts)
            size = sum(ends[p] - starts[p] for p in partitions)
            if size > LONG_LOOK:
                logger.warning(
                    "looking through %s messages of %s for what this ingest has sent before",
                    f"{size:,}", self._address.topic,
                )  # fmt: skip
            past = history.past()
            if past.last is not None or past.beyond:
                return starts
            try:
                admin.alter_group_offsets(
                    group,
                    {
                        TopicPartition(self._address.topic, p): OffsetAndMetadata(ends[p], "", -1)
                        for p in ends
                    },
                )
            except errors.KafkaError as error:
                logger.warning("where this ingest begins cannot be noted: %s", error)
        return ends

    def _all(self, ask: Any) -> dict[int, int]:
        while (found := ask(range(self._facts.partitions))) is None:
            pass
        return dict(found)


def _ingest_id(source_id: str) -> str:
    """What records say of the ingest that sent them."""
    return hashlib.sha256(source_id.encode("utf-8", "surrogateescape")).hexdigest()[:32]
