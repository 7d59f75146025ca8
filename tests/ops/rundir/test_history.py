"""history.jsonl: bounded over long runs, cut back when the run goes back, and never in the learner's way."""

import logging
from pathlib import Path

import pytest

from ops.rundir.files import read_lines
from ops.rundir.history import History
from tests.ops.small_runs import full_disk


def test_a_run_a_thousand_times_as_long_has_only_a_few_times_as_many_entries(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", samples=0)
    lengths = []
    for samples in range(256, 256 * 200_001, 256):
        if history.due(samples):
            history.add({"samples": samples})
        if samples in {256 * 1000, 256 * 200_000}:
            lengths.append(sum(1 for _ in read_lines(history.path)))
    assert lengths[0] == 1000
    assert lengths[1] < 7000


def test_entries_after_the_place_the_run_goes_on_from_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = History(path, samples=0)
    for samples in (10, 20, 30):
        first.add({"samples": samples, "loss": 1.0})
    with path.open("a") as handle:
        handle.write('{"samples": 40, "lo')  # a crash in the middle of a line
    second = History(path, samples=20)
    second.add({"samples": 25})
    assert [entry["samples"] for entry in read_lines(path)] == [10, 20, 25]


def test_a_run_that_is_started_over_begins_an_empty_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"samples": 10}\n')
    History(path, samples=0)
    assert list(read_lines(path)) == []


def test_a_disk_that_takes_nothing_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(tmp_path / "history.jsonl", samples=0)
    history.path.unlink()
    history.path.mkdir()
    with caplog.at_level(logging.WARNING):
        history.add({"samples": 1})
        history.add({"samples": 2})
    assert caplog.text.count("cannot be written") == 1


def test_a_file_that_cannot_be_cut_back_is_left_alone_and_cut_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history.jsonl"
    first = History(path, samples=0)
    for samples in (10, 20, 30):
        first.add({"samples": samples})
    with caplog.at_level(logging.WARNING), full_disk(4):
        second = History(path, samples=20)
    assert "history.jsonl cannot be written" in caplog.text
    assert [entry["samples"] for entry in read_lines(path)] == [10, 20, 30]
    assert [entry.name for entry in tmp_path.iterdir()] == ["history.jsonl"]
    second.add({"samples": 25})
    assert [entry["samples"] for entry in read_lines(path)] == [10, 20, 25]
