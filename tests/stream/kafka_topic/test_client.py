import gc
from pathlib import Path

import kafka.record.util
import pytest

from stream.config import KafkaConfig, TopicWriterConfig
from stream.errors import StreamError, StreamNotFound
from stream.kafka_topic.address import TopicAddress, is_topic, read_address
from stream.kafka_topic.client import PASSWORD_VARIABLE, Secret, client_options, create_topic, look_at
from stream.kafka_topic.source import TopicSpec
from tests.kafka_broker import Broker
from tests.stream.kafka_topic.make_topic import made


def test_an_address_names_brokers_and_a_topic() -> None:
    assert read_address("kafka://one:1,[::1]:2/pictures.1") == TopicAddress(
        ("one:1", "[::1]:2"), "pictures.1"
    )
    assert read_address("kafka://one/t").servers == ("one:9092",)
    assert is_topic("kafka://one/t")
    assert not is_topic("/data/stream")


@pytest.mark.parametrize("url", ["kafka://host:1", "kafka:///t", "kafka://host/a/b", "kafka://ho st/t", "/t"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="kafka://HOST:PORT"):
        read_address(url)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match=r"kafka\.username") as caught:
        read_address("kafka://me:hunter2@host:1/t")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"security": "ssl"}, "plaintext, tls, sasl, sasl_tls"),
        ({"security": "sasl"}, "username"),
        ({"on_gap": "ignore"}, "stop, skip"),
        ({"cert_file": "a"}, "go together"),
        ({"patience_s": 0.0}, "patience_s"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KafkaConfig(**settings)  # type: ignore[arg-type]


def test_a_secret_is_not_shown() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret!r} { ({'password': secret}) } {[secret]}"
    assert secret.encode() == b"hunter2"


def test_a_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = TopicAddress(("host:1",), "t")
    (tmp_path / "secret").write_text("from a file\n")
    asked = KafkaConfig(security="sasl", username="me")
    with pytest.raises(StreamError, match=PASSWORD_VARIABLE):
        client_options(address, asked)
    monkeypatch.setenv(PASSWORD_VARIABLE, "from outside")
    assert client_options(address, asked)["sasl_plain_password"] == "from outside"
    asked = KafkaConfig(security="sasl", username="me", password_file=str(tmp_path / "secret"))
    assert client_options(address, asked)["sasl_plain_password"] == "from a file"


def test_checksums_of_batches_are_computed_in_c() -> None:
    """In Python the client takes a core for some 50 images a second, on both ends."""
    kafka.record.util.calc_crc32c.__defaults__  # noqa: B018  what the library would use
    assert kafka.record.util.calc_crc32c.__defaults__[0].__module__.startswith("crc32c")


def test_a_specification_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "hunter2")
    config = KafkaConfig(security="sasl", username="me")
    spec = TopicSpec(url="kafka://host:1/t", lanes=1, window=1, seed=0, kafka=config)
    assert "hunter2" not in repr(spec)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves a socket
def test_brokers_that_are_not_there_are_an_error_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.kafka_topic.client.BOOTSTRAP_MS", 300)
    with pytest.raises(StreamError, match=r"127\.0\.0\.1:9, topic 't'"):
        look_at(read_address("kafka://127.0.0.1:9/t"), KafkaConfig())
    gc.collect()


def test_a_topic_that_is_not_there_says_how_to_make_it(kafka: Broker) -> None:
    with pytest.raises(StreamNotFound, match="--create-topic --partitions"):
        look_at(read_address(kafka.url("not-there")), KafkaConfig())


def test_a_topic_is_made_once_with_room_for_large_images(kafka: Broker) -> None:
    address = read_address(made(kafka, 3, max_message_bytes=5_000_000))
    first = look_at(address, KafkaConfig())
    create_topic(address, KafkaConfig(), TopicWriterConfig(), partitions=7)
    assert look_at(address, KafkaConfig()) == first
    assert (first.partitions, first.max_message_bytes, first.compacted) == (3, 5_000_000, False)
