"""The prototype of each image: what `swavstream assign` answers."""

# B images of a piece   K prototypes

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ingest.sources import Found, open_source
from ops.inference.images import see
from ops.inference.load_model import Network
from stream.errors import BadRecord
from stream.lanes import Position
from stream.order import SHARD
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec

MAX_BYTES = 64 * 1024 * 1024
"""Encoded images with more bytes are not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What became of one image."""

    name: str
    """Path, archive#member, or for a record that states no source: commit/record."""
    prototype: int | None
    """The prototype with the largest raw score; None when the image cannot be used."""
    score: float | None = None
    """Cosine of embedding and prototype, -1 .. 1; no code, no balance: what others are does not matter."""
    margin: float | None = None
    """Score less that of the second prototype; 0 = undecided."""
    reason: str = ""
    """Why the image cannot be used; empty when it can."""
    detail: str = ""
    """What was seen."""

    def to_json(self) -> dict[str, object]:
        """As `--json` prints it: name, prototype, score, margin; or name, reason, detail."""
        if self.prototype is None:
            return {"name": self.name, "reason": self.reason, "detail": self.detail}
        return {
            "name": self.name, "prototype": self.prototype, "score": self.score, "margin": self.margin
        }  # fmt: skip


def assign(network: Network, source: str) -> Iterator[Assignment]:
    """Assign every image of a source, in its order.

    Args:
        network: whose prototypes, as `load_model.load` reads them; in evaluation mode, so that an image gets
            the same answer in any company.
        source: a folder, a tar, a quoted glob, or a stream (a folder with stream.json, or a URL).

    Raises:
        IngestError: nothing is at `source`, or nothing that is named like an image or a tar.
        StreamNotFound: no stream at this URL.
    """
    items = _of_stream(source) if is_stream(source) else _of_files(source)
    for seen in see(items, size=network.view_px, max_pixels=network.config.reader.max_pixels):
        best = torch.zeros(0, 2)
        place = torch.zeros(0, 2, dtype=torch.int64)
        if len(seen.views_B3SS):
            best, place = network.learner.scores(seen.views_B3SS).topk(2, dim=1)
        row = 0
        for name, error in zip(seen.names, seen.errors, strict=True):
            if error is not None:
                yield Assignment(name=name, prototype=None, reason=error.reason, detail=error.detail)
                continue
            yield Assignment(
                name=name,
                prototype=int(place[row, 0]),
                score=round(float(best[row, 0]), 6),
                margin=round(float(best[row, 0] - best[row, 1]), 6),
            )
            row += 1


def is_stream(source: str) -> bool:
    """Whether an address is that of a stream, and not of files."""
    return "://" in source or (Path(source) / "stream.json").is_file()


def _of_files(source: str) -> Iterator[tuple[str, bytes | BadRecord]]:
    for found in open_source(source, max_bytes=MAX_BYTES).items():
        if found is not None and not found.label_only:
            yield found.name, _payload(found)


def _payload(found: Found) -> bytes | BadRecord:
    if found.loss:
        return BadRecord(found.loss, found.detail)
    try:
        payload = found.read(MAX_BYTES)
    except BadRecord as bad:
        return bad
    return payload if len(payload) <= MAX_BYTES else BadRecord("too_large", f"over {MAX_BYTES:,} bytes")


def _of_stream(url: str) -> Iterator[tuple[str, bytes | BadRecord]]:
    """Every record committed by now, commit by commit."""
    commits = len(Manifest.open(url))
    source = ShardSpec(url=url, lanes=1, window=1, seed=0, order=SHARD).open()
    try:
        for entry, _ in source.read(Position(lane=0), 0):
            if entry.unit >= commits:
                break
            place = f"{entry.unit}/{entry.index}"
            if entry.record is None:
                yield place, BadRecord(entry.reason)
            else:
                yield entry.record.source or place, entry.record.payload
    finally:
        source.close()
