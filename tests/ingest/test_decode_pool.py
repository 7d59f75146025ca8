import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.config import IngestConfig
from ingest.decode_pool import DecodePool, Prepared, Result, count_of
from ingest.errors import DecodePoolFailed
from ingest.sources import Found
from stream.errors import BadRecord
from tests.ingest.made import encoded


def items(payloads: list[bytes]) -> Iterator[Found]:
    for number, payload in enumerate(payloads):
        yield Found(name=str(number), position={"n": number}, payload=payload)


def outcome(result: Result) -> str:
    return result.reason if isinstance(result, BadRecord) else result.sha256


def outcomes(config: IngestConfig, found: Iterator[Found]) -> list[tuple[str, str]]:
    with DecodePool(config) as decoders:
        return [(step[0].name, outcome(step[1])) for step in decoders.run(found) if step is not None]


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    return [b"" if seed % 7 == 0 else encoded(seed, width=100 + 5 * (seed % 40)) for seed in range(150)]


def test_any_number_of_processes_gives_the_same_in_the_same_order(payloads: list[bytes]) -> None:
    alone = outcomes(IngestConfig(workers=0), items(payloads))
    assert [name for name, _ in alone] == [str(number) for number in range(150)]
    assert outcomes(IngestConfig(workers=1), items(payloads)) == alone
    assert outcomes(IngestConfig(workers=3), items(payloads)) == alone


def test_files_are_read_where_they_are_prepared(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(encoded(1))
    found = [
        Found(name="there", position={}, path=str(tmp_path / "1.jpg")),
        Found(name="gone", position={}, path=str(tmp_path / "2.jpg")),
        Found(name="lost", position={}, loss="archive_cut"),
    ]
    for workers in (0, 1):
        results = dict(outcomes(IngestConfig(workers=workers), iter(found)))
        assert results["gone"] == "unreadable"
        assert results["lost"] == "archive_cut"
        assert len(results["there"]) == 64


def test_a_file_above_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "big.jpg").open("wb") as file:
        file.truncate(10 * 1024**3)
    found = Found(name="big", position={}, path=str(tmp_path / "big.jpg"))
    assert outcomes(IngestConfig(workers=0, max_bytes=1000), iter([found])) == [("big", "too_many_bytes")]


def test_what_is_found_is_not_read_far_ahead_of_what_is_taken(payloads: list[bytes]) -> None:
    read = 0

    def endless() -> Iterator[Found]:
        nonlocal read
        while True:
            read += 1
            yield Found(name="", position={}, payload=payloads[1])

    with DecodePool(IngestConfig(workers=1)) as decoders:
        results = (step for step in decoders.run(endless()) if step is not None)
        for _ in range(10):
            next(results)
        assert read < 200


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_waits_holds_no_result_back(workers: int) -> None:
    given: list[str] = []

    def slow() -> Iterator[Found | None]:
        yield from items([encoded(1), encoded(2)])
        while len(given) < 2:
            yield None
        assert given == ["0", "1"]

    with DecodePool(IngestConfig(workers=workers)) as decoders:
        for step in decoders.run(slow()):
            given += [step[0].name] if step is not None else []


def test_a_decoder_that_hangs_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hangs.jpg")  # opening it for reading waits for a writer who never comes
    found = [
        Found(name="before", position={}, payload=encoded(1)),
        Found(name="hangs", position={}, path=str(tmp_path / "hangs.jpg")),
        Found(name="after", position={}, payload=encoded(2)),
    ]
    results = dict(outcomes(IngestConfig(workers=1, timeout_s=2.0), iter(found)))
    assert results["hangs"] == "decode_timeout"
    assert len(results["before"]) == len(results["after"]) == 64


def test_a_time_in_which_the_whole_program_was_held_up_costs_no_image(tmp_path: Path) -> None:
    """Ctrl-Z and fg, docker pause, a freezer: the image was not looked at for longer than the limit."""
    os.mkfifo(tmp_path / "slow.jpg")
    found = Found(name="slow", position={}, path=str(tmp_path / "slow.jpg"))
    feed = threading.Timer(5.0, (tmp_path / "slow.jpg").write_bytes, [encoded(1)])
    feed.daemon = True  # there may be no reader left
    results = []
    with DecodePool(IngestConfig(workers=1, timeout_s=4.0)) as decoders:
        for step in decoders.run(iter([found])):
            if step is not None:
                results.append(outcome(step[1]))
            elif decoders.busy() and not feed.is_alive():
                feed.start()
                time.sleep(4.5)
    assert [len(result) for result in results] == [64]


def test_killed_processes_cost_nothing(payloads: list[bytes]) -> None:
    alone = outcomes(IngestConfig(workers=0), items(payloads * 4))
    results = []
    killed = 0
    with DecodePool(IngestConfig(workers=2)) as decoders:
        for step in decoders.run(items(payloads * 4)):
            if step is not None:
                results.append((step[0].name, outcome(step[1])))
            if killed < 3 and len(results) > 100 * killed and (busy := decoders.busy()):
                os.kill(busy[0], signal.SIGKILL)
                killed += 1
        assert decoders.replaced >= 2
    assert results == alone


def test_an_image_that_brings_process_after_process_down_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "crashes.jpg")
    found = [
        Found(name="crashes", position={}, path=str(tmp_path / "crashes.jpg")),
        Found(name="after", position={}, payload=encoded(2)),
    ]
    results = {}
    with DecodePool(IngestConfig(workers=1)) as decoders:
        for step in decoders.run(iter(found)):
            if step is not None:
                results[step[0].name] = outcome(step[1])
            elif "crashes" not in results and (busy := decoders.busy()):
                os.kill(busy[0], signal.SIGKILL)
    assert results["crashes"] == "decoder_crashed"
    assert len(results["after"]) == 64


def test_memory_of_a_process_is_limited() -> None:
    large = encoded(1, "JPEG", width=3000, height=2000)
    (result,) = outcomes(IngestConfig(workers=1, memory_bytes=10 * 1024**2), items([large]))
    assert result[1] == "too_large"
    (result,) = outcomes(IngestConfig(workers=1), items([large]))
    assert len(result[1]) == 64


def test_many_failures_in_a_row_end_the_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.decode_pool.FAILED_IN_A_ROW", 2)
    os.mkfifo(tmp_path / "hangs.jpg")
    hanging = [Found(name="hangs", position={}, path=str(tmp_path / "hangs.jpg"))] * 3
    with pytest.raises(DecodePoolFailed, match="2 images in a row"):
        outcomes(IngestConfig(workers=1, timeout_s=0.2), iter(hanging))


def test_no_process_is_left_behind(payloads: list[bytes]) -> None:
    decoders = DecodePool(IngestConfig(workers=2))
    steps = decoders.run(items(payloads))
    while not (busy := decoders.busy()):
        next(steps)
    decoders.close()
    for pid in busy:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_as_many_processes_as_processors_but_at_most_four() -> None:
    assert 1 <= count_of(IngestConfig()) <= 4
    assert count_of(IngestConfig(workers=9)) == 9


def test_a_prepared_image_says_what_it_is() -> None:
    with DecodePool(IngestConfig(workers=1)) as decoders:
        ((_, result),) = (step for step in decoders.run(items([encoded(1)])) if step is not None)
    assert isinstance(result, Prepared)
    assert (result.media_type, result.width, result.height) == ("image/jpeg", 40, 32)
