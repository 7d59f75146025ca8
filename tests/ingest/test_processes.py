"""Ingests in processes of their own, which are killed, run out of room, or work side by side."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import listed
from stream.shards.manifest import Manifest
from stream.shards.orphans import sweep_orphans
from stream.shards.taken import TakenList
from tests.ingest.made import add_up, encoded, folder_of, ingest, labelled, settings, stored, write_tar
from tests.ingest.warm import ERROR_TOLD, Warm
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(tmp_path_factory.mktemp("warm") / "errors.txt") as server:
        yield server


def commits(stream: Path) -> int:
    folder = stream / "commits"
    return sum(name.endswith(".json") for name in map(str, folder.iterdir())) if folder.exists() else 0


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_commits(stream: Path, count: int, pid: int) -> None:
    while alive(pid) and commits(stream) < count:
        time.sleep(0.001)


def mixed(root: Path) -> Path:
    folder_of(root / "a", 0, 60)
    write_tar(root / "b.tar", labelled(60, 120))
    write_tar(root / "c.tar.gz", labelled(160, 80), "w:gz")
    (root / "a" / "000030x.jpg").write_bytes(b"bad")
    (root / "d.tar").write_bytes(b"not a tar")
    return root


def test_killed_at_any_moment_it_goes_on_and_nothing_is_lost_or_repeated(tmp_path: Path, warm: Warm) -> None:
    root = mixed(tmp_path / "in")
    out = tmp_path / "out"
    whole = ingest(root, tmp_path / "whole", settings(per_shard=4))
    kills = 0
    while True:
        begun = commits(out)
        pid = warm.start(root, out, per_shard=4)
        wait_for_commits(out, begun + 1 + kills * 5 % 6, pid)
        time.sleep(0.002 * (kills * 7 % 5))  # somewhere between two commits
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
        if warm.wait(pid) == 0:
            break
        kills += 1
    assert kills >= 8
    report = ingest(root, out, settings(per_shard=4))
    assert (report.found, report.written, report.skipped) == (whole.found, whole.written, whole.skipped)
    assert add_up(report)
    assert report.sealed
    sweep_orphans(Manifest.open(str(out)), older_than_s=0.0)
    assert not list(out.rglob("*.part"))
    assert len(list(out.glob("shards/*"))) == report.shards
    records = stored(out)
    assert Counter(record.source for record in records).most_common(1)[0][1] == 1
    assert [(r.source, r.payload, r.cls) for r in records] == [
        (r.source, r.payload, r.cls) for r in stored(tmp_path / "whole")
    ]


def test_two_processes_fill_one_stream(tmp_path: Path, warm: Warm) -> None:
    one, two = folder_of(tmp_path / "a", 0, 100), folder_of(tmp_path / "b", 100, 100)
    out = tmp_path / "out"
    pids = [warm.start(source, out, per_shard=9, open_stream=True) for source in (one, two)]
    assert [warm.wait(pid) for pid in pids] == [0, 0]
    Manifest.open(str(out)).seal()
    records = stored(out)
    assert {record.payload for record in records} == {encoded(seed) for seed in range(200)}
    assert len(records) == 200
    for source in (one, two):
        report = ingest(source, out)
        assert (report.found, report.written, report.sealed) == (100, 100, True)


def test_a_full_disk_is_one_clear_error_and_the_ingest_goes_on_when_there_is_room(
    tmp_path: Path, warm: Warm
) -> None:
    root, out = folder_of(tmp_path / "in", 0, 10), tmp_path / "out"
    (root / "000009.jpg").write_bytes(encoded(9, width=1500, height=1000, quality=98))
    pid = warm.start(root, out, per_shard=4, most_bytes=100_000)
    assert warm.wait(pid) == ERROR_TOLD
    error = warm.errors.read_text().splitlines()[-1]
    assert error.startswith("DestinationFull: no room is left for the stream at")
    assert "run the same command again" in error
    assert len(stored(out)) == 8
    assert not list(out.rglob("*.part"))
    report = ingest(root, out, settings(per_shard=4, short_side=0))
    assert (report.found, report.written) == (10, 10)
    assert Counter(record.source for record in stored(out)).most_common(1)[0][1] == 1


def test_a_disk_that_is_really_full_too(tmp_path: Path, warm: Warm) -> None:
    root, disk = folder_of(tmp_path / "in", 0, 200), tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=300k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("needs to mount a small file system, which this machine does not allow")
    try:
        pid = warm.start(root, disk / "out", per_shard=20)
        assert warm.wait(pid) == ERROR_TOLD
        assert warm.errors.read_text().splitlines()[-1].startswith("DestinationFull: no room is left")
        safe = len(stored(disk / "out"))
        assert 0 < safe < 200
        assert safe % 20 == 0
        assert os.system(f"mount -o remount,size=20m {disk}") == 0
        report = ingest(root, disk / "out", settings(per_shard=20))
        assert (report.found, report.written) == (200, 200)
        assert len({record.source for record in stored(disk / "out")}) == 200
        assert len(stored(disk / "out")) == 200
    finally:
        os.system(f"umount {disk}")


def test_processes_of_a_killed_ingest_end_too(tmp_path: Path, warm: Warm) -> None:
    root, out = folder_of(tmp_path / "in", 0, 150), tmp_path / "out"
    pid = warm.start(root, out, per_shard=2, workers=2)
    wait_for_commits(out, 1, pid)
    children = descendants(pid)
    assert len(children) >= 3  # the fork server of its own, and two that decode
    os.kill(pid, signal.SIGKILL)
    assert warm.wait(pid) == -signal.SIGKILL
    wait_for(lambda: not any(alive(child) for child in children), "the end of its processes")
    assert ingest(root, out, settings(per_shard=2)).written == 150
    assert len(stored(out)) == 150


def descendants(pid: int) -> list[int]:
    """Process ids below a process, from /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: list[int] = []
    level = [pid]
    while level:
        level = [one for one, parent in parents.items() if parent in level]
        found += level
    return found


