"""Which images a stream holds already: a set of digests that fits in memory.

A Python set of bytes takes some 100 bytes a digest; two sorted arrays take 16. New digests wait in a small
set and are merged into the arrays now and then.
"""

import numpy as np
from numpy.typing import NDArray

from stream.shards.index import DIGEST_BYTES, read_digests
from stream.shards.manifest import Manifest
from stream.storage import as_stream_error

_MERGE_AT = 200_000
"""New digests that wait; merging sorts everything, so it must be rare."""


class DigestSet:
    """A set of digests, by their first 16 bytes; 16 bytes of memory each."""

    def __init__(self) -> None:
        self._high = np.zeros(0, np.uint64)  # first 8 bytes, sorted
        self._low = np.zeros(0, np.uint64)  # the next 8, in the same order
        self._new: set[bytes] = set()
        self._waiting: list[bytes] = []

    def __contains__(self, digest: bytes) -> bool:
        """Whether a digest (16 bytes or more) is in the set."""
        self._merge_waiting()
        short = bytes(digest[:DIGEST_BYTES])
        if short in self._new:
            return True
        high, low = np.frombuffer(short, ">u8").astype(np.uint64)
        start = int(np.searchsorted(self._high, high, "left"))
        stop = int(np.searchsorted(self._high, high, "right"))
        return bool((self._low[start:stop] == low).any())

    def __len__(self) -> int:
        """Different digests."""
        self._merge_waiting()
        return int(self._high.size) + len(self._new)

    def add(self, digest: bytes) -> None:
        """Add one digest of 16 bytes or more; the first 16 count."""
        if len(digest) < DIGEST_BYTES:
            raise ValueError(f"a digest needs {DIGEST_BYTES} bytes, got {len(digest)}")
        if digest not in self:
            self._new.add(bytes(digest[:DIGEST_BYTES]))
            if len(self._new) >= _MERGE_AT:
                self._merge(b"".join(self._new))
                self._new.clear()

    def add_many(self, digests: bytes) -> None:
        """Add digests of 16 bytes each, one after the other; zeros mean an unknown one and are left out."""
        self._waiting.append(digests)

    def _merge_waiting(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._merge(data)

    def _merge(self, data: bytes) -> None:
        pairs = np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)
        pairs = pairs[pairs.any(axis=1)]
        high = np.concatenate([self._high, pairs[:, 0]])
        low = np.concatenate([self._low, pairs[:, 1]])
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        fresh: NDArray[np.bool_] = np.ones(high.size, np.bool_)
        fresh[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        self._high, self._low = high[fresh], low[fresh]


def known_digests(manifest: Manifest) -> DigestSet:
    """First 16 bytes of the SHA-256 of every image that a stream has.

    Those of adopted tars are among them, where they were taken at adoption. Reads 16 bytes a record from the
    index sidecars.

    Raises:
        StreamDamaged: an index cannot be trusted.
        StreamError: an index cannot be read.
    """
    known = DigestSet()
    for number in range(len(manifest)):
        if manifest.n(number) == 0:
            continue
        commit = manifest.entry(number)
        with as_stream_error(f"cannot read {commit.index_uri} of the stream at {manifest.url}"):
            file = manifest.store.open(commit.index_uri)
            try:
                known.add_many(read_digests(file, name=commit.index_uri, n=commit.n))
            finally:
                file.close()
    return known
