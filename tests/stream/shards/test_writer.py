"""The shard writer: whole or not at all, in order, with accounts that add up, and readable by webdataset."""

import fcntl
import hashlib
import io
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from webdataset import tariterators

from stream.config import ShardConfig
from stream.errors import StreamError, StreamSealed
from stream.lanes import Position
from stream.record import Record, decode_sample
from stream.shards.commits import Accounts
from stream.shards.index import decode_index
from stream.shards.manifest import Manifest
from stream.shards.orphans import sweep_orphans
from stream.shards.writer import ShardWriter
from stream.storage import LocalStore, open_store
from tests.stream.failing_store import FailingStore
from tests.stream.make_shards import (
    append_shards,
    files_below,
    forget_memory,
    image_bytes,
    image_record,
    make_stream,
    memory_url,
    open_source,
)
from tests.stream.write_and_die import IMAGES, SIZES


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.open(str(tmp_path / "stream"), create=True)


@pytest.fixture
def memory() -> Iterator[str]:
    yield memory_url()
    forget_memory()


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def samples_of(folder: Path) -> list[dict[str, Any]]:
    """What webdataset's own reader finds in all tars; it leaves closing the files to its caller."""
    samples: list[dict[str, Any]] = []
    for path in sorted((folder / "shards").glob("*.tar")):
        with path.open("rb") as file:
            files = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            samples += tariterators.group_by_keys(files)
    return samples


def writer_of(manifest: Manifest, *, clock: Clock | None = None, **config: Any) -> ShardWriter:
    return ShardWriter(manifest, source_id="s", config=ShardConfig(**config), clock=clock or Clock())


def test_webdataset_reads_our_shards(tmp_path: Path, manifest: Manifest) -> None:
    with writer_of(manifest, max_records=4) as writer:
        for number in range(10):
            writer.write(image_record(number, label=number % 3), number)
    samples = samples_of(tmp_path / "stream")
    assert {sample["jpg"] for sample in samples} == {image_bytes(number) for number in range(10)}
    for sample in samples:
        record = decode_sample(sample["jpg"], "jpg", sample["json"], sample["cls"])
        assert record.sha256 == hashlib.sha256(sample["jpg"]).hexdigest()
        assert sample["__key__"].endswith(f"-{record.sha256[:16]}")
    assert len({sample["__key__"] for sample in samples}) == 10


def test_python_reads_our_shards_as_plain_tars(tmp_path: Path, manifest: Manifest) -> None:
    append_shards(manifest, [3], itertools.count())
    with tarfile.open(tmp_path / "stream" / manifest.entry(0).uri) as tar:
        names = [member.name for member in tar]
    assert [name.rpartition(".")[2] for name in names] == ["jpg", "json"] * 3


def test_the_index_says_where_every_member_lies(tmp_path: Path, manifest: Manifest) -> None:
    with writer_of(manifest) as writer:
        for number in range(5):
            writer.write(image_record(number, label=number if number % 2 else None), number)
    commit = manifest.entry(0)
    tar = (tmp_path / "stream" / commit.uri).read_bytes()
    index = decode_index((tmp_path / "stream" / commit.index_uri).read_bytes(), name="x", n=5)
    assert index.tar_bytes == commit.bytes == len(tar)
    for number in range(5):
        row = index.row(number)
        assert tar[row.image.offset : row.image.offset + row.image.size] == image_bytes(number)
        assert row.digest == hashlib.sha256(image_bytes(number)).digest()[:16]
        assert row.json is not None
        assert tar[row.json.offset : row.json.offset + row.json.size].startswith(b'{"height"')
        assert (row.cls is not None) == bool(number % 2)
    assert commit.sha256 == hashlib.sha256(tar).hexdigest()


