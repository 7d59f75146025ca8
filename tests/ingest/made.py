"""Small images, tars and streams for the tests of ingest; and what a stream holds, read by other means."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ingest.config import IngestConfig
from ingest.sources import open_source
from ingest.worker import IngestReport, run_ingest
from stream.config import ShardConfig
from stream.shards.manifest import Manifest

Members = Iterable[tuple[str, bytes]]


def pixels(seed: int, width: int = 40, height: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture of its own for each seed: coarse noise, [height, width, 3] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(
    seed: int, kind: str = "JPEG", width: int = 40, height: int = 32, mode: str = "RGB", **options: Any
) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(seed, width, height)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def write_tar(path: Path, members: Members, mode: str = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def labelled(first: int, count: int) -> list[tuple[str, bytes]]:
    """Members of `count` samples, with the class seed mod 10."""
    members = []
    for seed in range(first, first + count):
        members += [(f"{seed:06d}.jpg", encoded(seed)), (f"{seed:06d}.cls", str(seed % 10).encode())]
    return members


def folder_of(path: Path, first: int, count: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (path / f"{seed:06d}.jpg").write_bytes(encoded(seed))
    return path


def settings(*, per_shard: int = 1000, workers: int = 0, **fields: Any) -> IngestConfig:
    return IngestConfig(workers=workers, shard=ShardConfig(max_records=per_shard), **fields)


def ingest(
    source: Path | str | list[str],
    stream: Path,
    config: IngestConfig | None = None,
    *,
    name: str = "",
    **options: Any,
) -> IngestReport:
    config = config or settings()
    specs = source if isinstance(source, list) else str(source)
    found = open_source(specs, name=name, label_from=config.label_from, max_bytes=config.max_bytes)
    return run_ingest(found, str(stream), config, **options)


@dataclass(frozen=True)
class Stored:
    """A record as it lies in a shard."""

    payload: bytes
    media_type: str
    body: Mapping[str, Any]
    cls: bytes | None

    @property
    def source(self) -> str:
        return str(self.body["source"])


def stored(stream: Path) -> list[Stored]:
    """All records of a local stream's own shards, in order, as Python's tarfile sees them."""
    manifest = Manifest.open(str(stream))
    records = []
    for number in range(len(manifest)):
        commit = manifest.entry(number)
        if commit.n:
            records += _records(stream / commit.uri, commit.n)
    return records


def _records(path: Path, n: int) -> list[Stored]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            key, _, extension = info.name.partition(".")
            file = tar.extractfile(info)
            assert file is not None
            samples.setdefault(key, {})[extension] = file.read()
    assert len(samples) == n
    records = []
    for sample in samples.values():
        body = json.loads(sample.pop("json"))
        cls = sample.pop("cls", None)
        ((_, payload),) = sample.items()
        assert body["sha256"] == hashlib.sha256(payload).hexdigest()
        records.append(Stored(payload, body["media_type"], body, cls))
    return records


def add_up(report: IngestReport) -> bool:
    return report.found == report.written + sum(report.skipped.values())
