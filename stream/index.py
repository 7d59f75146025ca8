"""The index sidecar of a shard: where each record's members lie in the tar, and which digest its image has.

    header    64 bytes, little endian: magic, records, bytes of the tar, flags (1 = adopted), CRC-32 of the
              digests, of the rows and of the header
    digests   16 bytes a record: the first half of the SHA-256 of the image; zeros where it is not known
    rows      56 bytes a record: offset and size of the image, JSON and class members (offset 0 = there is
              none), and the extension of the image

Digests come first and in one piece, so that all that a stream holds is known without reading the rows.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import StreamDamaged
from stream.local_store import LocalBytes
from stream.store import Bytes

DIGEST_BYTES = 16
NO_DIGEST = bytes(DIGEST_BYTES)
_MAGIC = b"SWAVIDX1"
_HEADER = struct.Struct("<8sQQIIII")
_HEADER_BYTES = 64
_ADOPTED = 1
_ROW = np.dtype(
    [
        ("image", "<u8"),
        ("image_size", "<u4"),
        ("json", "<u8"),
        ("json_size", "<u4"),
        ("cls", "<u8"),
        ("cls_size", "<u4"),
        ("extension", "S20"),
    ]
)
ROW_BYTES = DIGEST_BYTES + _ROW.itemsize
"""Of one record in an index."""
LONGEST_EXTENSION = 20
LARGEST_MEMBER = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: where its bytes begin (its header is the 512 bytes before), and their number."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """Where the members of one record lie."""

    image: Member
    extension: str
    """Of the image member, lower case."""
    json: Member | None = None
    cls: Member | None = None
    digest: bytes = NO_DIGEST
    """First 16 bytes of the image's SHA-256."""


class ShardIndex:
    """The index of one shard, in memory: 72 bytes a record."""

    def __init__(self, rows: NDArray[Any], digests: bytes, tar_bytes: int, *, adopted: bool) -> None:
        self._rows = rows
        self._digests = digests
        self.tar_bytes = tar_bytes
        self.adopted = adopted
        self.nbytes = rows.nbytes + len(digests)

    def __len__(self) -> int:
        """Records."""
        return int(self._rows.size)

    def row(self, number: int) -> IndexRow:
        """Where the members of a record lie."""
        return _row(self._rows[number], self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])


class IndexFile:
    """The index of one shard, left where it is: a row is read when it is asked for.

    The checksum of all rows is not looked at then. What a row says is compared with the tar all the same: the
    header of each member, and the digest of the image.
    """

    def __init__(self, file: Bytes, *, name: str, n: int) -> None:
        """Read the header.

        Raises:
            StreamDamaged: it is not the index of so many records.
        """
        self.tar_bytes, flags, _, _ = _header(file.read_at(0, _HEADER_BYTES), name, n)
        self.adopted = bool(flags & _ADOPTED)
        self.local = isinstance(file, LocalBytes)
        self._file, self._name, self._n = file, name, n

    def __len__(self) -> int:
        """Records."""
        return self._n

    def row(self, number: int) -> IndexRow:
        """Where the members of a record lie. Raises StreamDamaged."""
        rows_at = _HEADER_BYTES + self._n * DIGEST_BYTES
        body = self._file.read_at(rows_at + number * _ROW.itemsize, _ROW.itemsize)
        digest = self._file.read_at(_HEADER_BYTES + number * DIGEST_BYTES, DIGEST_BYTES)
        if len(body) != _ROW.itemsize or len(digest) != DIGEST_BYTES:
            raise StreamDamaged(f"shard index {self._name}: it is cut short")
        rows = np.frombuffer(body, _ROW)
        _check_rows(rows, self.tar_bytes, self._name, first=number)
        return _row(rows[0], digest)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def encode_index(rows: Sequence[IndexRow], *, tar_bytes: int, adopted: bool) -> bytes:
    """The bytes of an index; `decode_index` reads them back."""
    table = np.zeros(len(rows), _ROW)
    for number, row in enumerate(rows):
        json_at = row.json or Member(0, 0)
        cls_at = row.cls or Member(0, 0)
        table[number] = (
            row.image.offset,
            row.image.size,
            json_at.offset,
            json_at.size,
            cls_at.offset,
            cls_at.size,
            row.extension.encode("ascii", "replace")[:LONGEST_EXTENSION],
        )
    digests = b"".join(row.digest for row in rows)
    body = table.tobytes()
    flags = _ADOPTED if adopted else 0
    head = _HEADER.pack(_MAGIC, len(rows), tar_bytes, flags, zlib.crc32(digests), zlib.crc32(body), 0)[:-4]
    head += struct.pack("<I", zlib.crc32(head))
    return head.ljust(_HEADER_BYTES, b"\0") + digests + body