def test_equal_records_under_equal_names_give_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        manifest = Manifest.open(str(tmp_path / name), create=True)
        with ShardWriter(manifest, source_id="s", shard_ids=lambda: "00ff") as writer:
            for number in range(20):
                writer.write(image_record(number), number)
        contents.append(manifest.store.read("shards/00ff.tar") + manifest.store.read("index/00ff.idx"))
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("config", "sizes"),
    [({"max_records": 4}, [4, 4, 2]), ({"max_bytes": 100}, [3, 3, 3, 1]), ({}, [10])],
)
def test_a_shard_closes_when_it_is_full(manifest: Manifest, config: dict[str, Any], sizes: list[int]) -> None:
    with writer_of(manifest, **config) as writer:
        for number in range(10):
            writer.write(image_record(number), number)
    assert [manifest.n(number) for number in range(len(manifest))] == sizes
    assert writer.shards == len(sizes)


def test_a_shard_closes_when_it_is_old(manifest: Manifest) -> None:
    clock = Clock()
    writer = writer_of(manifest, clock=clock, max_age_s=60)
    writer.write(image_record(0), 0)
    clock.now += 59
    writer.tick()
    assert len(manifest) == 0
    clock.now += 1
    writer.tick()
    assert len(manifest) == 1
    clock.now += 1000
    writer.write(image_record(1), 1)  # the age of a shard begins with its first record
    assert len(manifest) == 1
    writer.close()


def test_skips_alone_are_committed_when_old_and_at_the_end(manifest: Manifest) -> None:
    clock = Clock()
    with writer_of(manifest, clock=clock, max_age_s=60) as writer:
        writer.skip("empty", 1)
        clock.now += 61
        writer.skip("empty", 2)
        writer.write(image_record(0), 3)
        writer.flush()
        writer.skip("duplicate", 4)
    commits = [manifest.entry(number) for number in range(len(manifest))]
    assert [commit.n for commit in commits] == [0, 1, 0]
    assert [commit.source_position for commit in commits] == [2, 3, 4]
    assert [dict(commit.accounts.skipped) for commit in commits] == [{"empty": 2}, {}, {"duplicate": 1}]


def test_accounts_add_up(manifest: Manifest) -> None:
    with writer_of(manifest, max_records=3) as writer:
        for number in range(20):
            if number % 3:
                writer.write(image_record(number), number)
            else:
                writer.skip("third" if number % 2 else "sixth", number)
    size = sum(len(image_bytes(number)) for number in range(20) if number % 3)
    assert writer.accounts == Accounts(written=13, skipped={"sixth": 4, "third": 3}, bytes=size)
    assert writer.accounts.found == 20
    assert manifest.accounts_of("s") == writer.accounts
    assert manifest.records == 13


def test_nothing_to_write_makes_no_commit(tmp_path: Path, manifest: Manifest) -> None:
    with writer_of(manifest):
        pass
    assert len(manifest) == 0
    assert files_below(tmp_path) == {"stream/stream.json"}


def test_a_shard_is_invisible_until_it_is_committed(tmp_path: Path, manifest: Manifest) -> None:
    writer = writer_of(manifest)
    writer.write(image_record(0), 0)
    assert [path.suffix for path in (tmp_path / "stream" / "shards").iterdir()] == [".part"]
    writer.close()
    assert [path.suffix for path in (tmp_path / "stream" / "shards").iterdir()] == [".tar"]


