"""A Kafka cluster: where it is, how a client proves who it is, and what a topic there is like.

The clients that are made here are those of kafka-python, with the settings that all of ours share. Each runs
a thread of its own from the moment it is made: make it in the process that uses it, never before a fork.

The client library logs each attempt to reconnect as an error, once a second from every client, and tries
again for as long as it may when a password or a certificate is refused; its last error then speaks of time
alone. So its messages are logged only when they are asked for, and the last refusal among them is kept.
"""

import contextlib
import gzip
import logging
import os
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, errors
from kafka.admin import ConfigResource, ConfigResourceType

from stream.config import KafkaConfig, TopicWriterConfig
from stream.errors import StreamError, StreamNotFound
from stream.kafka_topic.address import TopicAddress

NAME = "kafka"
WELCOME = "Bootstrap complete"
"""Said once a client is let in: what was refused before is over."""
ALERT = "_ALERT_"
"""In what is said when a broker refuses the certificate of a client, or that there is none."""
REFUSALS = (
    "AuthenticationFailed",
    "CERTIFICATE_VERIFY_FAILED",
    "UnsupportedSaslMechanism",
    "SSLError",
    ALERT,
)
RECENT_S = 60.0


class RefusalLog(logging.Handler):
    """Keeps the last refusal, and passes messages on when they are asked for (root logger at INFO)."""

    def __init__(self) -> None:
        super().__init__()
        self._refusal = ""
        self._at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message in."""
        text = record.getMessage()
        if any(name in text for name in REFUSALS):
            self._refusal, self._at = text, time.monotonic()
        elif WELCOME in text:
            self._refusal = ""
        root = logging.getLogger()
        if root.isEnabledFor(logging.INFO):
            root.handle(record)

    def forget(self) -> None:
        """What was refused so far is not of the client that is made next."""
        self._refusal = ""

    def refusal(self) -> str:
        """What was refused recently; empty when nothing was."""
        return self._refusal if time.monotonic() - self._at < RECENT_S else ""


def codec_errors() -> tuple[type[Exception], ...]:
    """What the libraries of compression that are installed raise for bytes that they did not write."""
    found: list[type[Exception]] = [zlib.error, gzip.BadGzipFile, RuntimeError]  # the last by lz4
    with contextlib.suppress(ImportError):
        from zstandard import ZstdError  # noqa: PLC0415  a codec may be missing

        found.append(ZstdError)
    with contextlib.suppress(ImportError):
        from cramjam import DecompressionError  # noqa: PLC0415  of python-snappy

        found.append(DecompressionError)
    with contextlib.suppress(ImportError):
        from snappy import UncompressError  # noqa: PLC0415

        found.append(UncompressError)
    return tuple(found)


def refusal_log() -> RefusalLog:
    """The one handler of this process, put in place when it is not yet."""
    library = logging.getLogger(NAME)
    for handler in library.handlers:
        if isinstance(handler, RefusalLog):
            return handler
    handler = RefusalLog()
    library.addHandler(handler)
    library.propagate = False
    library.setLevel(logging.INFO)  # at DEBUG it writes out what it sends, passwords among it
    return handler


Answer = TypeVar("Answer")

PASSWORD_VARIABLE = "SWAVSTREAM_KAFKA_PASSWORD"  # noqa: S105  a name, no password
KEY_PASSWORD_VARIABLE = "SWAVSTREAM_KAFKA_KEY_PASSWORD"  # noqa: S105
PROTOCOLS = {"plaintext": "PLAINTEXT", "tls": "SSL", "sasl": "SASL_PLAINTEXT", "sasl_tls": "SASL_SSL"}
BOOTSTRAP_MS = 15_000
REQUEST_MS = 20_000
METADATA_MS = 30_000
"""So often partitions are looked at again: added ones are reported within this time."""
FETCH_MOST_BYTES = 64 * 1024 * 1024


class Secret(str):
    """Text that is never shown: the client library logs its settings when it is asked for details."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicFacts:
    """What a cluster says of a topic."""

    cluster: str
    uuid: str
    """Of the topic: another one of the same name has another."""
    partitions: int
    settings: Mapping[str, str]
    """Of the topic; empty when this client may not see them."""

    @property
    def max_message_bytes(self) -> int:
        """Largest batch that the topic takes; the default of brokers when it cannot be seen."""
        return int(self.settings.get("max.message.bytes", 1_048_588))

    @property
    def compacted(self) -> bool:
        """Whether records leave the topic out of its middle."""
        return "compact" in self.settings.get("cleanup.policy", "")


