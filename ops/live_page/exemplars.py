"""The most typical images of each prototype: small, few, without doubles, and following the model.

B samples   K prototypes   M images kept for each   S side of a thumbnail
"""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from stream.storage import write_whole

MEMORY_BYTES = 128 << 20
"""Most memory for thumbnails; with it 3000 prototypes keep 6 of 48 pixels each."""
FEWEST = 4
"""Images of a prototype that are kept before thumbnails are made smaller instead."""
ARRIVALS = 50
"""Half-life of a place in the ring, in arrivals of an average prototype: 50 K samples."""
LOWEST_SCORE = 1e-3
"""Cosines below count as this much, so that the logarithm exists."""
SIGNATURE_PX = 8
"""Side of the tiny copy by which near-equal pictures are recognised."""
OFFERS = 16
"""Most images of one batch that are looked at closely; it bounds what a batch costs, about 20 us each."""
NEAR_EQUAL = 5.0
"""Root mean square difference of two tiny copies, of 255, below which the pictures count as the same."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exemplar:
    """One typical image."""

    score: float
    """Raw score when it was seen, a cosine."""
    samples: int
    """Samples that the run had seen then."""
    key: str
    """Hex SHA-256 of the stored image; empty when the stream does not state it."""
    thumb: NDArray[np.uint8]
    """[S, S, 3] RGB."""


class Exemplars:
    """A small ring of typical images for each prototype.

    An image is kept by log2(score) + samples / half-life: a place that was won long ago is worth less than
    one won now, so that the ring follows the model, and no score has to be aged after it was stored. All
    methods are quick (well under a millisecond for a batch once the rings are full) and may be called from
    any thread.

    Args:
        prototypes: K.
        each: M, images kept for each prototype; fewer when memory is short.
        thumbnail_px: side of what `observe` is given.
        half_life_samples: samples after which a score counts half; 0 = fifty for each prototype.
        memory_bytes: most memory for thumbnails.
    """

    def __init__(
        self,
        prototypes: int,
        *,
        each: int = 12,
        thumbnail_px: int = 48,
        half_life_samples: int = 0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if prototypes < 1 or each < 1 or thumbnail_px < SIGNATURE_PX:
            raise ValueError(
                f"exemplars need prototypes >= 1, each >= 1 and thumbnail_px >= {SIGNATURE_PX}, got "
                f"{prototypes}, {each} and {thumbnail_px}"
            )
        self.prototypes = prototypes
        self.each, self.side = _fit(prototypes, each, thumbnail_px, memory_bytes)
        self.half_life = half_life_samples or ARRIVALS * prototypes
        shape = (prototypes, self.each)
        # Zeros are not written until used, so prototypes without images cost no memory.
        self._thumbs = np.zeros((*shape, 3, self.side, self.side), np.uint8)
        self._signatures = np.zeros((*shape, SIGNATURE_PX * SIGNATURE_PX * 3), np.float32)
        self._rank = np.full(shape, -np.inf)
        self._score = np.zeros(shape, np.float32)
        self._samples = np.zeros(shape, np.int64)
        self._keys: dict[tuple[int, int], str] = {}
        self._where: dict[str, tuple[int, int]] = {}
        self._stamp = np.zeros(prototypes, np.int64)
        self._lock = threading.Lock()

    def observe(
        self,
        assigned_B: NDArray[np.int64],
        score_B: NDArray[np.float32],
        keys: Sequence[str],
        thumbs: NDArray[np.uint8] | None,
        *,
        samples: int,
    ) -> None:
        """Take what is typical out of one batch.

        Args:
            assigned_B: [B] int64, the prototype of each sample.
            score_B: [B] float32, its raw score, a cosine.
            keys: B hex digests, "" where unknown.
            thumbs: [B, 3, T, T] uint8 RGB; None when the stream sends none (then nothing is kept).
            samples: samples seen by the run.
        """
        if thumbs is None or not len(thumbs):
            return
        rank_B = np.log2(np.maximum(score_B, LOWEST_SCORE)) + samples / self.half_life
        with self._lock:
            gain_B = rank_B - self._rank[assigned_B].min(axis=1)
            wanted = np.flatnonzero(gain_B > 0)
            if len(wanted) > OFFERS:
                # The best of each prototype, then the second of each: none goes without for a busy one. Among
                # them those that are furthest above what is kept, empty places first.
                turn = _places(assigned_B[wanted], rank_B[wanted])
                wanted = wanted[np.lexsort((-rank_B[wanted], -gain_B[wanted], turn))[:OFFERS]]
            best_first = wanted[np.argsort(-rank_B[wanted], kind="stable")]
            if not len(best_first):
                return
            small = _shrunk(thumbs[best_first], self.side)
            tiny = signatures(small)
            for place, index in enumerate(best_first):
                self._offer(
                    int(assigned_B[index]),
                    float(rank_B[index]),
                    float(score_B[index]),
                    samples,
                    keys[index],
                    small[place],
                    tiny[place],
                )

    def top(self, prototype: int) -> list[Exemplar]:
        """The images of one prototype, most typical first."""
        with self._lock:
            order = np.argsort(-self._rank[prototype], kind="stable")
            return [
                Exemplar(
                    score=float(self._score[prototype, slot]),
                    samples=int(self._samples[prototype, slot]),
                    key=self._keys.get((prototype, int(slot)), ""),
                    thumb=_upright(self._thumbs[prototype, slot]),
                )
                for slot in order
                if np.isfinite(self._rank[prototype, slot])
            ]

    def counts(self) -> NDArray[np.int64]:
        """[K] int64: images kept of each prototype."""
        with self._lock:
            kept: NDArray[np.int64] = np.isfinite(self._rank).sum(axis=1, dtype=np.int64)
            return kept

    def stamps(self) -> NDArray[np.int64]:
        """[K] int64: a number that changes whenever a prototype's images do, for caches."""
        with self._lock:
            return self._stamp.copy()

    def strip(self, prototype: int) -> bytes:
        """PNG of a prototype's images side by side, most typical first; one black pixel when it has none."""
        found = self.top(prototype)
        pixels = np.hstack([one.thumb for one in found]) if found else np.zeros((1, 1, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    def save(self, path: Path) -> None:
        """Write all images to one file, whole or not at all, so that a resumed run has its pictures at once.

        Raises:
            OSError: the disk does not take it.
        """
        with self._lock:
            used = np.argwhere(np.isfinite(self._rank))
            rows, slots = used[:, 0], used[:, 1]
            keys = [self._keys.get((int(row), int(slot)), "") for row, slot in used]
            arrays = {
                "place": used.astype(np.int64),
                "thumbs": self._thumbs[rows, slots],
                "rank": self._rank[rows, slots],
                "score": self._score[rows, slots],
                "samples": self._samples[rows, slots],
                "keys": np.frombuffer("\n".join(keys).encode(), np.uint8),
                "shape": np.array([self.prototypes, self.each, self.side], np.int64),
            }
        # One name for all: what a killed process left is written over by the next. A run has one writer.
        write_whole(path, save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}))

    def load(self, path: Path) -> bool:
        """Take images back from a file.

        Returns:
            False, and nothing changes, when the file is missing, damaged or of another shape.
        """
        try:
            arrays = load_arrays(path.read_bytes())
            used = arrays["place"].reshape(-1, 2)
            keys = arrays["keys"].tobytes().decode().split("\n") if len(used) else []
            same = tuple(arrays["shape"]) == (self.prototypes, self.each, self.side)
            whole = arrays["thumbs"].shape == (len(used), 3, self.side, self.side) and len(keys) == len(used)
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        if not (same and whole):
            return False
        with self._lock:
            rows, slots = used[:, 0], used[:, 1]
            self._thumbs[rows, slots] = arrays["thumbs"]
            self._signatures[rows, slots] = signatures(arrays["thumbs"])
            self._rank[rows, slots] = arrays["rank"]
            self._score[rows, slots] = arrays["score"]
            self._samples[rows, slots] = arrays["samples"]
            for (row, slot), key in zip(used, keys, strict=False):
                self._keys[int(row), int(slot)] = key
                if key:
                    self._where[key] = (int(row), int(slot))
            self._stamp += 1
        return True

    def _offer(
        self,
        prototype: int,
        rank: float,
        score: float,
        samples: int,
        key: str,
        thumb: NDArray[np.uint8],
        signature: NDArray[np.float32],
    ) -> None:
        before = self._where.get(key) if key else None
        if before is not None and before[0] != prototype:
            self._clear(before)  # the same image, since assigned to another prototype
            before = None
        ranks = self._rank[prototype]
        slot = before[1] if before is not None else self._double(prototype, signature)
        if slot is None:
            slot = int(ranks.argmin())
        if rank <= ranks[slot]:
            return
        self._clear((prototype, slot))
        self._thumbs[prototype, slot] = thumb
        self._signatures[prototype, slot] = signature
        self._rank[prototype, slot] = rank
        self._score[prototype, slot] = score
        self._samples[prototype, slot] = samples
        self._stamp[prototype] += 1
        if key:
            self._keys[prototype, slot] = key
            self._where[key] = (prototype, slot)

    def _double(self, prototype: int, signature: NDArray[np.float32]) -> int | None:
        """Where a near-equal picture of this prototype lies."""
        difference = self._signatures[prototype] - signature
        apart = np.einsum("md,md->m", difference, difference)
        apart[self._rank[prototype] == -np.inf] = np.inf
        nearest = int(apart.argmin())
        return nearest if apart[nearest] < NEAR_EQUAL**2 * len(signature) else None

    def _clear(self, place: tuple[int, int]) -> None:
        key = self._keys.pop(place, "")
        if key:
            self._where.pop(key, None)
        self._rank[place] = -np.inf
        self._stamp[place[0]] += 1


