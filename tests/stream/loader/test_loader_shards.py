"""The loader over real shards."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stream.config import ShardConfig
from stream.cursor import Cursor, start_cursor
from stream.lanes import Position
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.tasks import Chunk, read_chunk
from stream.record import Record
from stream.shards.adopt import adopt_tar
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from stream.shards.writer import ShardWriter
from tests.stream.fake_source import picture
from tests.stream.loader.driving import batches_of
from tests.stream.loader.test_loader import CONFIG, KINDS, content
from tests.stream.loader.test_tasks import PLAN, new_frame
from tests.stream.make_shards import make_stream

LANES, WINDOW, CHUNK = 5, 2, 2


def append(manifest: Manifest, sizes: Iterable[int], first: int = 0) -> list[str]:
    """One commit of each size; every ninth image is broken. Gives the digests of the good ones."""
    good = []
    config = ShardConfig(max_records=10**6, max_age_s=1e9)
    with ShardWriter(manifest, source_id="pictures", config=config) as writer:
        for size in sizes:
            for number in range(first, first + size):
                payload = b"no image %d" % number if number % 9 == 8 else picture(number)
                digest = hashlib.sha256(payload).hexdigest()
                writer.write(Record(payload=payload, sha256=digest, media_type="image/jpeg"), number)
                if number % 9 != 8:
                    good.append(digest)
            writer.flush()
            first += size
    return good


def spec_of(folder: Path) -> ShardSpec:
    return ShardSpec(url=str(folder), lanes=LANES, window=WINDOW, seed=3)


def load(folder: Path, cursor: Cursor | None = None, workers: int = 0) -> tuple[list[Batch], Cursor]:
    spec = spec_of(folder)
    if cursor is None:
        source = spec.open()
        cursor = start_cursor(source, seed=3, chunk=CHUNK, window=WINDOW)
        source.close()
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=workers, passes=2) as loader:
        return batches_of(loader), loader.cursor


def test_shards_are_read_once_a_pass_and_resumed_from_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    manifest = Manifest.open(str(folder), create=True)
    good = append(manifest, [17, 1, 40, 23, 9])
    manifest.seal()
    batches, end = load(folder)
    passes = [[key for b in batches if b.cursor.pass_number == n for key in b.keys] for n in (0, 1)]
    assert passes[0] != passes[1]
    for keys in passes:
        assert len(set(keys)) == len(keys)
        assert set(keys) <= set(good)
    assert end.samples + sum(end.skipped.values()) + end.left_over == 2 * 90
    assert dict(end.skipped).keys() == {"not_an_image"}
    assert end.left_over < 2 * (LANES + LANES * CHUNK + 10)  # bad records in the tail are left over too
    for number in range(0, len(batches), 3):
        tail, its_end = load(folder, Cursor.from_json(batches[number].cursor.to_json()))
        assert list(map(content, tail)) == list(map(content, batches[number + 1 :]))
        assert its_end == end


def test_reader_processes_give_the_same_batches_of_shards(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    manifest = Manifest.open(str(folder), create=True)
    append(manifest, [30, 30])
    manifest.seal()
    batches, end = load(folder)
    also, its_end = load(folder, workers=2)
    assert list(map(content, also)) == list(map(content, batches))
    assert its_end == end


def test_a_growing_stream_gives_the_batches_of_the_finished_one(tmp_path: Path) -> None:
    sizes = [12, 7, 20, 3, 31, 8, 5]
    whole = Manifest.open(str(tmp_path / "whole"), create=True)
    append(whole, sizes)
    whole.seal()
    folder = tmp_path / "growing"
    manifest = Manifest.open(str(folder), create=True)
    committed = 0

    def look() -> bool:
        nonlocal committed
        if loader.waiting and committed < len(sizes):
            append(manifest, [sizes[committed]], sum(sizes[:committed]))
            committed += 1
        elif loader.waiting:
            manifest.seal()
        return False

    spec = spec_of(folder)
    source = spec.open()
    cursor = start_cursor(source, seed=3, chunk=CHUNK, window=WINDOW)
    source.close()
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=0, passes=2) as loader:
        got = batches_of(loader, stop=look)
    assert committed == len(sizes)
    assert list(map(content, got)) == list(map(content, load(tmp_path / "whole")[0]))


def test_a_reader_that_is_windows_behind_catches_up(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    manifest = Manifest.open(str(folder), create=True)
    append(manifest, [10])
    behind = spec_of(folder).open()
    append(manifest, [10] * 12, first=10)
    position = Position(lane=1, unit=8, seq=40)
    frame = new_frame()
    chunk = read_chunk(behind, position, 0, replace(PLAN, chunk=2), frame, 0)
    assert isinstance(chunk, Chunk)
    assert all(unit in {8, 9} for unit, _ in frame.refs_B2[:2].tolist())
    behind.close()


def half_of_some(number: int) -> bytes:
    """JPEGs; of every third one the codes end early, closed by an end marker: old streams have such."""
    file = io.BytesIO()
    image = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(image).save(file, "JPEG")
    whole = file.getvalue()
    return whole if number % 3 else whole[: whole.index(b"\xff\xda") + 60] + b"\xff\xd9"


def test_half_a_jpeg_in_a_stream_or_an_adopted_tar_is_skipped_and_counted(tmp_path: Path) -> None:
    """Such streams go on: their good records are learned from, the others are in the accounts."""
    own = make_stream(str(tmp_path / "own"), (30, 30), image=half_of_some)
    adopted = Manifest.open(str(tmp_path / "adopted"), create=True)
    for number in range(2):
        adopt_tar(adopted, str(tmp_path / "own" / own.entry(number).uri), source_id="tars")
    adopted.seal()
    for place in ("own", "adopted"):
        batches, _ = load(tmp_path / place)
        assert len({key for batch in batches for key in batch.keys}) > 20
        skipped = [dict(batch.stats.skipped) for batch in batches]
        assert {reason for some in skipped for reason in some} == {"truncated"}
        read = sum(batch.stats.read for batch in batches)
        used = sum(batch.stats.used for batch in batches)
        assert used + sum(some.get("truncated", 0) for some in skipped) == read