def client_options(address: TopicAddress, config: KafkaConfig) -> dict[str, Any]:
    """Settings that all clients share.

    Raises:
        StreamError: a secret that is asked for is nowhere, or cannot be read.
    """
    refusal_log().forget()
    options: dict[str, Any] = {
        "bootstrap_servers": list(address.servers),
        "client_id": "swavstream",
        "security_protocol": PROTOCOLS[config.security],
        "bootstrap_timeout_ms": BOOTSTRAP_MS,
        "request_timeout_ms": REQUEST_MS,
        "metadata_max_age_ms": METADATA_MS,
        # Up to a second, not thirty: a broker that was restarted is used again when it is back.
        "reconnect_backoff_max_ms": 1000,
    }
    if config.security.endswith("tls"):
        options |= _tls(config)
    if config.security.startswith("sasl"):
        password = _secret(config.password_file, PASSWORD_VARIABLE)
        if password is None:
            raise StreamError(
                f"kafka.security = {config.security} needs a password: set {PASSWORD_VARIABLE}, or "
                "kafka.password_file"
            )
        options |= {
            "sasl_mechanism": config.mechanism,
            "sasl_plain_username": config.username,
            "sasl_plain_password": password,
        }
    return options


def open_admin(address: TopicAddress, config: KafkaConfig) -> KafkaAdminClient:
    """A client for looking at topics. Raises StreamError."""
    with kafka_as_stream_error(address):
        return KafkaAdminClient(**client_options(address, config))


def open_consumer(address: TopicAddress, config: KafkaConfig, *, check_crcs: bool = True) -> KafkaConsumer:
    """A client that reads what it is asked to, and nothing by itself. Raises StreamError."""
    with kafka_as_stream_error(address):
        return KafkaConsumer(
            **client_options(address, config),
            # No group: a rebalance at a slow step would move partitions. Where reading goes on is in the
            # cursor, beside the weights.
            group_id=None,
            enable_auto_commit=False,
            # Else an offset that is gone would become the newest one, silently.
            auto_offset_reset="none",
            # Records of a transaction that was given up were never written: they, and the records that end
            # transactions, count neither as read nor as missing (fetch.py).
            isolation_level="read_committed",
            # In C, by the extra kafka-python[crc32c]: in Python it takes a core for 50 images a second.
            check_crcs=check_crcs,
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=config.fetch_bytes,
            fetch_max_bytes=max(FETCH_MOST_BYTES, config.fetch_bytes),
            # What is asked for is there already: waiting for more would only hold up the next lane, since a
            # broker has one fetch of a client in work.
            fetch_max_wait_ms=50,
            # All that a fetch brought: bytes bound it, images being of any size.
            max_poll_records=10_000,
            metrics_enabled=False,
        )


def look_at(address: TopicAddress, config: KafkaConfig) -> TopicFacts:
    """What the cluster says of a topic.

    Raises:
        StreamNotFound: there is no such topic.
        StreamError: the cluster cannot be reached, or does not let this client in.
    """
    with contextlib.closing(open_admin(address, config)) as admin, kafka_as_stream_error(address):
        return describe(admin, address)


def describe(admin: KafkaAdminClient, address: TopicAddress) -> TopicFacts:
    """As `look_at`, with a client that is open."""
    (topic,) = admin.describe_topics([address.topic])
    if topic["error_code"] == errors.UnknownTopicOrPartitionError.errno:
        raise StreamNotFound(
            f"there is no topic {address.topic!r} at {address.place}: make it with `swavstream ingest ... "
            "--create-topic --partitions N`"
        )
    if topic["error_code"]:
        raise errors.for_code(topic["error_code"])(f"topic {address.topic}")
    resource = ConfigResource(ConfigResourceType.TOPIC, address.topic)
    try:
        told = admin.describe_configs([resource], config_filter="all")["topic"].get(address.topic, {})
    except errors.AuthorizationError:
        told = {}
    return TopicFacts(
        cluster=str(admin.describe_cluster()["cluster_id"]),
        uuid=str(topic["topic_id"]),
        partitions=len(topic["partitions"]),
        settings={
            name: str(entry["value"]) for name, entry in told.items() if entry.get("value") is not None
        },
    )


