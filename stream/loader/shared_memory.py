"""Memory in which reader processes lay out whole batches, shared without names.

A frame is the memory of one batch in work, laid out as the learner gets it. A buffer is some frames. Its
memory is anonymous (memfd on Linux, else a file that is unlinked at once). So it is gone with the last
process that maps it, however that process ends, and the size of /dev/shm does not matter.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from stream.config import CropConfig
from stream.errors import StreamError
from stream.images.crops import UNIFORMS_PER_VIEW, num_views
from stream.machine import free_memory
from stream.processes import anonymous_memory

KEY_BYTES = 64
"""Length of a hex SHA-256."""
_ALIGNMENT = 64
_SHARE_OF_FREE_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class BatchFrame:
    """Memory of one batch; B columns, one a sample."""

    crops: tuple[Tensor, ...]
    """For each kind [count, B, 3, S, S] uint8."""
    uniforms: Tensor
    """[n_views, B, UNIFORMS_PER_VIEW] float32."""
    thumbs: Tensor
    """[B, 3, T, T] uint8; T may be 0."""
    seq_B: Tensor
    """[B] int64."""
    refs_B2: Tensor
    """[B, 2] int64."""
    keys: Tensor
    """[B, KEY_BYTES] uint8, ASCII; zeros where a record states no digest."""

    def columns(self, some: slice) -> "BatchFrame":
        """Some of the columns, in the same memory."""
        return BatchFrame(
            crops=tuple(kind[:, some] for kind in self.crops),
            uniforms=self.uniforms[:, some],
            thumbs=self.thumbs[some],
            seq_B=self.seq_B[some],
            refs_B2=self.refs_B2[some],
            keys=self.keys[some],
        )


def joined_frame(parts: Sequence[BatchFrame]) -> BatchFrame:
    """The columns of several frames, in memory of their own."""
    return BatchFrame(
        crops=tuple(torch.cat(kind, 1) for kind in zip(*(part.crops for part in parts), strict=True)),
        uniforms=torch.cat([part.uniforms for part in parts], 1),
        thumbs=torch.cat([part.thumbs for part in parts]),
        seq_B=torch.cat([part.seq_B for part in parts]),
        refs_B2=torch.cat([part.refs_B2 for part in parts]),
        keys=torch.cat([part.keys for part in parts]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameLayout:
    """Shapes of a frame."""

    crops: tuple[CropConfig, ...]
    thumbnail_px: int
    columns: int
    """B, samples of one batch of this rank."""

    def shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor of a frame, in the order of `BatchFrame`."""
        columns, px = self.columns, self.thumbnail_px
        crops = [((c.count, columns, 3, c.size, c.size), torch.uint8) for c in self.crops]
        return [
            *crops,
            ((num_views(self.crops), columns, UNIFORMS_PER_VIEW), torch.float32),
            ((columns, 3, px, px), torch.uint8),
            ((columns,), torch.int64),
            ((columns, 2), torch.int64),
            ((columns, KEY_BYTES), torch.uint8),
        ]

    def num_bytes(self) -> int:
        """Size of one frame, a multiple of the alignment."""
        return sum(_aligned(_bytes_of(shape, dtype)) for shape, dtype in self.shapes())

    def frame(self, memory: mmap.mmap, offset: int) -> BatchFrame:
        """The frame that begins at `offset` of some writable memory."""
        tensors = []
        for shape, dtype in self.shapes():
            size = _bytes_of(shape, dtype)
            if size:
                flat = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset)
                tensors.append(flat.view(dtype).view(shape))
            else:
                tensors.append(torch.empty(shape, dtype=dtype))
            offset += _aligned(size)
        kinds = len(self.crops)
        return BatchFrame(tuple(tensors[:kinds]), *tensors[kinds:])


def _bytes_of(shape: Sequence[int], dtype: torch.dtype) -> int:
    size = dtype.itemsize
    for side in shape:
        size *= side
    return size


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class SharedBuffer:
    """Frames in memory that can be handed to a reader process when it is started.

    Args:
        layout: of each frame.
        num_frames: >= 1.

    Raises:
        StreamError: there is not so much memory.
    """

    def __init__(self, layout: FrameLayout, num_frames: int) -> None:
        self.layout = layout
        self.num_frames = num_frames
        self._fd = _allocate(layout.num_bytes() * num_frames, layout, num_frames)
        self.frames = self._map()

    def _map(self) -> tuple[BatchFrame, ...]:
        # The tensors keep the mapping alive; it goes when the last of them does.
        size = self.layout.num_bytes()
        memory = mmap.mmap(self._fd, size * self.num_frames)
        return tuple(self.layout.frame(memory, number * size) for number in range(self.num_frames))

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being started: the descriptor itself is passed on.
        return _received, (self.layout, self.num_frames, reduction.DupFd(self._fd))

    def close(self) -> None:
        """Let go of the memory; frames that are still referred to stay valid. May be called twice."""
        self.frames = ()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SharedBytes:
    """Bytes that one process lays down and its readers read by their place; memory without a name.

    It is written and read by calls, not mapped, so memory that is missing is an error and no signal.
    """

    def __init__(self) -> None:
        self._fd = anonymous_memory()
        self._end = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Only while a process is being started, as above.
        return _received_bytes, (reduction.DupFd(self._fd),)

    def clear(self) -> None:
        """What is written from here on takes the place of all before; no reader may need that any more."""
        self._end = 0

    def append(self, data: bytes) -> int:
        """Lay down some bytes; their place.

        Raises:
            StreamError: there is not so much memory.
        """
        start, left = self._end, memoryview(data)
        try:
            while left:
                left = left[os.pwrite(self._fd, left, self._end + len(data) - len(left)) :]
        except OSError as error:
            raise StreamError(
                f"cannot reserve {len(data) / 2**20:.0f} MiB of memory for the images of a replay "
                f"({error.strerror}): lower replay.updates or the batch"
            ) from error
        self._end += len(data)
        return start

    def read(self, start: int, size: int) -> bytes:
        """So many bytes from a place on."""
        found = os.pread(self._fd, size, start)
        while len(found) < size:  # one call gives less than 2 GiB
            more = os.pread(self._fd, size - len(found), start + len(found))
            assert more, "they were laid down before their place was told"
            found += more
        return found

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _received_bytes(descriptor: Any) -> SharedBytes:
    shared = SharedBytes.__new__(SharedBytes)
    shared._fd, shared._end = descriptor.detach(), 0
    return shared


def _received(layout: FrameLayout, num_frames: int, descriptor: Any) -> SharedBuffer:
    buffer = SharedBuffer.__new__(SharedBuffer)
    buffer.layout, buffer.num_frames = layout, num_frames
    buffer._fd = descriptor.detach()
    buffer.frames = buffer._map()
    return buffer


def _allocate(size: int, layout: FrameLayout, num_frames: int) -> int:
    """Descriptor of `size` bytes of memory that is reserved now: a page that is missing later is a SIGBUS."""
    want = (
        f"{size / 2**20:.0f} MiB of shared memory for {num_frames} batches of {layout.columns} samples; "
        "lower reader.prefetch, the batch or the crops, or replay.updates"
    )
    free = free_memory()
    if free is not None and size > free * _SHARE_OF_FREE_MEMORY:
        raise StreamError(f"only {free / 2**20:.0f} MiB of memory are free, reading needs {want}")
    fd = anonymous_memory()
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise StreamError(f"cannot reserve {want} ({error.strerror})") from error
    return fd
