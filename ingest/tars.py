"""A tar reader for archives that nobody vouches for.

Members are grouped into samples as webdataset does (the key is the name up to the first dot of its last
part). Names are never used as paths, sizes are believed only as far as bytes follow, links are never
followed. Where a header cannot be trusted the reader looks for the next one that can; every such place, and
every image that cannot be had, is reported with its reason.

Other readers stop at two blocks of zeros. This one goes on when more members follow: archives are joined by
`cat`, and downloads have holes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ingest.archives import ArchiveBytes
from ingest.headers import BLOCK, Header, parse_header, pax_records, text_of
from ingest.names import is_hidden
from stream.file_types import HEAD_BYTES, FileKind, kind_by_name, kind_of

ZEROS = bytes(BLOCK)
RECORD = 20 * BLOCK
"""Writers fill an archive up to a multiple of this."""
REGULAR = (b"0", b"\0", b"7")
LINKS = (b"1", b"2")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
MAX_META_BYTES = 1024 * 1024
"""Long names, PAX records, .cls and .json members above this are not read."""
GROUP_IMAGES = 64
"""Images of one key that are held back until their label has passed."""
APART_KEYS = 100_000
"""Unlabelled images of one archive that are remembered, to know a label that comes late."""


@dataclass(frozen=True, slots=True)
class TarImage:
    """One image of an archive, with the members that say its label."""

    name: str
    payload: bytes
    cls: bytes | None
    json: bytes | None


@dataclass(frozen=True, slots=True)
class TarLoss:
    """Something that could not be had."""

    reason: str
    name: str
    """The member, or the last one before the place; as the archive has it."""
    label_only: bool = False
    """Only a label was lost: the image itself came through."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    role: str
    """image, cls or json."""
    data: bytes
    reason: str = ""
    """Why there is no data; empty when there is."""


@dataclass(slots=True)
class _Group:
    key: str
    images: list[tuple[str, _Member]] = field(default_factory=list)
    labels: dict[tuple[str, str], bytes] = field(default_factory=dict)
    size: int = 0


def read_tar(data: ArchiveBytes, *, max_bytes: int) -> Iterator[TarImage | TarLoss]:
    """Images and losses of one archive, in its order; the same bytes always give the same sequence.

    Args:
        data: the archive's content, at its beginning.
        max_bytes: images with more bytes are reported, not read.

    Raises:
        OSError: the file cannot be read any further.
    """
    group: _Group | None = None
    apart: set[int] = set()
    damaged_before = False
    for member in _Walk(data, max_bytes).members():
        if isinstance(member, TarLoss):
            yield from _samples(group, apart, damaged_before)
            group, damaged_before = None, True
            yield member
            continue
        key, stem = _key_and_stem(member.name)
        full = group is not None and (len(group.images) >= GROUP_IMAGES or group.size > max_bytes)
        if group is None or group.key != key or full:
            if group is not None:
                yield from _samples(group, apart, damaged_before)
                damaged_before = False
            group = _Group(key)
        if member.role == "image":
            group.images.append((stem, member))
            group.size += len(member.data)
        else:
            group.labels[stem, member.role] = member.data
    yield from _samples(group, apart, damaged_before)


def _samples(group: _Group | None, apart: set[int], damaged_before: bool) -> Iterator[TarImage | TarLoss]:
    """What one group of members comes to; `damaged_before`: its beginning is lost, which is reported."""
    if group is None:
        return
    for stem, image in group.images:
        if image.reason:
            yield TarLoss(image.reason, image.name)
            continue
        cls, body = (group.labels.get((stem, role), group.labels.get(("", role))) for role in ("cls", "json"))
        yield TarImage(image.name, image.data, cls, body)
    if group.images and not group.labels and len(apart) < APART_KEYS:
        apart.add(hash(group.key))
    if group.labels and not group.images:
        if hash(group.key) in apart:
            yield TarLoss("label_apart", group.key, label_only=True)
        elif not damaged_before:
            yield TarLoss("no_image", group.key)


def _key_and_stem(name: str) -> tuple[str, str]:
    """`a/b.left.jpg` has the key `a/b` and the stem `left`."""
    folder, slash, last = name.rpartition("/")
    base, _, extension = last.partition(".")
    return folder + slash + base, extension.rpartition(".")[0]


LOOK = "look"
"""Role of a member whose name says nothing: its first bytes decide."""
UNSUPPORTED = "unsupported"


def _role(name: str) -> str:
    if is_hidden(name):
        return ""
    kind = kind_by_name(name)
    if kind is FileKind.IMAGE:
        return "image"
    if kind is FileKind.ARCHIVE:
        return UNSUPPORTED  # archives inside archives are not opened
    extension = name.rpartition("/")[2].rpartition(".")[2].lower()
    return LOOK if kind is None else extension if extension in {"cls", "json"} else ""


