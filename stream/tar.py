"""Walks a tar that cannot be trusted: where each file in it lies, and a reason for everything that is lost.

No size is believed beyond the end of the tar, no memory is taken for one, no name is used as a path, and no
link is followed. Where no header can be read, the walk looks for the next one that can. Two blocks of zeros
are no end: archives are joined by `cat`, and downloads have holes, so the walk goes on when members follow.

Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" and "Sparse Formats".
"""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream.errors import StreamError
from stream.file_types import HEAD_BYTES
from stream.storage import Bytes

BLOCK_BYTES = 512
MOST_META_BYTES = 1 << 20
"""Long names, extended headers, .cls and .json members above this are not read."""

TAR_REASONS: Mapping[str, str] = {
    # of a tar
    "not_an_archive": "no tar and no zip in a file that is named like one",
    "archive_cut": "the archive ends inside a member",
    "archive_damaged": "a stretch in which no header can be read",
    "archive_hole": "zeros among the members; what stood there, if anything, is gone",
    "archive_size": "a header that claims more bytes than follow",
    "gzip_damaged": "compressed data that cannot be right, an image in it, or something else after its end",
    "gzip_bomb": "compressed data that grows beyond reason",
    "packed_damaged": "as gzip_damaged, of bzip2 or xz",
    "packed_bomb": "as gzip_bomb, of bzip2, xz or zip",
    # of an image in it
    "unsupported_name": "neither its name nor its first bytes are those of an image or archive that is read",
    "empty": "a file or image without bytes",
    "link": "a link inside an archive",
    "not_a_file": "a folder, pipe or device under the name of an image",
    "sparse": "a file with holes, as `tar -S` stores it: pack it without -S, or unpack it",
    "odd_size": "a member whose two headers state two sizes",
    "too_many_bytes": "the file is larger than `max_bytes`",
    # of a label in it
    "no_image": "a label without its image",
}
"""Why something in a tar is not taken, whether its images are copied or read where they are."""

LABEL_REASONS: Mapping[str, str] = {
    "bad_label": "the image has a label that is none, or none where one was asked for",
    "label_apart": "a label whose image has one already, in another place of the archive",
}
"""What costs a label, but not the image."""

EARLIER_REASONS: Mapping[str, str] = {
    "truncated": "archive_cut",
    "damaged_tar": "archive_damaged",
    "after_end": "a second archive behind the first, which is read today",
    "odd_member": "sparse or odd_size",
    "duplicate_key": "the same member again: today it is taken where its content differs",
    "extra_image": "a second image of a sample, which is taken today",
    "too_large": "too_many_bytes",
}
"""Reasons that stand in the accounts of tars adopted by earlier versions, and what they are called today."""

SKIP, READ, DIGEST, LOOK = "skip", "read", "digest", "look"
"""What the walk does with the content of a file: nothing, keep it, keep its SHA-256, ask again with its first
bytes."""

_AHEAD_BYTES = 1 << 18
_PIECE_BYTES = 1 << 20
_RECORD_BYTES = 20 * BLOCK_BYTES
"""Writers fill an archive up to a multiple of this."""
_ZEROS = bytes(BLOCK_BYTES)
_REGULAR = (b"0", b"\0", b"7")
_LINKS = (b"1", b"2")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_META = (b"x", b"X", b"g", b"L", b"K")
_GNU_SPARSE = b"S"
_COMPRESSED: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_CHECKSUM = re.compile(rb"[0-7 \0]{8}")
_PAX_RECORD = re.compile(rb"([0-9]{1,8}) ([^=\n]{1,200})=")


class TarBytes(Protocol):
    """The content of one tar, read once from its beginning; not thread-safe."""

    position: int
    """Bytes of content before the next `read`."""
    damage: str
    """Reason why the content ended early; empty while it did not."""

    @property
    def consumed(self) -> int:
        """Bytes of the file that were read for it."""
        ...

    @property
    def suspect(self) -> Sequence[tuple[int, int]]:
        """Stretches of content (begin, end) that may not be what was written; complete at the end."""
        ...

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer only where the content ends. May raise OSError."""
        ...

    def skip(self, count: int) -> int:
        """Go past `count` bytes; how many there were."""
        ...

    def remaining(self) -> int | None:
        """Bytes left; None where that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: where its bytes begin (its header is the 512 bytes before), and their number."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TarHeader:
    """One header block."""

    name: str
    size: int
    kind: bytes
    """Type flag."""


@dataclass(frozen=True, slots=True)
class TarFile:
    """One member that is not about another one."""

    name: str
    """As the tar states it; bytes that are no UTF-8 are surrogates."""
    offset: int
    """Where its bytes begin; the 512 bytes before are its header."""
    size: int
    reason: str = ""
    """Why its bytes are no file: link, not_a_file, sparse, odd_size; empty when they are one."""
    data: bytes = b""
    """Its content, where that was asked for."""
    digest: bytes = b""
    """SHA-256 of its content, where that was asked for."""
    head: bytes = b""
    """Its first bytes, where they were looked at."""


