"""The bytes of an archive, plain or compressed (gzip, bzip2, xz), read forward with bounds.

Memory never follows what a file claims: what is compressed is inflated in small pieces, its yield against
what was read is watched, and what was inflated before a damaged place is still given out.
"""

import bz2
import lzma
import os
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

GZIP_MAGIC = b"\x1f\x8b"
BZIP2_MAGIC = b"BZh"
XZ_MAGIC = b"\xfd7zXZ\x00"
XZ_MEMORY_BYTES = 256 * 1024 * 1024
"""What xz may take to unpack; `xz -9` asks for 65 MiB of whoever unpacks."""
READ_BYTES = 256 * 1024
PIECE_BYTES = 64 * 1024
BOMB_RATIO = 150
"""Inflated over deflated bytes: tars of photographs reach 5, of flat drawings 100, bombs 200 to 1,000."""
BOMB_BYTES = 256 * 1024 * 1024
"""Inflated bytes from which the ratio counts: less does no harm."""


class ArchiveBytes(Protocol):
    """The content of one archive, read once from its beginning; not thread-safe."""

    position: int
    """Bytes of content before the next `read`."""
    damage: str
    """Reason why the content ended early; empty while it did not."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only where the content ends. May raise OSError."""
        ...

    def skip(self, count: int) -> int:
        """Go past `count` bytes; how many there were."""
        ...

    def unread(self, data: bytes) -> None:
        """Give back the last bytes that were read."""
        ...

    def remaining(self) -> int | None:
        """Bytes left, where that can be known."""
        ...


def open_bytes(file: BinaryIO) -> ArchiveBytes:
    """Content of an open archive; how it is compressed is known by its first bytes, never by the name."""
    magic = file.read(len(XZ_MAGIC))
    file.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return GzipBytes(file)
    if magic.startswith(BZIP2_MAGIC):
        return PackedBytes(file, bz2.BZ2Decompressor, BZIP2_MAGIC)
    if magic == XZ_MAGIC:
        return PackedBytes(file, _xz, XZ_MAGIC)
    return PlainBytes(file)


def first_bytes(file: BinaryIO, count: int) -> tuple[bytes, bytes]:
    """The first bytes of an open file, and of what is compressed in it (none when nothing is)."""
    head = file.read(count)
    file.seek(0)
    packed = head.startswith((GZIP_MAGIC, BZIP2_MAGIC, XZ_MAGIC))
    return head, open_bytes(file).read(count) if packed else b""


