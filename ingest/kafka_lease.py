"""Keeps a second ingest of the same source out of a topic, which has no locks.

Who is at work says so, again and again, in the metadata of a consumer group's offset: a group of its own,
that no consumer joins. A lease that changes while a process looks is alive, whatever the clocks say; one that
does not is of a process that is gone. Two that begin in the same moment see each other before they send
anything.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from kafka import KafkaAdminClient, TopicPartition, errors
from kafka.structs import OffsetAndMetadata

from ingest.errors import SourceBusy
from stream.config import KafkaConfig
from stream.errors import StreamError
from stream.kafka_topic.address import TopicAddress
from stream.kafka_topic.client import kafka_as_stream_error, open_admin, patiently

logger = logging.getLogger(__name__)

GROUP_S = 20.0
"""Seconds that a cluster may take to have its first group."""
BEAT_S = 2.0
GONE_S = 10.0
"""A lease that does not change for so long belongs to no process any more."""
SETTLE_S = 0.3
"""Longer than between a look and a write of another that begins in the same moment."""
RELEASE_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Holder:
    """Who writes."""

    owner: str
    beat: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


class TopicLease:
    """The right of one ingest to send to a topic; `take` first. A thread of its own keeps it up.

    Args:
        address: the topic.
        kafka: how to reach it.
        ingest: id of the ingest.
        source: name of the source, for messages.
    """

    def __init__(self, address: TopicAddress, kafka: KafkaConfig, ingest: str, source: str) -> None:
        self._address, self._kafka, self._source = address, kafka, source
        self._group = f"swavstream-ingest-{ingest}-writer"
        self._topic = TopicPartition(address.topic, 0)
        self._mine = _Holder(owner=uuid.uuid4().hex, beat=0, host=_place(), pid=os.getpid())
        self._admin: KafkaAdminClient | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._lost: _Holder | None = None

    def take(self) -> None:
        """Become the one that writes. Blocks up to GONE_S when another one was killed on another machine.

        Where the cluster does not permit groups a warning says that no other ingest is kept out.

        Raises:
            SourceBusy: another one is at work.
            StreamError: the cluster cannot be reached.
        """
        admin = self._admin = open_admin(self._address, self._kafka)
        try:
            with contextlib.ExitStack() as failed:
                failed.callback(self._let_go)
                self._await_absence(admin)
                self._write(admin, self._mine)
                time.sleep(SETTLE_S)
                found = self._read(admin)
                if found is not None and found.owner != self._mine.owner:
                    raise self._busy(found)
                failed.pop_all()
        except (errors.KafkaError, StreamError) as error:
            logger.warning(
                "nothing keeps a second ingest of this source out of %s: offsets of group %s cannot be had "
                "(%s)", self._address, self._group, error,
            )  # fmt: skip
            return
        self._thread = threading.Thread(target=self._keep, name="swavstream-topic-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Whether this is still the one that writes; does not block.

        Raises:
            SourceBusy: another one took over, since nothing was heard of this one.
        """
        if self._lost is not None:
            raise self._busy(self._lost)

    def release(self) -> None:
        """Let others begin at once. May be called twice; blocks up to RELEASE_S."""
        self._ending.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(RELEASE_S)

    def _await_absence(self, admin: KafkaAdminClient) -> None:
        """Return once no process holds the lease."""
        seen = patiently(lambda: self._read(admin), seconds=GROUP_S)
        if seen is None or _is_dead(seen):
            return
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 4)
            now = self._read(admin)
            if now is None:
                return
            if now != seen:
                raise self._busy(now)

    def _busy(self, holder: _Holder) -> SourceBusy:
        return SourceBusy(
            f"another ingest of the same source ({self._source}), {holder}, writes to {self._address}: wait "
            "for it, or give this one a --name of its own"
        )

    def _keep(self) -> None:
        told = False
        while self._lost is None and not self._ending.wait(BEAT_S):
            try:
                self._beat()
                told = False
            except (errors.KafkaError, StreamError, OSError) as error:
                if not told:
                    logger.warning("brokers cannot be told that this ingest is at work: %s", error)
                told = True
        if self._lost is None:
            with contextlib.suppress(errors.KafkaError, StreamError, OSError):
                self._write(self._admin, None)
        self._let_go()

    def _beat(self) -> None:
        found = self._read(self._admin)
        if found is not None and found.owner != self._mine.owner:
            self._lost = found
            return
        self._mine = replace(self._mine, beat=self._mine.beat + 1)
        self._write(self._admin, self._mine)

    def _read(self, admin: KafkaAdminClient) -> _Holder | None:
        told = admin.list_group_offsets([self._group]).get(self._group, {}).get(self._topic)
        try:
            body = json.loads(getattr(told, "metadata", None) or "null")
            return None if body is None else _Holder(**body)
        except (ValueError, TypeError):  # of another version, or a stranger's
            return None

    def _write(self, admin: KafkaAdminClient, holder: _Holder | None) -> None:
        body = {} if holder is None else {name: getattr(holder, name) for name in _Holder.__slots__}
        text = json.dumps(body) if body else ""
        with kafka_as_stream_error(self._address):
            results = admin.alter_group_offsets(self._group, {self._topic: OffsetAndMetadata(0, text, -1)})
            for error in results.values():
                if error is not errors.NoError:
                    raise error(f"committing to group {self._group}")

    def _let_go(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(errors.KafkaError):
                admin.close()


def _place() -> str:
    """Where process numbers mean the same: a machine, or a container on it."""
    try:
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}"


def _is_dead(holder: _Holder) -> bool:
    """Whether a holder is known to be gone; one of another machine never is."""
    if holder.host != _place():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
