"""Labelled images of a stream, cut the one way that evaluation cuts them, and what is computed of them."""

# B images of a piece   S side of a view in pixels   F width of a feature

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.inference.images import resized, see
from stream.lanes import Position
from stream.order import SHARD
from stream.record import Record, sha256_of
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec

RAW_SIDE = 32
"""Largest side at which raw pixels are compared: more pixels make that baseline dearer, hardly better."""

_CACHE_BYTES = 512 * 1024 * 1024

Label = int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Some labelled images."""

    views_B3SS: Tensor
    """uint8 [B, 3, S, S], RGB."""
    labels: tuple[Label, ...]
    """B class numbers, or names where records have no number."""
    digests: tuple[str, ...]
    """B hex SHA-256 of the stored bytes: the identity of an image."""


class LabelledImages:
    """The labelled images of a stream, as often as wanted, in one order.

    Reads what is committed when it is made. Views are kept in memory when all of them fit into 512 MB, else
    decoded again for each pass. Not thread-safe.

    Args:
        url: the stream.
        size: S, pixels of a view.
        limit: at most so many images, spread evenly over the commits; 0 = all.
        max_pixels: larger images are skipped.

    Raises:
        StreamNotFound: nothing is at `url`.
    """

    def __init__(self, url: str, *, size: int, limit: int, max_pixels: int) -> None:
        self._source = ShardSpec(url=url, lanes=1, window=1, seed=0, order=SHARD).open()
        self._manifest = Manifest.open(url)
        self._size = size
        self._limit = limit
        self._max_pixels = max_pixels
        self._cache: list[Piece] | None = None
        self.url = url
        floor = self._manifest.floor
        self._first, self._pruned = floor.first, floor.records
        kept = self._manifest.records - self._pruned
        self.expected = min(limit or kept, kept)
        """Images to come at most: some may be unlabelled or unusable."""
        self.skipped: dict[str, int] = {}
        """Records left out in the last pass, by reason; `unlabelled` is one."""

    @property
    def kept(self) -> bool:
        """Whether views stay in memory after the first pass."""
        return self.expected * 3 * self._size**2 <= _CACHE_BYTES

    def __iter__(self) -> Iterator[Piece]:
        """Pieces of at most 512 images; the same on every pass."""
        if self._cache is not None:
            yield from self._cache
            return
        keep: list[Piece] | None = [] if self.kept else None
        skipped: Counter[str] = Counter()
        for piece in self._read(skipped):
            if keep is not None:
                keep.append(piece)
            yield piece
        self.skipped = dict(sorted(skipped.items()))
        self._cache = keep

    def close(self) -> None:
        """Let go of files and of views. May be called twice."""
        self._source.close()
        self._cache = None

    def _read(self, skipped: Counter[str]) -> Iterator[Piece]:
        labelled = (((_label(record), _digest(record)), record.payload) for record in self._records(skipped))
        for seen in see(labelled, size=self._size, max_pixels=self._max_pixels):
            skipped.update(error.reason for error in seen.errors if error is not None)
            if len(seen.views_B3SS):
                good = zip(seen.names, seen.errors, strict=True)
                labels, digests = zip(*(name for name, error in good if error is None), strict=True)
                yield Piece(views_B3SS=seen.views_B3SS, labels=labels, digests=digests)

    def _records(self, skipped: Counter[str]) -> Iterator[Record]:
        """Labelled records; of each commit its share of the limit, so that a sorted stream stays mixed."""
        total = self._manifest.records - self._pruned
        limit = self.expected
        for number in range(self._first, len(self._manifest)):
            before, n = self._manifest.before(number) - self._pruned, self._manifest.n(number)
            share = (before + n) * limit // total - before * limit // total if n else 0
            if not share:
                continue
            for entry, _ in self._source.read(Position(lane=0, unit=number), 0):
                if entry.unit != number or share == 0:
                    break
                if entry.record is None:
                    skipped[entry.reason] += 1
                elif entry.record.label is None and entry.record.label_name is None:
                    skipped["unlabelled"] += 1
                else:
                    share -= 1
                    yield entry.record


def _label(record: Record) -> Label:
    if record.label is not None:
        return record.label
    return record.label_name or ""


def _digest(record: Record) -> str:
    """Of the stored bytes; foreign tars that were adopted may not state it."""
    return record.sha256 or sha256_of(record.payload)


class ChannelMoments:
    """Mean and deviation of each channel over many pieces, exact however many images there are."""

    def __init__(self) -> None:
        self._pixels = 0
        self._sum_3 = torch.zeros(3, dtype=torch.int64)
        self._squares_3 = torch.zeros(3, dtype=torch.int64)

    def add(self, views_B3SS: Tensor) -> None:
        """Count in some views, uint8 [B, 3, S, S]."""
        whole = views_B3SS.to(torch.int64)
        self._pixels += views_B3SS.shape[0] * views_B3SS.shape[2] * views_B3SS.shape[3]
        self._sum_3 += whole.sum((0, 2, 3))
        self._squares_3 += (whole * whole).sum((0, 2, 3))

    def standardised(self, views_B3SS: Tensor) -> Tensor:
        """Views as raw-pixel features: float32 [B, 3 S S], channels with mean 0 and deviation 1 over all."""
        mean_3 = self._sum_3.double() / self._pixels
        std_3 = (self._squares_3.double() / self._pixels - mean_3**2).clamp_min(1e-6).sqrt()
        shift, scale = mean_3.float()[:, None, None], std_3.float()[:, None, None]
        return ((views_B3SS.float() - shift) / scale).flatten(1)


def raw_view(views_B3SS: Tensor) -> Tensor:
    """Views as they are compared as raw pixels: uint8, at most 32 x 32."""
    if views_B3SS.shape[-1] <= RAW_SIDE:
        return views_B3SS
    return resized(views_B3SS, RAW_SIDE)
