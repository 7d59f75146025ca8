"""An ingest that keeps its stream small and waits for those who read it."""

import dataclasses
from pathlib import Path

import pytest

from ingest.sources import open_source
from ingest.worker import IngestReport, run_ingest
from stream.config import RetentionConfig
from stream.shards.manifest import Manifest
from stream.shards.readers import ReaderRecord, write_reader
from tests.ingest.made import folder_of, settings

IMAGES, PER_SHARD = 40, 5


class Reading:
    """A run that notices now and then that it has records to read; and what the ingest said meanwhile."""

    def __init__(self, url: Path, per_look: int) -> None:
        self._store = Manifest.open(str(url), create=True).store
        self._url, self._per_look, self._used = url, per_look, 0
        self.most_ahead = 0
        self.told: list[str] = []
        self._register()

    def __call__(self, report: IngestReport) -> None:
        committed = Manifest.open(str(self._url)).records
        self.most_ahead = max(self.most_ahead, committed - self._used)
        self.told.append(report.status)
        if report.status.startswith("waiting"):
            self._used = min(committed, self._used + self._per_look)
            self._register()

    def _register(self) -> None:
        write_reader(self._store, ReaderRecord(run="slowrun", where="here", used=self._used))


def test_an_ingest_waits_for_the_slowest_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "in", 0, IMAGES)
    reading = Reading(tmp_path / "out", 7)
    config = settings(per_shard=PER_SHARD, retention=RetentionConfig(max_ahead=10))
    monkeypatch.setattr("ingest.worker.PROGRESS_S", 0.0)
    monkeypatch.setattr("ingest.worker.HELD_UP_S", 0.0)
    monkeypatch.setattr("stream.shards.retention._LOOK_S", 0.0)
    report = run_ingest(open_source((str(source),)), str(tmp_path / "out"), config, progress=reading)
    assert (report.status, report.written, report.sealed) == ("finished", IMAGES, True)
    assert reading.most_ahead <= 10 + PER_SHARD
    assert "waiting: run slowrun (here) has 15 records unread" in reading.told


def test_an_ingest_that_waits_can_be_stopped_and_goes_on(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 0, IMAGES)
    reading = Reading(tmp_path / "out", 0)
    config = settings(per_shard=PER_SHARD, retention=RetentionConfig(max_ahead=10))
    looks = iter(range(10**9))
    report = run_ingest(
        open_source((str(source),)),
        str(tmp_path / "out"),
        config,
        progress=reading,
        stop=lambda: next(looks) > 25,
    )
    assert report.status == "stopped"
    assert report.written < IMAGES
    free = dataclasses.replace(config, retention=RetentionConfig())
    assert run_ingest(open_source((str(source),)), str(tmp_path / "out"), free).written == IMAGES


def test_an_ingest_keeps_no_more_than_it_was_told_to(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 0, IMAGES)
    config = settings(per_shard=PER_SHARD, retention=RetentionConfig(keep_bytes=60_000))
    report = run_ingest(open_source((str(source),)), str(tmp_path / "out"), config, open_stream=True)
    manifest = Manifest.open(str(tmp_path / "out"))
    stored = sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir())
    assert 0 < stored <= 60_000
    assert manifest.records == report.written == IMAGES
    assert manifest.floor.first > 0