def decode_index(data: bytes, *, name: str, n: int) -> ShardIndex:
    """Read an index.

    Args:
        data: its bytes.
        name: of the file, for messages.
        n: records that the commit says.

    Raises:
        StreamDamaged: not an index, not whole, of another number of records, or with a member outside of
            the tar.
    """
    tar_bytes, flags, digest_check, row_check = _header(data[:_HEADER_BYTES], name, n)
    digests_end = _HEADER_BYTES + n * DIGEST_BYTES
    digests = data[_HEADER_BYTES:digests_end]
    body = data[digests_end:]
    if len(body) != n * _ROW.itemsize or zlib.crc32(digests) != digest_check or zlib.crc32(body) != row_check:
        raise StreamDamaged(f"shard index {name}: it is cut short or has a wrong checksum")
    rows = np.frombuffer(body, _ROW)
    _check_rows(rows, tar_bytes, name)
    return ShardIndex(rows, digests, tar_bytes, adopted=bool(flags & _ADOPTED))


def read_digests(file: Bytes, *, name: str, n: int) -> bytes:
    """16 bytes a record, without reading the rows. Raises StreamDamaged."""
    _, _, digest_check, _ = _header(file.read_at(0, _HEADER_BYTES), name, n)
    digests = file.read_at(_HEADER_BYTES, n * DIGEST_BYTES)
    if len(digests) != n * DIGEST_BYTES or zlib.crc32(digests) != digest_check:
        raise StreamDamaged(f"shard index {name}: its digests are cut short or have a wrong checksum")
    return digests


def _row(row: Any, digest: bytes) -> IndexRow:
    return IndexRow(
        image=Member(int(row["image"]), int(row["image_size"])),
        extension=bytes(row["extension"]).decode("ascii", "replace"),
        json=Member(int(row["json"]), int(row["json_size"])) if row["json"] else None,
        cls=Member(int(row["cls"]), int(row["cls_size"])) if row["cls"] else None,
        digest=digest,
    )


def _check_rows(rows: NDArray[Any], tar_bytes: int, name: str, *, first: int = 0) -> None:
    """Raise StreamDamaged when a member of one of these rows, numbered from `first`, is outside the tar."""
    for kind in ("image", "json", "cls"):
        offsets, sizes = rows[kind], rows[f"{kind}_size"]
        # Offsets are compared before sums are built: 64-bit sums of hostile numbers would wrap.
        here = offsets > 0
        wrong = here & (
            (offsets < 512) | (offsets > tar_bytes) | (sizes > tar_bytes - np.minimum(offsets, tar_bytes))
        )
        if wrong.any() or (kind == "image" and not here.all()):
            raise StreamDamaged(
                f"shard index {name}: record {first + int(np.argmax(wrong | ~here))} lies outside the tar"
            )


def _header(head: bytes, name: str, n: int) -> tuple[int, int, int, int]:
    """Bytes of the tar, flags, checksum of digests, checksum of rows."""
    if len(head) < _HEADER_BYTES:
        raise StreamDamaged(f"shard index {name}: it ends inside its header")
    magic, count, tar_bytes, flags, digest_check, row_check, head_check = _HEADER.unpack_from(head)
    if magic != _MAGIC or zlib.crc32(head[: _HEADER.size - 4]) != head_check:
        raise StreamDamaged(f"shard index {name}: its header is not one of an index")
    if count != n:
        raise StreamDamaged(f"shard index {name}: it has {count} records, its commit says {n}")
    return tar_bytes, flags, digest_check, row_check