def test_what_was_open_when_an_exception_came_leaves_nothing(tmp_path: Path, manifest: Manifest) -> None:
    def interrupted() -> None:
        with writer_of(manifest) as writer:
            writer.write(image_record(0), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(manifest) == 0
    assert files_below(tmp_path) == {"stream/stream.json"}


def test_a_record_that_cannot_be_stored_changes_nothing(tmp_path: Path, manifest: Manifest) -> None:
    with writer_of(manifest) as writer:
        with pytest.raises(ValueError, match="SHA-256"):
            writer.write(Record(payload=b"x", sha256="", media_type="image/jpeg"), 0)
        writer.skip("empty", 1)
    assert [manifest.n(number) for number in range(len(manifest))] == [0]
    assert not [name for name in files_below(tmp_path) if "shards" in name]


def test_a_closed_writer_takes_nothing_more(manifest: Manifest) -> None:
    writer = writer_of(manifest)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(image_record(0), 0)


def test_a_sealed_stream_is_refused_before_anything_is_written(manifest: Manifest) -> None:
    manifest.seal()
    with pytest.raises(StreamSealed):
        writer_of(manifest)


def test_a_shard_that_lost_against_the_seal_leaves_nothing(tmp_path: Path, manifest: Manifest) -> None:
    writer = writer_of(manifest)
    writer.write(image_record(0), 0)
    Manifest.open(manifest.url).seal()
    with pytest.raises(StreamSealed):
        writer.close()
    writer.abandon()
    assert not [name for name in files_below(tmp_path) if name.endswith((".tar", ".idx", ".part"))]


def write_images(writer: ShardWriter, numbers: range) -> None:
    for number in numbers:
        writer.write(image_record(number), number + 1)


def failing_writer(url: str, config: ShardConfig) -> tuple[ShardWriter, FailingStore]:
    stream_uuid = Manifest.open(url, create=True).uuid
    store = FailingStore(open_store(url))
    manifest = Manifest(store, stream_uuid)
    manifest.refresh()
    return ShardWriter(manifest, source_id="s", config=config), store


def test_a_disk_that_fills_is_one_clear_error_and_nothing_is_lost(memory: str) -> None:
    config = ShardConfig(max_records=2)
    writer, store = failing_writer(memory, config)
    store.before = {store.changes + 3 * 2 + 1}  # three changes a shard: tar, index, commit
    with pytest.raises(StreamError, match=r"cannot write a shard of memory://.*: No space left on device"):
        write_images(writer, range(10))
    with pytest.raises(ValueError, match="failed"):
        writer.write(image_record(0), 0)
    writer.close()
    last = Manifest.open(memory).last_of("s")
    assert last is not None
    assert last.source_position == 4


def test_a_writer_that_dies_at_any_change_of_the_store_loses_and_repeats_nothing(memory: str) -> None:
    config = ShardConfig(max_records=3)
    deaths = 0
    for dead_from in itertools.count(0, 2):
        writer, store = failing_writer(memory, config)
        last = Manifest.open(memory).last_of("s")
        store.dead_from = dead_from % 5
        try:
            with writer:
                write_images(writer, range(last.source_position if last else 0, 40))
        except StreamError:
            deaths += 1
            continue
        break
    assert sorted(payloads_of(memory)) == sorted(image_bytes(number) for number in range(40))
    assert deaths > 5


def payloads_of(url: str) -> list[bytes]:
    """Every image of a stream, as a learner with one lane reads it."""
    source = open_source(url, lanes=1, window=1)
    entries = [entry for entry, _ in source.read(Position(lane=0), 0)]
    source.close()
    assert all(entry.record is not None for entry in entries)
    return [entry.record.payload for entry in entries if entry.record is not None]


def test_a_writer_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.stream.write_and_die", str(tmp_path), "10", "1"],
        check=True,
        timeout=100,
        cwd=Path(__file__).parents[3],
    )
    expected = {image_bytes(number) for number in range(IMAGES) if number % 7 != 6}
    for size in SIZES:
        folder = tmp_path / str(size)
        manifest = Manifest.open(str(folder))
        assert manifest.sealed
        assert manifest.accounts_of("images") == Accounts(
            written=len(expected),
            skipped={"seventh": IMAGES - len(expected)},
            bytes=sum(map(len, expected)),
        )
        payloads = payloads_of(str(folder))
        assert len(payloads) == len(expected)
        assert set(payloads) == expected
        # Every tar that a stranger can see is whole, committed or not.
        for sample in samples_of(folder):
            assert sample["json"].endswith(b"}")
            assert sample["jpg"] in expected
    parts = [name for name in files_below(tmp_path) if name.endswith(".part")]
    assert parts, "no writer was killed while it had a shard open"


