"""Two ingests of one source into one topic of a real Kafka."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ingest import kafka_lease
from ingest.errors import SourceBusy
from ingest.kafka_destination import TopicDestination
from ingest.kafka_lease import TopicLease
from stream.config import KafkaConfig
from stream.kafka_topic.address import read_address
from tests.ingest import made
from tests.kafka_broker import Broker
from tests.stream.kafka_topic import make_topic
from tests.waiting import freeze

HOLD = """
import sys, time
from ingest.kafka_lease import TopicLease
from stream.config import KafkaConfig
from stream.kafka_topic.address import read_address
TopicLease(read_address(sys.argv[1]), KafkaConfig(), "one", "pictures").take()
print("taken", flush=True)
time.sleep(600)
"""


def lease(url: str, ingest: str = "one") -> TopicLease:
    return TopicLease(read_address(url), KafkaConfig(), ingest, "pictures")


@contextmanager
def other_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """One that holds the lease of `one`."""
    command = [sys.executable, "-P", "-c", HOLD, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "taken\n"
            yield process
        finally:
            process.kill()


def test_a_second_ingest_of_a_source_is_refused_while_the_first_one_is_at_work(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_topic.made(kafka, 2)
    monkeypatch.setattr(kafka_lease, "GONE_S", 600.0)
    with other_process(url) as process:
        with pytest.raises(SourceBusy, match=rf"pictures.* process {process.pid} on .* --name"):
            lease(url).take()
        another = lease(url, "two")
        another.take()  # another source is not kept out
        another.release()
        process.kill()
        process.wait()
        after = lease(url)
        after.take()  # and a killed one keeps none out: the time in which it would is longer than a test
        after.release()


def test_who_ends_in_order_lets_the_next_one_begin_at_once(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_topic.made(kafka, 1)
    monkeypatch.setattr(kafka_lease, "GONE_S", 600.0)
    for _ in range(2):
        one = lease(url)
        one.take()
        one.release()
        one.release()


def test_one_that_was_killed_on_another_machine_is_waited_for_and_then_followed(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_topic.made(kafka, 1)
    monkeypatch.setattr(kafka_lease, "GONE_S", 3.0)
    monkeypatch.setattr(kafka_lease, "_place", lambda: "elsewhere/1")
    with other_process(url) as process:
        process.kill()
        process.wait()
    began = time.monotonic()
    one = lease(url)
    one.take()
    assert time.monotonic() - began > 3.0
    one.release()


def test_one_that_was_not_heard_of_for_too_long_stops_before_it_sends_more(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_lease, "BEAT_S", 0.2)
    url = make_topic.made(kafka, 1)
    destination = TopicDestination(url, "pictures", made.settings())
    destination.resume()
    destination.write(make_topic.record_of(0), 0)
    destination.flush()
    usurper = TopicLease(read_address(url), KafkaConfig(), destination._ingest, "pictures")
    monkeypatch.setattr(usurper, "_await_absence", lambda admin: None)  # it waited, and heard nothing
    usurper._mine = replace(usurper._mine, beat=1)

    def send_on() -> None:
        while True:
            destination.tick()
            time.sleep(0.05)

    taking = threading.Thread(target=usurper.take)
    taking.start()
    with pytest.raises(SourceBusy, match="another ingest of the same source"):
        send_on()
    with pytest.raises(SourceBusy):
        destination.write(make_topic.record_of(1), 1)
    taking.join()
    destination.abandon()
    usurper.release()
    assert len(make_topic.messages(url)) == 1


def test_a_frozen_ingest_that_wakes_up_finds_that_another_one_took_over(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that went on keeps the lease."""
    url = make_topic.made(kafka, 1)
    monkeypatch.setattr(kafka_lease, "GONE_S", 3.0)
    with other_process(url) as process:
        freeze(process.pid)
        monkeypatch.setattr(kafka_lease, "BEAT_S", 0.1)  # of those in this process
        one = lease(url)
        one.take()
        os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(SourceBusy, match=f"process {os.getpid()} "):
            lease(url).take()
        one.check()
        one.release()
