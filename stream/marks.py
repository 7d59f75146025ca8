"""What a reader is decoding just now, told to its parent in memory that outlives the reader.

A decoder that crashes takes the reader with it; the mark it leaves names the record.
"""

import mmap
import os
import struct
from multiprocessing import reduction
from typing import Any

from stream.slabs import anonymous

Place = tuple[int, int]
"""Unit and index of a record, as in `Entry`."""
_FORM = struct.Struct("<qqq")


class Mark:
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

    def place(self) -> Place | None:
        """The record that is being decoded, or was when the reader died."""
        there, unit, index = _FORM.unpack_from(self._memory)
        return (unit, index) if there else None

    def latest(self) -> Place:
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


def _received(descriptor: Any) -> Mark:
    mark = Mark.__new__(Mark)
    mark._fd = descriptor.detach()
    mark._memory = mmap.mmap(mark._fd, _FORM.size)
    return mark
