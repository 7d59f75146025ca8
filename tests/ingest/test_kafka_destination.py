import hashlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import SourceChanged, SourceUnreadable
from ingest.kafka_destination import TopicDestination
from ingest.sources import open_source
from ingest.worker import IngestReport, run_ingest
from stream.config import KafkaConfig, TopicWriterConfig
from stream.errors import StreamError, StreamNotFound
from stream.kafka_topic.address import read_address
from stream.kafka_topic.message import decode_message
from tests.ingest import made
from tests.kafka_broker import Broker
from tests.stream.kafka_topic import make_topic


def topic(broker: Broker, partitions: int = 3, **options: Any) -> str:
    return make_topic.made(broker, partitions, **options)


def ingest(
    source: Path, url: str, *, stop_after: int = 10**9, state: Path | str = "", name: str = "", **fields: Any
) -> IngestReport:
    config = made.settings(**fields)
    found = open_source(str(source), name=name)
    destination = TopicDestination(url, found.source_id, config, state=str(state))
    calls = iter(range(stop_after))
    return run_ingest(found, url, config, destination=destination, stop=lambda: next(calls, None) is None)


def mixed(path: Path, count: int) -> Path:
    """A folder with images, and some that are broken or there twice."""
    made.folder_of(path, 0, count)
    for number in range(10, count, 10):
        (path / f"{number:06d}.jpg").write_bytes(b"no image, but named like one")
    for number in range(15, count, 10):
        (path / f"{number:06d}.jpg").write_bytes((path / f"{number - 12:06d}.jpg").read_bytes())
    return path


def stored(url: str) -> list[tuple[int, str, bytes]]:
    """Partition, source and bytes of each record, by the client library and the digest alone."""
    found = []
    for message in make_topic.messages(url):
        assert message.key == hashlib.sha256(message.value).hexdigest().encode()
        record = decode_message(message.value, message.headers, max_bytes=10**6, verify=True)
        found.append((message.partition, record.source, record.payload))
    return found


def numbers(url: str) -> list[int]:
    return [int(dict(message.headers)["ingest-seq"]) for message in make_topic.messages(url)]


def test_records_go_to_the_partitions_in_turn_with_the_same_accounts_as_in_shards(
    kafka: Broker, tmp_path: Path
) -> None:
    folder, url = mixed(tmp_path / "in", 60), topic(kafka)
    report = ingest(folder, url)
    in_shards = made.ingest(folder, tmp_path / "shards")
    assert (report.found, report.written, report.skipped, report.bytes) == (
        in_shards.found, in_shards.written, in_shards.skipped, in_shards.bytes,
    )  # fmt: skip
    records = stored(url)
    assert sorted(p for _, _, p in records) == sorted(r.payload for r in made.stored(tmp_path / "shards"))
    per_partition = Counter(partition for partition, _, _ in records)
    assert max(per_partition.values()) - min(per_partition.values()) <= 1
    assert (report.shards, report.sealed, report.status) == (0, False, "finished")


def test_a_finished_ingest_does_nothing_and_gives_the_same_accounts(kafka: Broker, tmp_path: Path) -> None:
    folder, url = mixed(tmp_path / "in", 40), topic(kafka)
    first, again = ingest(folder, url), ingest(folder, url)
    assert (first.found, first.written, first.skipped) == (again.found, again.written, again.skipped)
    assert sorted(numbers(url)) == list(range(first.written))


def test_a_stopped_ingest_goes_on_and_its_accounts_add_up(kafka: Broker, tmp_path: Path) -> None:
    folder, url = mixed(tmp_path / "in", 60), topic(kafka)
    stopped = ingest(folder, url, stop_after=23)
    assert stopped.status == "stopped"
    assert made.add_up(stopped)
    assert len(stored(url)) == stopped.written
    whole = ingest(folder, url)
    in_shards = made.ingest(folder, tmp_path / "shards")
    assert (whole.found, whole.written, whole.skipped) == (
        in_shards.found, in_shards.written, in_shards.skipped,
    )  # fmt: skip
    assert len(set(stored(url))) == len(stored(url)) == whole.written


def test_two_sources_share_a_topic_and_each_goes_on_by_itself(kafka: Broker, tmp_path: Path) -> None:
    one, other, url = (
        made.folder_of(tmp_path / "a", 0, 20),
        made.folder_of(tmp_path / "b", 50, 20),
        topic(kafka),
    )
    ingest(one, url, stop_after=5)
    ingest(other, url)
    assert ingest(one, url).written == 20
    assert len({payload for _, _, payload in stored(url)}) == len(stored(url)) == 40