class PlainBytes:
    """Content of a file as it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.damage = ""

    def read(self, count: int) -> bytes:
        """See ArchiveBytes."""
        got = self._file.read(min(count, max(0, self._size - self.position)))
        self.position += len(got)
        return got

    def skip(self, count: int) -> int:
        """See ArchiveBytes."""
        there = min(count, max(0, self._size - self.position))
        self._file.seek(there, os.SEEK_CUR)
        self.position += there
        return there

    def unread(self, data: bytes) -> None:
        """See ArchiveBytes."""
        self._file.seek(-len(data), os.SEEK_CUR)
        self.position -= len(data)

    def remaining(self) -> int | None:
        """See ArchiveBytes."""
        return max(0, self._size - self.position)


class GzipBytes:
    """Content of a gzip file, of one or several members."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(wbits=31)
        self._fresh = True  # no byte of the current gzip member was taken yet
        self._input = b""
        self._ready = memoryview(b"")
        self._consumed = 0
        self._produced = 0
        self._ended = False
        self.position = 0
        self.damage = ""

    def read(self, count: int) -> bytes:
        """See ArchiveBytes."""
        pieces: list[memoryview] = []
        wanted = count
        while wanted > 0 and (piece := self._take(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def skip(self, count: int) -> int:
        """See ArchiveBytes."""
        wanted = count
        while wanted > 0 and (piece := self._take(wanted)):
            wanted -= len(piece)
        return count - wanted

    def unread(self, data: bytes) -> None:
        """See ArchiveBytes."""
        self._ready = memoryview(data + bytes(self._ready))
        self.position -= len(data)

    def remaining(self) -> int | None:
        """See ArchiveBytes."""
        return None

    def _take(self, most: int) -> memoryview:
        if not self._ready:
            self._ready = memoryview(self._inflate())
        piece, self._ready = self._ready[:most], self._ready[most:]
        self.position += len(piece)
        return piece

    def _inflate(self) -> bytes:
        while not self._ended:
            if not self._input:
                self._input = self._file.read(READ_BYTES)
                self._consumed += len(self._input)
            at_end = not self._input
            if self._fresh and self._between_members(at_end):
                break
            piece = self._piece()
            self._produced += len(piece)
            if self._produced > BOMB_BYTES and self._produced > BOMB_RATIO * self._consumed:
                self._end("gzip_bomb")
                break
            if piece:
                return piece
            if at_end and not self._fresh:
                self._end("archive_cut")
        return b""

    def _between_members(self, at_end: bool) -> bool:
        """Whether the content ends here: at the end of the file, or where no further gzip member begins."""
        if self._consumed > len(self._input) and not at_end and not self._input.startswith(GZIP_MAGIC[:1]):
            # Zeros after the last member are padding; anything else is not ours, and is said.
            rest = self._input.strip(b"\0")
            self._end("gzip_damaged" if rest else "")
        elif at_end:
            self._end("")
        else:
            self._fresh = False
        return self._ended

    def _piece(self) -> bytes:
        before = self._inflater.copy()
        try:
            piece = self._inflater.decompress(self._input, PIECE_BYTES)
        except zlib.error:
            piece = _salvage(before, self._input)
            self._end("gzip_damaged")
            return piece
        if self._inflater.eof:
            self._input = self._inflater.unused_data
            self._inflater = zlib.decompressobj(wbits=31)
            self._fresh = True
        else:
            self._input = self._inflater.unconsumed_tail
        return piece

    def _end(self, damage: str) -> None:
        self._ended = True
        self.damage = self.damage or damage
        self._input = b""


class _Unpacker(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _xz() -> _Unpacker:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)


class PackedBytes(GzipBytes):
    """Content of a bzip2 or xz file, of one or several streams; what is given out in pieces is as for gzip.

    The checksum of a block (bzip2) or its end (xz) is read before the library gives an error, so a damaged
    place costs the rest of its block.
    """

    def __init__(self, file: BinaryIO, unpacker: Callable[[], _Unpacker], magic: bytes) -> None:
        super().__init__(file)
        self._new = unpacker
        self._magic = magic
        self._unpacker = unpacker()
        self._at_end = False

    def _inflate(self) -> bytes:
        while not self._ended:
            if not self._input and not self._at_end and self._unpacker.needs_input:
                self._input = self._file.read(READ_BYTES)
                self._consumed += len(self._input)
                self._at_end = not self._input
            if self._unpacker.eof and self._between_streams():
                break
            if self._at_end and not self._input and self._unpacker.needs_input:
                self._end("archive_cut")
                break
            try:
                piece = self._unpacker.decompress(self._input, PIECE_BYTES)
            except (OSError, lzma.LZMAError, EOFError):  # OSError is bz2's word for data that cannot be right
                self._end("packed_damaged")
                break
            self._input = self._unpacker.unused_data if self._unpacker.eof else b""
            self._produced += len(piece)
            if self._produced > BOMB_BYTES and self._produced > BOMB_RATIO * self._consumed:
                self._end("packed_bomb")
                break
            if piece:
                return piece
        return b""

    def _between_streams(self) -> bool:
        """Whether the content ends here: at the end of the file, or where no further stream begins."""
        while len(self._input) < len(self._magic) and (more := self._file.read(READ_BYTES)):
            self._input += more
            self._consumed += len(more)
        if not self._input.startswith(self._magic):
            # Zeros behind the last stream are padding; anything else is not ours, and is said.
            self._end("packed_damaged" if self._input.strip(b"\0") else "")
            return True
        self._unpacker = self._new()
        return False


def _salvage(inflater: "zlib._Decompress", data: bytes) -> bytes:
    """What comes out before the damaged place; an inflater gives nothing of the call in which it fails."""
    found = bytearray()
    while True:
        before = inflater.copy()
        try:
            piece = inflater.decompress(data, 256)
        except zlib.error:
            return bytes(found + _bytewise(before, data))
        if not piece:
            return bytes(found)
        found += piece
        data = inflater.unconsumed_tail


def _bytewise(inflater: "zlib._Decompress", data: bytes) -> bytes:
    found = bytearray()
    while True:
        try:
            piece = inflater.decompress(data, 1)
        except zlib.error:
            return bytes(found)
        if not piece:
            return bytes(found)
        found += piece
        data = inflater.unconsumed_tail
