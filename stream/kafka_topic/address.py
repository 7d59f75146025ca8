"""Where a Kafka topic is, kafka://HOST:PORT[,HOST:PORT...]/TOPIC, and where it ends for a run.

The end is `now`, an offset, or a time; it becomes one end offset a lane. Nothing heavy is imported.
"""

import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SCHEME = "kafka://"
DEFAULT_PORT = 9092
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class TopicAddress:
    """Where a topic is."""

    servers: tuple[str, ...]
    """host:port of some brokers; they know the others."""
    topic: str

    @property
    def place(self) -> str:
        """The cluster, for messages."""
        return ",".join(self.servers)

    def __str__(self) -> str:
        return f"{SCHEME}{self.place}/{self.topic}"


def is_topic(url: str) -> bool:
    """Whether an address is that of a topic."""
    return url.startswith(SCHEME)


def read_address(url: str) -> TopicAddress:
    """Take an address apart.

    Raises:
        ValueError: not one; a password in it is refused, and not repeated.
    """
    rest = url.removeprefix(SCHEME)
    if "@" in rest:
        raise ValueError(
            "the address of a topic must not hold a user or password, it is written to disk: give "
            "kafka.username, and the password in SWAVSTREAM_KAFKA_PASSWORD or kafka.password_file"
        )
    servers, _, topic = rest.rstrip("/").partition("/")
    names = tuple(servers.split(","))
    if not is_topic(url) or not _TOPIC.fullmatch(topic) or not all(map(_SERVER.fullmatch, names)):
        raise ValueError(f"a topic's address is kafka://HOST:PORT[,HOST:PORT...]/TOPIC, got {url!r}")
    return TopicAddress(
        tuple(name if re.search(r":[0-9]+$", name) else f"{name}:{DEFAULT_PORT}" for name in names), topic
    )


OPEN = -1


class Offsets(Protocol):
    """What can be asked for the offsets of a time."""

    def at_time(self, partitions: Sequence[int], seconds: float) -> dict[int, int] | None:
        """Offset of the first message sent then or later; -1 where there is none; None: not now."""
        ...


def resolve(until: str, topic: Offsets, starts: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """End offset of each lane; -1 where it has none.

    Args:
        until: `now`, a whole number (the end offset of every lane), a time in ISO 8601, or empty.
        topic: asked for the offsets of a time.
        starts: first offset of each lane.
        ends: end of each lane now.

    Raises:
        ValueError: `until` is none of these.
    """
    kind = check(until)
    if kind == "":
        return (OPEN,) * len(ends)
    if kind == "now":
        return tuple(ends)
    if kind == "offset":
        return tuple(max(int(until), start) for start in starts)
    seconds = _seconds(until)
    while (found := topic.at_time(range(len(ends)), seconds)) is None:
        time.sleep(0.2)
    # Nothing was sent since: the lane ends where it ends now, and a time to come is what it is now.
    return tuple(ends[lane] if found[lane] < 0 else found[lane] for lane in range(len(ends)))


def check(until: str) -> str:
    """What kind of end this is: "", "now", "offset" or "time".

    Raises:
        ValueError: none of these.
    """
    if until in {"", "now"}:
        return until
    if until.isdecimal():
        return "offset"
    _seconds(until)
    return "time"


def _seconds(until: str) -> float:
    try:
        moment = datetime.datetime.fromisoformat(until)
    except ValueError as error:
        raise ValueError(
            f"until must be `now`, an offset, or a time such as 2026-05-01T12:00:00+00:00, got {until!r}"
        ) from error
    if moment.tzinfo is None:
        moment = moment.astimezone()
    if moment.timestamp() > time.time():
        raise ValueError(f"until is a time to come, {until}: give a past one, `now` or an offset")
    return moment.timestamp()
