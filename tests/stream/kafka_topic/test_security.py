"""Ways to prove who one is, each against a real broker."""

import gc
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from stream.config import KafkaConfig, TopicWriterConfig
from stream.errors import StreamError
from stream.kafka_topic.address import TopicAddress, read_address
from stream.kafka_topic.client import KEY_PASSWORD_VARIABLE, PASSWORD_VARIABLE, look_at
from stream.kafka_topic.source import TopicSpec
from stream.kafka_topic.writer import TopicWriter
from tests.kafka_broker import KEY_PASSWORD, PASSWORD, SCRAM, SCRAM_PASSWORD, USER, Broker
from tests.stream.kafka_topic.make_topic import made, messages, record_of

SECRETS = (PASSWORD, SCRAM_PASSWORD, KEY_PASSWORD)


def with_password(broker: Broker, tmp_path: Path, mechanism: str, password: str) -> KafkaConfig:
    folder = broker.own()
    (tmp_path / "password").write_text(password)
    return KafkaConfig(
        security="sasl_tls", mechanism=mechanism, username=USER,
        password_file=str(tmp_path / "password"), ca_file=str(folder / "ca.pem"),
    )  # fmt: skip


def with_certificate(broker: Broker, tmp_path: Path, password: str = KEY_PASSWORD) -> KafkaConfig:
    folder = broker.own()
    (tmp_path / "key-password").write_text(password + "\n")
    return KafkaConfig(
        security="tls", ca_file=str(folder / "ca.pem"), cert_file=str(folder / "client.pem"),
        key_file=str(folder / "client.key"), key_password_file=str(tmp_path / "key-password"),
    )  # fmt: skip


def there_and_back(address: TopicAddress, config: KafkaConfig) -> None:
    """One record is sent, looked at and read with these settings."""
    facts = look_at(address, config)
    writer = TopicWriter(address, facts, config, TopicWriterConfig())
    writer.send(record_of(1), partition=0, headers=[])
    writer.flush()
    writer.close()
    source = TopicSpec(
        url=str(address), lanes=facts.partitions, window=1, seed=0, kafka=config, until="now"
    ).open()
    assert source.entry(0, source.bounds()[0][1] - 1).record == record_of(1)
    source.close()


def refusal(address: TopicAddress, config: KafkaConfig, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said to who is not let in; on a busy machine the broker may not get to it at first."""
    told = ""
    for wait_ms in (2_000, 10_000, 30_000):
        monkeypatch.setattr("stream.kafka_topic.client.BOOTSTRAP_MS", wait_ms)
        with pytest.raises(StreamError) as caught:
            look_at(address, config)
        told = str(caught.value)
        if "Is the cluster up" not in told:
            break
    gc.collect()
    return told


@pytest.mark.parametrize("way", ["PLAIN", *SCRAM, "open", "certificate"])
def test_each_way_in_carries_records_and_no_secret_is_told(
    kafka: Broker,
    tmp_path: Path,
    way: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = kafka.secure
    if way == "certificate":
        config, server = with_certificate(kafka, tmp_path), kafka.mutual
    elif way == "open":
        config, server = with_password(kafka, tmp_path, "SCRAM-SHA-512", SCRAM_PASSWORD), kafka.open
        config = replace(config, security="sasl")
    else:
        config = with_password(kafka, tmp_path, way, PASSWORD if way == "PLAIN" else SCRAM_PASSWORD)
    url = made(kafka, 2)
    with caplog.at_level(logging.DEBUG):
        there_and_back(TopicAddress((server,), read_address(url).topic), config)
    told = caplog.text + "".join(capfd.readouterr()) + repr(config)
    assert not any(secret in told for secret in SECRETS)
    assert len(messages(url)) == 1


def test_secrets_may_come_from_the_environment(
    kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = read_address(made(kafka, 1)).topic
    monkeypatch.setenv(KEY_PASSWORD_VARIABLE, KEY_PASSWORD)
    monkeypatch.setenv(PASSWORD_VARIABLE, SCRAM_PASSWORD)
    config = replace(with_certificate(kafka, tmp_path), key_password_file="")
    assert look_at(TopicAddress((kafka.mutual,), topic), config).partitions == 1
    config = replace(with_password(kafka, tmp_path, SCRAM[0], "no"), password_file="")
    assert look_at(TopicAddress((kafka.secure,), topic), config).partitions == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves a socket
@pytest.mark.parametrize("mechanism", ["PLAIN", *SCRAM])
def test_a_wrong_password_is_one_clear_error(
    kafka: Broker,
    tmp_path: Path,
    mechanism: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = with_password(kafka, tmp_path, mechanism, "hunter2")
    told = refusal(TopicAddress((kafka.secure,), "any"), config, monkeypatch)
    assert "user or password" in told
    assert "hunter2" not in told
    assert not any(capfd.readouterr())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves a socket
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("none", "kafka.cert_file"),
        ("a stranger's", "kafka.cert_file"),
        ("wrong password", KEY_PASSWORD_VARIABLE),
        ("not a key", "kafka.key_file"),
        ("broker of others", "kafka.ca_file"),
        ("no authority", "kafka.ca_file"),
    ],
)
def test_a_certificate_that_is_refused_is_one_clear_error(
    kafka: Broker,
    tmp_path: Path,
    case: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config, folder = with_certificate(kafka, tmp_path), kafka.own()
    (tmp_path / "nothing.pem").write_text("nothing")
    locked = with_certificate(kafka, tmp_path, "hunter2" if case == "wrong password" else KEY_PASSWORD)
    config = {
        "none": replace(config, cert_file="", key_file=""),
        "a stranger's": replace(config, cert_file=config.ca_file, key_file=str(folder / "key.pem")),
        "wrong password": locked,
        "not a key": replace(config, key_file=str(tmp_path / "nothing.pem")),
        "broker of others": replace(config, ca_file=config.cert_file),
        "no authority": replace(config, ca_file=str(tmp_path / "nothing.pem")),
    }[case]
    told = refusal(TopicAddress((kafka.mutual,), "any"), config, monkeypatch)
    assert said in told
    assert not any(secret in told for secret in (*SECRETS, "hunter2"))
    assert not any(capfd.readouterr())
