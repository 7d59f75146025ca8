"""What a person sees of an ingest while it runs."""

import io
import sys
from pathlib import Path

import pytest

from ingest.rejects import Reject
from ingest.sources import FileSource, open_source
from ingest.worker import IngestReport
from ops.cli.ingest_progress import LOG_S, IngestProgress
from ops.train.progress import time_left
from tests.ingest.made import encoded, folder_of, labelled, write_tar


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def report(found: int, status: str = "running") -> IngestReport:
    return IngestReport(
        found=found, written=found - 1, skipped={"empty": 1}, bytes=2_000_000, shards=3, seconds=1.0,
        status=status, sealed=False,
    )  # fmt: skip


def measured(source: FileSource) -> FileSource:
    """The source, when its files are counted."""
    source.measure()
    assert source._survey is not None
    source._survey.thread.join()
    return source


def tree(root: Path) -> Path:
    folder_of(root / "a", 0, 4)
    write_tar(root / "b.tar", labelled(4, 8))
    (root / "c.7z").write_bytes(b"?" * 500)
    return root


def test_the_total_of_a_source_is_that_of_its_files_and_all_is_reached_in_the_end(tmp_path: Path) -> None:
    root = tree(tmp_path)
    source = measured(open_source(str(root)))
    files = [path for path in root.rglob("*") if path.is_file()]
    assert source.total == sum(path.stat().st_size for path in files)
    reached = []
    for item in source.items():
        assert item is not None
        reached.append(source.reached)
        position = item.position
    images = sum(len(encoded(number)) for number in range(4))
    assert reached[:4] == [sum(len(encoded(number)) for number in range(count)) for count in range(4)]
    assert reached == sorted(reached)
    assert all(images < one <= source.total - 500 for one in reached[4:12])
    assert len(set(reached[4:12])) == 8
    assert source.reached == source.total
    assert list(source.items(position)) == []
    assert source.reached == source.total


def test_a_log_gets_a_line_every_few_seconds_with_total_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", out)
    source = measured(open_source(str(tree(tmp_path))))
    show = IngestProgress(source, clock=clock)
    items = source.items()
    show(report(1))
    for _ in range(4):
        next(items)
    assert out.getvalue() == ""
    at = source.reached
    clock.now += LOG_S
    show(report(600))
    share, left = round(100 * at / source.total), round((source.total - at) * LOG_S / at)  # type: ignore[operator]
    assert out.getvalue() == (
        "600 found  120/s  599 written  1 skipped  3 shards  2.0 MB  "
        f"{share} % of {source.total / 1e6:.1f} MB read, {time_left(left)} left\n"  # type: ignore[operator]
    )
    for _ in range(5):
        clock.now += LOG_S / 5
        show(report(700))
    assert out.getvalue().count("\n") == 2


def test_while_the_total_is_not_known_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(FileSource, "measure", lambda self: None)
    show = IngestProgress(open_source(str(tree(tmp_path))), clock=clock)
    show(report(1))
    clock.now += LOG_S
    show(report(2))
    assert out.getvalue().endswith("2.0 MB\n")


def test_why_it_waits_is_said_at_once_and_rejects_are_named_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    show = IngestProgress(measured(open_source(str(tree(tmp_path)))), clock=Clock())
    show(report(1, "waiting: run 1 is behind"))
    assert out.getvalue().endswith("  waiting: run 1 is behind\n")
    show.rejected(Reject(reason="empty", source="/a/b.jpg"))
    show.rejected(Reject(reason="too_small", source="/c.tar#d.png", detail="4 x 4 pixels"))
    assert out.getvalue().splitlines()[1:] == [
        "rejected: empty: /a/b.jpg",
        "rejected: too_small: /c.tar#d.png (4 x 4 pixels)",
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (40, "40 s"), (600, "10 min"), (5400, "1.5 h"), (180_000, "2.1 days")],
)
def test_durations_are_said_in_the_unit_that_a_person_would_use(seconds: float, told: str) -> None:
    assert time_left(seconds) == told
