"""The content of a compressed tar (gzip, bzip2, xz), read forward with bounds; a plain one: stream/tar.py.

Memory never follows what a file claims: gzip is inflated in small pieces, and its yield against what was read
is watched. Every gzip member is read to its checksum; where it is wrong, nothing of that member is taken,
since the checksum does not tell the place. Where inflating fails there is a place, and what was inflated more
than `DOUBTFUL_BYTES` before it is taken. Measured with 11,100 single flipped bits in tars of JPEG and BMP
images: the checksum alone told 10,946; inflating failed for 154, and 75 of these had changed something before
the place of failure, at most 96,233 bytes before it. A file that is cut has no checksum: what it has is
taken.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from stream.storage import Bytes, LocalBytes
from stream.tar import BLOCK_BYTES, StoredTar, TarBytes

GZIP_MAGIC = b"\x1f\x8b"
BZIP2_MAGIC = b"BZh"
XZ_MAGIC = b"\xfd7zXZ\x00"
XZ_MEMORY_BYTES = 256 * 1024 * 1024
"""What xz may take to unpack; `xz -9` asks for 65 MiB of whoever unpacks."""
READ_BYTES = 256 * 1024
PIECE_BYTES = 64 * 1024
DOUBTFUL_BYTES = 1024 * 1024
"""Of what was inflated before a place where inflating fails, so much is not vouched for."""
BOMB_RATIO = 150
"""Inflated over deflated bytes: tars of photographs reach 5, of flat drawings 100, bombs 200 to 1,000."""
BOMB_BYTES = 256 * 1024 * 1024
"""Inflated bytes from which the ratio counts: less does no harm."""
_MOST_HEADER_BYTES = 1 << 20
_TRAILER_BYTES = 8
_AHEAD_BYTES = 1 << 14


def open_content(file: Bytes, length: int | None = None) -> TarBytes:
    """Content of an archive; how it is compressed is known by its first bytes, never by the name.

    Args:
        file: the archive.
        length: of the content, where it is known.
    """
    magic = file.read_at(0, len(XZ_MAGIC))
    if magic.startswith(GZIP_MAGIC):
        return GzipBytes(file, length)
    if magic.startswith(BZIP2_MAGIC):
        return PackedBytes(file, length, bz2.BZ2Decompressor, BZIP2_MAGIC)
    if magic == XZ_MAGIC:
        return PackedBytes(file, length, _xz, XZ_MAGIC)
    return StoredTar(file, ahead=_AHEAD_BYTES)


def first_block(file: Bytes) -> bytes:
    """What may be the first header of an archive, filled up with zeros."""
    return open_content(file).read(BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")


def first_bytes(path: Path, count: int) -> tuple[bytes, bytes]:
    """The first bytes of a file, and of what is compressed in it (none when nothing is). Raises OSError."""
    file = LocalBytes(path)
    try:
        head = file.read_at(0, count)
        packed = head.startswith((GZIP_MAGIC, BZIP2_MAGIC, XZ_MAGIC))
        return head, open_content(file).read(count) if packed else b""
    finally:
        file.close()


class GzipBytes:
    """Content of a gzip file, of one or several members. Source: RFC 1952."""

    def __init__(self, file: Bytes, length: int | None = None) -> None:
        self._file = file
        self._length = length
        self._inflater: zlib._Decompress | None = None
        self._input = b""
        self._ready = memoryview(b"")
        self._consumed = 0
        self._produced = 0
        self._begun = 0  # content before the current member
        self._check = 0
        self._ended = False
        self._suspect: list[tuple[int, int]] = []
        self.position = 0
        self.damage = ""

    @property
    def suspect(self) -> Sequence[tuple[int, int]]:
        """See TarBytes."""
        return self._suspect

    @property
    def consumed(self) -> int:
        """See TarBytes."""
        return self._consumed

    def read(self, count: int) -> bytes:
        """See TarBytes."""
        pieces: list[memoryview] = []
        wanted = count
        while wanted > 0 and (piece := self._take(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def skip(self, count: int) -> int:
        """See TarBytes."""
        wanted = count
        while wanted > 0 and (piece := self._take(wanted)):
            wanted -= len(piece)
        return count - wanted

    def remaining(self) -> int | None:
        """See TarBytes."""
        return None if self._length is None else max(0, self._length - self.position)

    def _take(self, most: int) -> memoryview:
        if not self._ready:
            self._ready = memoryview(self._inflate())
        piece, self._ready = self._ready[:most], self._ready[most:]
        self.position += len(piece)
        return piece

    def _inflate(self) -> bytes:
        while not self._ended:
            if self._inflater is None:
                self._begin_member()
            elif piece := self._piece(self._inflater):
                return piece
        return b""

    def _fill(self) -> bool:
        """Read more of the file; False at its end."""
        more = self._file.read_at(self._consumed, READ_BYTES)
        self._consumed += len(more)
        self._input += more
        return bool(more)

    def _begin_member(self) -> None:
        if not self._input and not self._fill():
            self._end("")
            return
        if self._consumed > len(self._input) and self._input[:1] != GZIP_MAGIC[:1]:
            # Zeros after the last member are padding; anything else is not ours, and is said.
            self._end("gzip_damaged" if self._input.strip(b"\0") else "")
            return
        while (length := _header_bytes(self._input)) == 0 and len(self._input) < _MOST_HEADER_BYTES:
            if not self._fill():
                self._end("archive_cut")
                return
        if length <= 0:
            self._end("gzip_damaged")
            return
        self._input = self._input[length:]
        self._inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._begun, self._check = self._produced, 0

    def _piece(self, inflater: "zlib._Decompress") -> bytes:
        more = bool(self._input) or self._fill()
        before = inflater.copy()
        try:
            piece = inflater.decompress(self._input, PIECE_BYTES)
        except zlib.error:
            piece = _salvage(before, self._input)
            self._produced += len(piece)
            self._suspect.append((max(self._begun, self._produced - DOUBTFUL_BYTES), self._produced))
            self._end("gzip_damaged")
            return piece
        self._produced += len(piece)
        self._check = zlib.crc32(piece, self._check)
        if inflater.eof:
            self._input = inflater.unused_data
            self._end_member()
        else:
            self._input = inflater.unconsumed_tail
            if not piece and not more:
                self._end("archive_cut")
        if self._produced > BOMB_BYTES and self._produced > BOMB_RATIO * self._consumed:
            self._end("gzip_bomb")
            return b""
        return piece

    def _end_member(self) -> None:
        """Compare the checksum and the length of a member."""
        self._inflater = None
        while len(self._input) < _TRAILER_BYTES:
            if not self._fill():
                self._end("archive_cut")
                return
        trailer, self._input = self._input[:_TRAILER_BYTES], self._input[_TRAILER_BYTES:]
        length = (self._produced - self._begun) & 0xFFFFFFFF
        if trailer != self._check.to_bytes(4, "little") + length.to_bytes(4, "little"):
            self._suspect.append((self._begun, self._produced))

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

    def __init__(
        self, file: Bytes, length: int | None, unpacker: Callable[[], _Unpacker], magic: bytes
    ) -> None:
        super().__init__(file, length)
        self._new = unpacker
        self._magic = magic
        self._unpacker = unpacker()
        self._at_end = False

    def _inflate(self) -> bytes:
        while not self._ended:
            if not self._input and not self._at_end and self._unpacker.needs_input:
                self._at_end = not self._fill()
            if self._unpacker.eof and self._between_streams():
                break
            if self._at_end and not self._input and self._unpacker.needs_input:
                self._end("archive_cut")
                break
            try:
                piece = self._unpacker.decompress(self._input, PIECE_BYTES)
            except (OSError, lzma.LZMAError, EOFError):  # OSError is bz2's word for data that cannot be right
                self._suspect.append((max(self._begun, self._produced - DOUBTFUL_BYTES), self._produced))
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
        while len(self._input) < len(self._magic) and self._fill():
            pass
        if not self._input.startswith(self._magic):
            # Zeros behind the last stream are padding; anything else is not ours, and is said.
            self._end("packed_damaged" if self._input.strip(b"\0") else "")
            return True
        self._unpacker = self._new()
        self._begun = self._produced
        return False


def _header_bytes(data: bytes) -> int:
    """Bytes of the header of a gzip member; 0 when there is not enough data to know, -1 when it is none."""
    if len(data) < 12:
        return 0
    if data[:3] != GZIP_MAGIC + b"\x08" or data[3] & 0xE0:
        return -1
    flags, at = data[3], 10
    if flags & 4:
        at = 12 + int.from_bytes(data[10:12], "little")
    for flag in (8, 16):  # a name and a comment, each ended by a zero
        if flags & flag:
            end = data.find(b"\0", at)
            if end < 0:
                return 0
            at = end + 1
    at += 2 * bool(flags & 2)
    return at if at <= len(data) else 0


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