def test_records_behind_a_hole_are_not_sent_again(kafka: Broker, tmp_path: Path) -> None:
    """What a kill leaves: partition 1 was not acknowledged, its neighbours were further on."""
    folder, full, url = made.folder_of(tmp_path / "in", 0, 30), topic(kafka), topic(kafka)
    ingest(folder, full)
    with make_topic.producer(url) as client:
        for message in make_topic.messages(full):
            number = int(dict(message.headers)["ingest-seq"])
            if number < 12 or (number < 21 and number % 3 != 1):
                headers = [
                    (name, json.dumps({**json.loads(value), "acked": min(number, 10)}).encode())
                    if name == "ingest-state" else (name, value)
                    for name, value in message.headers
                ]  # fmt: skip
                client.send(
                    read_address(url).topic,
                    key=message.key, value=message.value, headers=headers, partition=message.partition,
                )  # fmt: skip
    report = ingest(folder, url)
    assert (report.found, report.written) == (30, 30)
    assert sorted(numbers(url)) == list(range(30))
    assert sorted(payload for _, _, payload in stored(url)) == sorted(p for _, _, p in stored(full))


def killed(broker: Broker, tmp_path: Path, *, images: int, kills: int, state: str = "") -> None:
    folder, url = mixed(tmp_path / "in", images), topic(broker, 4)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.ingest.send_and_die", str(folder), url, str(kills), "3", state],
        capture_output=True, text=True, check=True, timeout=280,
    )  # fmt: skip
    report = json.loads(done.stdout.splitlines()[-1])
    in_shards = made.ingest(folder, tmp_path / "shards")
    assert (report["found"], report["written"], report["skipped"]) == (
        in_shards.found, in_shards.written, in_shards.skipped,
    )  # fmt: skip
    on_topic = [payload for _, _, payload in stored(url)]
    assert sorted(on_topic) == sorted(record.payload for record in made.stored(tmp_path / "shards"))
    assert sorted(numbers(url)) == list(range(report["written"]))


def test_an_ingest_that_is_killed_four_times_loses_and_repeats_nothing(kafka: Broker, tmp_path: Path) -> None:
    killed(kafka, tmp_path, images=600, kills=4)


def test_an_ingest_by_the_list_that_is_killed_loses_and_repeats_nothing(
    kafka: Broker, tmp_path: Path
) -> None:
    killed(kafka, tmp_path, images=400, kills=4, state=str(tmp_path / "state"))


@pytest.mark.slow
def test_an_ingest_that_is_killed_twenty_times_loses_and_repeats_nothing(
    kafka: Broker, tmp_path: Path
) -> None:
    killed(kafka, tmp_path, images=4000, kills=20)


def test_the_broker_may_be_restarted_while_records_are_sent(kafka: Broker, tmp_path: Path) -> None:
    kafka.own()
    folder, url = made.folder_of(tmp_path / "in", 0, 200), topic(kafka)
    restart = threading.Thread(target=kafka.restart)
    config = made.settings(topic=TopicWriterConfig(batch_bytes=4000, linger_s=0.0, budget_bytes=20_000))
    source = open_source(str(folder))
    destination = TopicDestination(url, source.source_id, config)
    looks = iter(range(10**9))

    def in_the_middle() -> bool:
        if next(looks) == 20:  # images, of 200
            restart.start()
        time.sleep(0.005)
        return False

    report = run_ingest(source, url, config, destination=destination, stop=in_the_middle)
    restart.join()
    assert report.written == len(stored(url)) == len(set(stored(url))) == 200


def test_nothing_counts_as_written_before_the_broker_has_it_and_the_budget_holds_the_source_back(
    kafka: Broker,
) -> None:
    url = topic(kafka)
    config = made.settings(
        topic=TopicWriterConfig(budget_bytes=5000, linger_s=0.0), kafka=KafkaConfig(patience_s=1.0)
    )
    destination = TopicDestination(url, "x", config)
    destination.resume()
    records = [make_topic.record_of(number) for number in range(99)]
    destination.write(records[0], 1)
    destination.flush()
    assert destination.pending.written == 0
    sent = 0
    with kafka.frozen(), pytest.raises(StreamError, match=r"acknowledges nothing .* \(kafka.patience_s\)"):  # noqa: PT012
        for number, record in enumerate(records[1:]):
            destination.write(record, number)
            sent += 1
    assert destination.pending.written == sent < 20
    assert destination.pending.bytes <= 5000
    destination.abandon()
    there = len(make_topic.messages(url))
    time.sleep(0.5)
    assert len(make_topic.messages(url)) == there  # nothing is sent behind our back


