"""Walks a tar that nobody vouches for: where each file in it lies, without taking its word for anything.

Headers are read, data is not. No size is believed beyond the end of the tar, no memory is taken for one, and
no name is ever used as a path. After a header that is none, the walk goes on at the next one that is (by its
magic and checksum), as long as there is one; at two blocks of zeros the archive ends, as for tar itself.

Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stream.errors import StreamError
from stream.store import Bytes

BLOCK_BYTES = 512
_MOST_META_BYTES = 1 << 20
"""A longer extended header or long name is damage."""
_SCAN_BYTES = 1 << 20
_AHEAD_BYTES = 1 << 18
_ZEROS = bytes(BLOCK_BYTES)
_REGULAR = b"0\x007"
_WITHOUT_DATA = b"123456"
_COMPRESSED: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True, slots=True)
class TarFile:
    """One regular file in a tar."""

    name: str
    """As the tar states it; may hold anything."""
    offset: int
    """Where its bytes begin; the 512 bytes before are its header."""
    size: int


@dataclass(frozen=True, slots=True)
class TarDamage:
    """Something in the tar that could not be read."""

    reason: str
    """truncated (the tar ends inside it), damaged_tar (no header where one must be), after_end (there is more
    behind the end of the archive), odd_member (a sparse file, or one of two sizes)."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """One header block."""

    name: str
    size: int
    kind: bytes
    """Type flag."""


def parse_header(block: bytes) -> TarHeader | None:
    """Read a header block of 512 bytes; None when it is none (wrong checksum or size)."""
    if len(block) != BLOCK_BYTES:
        return None
    stated, size = _number(block[148:156]), _number(block[124:136])
    if stated is None or size is None:
        return None
    plain = sum(block) - sum(block[148:156]) + 8 * 32
    # Some old programs summed signed bytes.
    if stated != plain and stated != plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        return None
    name = block[:100].split(b"\0", 1)[0]
    # POSIX archives have a prefix here; GNU's have other things under "ustar  ".
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    return TarHeader(name.decode("utf-8", "replace"), size, block[156:157])


def walk_tar(file: Bytes, url: str) -> Iterator[TarFile | TarDamage]:
    """Every regular file of a plain tar, in order, and what could not be read.

    Args:
        file: the tar.
        url: its address, for messages.

    Raises:
        StreamError: it is compressed, or no tar at all.
    """
    source = _ReadAhead(file)
    head = source.read_at(0, BLOCK_BYTES)
    for magic, method in _COMPRESSED.items():
        if head.startswith(magic):
            raise StreamError(f"{url} is compressed with {method}: only a plain tar can be read in place")
    if head != _ZEROS and parse_header(head) is None:
        raise StreamError(f"{url} is not a tar")
    at, meta = 0, _Meta()
    while at < file.size:
        block = source.read_at(at, BLOCK_BYTES)
        header = parse_header(block)
        if header is None:
            ends = block == _ZEROS and source.read_at(at + BLOCK_BYTES, BLOCK_BYTES) in (_ZEROS, b"")
            found = _next_header(source, at + BLOCK_BYTES, file.size)
            if reason := _loss(block, ends=ends, more=found is not None):
                yield TarDamage(reason)
            if ends or found is None:
                return
            at, meta = found, _Meta()
            continue
        at = _behind_sparse_map(source, at + BLOCK_BYTES, header, block)
        size = 0 if header.kind in _WITHOUT_DATA else header.size
        if at + size > file.size:
            yield TarDamage("truncated", meta.name or header.name)
            return
        if not meta.take_in(source, header, at):
            name = meta.name or header.name
            if header.kind == b"S" or (header.kind in _REGULAR and meta.odd(header)):
                yield TarDamage("odd_member", name)
            elif header.kind in _REGULAR and not header.name.endswith("/"):
                yield TarFile(name, at, size)
            meta = _Meta()
        at += -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _loss(block: bytes, *, ends: bool, more: bool) -> str:
    """Which damage it means that no header stands where one could be; empty when it means none."""
    if ends:
        return "after_end" if more else ""
    if len(block) < BLOCK_BYTES:
        return "truncated"
    return "" if block == _ZEROS else "damaged_tar"


class _Meta:
    """What extended headers say of the file that follows them."""

    def __init__(self) -> None:
        self.name = ""
        self._size: int | None = None
        self._sparse = False

    def take_in(self, source: "_ReadAhead", header: TarHeader, at: int) -> bool:
        """Read a header that is about the next one; False when this one is a file by itself."""
        if header.kind not in b"xgLK":
            return False
        if header.kind in b"xL" and header.size <= _MOST_META_BYTES:
            data = source.read_at(at, header.size)
            if header.kind == b"L":
                self.name = data.split(b"\0", 1)[0].decode("utf-8", "replace")
            else:
                self._read_pax(data)
        return True

    def odd(self, header: TarHeader) -> bool:
        """Whether the bytes behind the header are not simply the file: sparse, or of another size."""
        return self._sparse or (self._size is not None and self._size != header.size)

    def _read_pax(self, data: bytes) -> None:
        at = 0
        while match := re.compile(rb"([0-9]{1,8}) ([^=\n]{1,200})=").match(data, at):
            stop = at + int(match[1])
            if stop <= match.end() or stop > len(data):
                return
            key, value = match[2], data[match.end() : stop - 1]
            if key == b"path":
                self.name = value.decode("utf-8", "replace")
            elif key == b"size":
                self._size = int(value) if re.fullmatch(rb"[0-9]{1,19}", value) else -1
            elif key.startswith(b"GNU.sparse"):
                self._sparse = True
            at = stop


class _ReadAhead:
    """Reads a little more than asked, so that walking a remote tar is not one request a header."""

    def __init__(self, file: Bytes) -> None:
        self._file = file
        self._at = 0
        self._data = b""

    def read_at(self, offset: int, length: int) -> bytes:
        start = offset - self._at
        if not 0 <= start <= len(self._data) - length:
            self._data = self._file.read_at(offset, max(length, _AHEAD_BYTES))
            self._at, start = offset, 0
        return self._data[start : start + length]


def _behind_sparse_map(source: _ReadAhead, at: int, header: TarHeader, block: bytes) -> int:
    """Where the data of a GNU sparse file begins: behind the further blocks of its map."""
    more = header.kind == b"S" and block[482:483] not in (b"", b"\0")
    while more:
        block = source.read_at(at, BLOCK_BYTES)
        at += BLOCK_BYTES
        more = block[504:505] not in (b"", b"\0")
    return at


def _next_header(source: _ReadAhead, at: int, end: int) -> int | None:
    """Where the next block lies, from `at` on, that is a header with magic and checksum."""
    while at < end:
        data = source.read_at(at, _SCAN_BYTES)
        found = data.find(b"ustar")
        while found >= 0:
            start = found - 257
            if start >= 0 and start % BLOCK_BYTES == 0 and parse_header(data[start : start + BLOCK_BYTES]):
                return at + start
            found = data.find(b"ustar", found + 1)
        at += _SCAN_BYTES
    return None


def _number(field: bytes) -> int | None:
    """A number of a header: octal text, or big endian binary behind a set high bit; None if neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    return int(text, 8) if re.fullmatch(rb"[0-7]+", text) else None
