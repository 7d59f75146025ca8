"""How records become samples, the same for every request of a loader, and what a reader is decoding.

What a reader is decoding is written to memory that outlives the reader. A decoder that crashes takes the
reader with it; the entry that it leaves names the record.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor
from stream.loader.shared_memory import anonymous

RecordRef = tuple[int, int]
"""Unit and index of a record, as in `Entry`."""
_FORM = struct.Struct("<qqq")


class InFlightRecord:
    """One record at a time; can be handed to a process when it is started."""

    def __init__(self) -> None:
        self._fd = anonymous()
        os.ftruncate(self._fd, _FORM.size)
        self._memory = mmap.mmap(self._fd, _FORM.size)

    def set(self, unit: int, index: int) -> None:
        """This record is being decoded from now on."""
        _FORM.pack_into(self._memory, 0, 1, unit, index)

    def clear(self) -> None:
        """No record is."""
        self._memory[0] = 0

    def current(self) -> RecordRef | None:
        """The record that is being decoded, or was when the reader died."""
        there, unit, index = _FORM.unpack_from(self._memory)
        return (unit, index) if there else None

    def latest(self) -> RecordRef:
        """The record that was decoded last, or is being decoded: it changes while a reader gets on."""
        _, unit, index = _FORM.unpack_from(self._memory)
        return unit, index

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        if self._fd >= 0:
            self._memory.close()
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being started: the descriptor itself is passed on.
        return _received, (reduction.DupFd(self._fd),)


def _received(descriptor: Any) -> InFlightRecord:
    record = InFlightRecord.__new__(InFlightRecord)
    record._fd = descriptor.detach()
    record._memory = mmap.mmap(record._fd, _FORM.size)
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPlan:
    """How records become samples; the same for every request of a loader."""

    seed: int
    chunk: int
    """C, samples of one chunk."""
    crops: tuple[CropConfig, ...]
    thumbnail_px: int
    max_pixels: int
    max_bad_fraction: float
    bad_window: int
    columns: int
    """Samples of one batch of this rank."""
    batch: int
    """B, samples of one batch of all ranks."""
    deadly: frozenset[RecordRef] = frozenset()
    """Records that are not decoded, because that kills."""
    accepted: int = 0
    """So many unusable records of a chunk or tail cost nothing of the budget: accepted beforehand."""
    in_flight: InFlightRecord | None = None
    """Where a reader process leaves the name of the record that it decodes."""

    def over_budget(self, read: int, bad: int) -> bool:
        """Whether so many records hold too many unusable ones."""
        return read >= self.bad_window and bad > self.max_bad_fraction * read


def plan_of(cursor: Cursor, crops: tuple[CropConfig, ...], config: ReaderConfig, *, lanes: int) -> ReadPlan:
    """The plan of a rank with so many lanes, of the run that the cursor is of."""
    return ReadPlan(
        seed=cursor.seed,
        chunk=cursor.chunk,
        crops=crops,
        thumbnail_px=config.thumbnail_px,
        max_pixels=config.max_pixels,
        max_bad_fraction=config.max_bad_fraction,
        bad_window=config.bad_window,
        columns=lanes * cursor.chunk,
        batch=cursor.lanes * cursor.chunk,
        deadly=frozenset(cursor.deadly),
    )