def test_a_record_above_the_limit_of_the_topic_is_skipped_with_its_size_and_the_setting(
    kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, url = made.folder_of(tmp_path / "in", 0, 9), topic(kafka, max_message_bytes=20_000)
    (folder / "000004.jpg").write_bytes(made.encoded(4, width=380, height=380, quality=100))
    report = ingest(folder, url)
    assert (report.found, report.written, report.skipped) == (9, 8, {"above_topic_limit": 1})
    size = (folder / "000004.jpg").stat().st_size
    assert "000004.jpg" in caplog.text
    assert "max.message.bytes" in caplog.text
    assert any(str(number) in caplog.text.replace(",", "") for number in range(size, size + 900))


def test_the_limit_of_the_topic_is_looked_at_before_anything_is_sent(
    kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TopicDestination(topic(kafka, max_message_bytes=100_000), "x", made.settings()).abandon()
    assert "takes messages up to 100,000 bytes" in caplog.text
    caplog.clear()
    TopicDestination(topic(kafka, max_message_bytes=8 << 20), "x", made.settings()).abandon()
    assert "takes messages" not in caplog.text


def test_a_topic_is_made_only_when_asked(kafka: Broker) -> None:
    url = kafka.url(kafka.new_topic())
    with pytest.raises(StreamNotFound, match="--create-topic"):
        TopicDestination(url, "x", made.settings())
    TopicDestination(url, "x", made.settings(), create_partitions=5).abandon()
    assert make_topic.messages(url) == []


def test_what_is_rejected_is_listed_once_over_kills_where_a_folder_is_given(
    kafka: Broker, tmp_path: Path
) -> None:
    folder, url = made.folder_of(tmp_path / "in", 0, 30), topic(kafka)
    for number in range(1, 30, 4):  # the last one is behind the last record
        (folder / f"{number:06d}x.jpg").write_bytes(b"")
    source, config = open_source(str(folder)), made.settings()
    state = tmp_path / "state"

    def run(stop: Callable[[], bool] | None) -> IngestReport:
        destination = TopicDestination(url, source.source_id, config, state=str(state))
        return run_ingest(source, url, config, destination=destination, stop=stop)

    def after(steps: int) -> Callable[[], bool]:
        left = iter([False] * steps)

        def stop() -> bool:
            if (more := next(left, None)) is None:
                raise InterruptedError  # stands for a kill: nothing is made safe
            return more

        return stop

    for steps in (1, 3, 9):
        with pytest.raises(InterruptedError):
            run(after(steps))
    assert run(None).skipped == {"empty": 8}
    assert run(None).skipped == {"empty": 8}
    (path,) = state.glob("rejects-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["source"] for line in lines] == [f"{folder}/{number:06d}x.jpg" for number in range(1, 30, 4)]


def test_without_a_folder_it_is_said_that_nothing_is_listed(
    kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, url = made.folder_of(tmp_path / "in", 0, 2), topic(kafka)
    for name in ("x.jpg", "y.jpg"):
        (folder / name).write_bytes(b"")
    ingest(folder, url)
    assert caplog.text.count("--state DIR makes one") == 1


@pytest.mark.parametrize("begun_without", [False, True])
def test_with_a_list_new_files_are_sent_whatever_their_names(
    kafka: Broker, tmp_path: Path, begun_without: bool
) -> None:
    folder, url, state = made.folder_of(tmp_path / "in", 20, 20), topic(kafka), tmp_path / "state"
    ingest(folder, url, stop_after=8, state="" if begun_without else state)
    made.folder_of(folder, 10, 10)
    if begun_without:
        with pytest.raises(SourceChanged, match="give --state DIR"):
            ingest(folder, url)
    report = ingest(folder, url, state=state)
    assert (report.written, len(report.warnings)) == (30, int(begun_without))
    made.folder_of(folder, 0, 10)
    assert ingest(folder, url, state=state).written == 40
    assert sorted(p for _, _, p in stored(url)) == sorted(made.encoded(seed) for seed in range(40))
    with pytest.raises(SourceUnreadable, match="the same --state DIR"):
        ingest(folder, url)
    other = topic(kafka)
    assert ingest(folder, other, state=state).written == 40, "another topic has none of it"


def test_what_another_name_has_sent_to_a_topic_is_known_by_the_list(kafka: Broker, tmp_path: Path) -> None:
    folder, url, state = made.folder_of(tmp_path / "in", 0, 20), topic(kafka), tmp_path / "state"
    sent = ingest(folder, url, state=state, name="one", stop_after=6).written
    assert 0 < sent < 20
    assert ingest(folder, url, state=state, name="two").written == 20 - sent
    made.folder_of(folder, 50, 2)
    assert ingest(folder, url, state=state, name="three").written == 2
    assert ingest(folder, url, state=state, name="one").written == sent
    assert len(stored(url)) == len(set(stored(url))) == 22


def test_shuffled_files_need_the_list(kafka: Broker, tmp_path: Path) -> None:
    folder, url = made.folder_of(tmp_path / "in", 0, 30), topic(kafka, 1)
    with pytest.raises(ValueError, match="give --state DIR"):
        ingest(folder, url, shuffle=True)
    while ingest(folder, url, shuffle=True, stop_after=9, state=tmp_path / "state").status == "stopped":
        pass
    sent = [source for _, source, _ in stored(url)]
    made.ingest(folder, tmp_path / "shards", made.settings(shuffle=True))
    assert sent == [record.source for record in made.stored(tmp_path / "shards")]
