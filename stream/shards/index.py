"""The index sidecar of a shard: where each record's members lie in the tar, and which digest its image has.

    header    64 bytes, little endian: magic, records, bytes of the tar, flags (1 = adopted, 2 = with labels),
              CRC-32 of the digests, of the rows and of the header
    digests   16 bytes a record: the first half of the SHA-256 of the image; zeros where it is not known
    rows      56 bytes a record: offset and size of the image, JSON and class members (offset 0 = there is
              none), and the extension of the image
    labels    only where flagged, for adopted tars whose labels are not in them: 8 bytes a record (class
              number, -1 = none; place of its name, from 1 on, 0 = none), the names as a JSON array, CRC-32

Digests come first and in one piece, so that all that a stream holds is known without reading the rows.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import StreamDamaged
from stream.storage import Bytes, LocalBytes
from stream.tar import Member

DIGEST_BYTES = 16
NO_DIGEST = bytes(DIGEST_BYTES)
_MAGIC = b"SWAVIDX1"
_HEADER = struct.Struct("<8sQQIIII")
_HEADER_BYTES = 64
_ADOPTED = 1
_LABELLED = 2
_LABEL = np.dtype([("label", "<i4"), ("name", "<u4")])
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
    label: int | None = None
    """Class number that was given at adoption."""
    label_name: str | None = None
    """Name of its class, given at adoption; where neither is, the tar's own members count."""


class ShardIndex:
    """The index of one shard, in memory: 72 bytes a record."""

    def __init__(
        self,
        rows: NDArray[Any],
        digests: bytes,
        tar_bytes: int,
        *,
        adopted: bool,
        labels: tuple[NDArray[Any], Sequence[str]] | None = None,
    ) -> None:
        self._rows = rows
        self._labels = labels
        self._digests = digests
        self.tar_bytes = tar_bytes
        self.adopted = adopted
        self.nbytes = rows.nbytes + len(digests)

    def __len__(self) -> int:
        """Records."""
        return int(self._rows.size)

    def row(self, number: int) -> IndexRow:
        """Where the members of a record lie."""
        label, label_name = self._label(number)
        digest = self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        return _row(self._rows[number], digest, label=label, label_name=label_name)

    @property
    def without_digest(self) -> int:
        """Records whose digest is not known."""
        return _without_digest(self._digests)

    def _label(self, number: int) -> tuple[int | None, str | None]:
        if self._labels is None:
            return None, None
        table, names = self._labels
        label, name = int(table[number]["label"]), int(table[number]["name"])
        return label if label >= 0 else None, names[name - 1] if name else None


class IndexFile:
    """The index of one shard, left where it is: a row is read when it is asked for, without its label.

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
        self.labelled = bool(flags & _LABELLED)
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

    @property
    def without_digest(self) -> int:
        """Records whose digest is not known. Raises StreamDamaged."""
        return _without_digest(read_digests(self._file, name=self._name, n=self._n))

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
    labels = _encode_labels(rows)
    flags = (_ADOPTED if adopted else 0) | (_LABELLED if labels else 0)
    head = _HEADER.pack(_MAGIC, len(rows), tar_bytes, flags, zlib.crc32(digests), zlib.crc32(body), 0)[:-4]
    head += struct.pack("<I", zlib.crc32(head))
    return head.ljust(_HEADER_BYTES, b"\0") + digests + body + labels


def _encode_labels(rows: Sequence[IndexRow]) -> bytes:
    """The section of labels; empty when no row has one."""
    if all(row.label is None and row.label_name is None for row in rows):
        return b""
    table = np.zeros(len(rows), _LABEL)
    names: dict[str, int] = {}
    for number, row in enumerate(rows):
        name = 0 if row.label_name is None else names.setdefault(row.label_name, len(names) + 1)
        table[number] = (-1 if row.label is None else row.label, name)
    body = table.tobytes() + json.dumps(list(names)).encode("ascii")
    return body + struct.pack("<I", zlib.crc32(body))


def _decode_labels(data: bytes, n: int, wrong: str) -> tuple[NDArray[Any], list[str]]:
    """Labels of n records and their names. Raises StreamDamaged, with the message `wrong`."""
    body, stated = data[:-4], data[-4:]
    end = n * _LABEL.itemsize
    if stated != struct.pack("<I", zlib.crc32(body)) or len(body) < end:
        raise StreamDamaged(wrong)
    table = np.frombuffer(body[:end], _LABEL)
    try:
        names = json.loads(body[end:])
    except (ValueError, RecursionError) as error:
        raise StreamDamaged(wrong) from error
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not sound or (n and (int(table["name"].max()) > len(names) or int(table["label"].min()) < -1)):
        raise StreamDamaged(wrong)
    return table, names


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
    rows_end = digests_end + n * _ROW.itemsize
    body, rest = data[digests_end:rows_end], data[rows_end:]
    wrong_check = f"shard index {name}: it is cut short or has a wrong checksum"
    if len(body) != n * _ROW.itemsize or zlib.crc32(digests) != digest_check or zlib.crc32(body) != row_check:
        raise StreamDamaged(wrong_check)
    labels = _decode_labels(rest, n, wrong_check) if flags & _LABELLED else None
    if rest and labels is None:
        raise StreamDamaged(wrong_check)
    rows = np.frombuffer(body, _ROW)
    _check_rows(rows, tar_bytes, name)
    return ShardIndex(rows, digests, tar_bytes, adopted=bool(flags & _ADOPTED), labels=labels)


def read_digests(file: Bytes, *, name: str, n: int) -> bytes:
    """16 bytes a record, without reading the rows. Raises StreamDamaged."""
    _, _, digest_check, _ = _header(file.read_at(0, _HEADER_BYTES), name, n)
    digests = file.read_at(_HEADER_BYTES, n * DIGEST_BYTES)
    if len(digests) != n * DIGEST_BYTES or zlib.crc32(digests) != digest_check:
        raise StreamDamaged(f"shard index {name}: its digests are cut short or have a wrong checksum")
    return digests


def _without_digest(digests: bytes) -> int:
    rows = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)
    return int((~rows.any(axis=1)).sum())


def _row(row: Any, digest: bytes, *, label: int | None = None, label_name: str | None = None) -> IndexRow:
    return IndexRow(
        image=Member(int(row["image"]), int(row["image_size"])),
        extension=bytes(row["extension"]).decode("ascii", "replace"),
        json=Member(int(row["json"]), int(row["json_size"])) if row["json"] else None,
        cls=Member(int(row["cls"]), int(row["cls_size"])) if row["cls"] else None,
        digest=digest,
        label=label,
        label_name=label_name,
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