def create_topic(
    address: TopicAddress, config: KafkaConfig, writer: TopicWriterConfig, *, partitions: int
) -> None:
    """Make a topic for records; one that is there is left as it is.

    Raises:
        StreamError: it cannot be made.
    """
    if partitions < 1:
        raise ValueError(f"a topic needs at least 1 partition, got {partitions}")
    wanted = {
        "num_partitions": partitions,
        "replication_factor": writer.replication,
        "configs": {
            "max.message.bytes": str(writer.max_message_bytes),
            "compression.type": "producer",  # images do not compress
            "cleanup.policy": "delete",
        },
    }
    with contextlib.closing(open_admin(address, config)) as admin, kafka_as_stream_error(address):
        with contextlib.suppress(errors.TopicAlreadyExistsError):
            admin.create_topics({address.topic: wanted})
        admin.wait_for_topics([address.topic])


def patiently(ask: Callable[[], Answer], *, seconds: float) -> Answer:
    """Ask again while the cluster says that it will answer later, for example before it has ever had a group.

    Raises:
        KafkaError: it still cannot, or refuses.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except errors.RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def kafka_as_stream_error(address: TopicAddress) -> Iterator[None]:
    """What goes wrong with a cluster as a StreamError that says where."""
    try:
        yield
    except errors.AuthorizationError as error:
        raise StreamError(
            f"Kafka at {address.place} does not permit this for topic {address.topic!r}: {error}"
        ) from error
    except errors.KafkaError as error:
        refusal = refusal_log().refusal()
        if "Authentication" in refusal or isinstance(error, errors.SaslAuthenticationFailedError):
            raise StreamError(
                f"Kafka at {address.place} refuses the user or password: see kafka.username, and "
                f"{PASSWORD_VARIABLE} or kafka.password_file"
            ) from error
        if ALERT in refusal:
            raise StreamError(
                f"Kafka at {address.place} refuses the certificate of this client, or wants one "
                f"({refusal[-120:]}): see kafka.cert_file and kafka.key_file"
            ) from error
        if refusal:
            raise StreamError(
                f"no secure line to Kafka at {address.place} ({refusal[-200:]}): see kafka.ca_file, "
                "kafka.mechanism and kafka.check_hostname"
            ) from error
        raise StreamError(
            f"Kafka at {address.place}, topic {address.topic!r}: {_told(error)}. Is the cluster up, and are "
            # A broker that refuses a login may hang up before its answer is read.
            "kafka.security and, with SASL, the user or password as it wants them?"
        ) from error


def _tls(config: KafkaConfig) -> dict[str, Any]:
    """Settings of TLS, each file tried here: the library would try again and again, or ask the terminal."""
    options: dict[str, Any] = {"ssl_check_hostname": config.check_hostname}
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(config, name)
        if path and not Path(path).is_file():
            raise StreamError(f"kafka.{name} names {path}: no such file")
        if path:
            options[f"ssl_{name.removesuffix('_file')}file"] = path
    context = ssl.create_default_context()
    try:
        if config.ca_file:
            context.load_verify_locations(config.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise StreamError(f"kafka.ca_file, {config.ca_file}, holds no certificates (PEM): {error}") from error
    if config.key_file:
        options["ssl_password"] = _secret(config.key_password_file, KEY_PASSWORD_VARIABLE) or Secret("")
        try:
            context.load_cert_chain(config.cert_file, config.key_file, options["ssl_password"])
        except (ssl.SSLError, OSError) as error:
            raise StreamError(
                f"kafka.cert_file and kafka.key_file ({config.cert_file}, {config.key_file}) are no "
                f"certificate and its key (PEM), or its password is another one: {error}. It stands in "
                f"{KEY_PASSWORD_VARIABLE} or kafka.key_password_file"
            ) from error
    return options


def _told(error: errors.KafkaError) -> str:
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}"


def _secret(path: str, variable: str) -> Secret | None:
    if path:
        try:
            return Secret(Path(path).read_text(encoding="utf-8").rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise StreamError(f"the file of a Kafka secret, {path}, cannot be read: {error}") from error
    value = os.environ.get(variable)
    return None if value is None else Secret(value)