class _Walk:
    """Goes from header to header."""

    def __init__(self, data: ArchiveBytes, max_bytes: int) -> None:
        self._data = data
        self._max_bytes = max_bytes
        self._start = 0  # of the current archive, when several are joined
        self._zeros = 0  # blocks of zeros just before
        self._trouble = ""  # reason of the region without headers that we are in
        self._where = ""  # the last name before it
        self._headers = 0
        self._nonzero = False
        self._long_name: str | None = None
        self._pax_size: int | None = None

    def members(self) -> Iterator[_Member | TarLoss]:
        """Members that matter, and a loss for each region that could not be understood."""
        data = self._data
        while True:
            at = data.position
            block = data.read(BLOCK)
            if len(block) < BLOCK:
                yield from self._at_end(block)
                return
            if block == ZEROS:
                self._zeros += 1
                continue
            self._nonzero = True
            header = parse_header(block)
            if header is None:
                self._trouble = self._trouble or "archive_damaged"
                continue
            yield from self._before_header(at)
            self._headers += 1
            yield from self._member(header)

    def _before_header(self, at: int) -> Iterator[TarLoss]:
        if self._trouble:
            yield TarLoss(self._trouble, self._where)
        elif self._zeros and self._headers:
            if self._zeros != 2 and (at - self._start) % RECORD:
                yield TarLoss("archive_hole", self._where)
            else:
                self._start = at
        self._trouble = ""
        self._zeros = 0

    def _at_end(self, rest: bytes) -> Iterator[TarLoss]:
        whole_member_missing = self._trouble == "archive_size"
        damage = self._data.damage
        if not self._headers and not damage:
            if self._nonzero or rest.strip(b"\0"):
                yield TarLoss("not_an_archive", "")
            elif self._data.position == 0:
                yield TarLoss("empty", "")
            return
        if self._trouble and not whole_member_missing:
            yield TarLoss(self._trouble, self._where)
        if damage:
            yield TarLoss(damage, self._where)
        elif whole_member_missing or (rest.strip(b"\0") and not self._trouble):
            yield TarLoss("archive_cut", self._where)

    def _member(self, header: Header) -> Iterator[_Member]:
        if header.kind in {b"L", b"K", b"x", b"g", b"X"}:
            self._meta(header)
            return
        name = self._long_name if self._long_name is not None else header.name
        size = self._pax_size if self._pax_size is not None else header.size
        self._long_name = self._pax_size = None
        self._where = name
        regular = header.kind in REGULAR and not name.endswith("/")
        role = _role(name)
        if header.kind in WITHOUT_DATA:
            size = 0
        left = self._data.remaining()
        if left is not None and size > left:
            # Cut short, or a lie: which of them shows when another header is found in what is left.
            self._trouble = "archive_size"
            return
        if not regular:
            self._data.skip(size + -size % BLOCK)
            if header.kind in LINKS and role in {"image", LOOK}:
                yield _Member(name, "image", b"", "link")
            elif role == "image" and header.kind != b"5":
                yield _Member(name, role, b"", "not_a_file")
            return
        yield from self._regular(name, role, size)

    def _regular(self, name: str, role: str, size: int) -> Iterator[_Member]:
        if role == LOOK:
            head = self._data.read(min(size, HEAD_BYTES))
            self._data.unread(head)
            role = "image" if kind_of(name, head) is FileKind.IMAGE else UNSUPPORTED
        limits = {"": -1, UNSUPPORTED: -1, "image": self._max_bytes}
        if size > limits.get(role, MAX_META_BYTES):
            if self._data.skip(size) < size:
                self._trouble = "archive_size"
                return
            if role == UNSUPPORTED:
                yield _Member(name, "image", b"", "unsupported_name")
            elif role == "image":
                yield _Member(name, role, b"", "too_many_bytes")
            elif role:
                yield _Member(name, role, b"")  # an empty label is a bad label, which is counted
        else:
            payload = self._data.read(size)
            if len(payload) < size:
                self._data.unread(payload)  # headers may stand in what was taken for this image
                self._trouble = "archive_size"
                return
            yield _Member(name, role, payload)
        self._data.skip(-size % BLOCK)

    def _meta(self, header: Header) -> None:
        """A header that speaks of the next one."""
        left = self._data.remaining()
        if header.size > MAX_META_BYTES or (left is not None and header.size > left):
            self._trouble = "archive_size"
            return
        body = self._data.read(header.size)
        self._data.skip(-header.size % BLOCK)
        if header.kind == b"L":
            self._long_name = text_of(body.split(b"\0", 1)[0])
        elif header.kind in {b"x", b"X"}:
            values = pax_records(body)
            if "path" in values:
                self._long_name = values["path"]
            if values.get("size", "").isdecimal():
                self._pax_size = int(values["size"])
