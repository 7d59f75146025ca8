"""The prototypes as people look at them: sizes, changes, neighbours, typical images, usage over time.

The learner hands vectors over and goes on; sorting, neighbours and heatmap are worked out by the thread that
was asked for them, from copies.

K prototypes   D embedding size
"""

import base64
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learner.health import USAGE_EDGES, nearest_cosines, share_histogram
from ops.live_page.exemplars import Exemplars
from ops.live_page.usage_history import EVEN, LOWEST_LOG2, PER_OCTAVE, Heatmap, UsageHistory, heatmap

Vector = NDArray[np.float32]

HEATMAP_ROWS = 128
SORTS = ("size", "change", "generation", "cosine", "number")
"""What prototypes can be sorted by. Cosine is that with the nearest other prototype."""
HEATMAP_ORDERS = ("size", "number")
COSINES_MOST = 4096
"""Most prototypes for which every one's nearest other is known: above, all pairs would take seconds."""
DIRECTIONS_BYTES = 64 << 20
"""Most memory for directions; up to K = 131,072 at D = 128. Without them there are no neighbours."""
NEAREST = 6
"""Neighbours that are shown of a prototype."""


class LivePrototypes:
    """State of all prototypes of one run, for people.

    `counted` and `learned` are called by the learner and take about as long as a copy of K numbers;
    everything else is for the HTTP server's threads and returns plain values.

    Args:
        prototypes: K of the first head.
        exemplars: typical images; None shows none.
    """

    def __init__(self, prototypes: int, exemplars: Exemplars | None = None) -> None:
        self.exemplars = exemplars
        self.history = UsageHistory(prototypes)
        self._lock = threading.Lock()
        self._usage: Vector = np.zeros(prototypes, np.float32)
        self._samples = 0
        self._reports = 0
        self._directions: Vector | None = None
        self._generation: NDArray[np.int64] | None = None
        self._learned_at = 0
        self._cosines: tuple[Vector, Vector] | None = None  # directions, and what was worked out of them
        self._drawn: dict[str, tuple[int, dict[str, Any]]] = {}

    def counted(self, usage_K: Vector, *, samples: int, window: int = 0) -> None:
        """Take the shares of all prototypes in.

        Args:
            usage_K: [K] float32 in [0, 1]; copied.
            samples: seen by the run.
            window: samples that a full window of usage holds; 0 = not known.
        """
        usage = np.array(usage_K, np.float32)
        self.history.add(usage, samples=samples, window=window)
        with self._lock:
            self._usage, self._samples = usage, samples
            self._reports += 1

    def learned(self, directions_KD: Vector, generation_K: NDArray[np.int64], *, samples: int) -> None:
        """Take directions and generations in, as of so many samples; neither may be changed afterwards.

        Args:
            directions_KD: [K, D] float32 of unit norm.
            generation_K: [K] int64, how often each was re-seeded.
            samples: seen by the run.
        """
        small = directions_KD.nbytes <= DIRECTIONS_BYTES
        with self._lock:
            self._directions = directions_KD if small else None
            self._generation, self._learned_at = generation_K, samples

    @property
    def reports(self) -> int:
        """How many reports of usage came in; what hangs on usage alone is the same until it changes."""
        return self._reports

    def all(self) -> dict[str, Any]:
        """Whole vectors, by number."""
        usage, samples = self._counts()
        images, stamps = self._images()
        body = self._head(usage, samples)
        return body | {"usage": usage.tolist(), "images": images.tolist(), "stamps": stamps.tolist()}

    def busiest(self, top: int) -> dict[str, Any]:
        """A histogram, and the prototypes that are used most."""
        usage, samples = self._counts()
        body = self._head(usage, samples) | _histogram(usage)
        order = np.argsort(-usage, kind="stable")[:top]
        rows = self._rows(order, usage)
        keys = ("id", "usage", "images", "stamp")
        body["busiest"] = [{key: row[key] for key in keys} for row in rows if row["usage"] > 0]
        return body

    def table(self, *, sort: str = "size", rising: bool = False, offset: int = 0, count: int = 24) -> Any:
        """Some rows of all prototypes in an order, with the histogram.

        Args:
            sort: one of SORTS; what is not known yet (generation, cosine) leaves them in order of size.
            rising: smallest first.
            offset: rows left out at the beginning.
            count: rows at most.

        Raises:
            ValueError: there is no such order.
        """
        if sort not in SORTS:
            raise ValueError(f"sort must be one of {', '.join(SORTS)}, got {sort!r}")
        usage, samples = self._counts()
        by_size = np.argsort(-usage, kind="stable")
        values = self._values(sort, usage)
        if values is None:
            order = by_size[::-1] if rising else by_size
        else:  # among equals the larger first
            order = by_size[np.argsort(values[by_size] if rising else -values[by_size], kind="stable")]
        known = [name for name in SORTS if self._values(name, usage) is not None]
        body = self._head(usage, samples) | _histogram(usage)
        body |= {"sort": sort, "rising": rising, "offset": offset, "sorts": known}
        return body | {
            "changed_since": self._changed_since(),
            "rows": self._rows(order[offset : offset + count], usage),
        }

    def one(self, number: int) -> dict[str, Any]:
        """All about one prototype.

        Raises:
            IndexError: there is none of this number.
        """
        usage, samples = self._counts()
        if not 0 <= number < len(usage):
            raise IndexError(f"no prototype {number} of {len(usage)}")
        by_size = np.argsort(-usage, kind="stable")
        place = int(np.flatnonzero(by_size == number)[0])
        when, columns = self.history.columns()
        body = self._head(usage, samples) | self._rows(by_size[place : place + 1], usage)[0]
        return body | {
            "busier": int(by_size[place - 1]) if place else None,
            "quieter": int(by_size[place + 1]) if place + 1 < len(usage) else None,
            "changed_since": self._changed_since(),
            "trend": {"samples": when, "even_shares": [float(EVEN[column[number]]) for column in columns]},
            "nearest": self._nearest(number, usage),
            "nearest_at": self._learned_at,
        }

    def heatmap(self, order: str = "size") -> dict[str, Any]:
        """Usage over time: at most HEATMAP_ROWS rows, one for each column of the history.

        Args:
            order: size = rows of neighbours by size now; number = fixed rows of neighbours by number.

        Raises:
            ValueError: there is no such order.
        """
        if order not in HEATMAP_ORDERS:
            raise ValueError(f"order must be one of {', '.join(HEATMAP_ORDERS)}, got {order!r}")
        usage, _ = self._counts()
        reports, kept = self._reports, self._drawn.get(order)
        if kept is not None and kept[0] == reports:
            return kept[1]
        ids = np.argsort(-usage, kind="stable") if order == "size" else np.arange(len(usage))
        drawn = _drawn(heatmap(*self.history.columns(), ids, rows=HEATMAP_ROWS))
        body = {"reports": reports, "prototypes": len(usage), "order": order} | drawn
        self._drawn[order] = (reports, body)
        return body

    def _counts(self) -> tuple[Vector, int]:
        with self._lock:
            return self._usage, self._samples

    def _head(self, usage: Vector, samples: int) -> dict[str, Any]:
        side = 0 if self.exemplars is None else self.exemplars.side
        return {"prototypes": len(usage), "samples": samples, "thumb_px": side}

    def _images(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.exemplars is None:
            return np.zeros(len(self._usage), np.int64), np.zeros(len(self._usage), np.int64)
        return self.exemplars.counts(), self.exemplars.stamps()

    def _changed_since(self) -> int | None:
        before = self.history.before()
        return None if before is None else before[0]

    def _change(self, usage: Vector) -> Vector | None:
        before = self.history.before()
        return None if before is None else usage - before[1]

    def _values(self, sort: str, usage: Vector) -> NDArray[Any] | None:
        """What prototypes are sorted by; None while it is not known."""
        by: dict[str, Callable[[], NDArray[Any] | None]] = {
            "size": lambda: usage,
            "change": lambda: self._change(usage),
            "generation": lambda: self._generation,
            "cosine": self._all_cosines,
            # The smallest number first, unless asked otherwise, like the largest of everything else.
            "number": lambda: -np.arange(len(usage)),
        }
        return by[sort]()

    def _rows(self, chosen: NDArray[np.int64], usage: Vector) -> list[dict[str, Any]]:
        images, stamps = self._images()
        change, generation, cosines = self._change(usage), self._generation, self._all_cosines()
        ranks = np.empty(len(usage), np.int64)
        ranks[np.argsort(-usage, kind="stable")] = np.arange(1, len(usage) + 1)
        return [
            {
                "id": int(one),
                "usage": float(usage[one]),
                "rank": int(ranks[one]),
                "change": None if change is None else float(change[one]),
                "generation": None if generation is None else int(generation[one]),
                "cosine": None if cosines is None else float(cosines[one]),
                "images": int(images[one]),
                "stamp": int(stamps[one]),
            }
            for one in chosen
        ]

    def _all_cosines(self) -> Vector | None:
        """[K] cosine of each prototype with its nearest other one; worked out once a set of directions."""
        with self._lock:
            directions, known = self._directions, self._cosines
        if directions is None or not 2 <= len(directions) <= COSINES_MOST:
            return None
        if known is not None and known[0] is directions:
            return known[1]
        nearest: Vector = nearest_cosines(torch.from_numpy(directions)).numpy()
        with self._lock:
            self._cosines = (directions, nearest)
        return nearest

    def _nearest(self, number: int, usage: Vector) -> list[dict[str, Any]]:
        with self._lock:
            directions = self._directions
        if directions is None or len(directions) < 2:
            return []
        cosines = directions @ directions[number]
        cosines[number] = -2
        count = min(NEAREST, len(cosines) - 1)
        near = np.argpartition(-cosines, count - 1)[:count]
        near = near[np.argsort(-cosines[near], kind="stable")]
        rows = self._rows(near, usage)
        return [row | {"cosine": float(cosines[row["id"]])} for row in rows]


def _histogram(usage: Vector) -> dict[str, Any]:
    """How many prototypes get how much, in even shares; before the first report nothing was counted."""
    counted = usage if usage.any() else usage[:0]
    cells = share_histogram(torch.from_numpy(counted * len(usage)))
    return {"edges": list(USAGE_EDGES), "histogram": list(cells)}


def _drawn(made: Heatmap) -> dict[str, Any]:
    """A heatmap as JSON: `cells` are its bytes, row by row, in base 64; see `usage_history.encoded`."""
    single = all(len(part) == 1 for part in made.members)
    return {
        "samples": made.samples,
        "rows": [len(part) for part in made.members],
        "ids": [int(part[0]) for part in made.members] if single else None,
        "per_octave": PER_OCTAVE,
        "lowest_log2": LOWEST_LOG2,
        "cells": base64.b64encode(made.cells_RC.tobytes()).decode(),
    }
