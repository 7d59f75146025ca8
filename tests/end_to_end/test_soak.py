"""The long forms: as many records through Kafka and back as asked, and random kills for as long as asked.

SWAVSTREAM_SOAK_RECORDS   records that go through a topic; 20,000 unless told otherwise
SWAVSTREAM_SOAK_S         seconds of random kills; none unless told
"""

import hashlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.kafka_destination import TopicDestination
from stream.config import TopicWriterConfig
from stream.lanes import Position
from tests.end_to_end.test_kills import driven
from tests.ingest.made import settings
from tests.kafka_broker import Broker
from tests.stream.fake_source import picture
from tests.stream.kafka_topic.make_topic import made, spec_of
from tests.stream.kafka_topic.make_topic import record_of as small_record

RECORDS = int(os.environ.get("SWAVSTREAM_SOAK_RECORDS", "20000"))
SECONDS = float(os.environ.get("SWAVSTREAM_SOAK_S", "0"))
PARTITIONS = 8


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_as_many_records_as_asked_go_through_kafka_and_back(kafka: Broker) -> None:
    url = made(kafka, PARTITIONS, max_message_bytes=2**20)
    destination = TopicDestination(url, "soak", settings(topic=TopicWriterConfig()))
    destination.resume()
    example, image = small_record(0), picture(0)
    began = time.monotonic()
    for number in range(RECORDS):
        payload = image + number.to_bytes(8, "big")  # what follows the end of an image is not looked at
        digest = hashlib.sha256(payload).hexdigest()
        destination.write(replace(example, payload=payload, sha256=digest), number + 1)
    destination.flush()
    destination.close()
    sent_s = time.monotonic() - began
    began = time.monotonic()
    seen = bytearray(RECORDS)
    source = spec_of(url, PARTITIONS, window=1000).open()
    try:
        bounds = source.bounds()
        assert sum(end - start for start, end in bounds) == RECORDS
        for lane, (start, _) in enumerate(bounds):
            for entry, _ in source.read(Position(lane=lane, base=start), 0):
                assert entry.record is not None, entry.reason
                payload = entry.record.payload
                assert hashlib.sha256(payload).hexdigest() == entry.record.sha256
                seen[int.from_bytes(payload[-8:], "big")] += 1
    finally:
        source.close()
    assert (seen.count(0), seen.count(1)) == (0, RECORDS)
    back_s = time.monotonic() - began
    sys.stdout.write(f"{RECORDS} records: sent in {sent_s:.0f} s, read back in {back_s:.0f} s\n")


@pytest.mark.slow
@pytest.mark.skipif(SECONDS <= 0, reason="no time for it: set SWAVSTREAM_SOAK_S, for example to 3600")
@pytest.mark.timeout(0)
def test_random_kills_for_as_long_as_asked_change_nothing(tmp_path: Path) -> None:
    deadline, seed, kills, compared = time.monotonic() + SECONDS, 100, 0, 0
    while time.monotonic() < deadline:
        result = driven(tmp_path / str(seed), seed, 30, 3, 8, 6, 12, 15)
        assert result["differences"] == []
        kills, compared, seed = kills + sum(result["kills"].values()), compared + result["compared"], seed + 1
    sys.stdout.write(f"{kills} kills, {compared} ends compared, no difference\n")