def test_a_stream_in_memory_is_written_and_read(memory: str) -> None:
    manifest = make_stream(memory, [5, 7])
    assert manifest.records == 12
    assert sorted(payloads_of(memory)) == sorted(image_bytes(number) for number in range(12))


def test_several_writers_fill_one_stream(tmp_path: Path) -> None:
    url = str(tmp_path / "stream")
    Manifest.open(url, create=True)
    writers = [
        ShardWriter(Manifest.open(url), source_id=str(name), config=ShardConfig(max_records=3))
        for name in range(3)
    ]
    for number in range(30):
        writers[number % 3].write(image_record(number), number)
    for writer in writers:
        writer.close()
    manifest = Manifest.open(url)
    assert manifest.records == 30
    assert [manifest.accounts_of(str(name)).written for name in range(3)] == [10, 10, 10]
    assert sorted(payloads_of(url)) == sorted(image_bytes(number) for number in range(30))


OLD = 1_000_000.0


def aged(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - OLD, time.time() - OLD))
    return path


def test_what_dead_writers_left_is_swept(manifest: Manifest) -> None:
    store = manifest.store
    assert isinstance(store, LocalStore)
    aged(store.path("shards/dead.tar.part"))
    aged(store.path("commits/00000000000000000000.json.abc.part"))
    aged(store.path("shards/finished.tar.part"))
    store.path("shards/finished.tar").write_bytes(b"never committed")
    store.create("index/finished.idx", b"never committed")
    assert sweep_orphans(manifest) == 5
    assert files_below(store.root) == {"stream.json"}


def test_what_was_to_be_uploaded_by_dead_writers_is_swept(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    aged(tmp_path / "swavstream-00.tar.part")
    other = aged(tmp_path / "other.tar.part")
    assert sweep_orphans(Manifest.open(memory, create=True)) == 1
    assert files_below(tmp_path) == {other.name}


def test_an_upload_leaves_no_temporary_file(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_stream(memory, [3, 3])
    writer, store = failing_writer(memory + "x", ShardConfig())
    writer.write(image_record(0), 0)
    assert len(files_below(tmp_path)) == 1
    store.dead_from = 0
    with pytest.raises(StreamError):
        writer.close()
    writer.abandon()
    assert files_below(tmp_path) == set()


def test_a_young_or_held_part_is_left_alone(manifest: Manifest) -> None:
    store = manifest.store
    assert isinstance(store, LocalStore)
    held, young = aged(store.path("shards/held.tar.part")), store.path("shards/young.tar.part")
    young.touch()
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep_orphans(manifest) == 0
    assert held.exists()
    assert young.exists()


def test_a_committed_tar_is_not_swept_with_its_part(manifest: Manifest) -> None:
    append_shards(manifest, [3], itertools.count())
    store = manifest.store
    assert isinstance(store, LocalStore)
    uri = manifest.entry(0).uri
    aged(store.path(f"{uri}.part"))
    assert sweep_orphans(manifest) == 1
    assert store.exists(uri)
    assert store.exists(manifest.entry(0).index_uri)


def test_a_new_writer_sweeps(manifest: Manifest) -> None:
    store = manifest.store
    assert isinstance(store, LocalStore)
    dead = aged(store.path("shards/dead.tar.part"))
    with writer_of(manifest):
        assert not dead.exists()


def test_a_file_name_that_is_no_text_can_be_written(manifest: Manifest) -> None:
    record = image_record(0)
    odd = Record(
        payload=record.payload, sha256=record.sha256, media_type="image/x-odd", source="caf\udce9.jpg"
    )
    with writer_of(manifest) as writer:
        writer.write(odd, {"file": "caf\udce9.jpg"})
    last = Manifest.open(manifest.url).last_of("s")
    assert last is not None
    assert last.source_position == {"file": "caf\udce9.jpg"}
    tar = manifest.store.read(last.uri)
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        assert members.getnames()[0].endswith(".img")
