"""Makes small streams for tests: real shards, whose images are a few bytes that only claim to be JPEGs."""

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fsspec

from stream.config import ShardConfig
from stream.lanes import Position
from stream.record import Record, sha256_of
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSource, ShardSpec
from stream.shards.writer import ShardWriter


def image_bytes(number: int, size: int = 40) -> bytes:
    """Bytes that are different for every number and begin like a JPEG."""
    return b"\xff\xd8\xff\xe0" + f"image {number} ".encode().ljust(size, b".")


def image_record(
    number: int, label: int | None = None, image: Callable[[int], bytes] = image_bytes
) -> Record:
    """A record of `image(number)`."""
    payload = image(number)
    return Record(
        payload=payload,
        sha256=sha256_of(payload),
        media_type="image/jpeg",
        width=8,
        height=6,
        source=f"folder/{number}.jpg",
        label=label,
    )


def append_shards(
    manifest: Manifest,
    sizes: Iterable[int],
    numbers: Iterator[int],
    source_id: str = "test",
    image: Callable[[int], bytes] = image_bytes,
) -> None:
    """One commit of each size; 0 makes a commit of accounts only. The numbers name the images."""
    with ShardWriter(
        manifest, source_id=source_id, config=ShardConfig(max_records=10**6, max_age_s=1e9)
    ) as writer:
        for size in sizes:
            if size == 0:
                writer.skip("test_skip", None)
            for _ in range(size):
                number = next(numbers)
                writer.write(image_record(number, image=image), number + 1)
            writer.flush()


def make_stream(
    url: str, sizes: Iterable[int], *, seal: bool = True, image: Callable[[int], bytes] = image_bytes
) -> Manifest:
    """A new stream with one commit of each size, images numbered from 0 in commit order."""
    manifest = Manifest.open(url, create=True)
    append_shards(manifest, sizes, itertools.count(), image=image)
    if seal:
        manifest.seal()
    return manifest


def memory_url() -> str:
    """A new place in memory."""
    return f"memory://{uuid.uuid4().hex}"


def open_source(url: str, *, lanes: int, window: int, seed: int = 5, order: str = "window") -> ShardSource:
    """A source over the stream at `url`."""
    return ShardSpec(url=url, lanes=lanes, window=window, seed=seed, order=order).open()


def read_lane(
    source: ShardSource, position: Position, pass_number: int = 0
) -> list[tuple[tuple[int, int], Position]]:
    """What a lane still has: (commit, record) and the position after it; fails at an unusable record."""
    entries = []
    for entry, after in source.read(position, pass_number):
        assert entry.record is not None, entry
        entries.append(((entry.unit, entry.index), after))
    return entries


def forget_memory() -> None:
    """Free what streams in memory hold."""
    fsspec.filesystem("memory").store.clear()


def files_below(folder: Path) -> set[str]:
    """Relative names of all files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