@dataclass(frozen=True, slots=True)
class TarLoss:
    """Something in a tar that could not be had."""

    reason: str
    name: str
    """The member, or the last one before the place; as the tar states it."""
    label_only: bool = False
    """Only a label was lost: the image itself came through."""


class LengthNeeded(Exception):
    """A member claims more than follows, and only now is it known how much there is."""

    def __init__(self, length: int) -> None:
        super().__init__(f"the content has {length} bytes")
        self.length = length


def parse_header(block: bytes) -> TarHeader | None:
    """Read a header block of any dialect (v7, ustar, GNU, PAX); None when its checksum or size is wrong."""
    if not _CHECKSUM.fullmatch(block, 148, 156):  # cheap, and most blocks of damaged stretches end here
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    if info.size < 0:
        return None
    name = info.name
    if block[257:263] != b"ustar\0":  # only POSIX has a prefix there; GNU keeps times in its place
        name = text_of(block[:100].split(b"\0", 1)[0])
    return TarHeader(name, info.size, block[156:157])


def text_of(raw: bytes) -> str:
    """A name; bytes that are no UTF-8 survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def compression_of(head: bytes) -> str:
    """The method that a file is compressed with, by its first bytes; empty when by none."""
    return next((method for magic, method in _COMPRESSED.items() if head.startswith(magic)), "")


def open_tar(file: Bytes, url: str) -> "StoredTar":
    """The content of a plain tar. Raises StreamError when it is compressed."""
    if method := compression_of(file.read_at(0, BLOCK_BYTES)):
        raise StreamError(f"{url} is compressed with {method}: only a plain tar can be read in place")
    return StoredTar(file)


class StoredTar:
    """Content of a file as it is; reads a little ahead, so that a walk is not one request a header."""

    def __init__(self, file: Bytes, *, ahead: int = _AHEAD_BYTES) -> None:
        self._file = file
        self._ahead = ahead
        self._at = 0
        self._data = b""
        self.position = 0
        self.damage = ""
        self.suspect: Sequence[tuple[int, int]] = ()

    @property
    def consumed(self) -> int:
        """See TarBytes."""
        return self.position

    def read(self, count: int) -> bytes:
        """See TarBytes."""
        count = min(count, self.remaining())
        start = self.position - self._at
        if not 0 <= start <= len(self._data) - count:
            self._data = self._file.read_at(self.position, max(count, self._ahead))
            self._at, start = self.position, 0
        got = self._data[start : start + count]
        self.position += len(got)
        return got

    def skip(self, count: int) -> int:
        """See TarBytes."""
        there = min(count, self.remaining())
        self.position += there
        return there

    def remaining(self) -> int:
        """See TarBytes."""
        return max(0, self._file.size - self.position)


def walk_tar(
    data: TarBytes,
    content: Callable[[str, int], str],
    look: Callable[[str, int, bytes], str] | None = None,
) -> Iterator[TarFile | TarLoss]:
    """Every member of a tar in order, and a loss for each stretch that could not be understood.

    Args:
        data: the tar's content, at its beginning.
        content: given name and size of a file, what to do with its bytes: SKIP, READ, DIGEST or LOOK.
        look: given its first bytes too, what to do with a file where `content` says LOOK.

    Raises:
        LengthNeeded: `data` does not know its length, and a member claims more than there is. Open it once
            more with its length, and walk again.
        OSError: it cannot be read any further.
    """
    return _Walk(data, content, look).events()


class _Walk:
    """Goes from header to header."""

    def __init__(
        self,
        data: TarBytes,
        content: Callable[[str, int], str],
        look: Callable[[str, int, bytes], str] | None,
    ) -> None:
        self._data = data
        self._content = content
        self._look = look
        self._start = 0  # of the current archive, when several are joined
        self._zeros = 0  # blocks of zeros just before
        self._trouble = ""  # reason of the stretch without headers that we are in
        self._where = ""  # the last name before it
        self._headers = 0
        self._nonzero = False
        self._meta = _Meta()

    def events(self) -> Iterator[TarFile | TarLoss]:
        data = self._data
        while True:
            at = data.position
            block = data.read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                yield from self._at_end(block)
                return
            if block == _ZEROS:
                self._zeros += 1
                continue
            self._nonzero = True
            header = parse_header(block)
            if header is None:
                self._trouble = self._trouble or "archive_damaged"
                self._meta = _Meta()
                continue
            yield from self._before_header(at)
            self._headers += 1
            yield from self._member(header, block)

    def _before_header(self, at: int) -> Iterator[TarLoss]:
        if self._trouble:
            yield TarLoss(self._trouble, self._where)
        elif self._zeros and self._headers:
            if self._zeros != 2 and (at - self._start) % _RECORD_BYTES:
                yield TarLoss("archive_hole", self._where)
            else:
                self._start = at
        self._trouble = ""
        self._zeros = 0

    def _at_end(self, rest: bytes) -> Iterator[TarLoss]:
        member_missing = self._trouble == "archive_size"
        damage = self._data.damage
        if not self._headers and not damage:
            if self._nonzero or rest.strip(b"\0"):
                yield TarLoss("not_an_archive", "")
            elif self._data.position == 0:
                yield TarLoss("empty", "")
            return
        if self._trouble and not member_missing:
            yield TarLoss(self._trouble, self._where)
        if damage:
            yield TarLoss(damage, self._where)
        elif member_missing or (rest.strip(b"\0") and not self._trouble):
            yield TarLoss("archive_cut", self._where)

    def _member(self, header: TarHeader, block: bytes) -> Iterator[TarFile]:
        if header.kind in _META:
            self._take_meta(header)
            return
        meta, self._meta = self._meta, _Meta()
        name = header.name if meta.name is None else meta.name
        size = header.size if meta.size is None else meta.size
        self._where = name
        reason = _reason(header, meta, name)
        if header.kind == _GNU_SPARSE:
            self._pass_sparse_map(block)
        if header.kind in _WITHOUT_DATA:
            size = 0
        offset = self._data.position
        if not self._there(size):
            return
        doing = SKIP if reason else self._content(name, size)
        head = b""
        if doing == LOOK and self._look is not None:
            head = self._data.read(min(size, HEAD_BYTES))
            doing = self._look(name, size, head)
        data, digest = self._taken(doing, size, head)
        if self._data.position < offset + size:
            self._is_short()
            return
        self._data.skip(-size % BLOCK_BYTES)
        if reason != "not_a_file" or header.kind != b"5":  # folders are neither files nor losses
            yield TarFile(name, offset, size, reason, data, digest, head)

    def _taken(self, doing: str, size: int, head: bytes) -> tuple[bytes, bytes]:
        """Content and SHA-256 of a member, as far as they are asked for; `head` of it is read already."""
        size -= len(head)
        if doing == READ:
            return head + self._data.read(size), b""
        if doing != DIGEST:
            self._data.skip(size)
            return b"", b""
        digest = hashlib.sha256(head)
        while size > 0 and (piece := self._data.read(min(size, _PIECE_BYTES))):
            digest.update(piece)
            size -= len(piece)
        return b"", digest.digest()

    def _take_meta(self, header: TarHeader) -> None:
        """A header that speaks of the next one."""
        if header.size > MOST_META_BYTES:
            self._trouble = "archive_size"
            return
        if not self._there(header.size):
            return
        body = self._data.read(header.size)
        if len(body) < header.size:
            self._is_short()
            return
        self._data.skip(-header.size % BLOCK_BYTES)
        if header.kind == b"L":
            self._meta.name = text_of(body.split(b"\0", 1)[0])
        elif header.kind in {b"x", b"X"}:
            self._meta.take_pax(body)

    def _there(self, size: int) -> bool:
        """Whether so many bytes follow. If not: cut short, or a lie; another header in the rest tells."""
        left = self._data.remaining()
        if left is None or size <= left:
            return True
        self._trouble = "archive_size"
        return False

    def _is_short(self) -> None:
        """Fewer bytes came than the header claims, and they are gone: look again with what is known now."""
        if self._data.remaining() is None:
            raise LengthNeeded(self._data.position)
        self._trouble = "archive_size"  # the file became shorter while it was read

    def _pass_sparse_map(self, block: bytes) -> None:
        """Go behind the further blocks of the map of an old GNU sparse file."""
        more = block[482:483] not in {b"", b"\0"}
        while more:
            block = self._data.read(BLOCK_BYTES)
            more = block[504:505] not in {b"", b"\0"}


class _Meta:
    """What extended headers say of the file that follows them."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.size: int | None = None
        self.sparse = False

    def take_pax(self, data: bytes) -> None:
        """Read records `<length> <key>=<value>`, up to the first that is none."""
        at, sparse_name = 0, None
        while match := _PAX_RECORD.match(data, at):
            stop = at + int(match[1])
            if stop <= match.end() or stop > len(data):
                break
            key, value = match[2], data[match.end() : stop - 1]
            if key == b"path":
                self.name = text_of(value)
            elif key == b"size" and re.fullmatch(rb"[0-9]{1,19}", value):
                self.size = int(value)
            elif key == b"GNU.sparse.name":
                sparse_name = text_of(value)
            self.sparse = self.sparse or key.startswith(b"GNU.sparse")
            at = stop
        if sparse_name is not None:  # `path` is made up then
            self.name = sparse_name


def _reason(header: TarHeader, meta: _Meta, name: str) -> str:
    """Why the bytes behind a header are not simply the file; empty when they are."""
    if header.kind in _LINKS:
        return "link"
    if header.kind == _GNU_SPARSE or (header.kind in _REGULAR and meta.sparse):
        return "sparse"
    if header.kind not in _REGULAR or name.endswith("/"):
        return "not_a_file"
    if meta.size is not None and meta.size != header.size:
        return "odd_size"
    return ""