def dying(root: Path, out: Path, after: int, **fields: Any) -> int:
    """A life of an ingest that kills itself before or after a segment of the list, or a commit, is made."""
    child = os.fork()
    if child == 0:
        left = [after]

        def point() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def with_points(made: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                point()
                answer = made(*args, **options)
                point()
                return answer

            return call

        TakenList.append = with_points(TakenList.append)  # type: ignore[method-assign]
        Manifest.commit = with_points(Manifest.commit)  # type: ignore[method-assign]
        code = 1
        try:
            ingest(root, out, settings(per_shard=3, **fields), open_stream=True)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"keep_duplicates": True}])
def test_killed_between_the_list_and_the_commits_it_takes_every_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    monkeypatch.setattr(listed, "FIRST_CLAIM", 4)
    root, out = tmp_path / "in", tmp_path / "out"
    folder_of(root, 100, 14)
    write_tar(root / "000105.tar", labelled(60, 7))
    ingest(root, tmp_path / "whole", settings(per_shard=3, **options))
    kills = 0
    while dying(root, out, kills % 5, **options) != 0:
        kills += 1
        assert kills < 100
    assert kills >= 8
    assert [(r.source, r.payload) for r in stored(out)] == [
        (r.source, r.payload) for r in stored(tmp_path / "whole")
    ]
    seeds = {*range(100, 114), *range(60, 67)}
    for number in range(6):  # it grows at both ends, and in the middle, between the lives
        seeds |= {number, 90 - number, 200 + number}
        for seed in (number, 90 - number, 200 + number):
            folder_of(root, seed, 1)
        dying(root, out, number, **options)
    write_tar(root / "000105.tar", labelled(67, 2), "a")
    for after in range(4):
        assert dying(root, out, after, **options) == -signal.SIGKILL
    assert dying(root, out, 10**9, **options) == 0
    assert Counter(record.payload for record in stored(out)) == Counter(
        encoded(seed) for seed in seeds | {67, 68}
    )


def test_two_processes_with_files_in_common_take_each_of_them_once(tmp_path: Path, warm: Warm) -> None:
    root, out = folder_of(tmp_path / "in", 0, 150), tmp_path / "out"
    write_tar(root / "000070.tar", labelled(200, 40))
    (tmp_path / "link").symlink_to(root)
    pids = [warm.start(source, out, per_shard=9, open_stream=True) for source in (root, tmp_path / "link")]
    assert [warm.wait(pid) for pid in pids] == [0, 0]
    for source in (root, tmp_path / "link"):
        ingest(source, out, open_stream=True)
    assert Counter(record.payload for record in stored(out)) == Counter(
        encoded(seed) for seed in [*range(150), *range(200, 240)]
    )
