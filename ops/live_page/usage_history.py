"""Usage of every prototype over the length of a run, a byte a moment, in bounded memory.

K prototypes   C columns, moments that are kept   R rows of the heatmap
"""

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ops.live_page.series import Series
from stream.storage import write_whole

Column = tuple[int, NDArray[np.uint8]]
"""Samples seen, and [K] bytes."""

COLUMNS = 240
"""Most moments that are kept, the latest report among them; when they are full every second one goes. A
report is of a window of samples already, so nothing has to be averaged."""
COLUMNS_LEAST = 16
MEMORY_BYTES = 16 << 20
"""Most memory for all columns; up to K = 69,905 there are COLUMNS of them, and never fewer than the least."""
PER_OCTAVE = 16
"""Steps of a byte from a usage to twice of it: 4.4 % each."""
LOWEST_LOG2 = -6
"""Byte 1 is 2^-6 of the even share or less, byte 255 is 2^9.875 (939) even shares or more; 0 is no use."""
WINDOW_PARTS = 8
"""Looks within one window of usage from which a prototype's change is computed."""


class UsageHistory:
    """Shares of all prototypes at some moments since the run began.

    `add` costs one pass over K numbers and never copies what is kept. Any thread may call any method.

    Args:
        prototypes: K.
        columns: most moments kept; 0 = as many as fit the memory.
    """

    def __init__(self, prototypes: int, *, columns: int = 0) -> None:
        if prototypes < 1 or columns in {1, 2} or columns < 0:
            raise ValueError(f"needs prototypes >= 1 and columns 0 or >= 3, got {prototypes} and {columns}")
        self.prototypes = prototypes
        self._most = columns or max(COLUMNS_LEAST, min(COLUMNS, MEMORY_BYTES // prototypes))
        self._series: Series[Column] = Series(self._most - 1, lambda earlier, *_: earlier)
        self._latest: list[Column] = []
        """The latest report, where the last column of the series is an earlier one."""
        self._recent: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._lock = threading.Lock()

    def add(self, usage_K: NDArray[np.float32], *, samples: int, window: int = 0) -> None:
        """Take one report in; later ones than it, from before the run went back, are forgotten.

        Args:
            usage_K: [K] float32 shares; not changed afterwards.
            samples: seen by the run.
            window: samples that the shares are of, when the window is full; for `before`.
        """
        column = encoded(usage_K)
        with self._lock:
            kept = [one for one in self._series.points if one[0] < samples]
            if len(kept) < len(self._series.points):
                self._series.keep(kept, self._series.stride)
            while self._recent and self._recent[-1][0] >= samples:
                self._recent.pop()
            self._series.add((samples, column))
            self._latest = [] if self._series.points[-1][0] == samples else [(samples, column)]
            last = self._recent[-1][0] if self._recent else -window
            if samples - last >= window // WINDOW_PARTS:
                self._recent.append((samples, usage_K))
            while len(self._recent) > 1 and self._recent[1][0] <= samples - window:
                self._recent.popleft()

    def before(self) -> tuple[int, NDArray[np.float32]] | None:
        """Samples and shares one window before the latest report, or as near as there are; None = nothing."""
        with self._lock:
            return self._recent[0] if self._recent else None

    def columns(self) -> tuple[list[int], list[NDArray[np.uint8]]]:
        """Samples seen at each moment, and [K] bytes each, oldest first; they are not written to."""
        with self._lock:
            found = self._series.points + self._latest
        return [samples for samples, _ in found], [column for _, column in found]

    def save(self, path: Path) -> None:
        """Write all columns to one file, whole or not at all.

        Raises:
            OSError: the disk does not take it.
        """
        with self._lock:
            found, stride = self._series.points + self._latest, self._series.stride
        samples, columns = [at for at, _ in found], [column for _, column in found]
        cells = np.stack(columns) if columns else np.zeros((0, self.prototypes), np.uint8)
        arrays: dict[str, NDArray[Any]] = {
            "samples": np.array(samples, np.int64),
            "cells_CK": cells,
            "stride": np.array([stride], np.int64),
        }
        write_whole(path, save_arrays(arrays))

    def load(self, path: Path, *, samples: int) -> bool:
        """Take back what was saved of a run that goes on from so many samples; later columns are left out.

        Returns:
            False, and nothing changes, when the file is missing, damaged or of another K.
        """
        try:
            arrays = load_arrays(path.read_bytes())
            when, cells, stride = arrays["samples"], arrays["cells_CK"], int(arrays["stride"][0])
        except (OSError, SafetensorError, KeyError, IndexError, ValueError):
            return False
        fits = when.ndim == 1 and cells.shape == (len(when), self.prototypes) and cells.dtype == np.uint8
        if not fits or len(when) > self._most or stride < 1:
            return False
        with self._lock:
            found = [(int(at), cells[i].copy()) for i, at in enumerate(when) if int(at) <= samples]
            self._series.keep(found, stride)
            self._latest = []
        return True


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Heatmap:
    """Usage over time, few enough rows to be drawn."""

    samples: list[int]
    """[C] samples seen at the end of each column."""
    members: list[NDArray[np.int64]]
    """[R] numbers of the prototypes of each row."""
    cells_RC: NDArray[np.uint8]
    """[R, C] mean usage of the row's prototypes, coded as `encoded` does."""


def heatmap(
    samples: list[int], columns: list[NDArray[np.uint8]], order_K: NDArray[np.int64], *, rows: int
) -> Heatmap:
    """Rows of neighbours in an order, over time.

    Args:
        samples: [C] of the columns.
        columns: C of [K] bytes.
        order_K: [K] permutation: the prototypes from the first row to the last.
        rows: R at most; with more prototypes each row is the mean of several.
    """
    members = [part for part in np.array_split(order_K, min(rows, len(order_K))) if len(part)]
    starts = np.cumsum([0, *(len(part) for part in members[:-1])])
    sizes = np.array([len(part) for part in members], np.float32)
    drawn = [
        _code((np.add.reduceat(EVEN[column[order_K]], starts) / sizes).astype(np.float32))
        for column in columns
    ]
    cells = np.stack(drawn, axis=1) if drawn else np.zeros((len(members), 0), np.uint8)
    return Heatmap(samples=samples, members=members, cells_RC=np.ascontiguousarray(cells))


def encoded(usage_K: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[K] shares as bytes: 0 = none, else 1 + 16 log2(64 x share x K), rounded and cut off at 1 and 255."""
    return _code((usage_K * len(usage_K)).astype(np.float32, copy=False))


def _code(even: NDArray[np.float32]) -> NDArray[np.uint8]:
    used = even > 0
    octaves = np.log2(np.where(used, even, np.float32(1)))
    steps = np.rint(1 + PER_OCTAVE * (octaves - LOWEST_LOG2))
    return np.where(used, np.clip(steps, 1, 255), 0).astype(np.uint8)


def _decoded() -> NDArray[np.float32]:
    steps = np.arange(256, dtype=np.float32)
    even: NDArray[np.float32] = np.exp2((steps - 1) / PER_OCTAVE + LOWEST_LOG2).astype(np.float32)
    even[0] = 0
    return even


EVEN: NDArray[np.float32] = _decoded()
"""[256] even shares that each byte stands for."""