def _places(group_N: NDArray[np.int64], rank_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N]: which of its group each is, the highest rank 0."""
    order = np.lexsort((-rank_N, group_N))
    groups = group_N[order]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(groups, groups)
    return place


def _fit(prototypes: int, each: int, side: int, memory_bytes: int) -> tuple[int, int]:
    """Images a prototype and their side, pixels, that fit into the memory: first fewer, then smaller."""
    pixels = memory_bytes // (prototypes * 3)
    each = max(min(each, FEWEST), min(each, pixels // (side * side)))
    side = max(SIGNATURE_PX, min(side, int((pixels // each) ** 0.5)))
    return each, side


def _shrunk(thumbs: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[N, 3, T, T] to [N, 3, S, S]."""
    if thumbs.shape[-1] == side:
        return thumbs
    small = [
        np.asarray(Image.fromarray(_upright(one)).resize((side, side), Image.Resampling.BOX))
        for one in thumbs
    ]
    return np.moveaxis(np.stack(small), -1, 1)


def _upright(thumb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[3, S, S] to [S, S, 3]; a copy."""
    return np.ascontiguousarray(np.moveaxis(thumb, 0, -1))


def signatures(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, 3, S, S] to tiny copies [N, 3 * 8 * 8] float32 in [0, 255], each cell the mean of its pixels."""
    side = thumbs.shape[-1]
    cell = np.arange(side) * SIGNATURE_PX // side
    mean = (cell == np.arange(SIGNATURE_PX)[:, None]).astype(np.float32)
    mean /= mean.sum(axis=1, keepdims=True)
    cells: NDArray[np.float32] = mean @ thumbs.astype(np.float32) @ mean.T
    return cells.reshape(len(thumbs), 3 * SIGNATURE_PX * SIGNATURE_PX)
