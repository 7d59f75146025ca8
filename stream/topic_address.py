"""Address of a Kafka topic: kafka://HOST:PORT[,HOST:PORT...]/TOPIC. Imports nothing heavy."""

import re
from dataclasses import dataclass

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
