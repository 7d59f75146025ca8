"""The list of what was taken: which files of which source, how large and how old; append-only.

    taken/<number>.list    one segment (20 digits), made by exclusive create of the next number

It lies beside the shards of a stream, or in a folder of its own for a topic. A segment holds files that one
source takes, in the order in which it takes them; the position of a source is an index in its files. Being
listed does not mean done: that is what the positions in the commits say, and they only become true with the
images. Two writers that append at once take numbers one after the other, and each sees the other's files
before it can add its own.

A segment is one line of JSON with a checksum, then 24 bytes of keys a file, then the files as JSON, deflated:

    {version, token, source, first, count, settled, upto, rows, crc}
    keys      of each file: 16 bytes over path, size and time, and 8 bytes over the path
    rows      [path, size, time, archive, cls, json, begun, again], a line each

A segment without files is a note: the first `upto` files of the source are done.
"""

import hashlib
import json
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.errors import StreamDamaged
from stream.shards.commits import decode_checked, encode_checked
from stream.storage import Store, as_stream_error

VERSION = 1
CHANGED, BEGUN = 1, 2
"""Why a file is taken again: it has another size or time, or another source has begun it."""
MOST_FILES = 32_768
"""Of one segment."""
_READ_AHEAD = 32
_STATE_BYTES, _PATH_BYTES = 16, 8
_KEY = np.dtype([("high", "<u8"), ("low", "<u8"), ("path", "<u8")])
_PAIR = np.dtype([("high", "<u8"), ("low", "<u8")])

KEY_BYTES = _KEY.itemsize
Keys = NDArray[np.void]
"""[files], of _KEY: `high` and `low` over path, size and time, `path` over the path alone."""


@dataclass(frozen=True, slots=True)
class TakenFile:
    """One file of a source, as it was found."""

    path: str
    """Absolute; bytes that are no text are surrogates."""
    size: int
    time_ns: int
    archive: bool = False
    cls: str = ""
    """Name of the label file beside it; empty when there is none."""
    json: str = ""
    begun: int = 0
    """Things of an archive that were taken before it was listed."""
    again: int = 0
    """CHANGED or BEGUN when it, or some of it, was taken before: no content of it is to come twice."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What one segment says, without its files."""

    number: int
    source: str
    first: int
    """Index of its first file among those of the source."""
    count: int
    settled: bool
    """Its files were done before there was a list."""
    upto: int
    """So many files of the source are done; -1: it does not say."""
    keys: Keys


def key_of(identity: str, size: int, time_ns: int) -> bytes:
    """24 bytes that stand for a file and its state; `identity` is its path whatever way led to it."""
    path = identity.encode("utf-8", "surrogateescape")
    state = hashlib.blake2b(b"%d %d " % (size, time_ns) + path, digest_size=_STATE_BYTES)
    return state.digest() + hashlib.blake2b(path, digest_size=_PATH_BYTES).digest()


def encode_file(file: TakenFile) -> bytes:
    """One line of JSON; `decode_file` reads it back."""
    row = [file.path, file.size, file.time_ns, int(file.archive), file.cls, file.json, file.begun, file.again]
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def decode_file(line: bytes) -> TakenFile:
    """Read what `encode_file` wrote. Raises ValueError or TypeError."""
    path, size, time_ns, archive, cls, body, begun, again = json.loads(line)
    return TakenFile(
        str(path), int(size), int(time_ns), bool(archive), str(cls), str(body), int(begun), int(again)
    )


def keys_from(parts: Sequence[bytes]) -> Keys:
    """Keys of several files as one array."""
    return np.frombuffer(b"".join(parts), _KEY)


class TakenList:
    """The list in one place; one object per process, not thread-safe.

    It keeps nothing of the files in memory: `refresh` gives each segment once.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._next = 0

    @property
    def last(self) -> int:
        """Number of the last segment that was read or appended; -1 when there is none."""
        return self._next - 1

    def refresh(self) -> list[Segment]:
        """The segments that were added since the last look, in their order.

        Raises:
            StreamDamaged: a segment cannot be trusted.
            StreamError: the store does not answer.
        """
        found: list[Segment] = []
        ahead = 1
        with as_stream_error(f"cannot read the list of what was taken of {self.store.url}"):
            while True:
                names = [_name(number) for number in range(self._next, self._next + ahead)]
                bodies = self.store.read_many(names)
                for name in names:
                    data = bodies.get(name)
                    if data is None:
                        return found
                    found.append(_decode(data, self._next, self.store.url)[0])
                    self._next += 1
                ahead = min(ahead * 4, _READ_AHEAD)

    def append(
        self,
        source: str,
        *,
        first: int,
        files: Sequence[TakenFile] = (),
        keys: Keys | None = None,
        settled: bool = False,
        upto: int = -1,
    ) -> bool:
        """Add a segment, durably; False when another writer was first: `refresh`, and look again.

        Args:
            source: whose files they are.
            first: files of this source that are listed before.
            files: at most MOST_FILES.
            keys: of the files; see `key_of`.
            settled: they are done already.
            upto: note that so many files of the source are done.

        Raises:
            StreamError: it cannot be written.
        """
        rows = zlib.compress(b"".join(map(encode_file, files)), 6)
        key_bytes = b"" if keys is None else keys.tobytes()
        head = {
            "version": VERSION, "token": uuid.uuid4().hex, "source": source, "first": first,
            "count": len(files), "settled": settled, "upto": upto, "rows": len(rows),
            "crc": zlib.crc32(rows, zlib.crc32(key_bytes)),
        }  # fmt: skip
        data = encode_checked(head) + b"\n" + key_bytes + rows
        name = _name(self._next)
        with as_stream_error(f"cannot write the list of what was taken of {self.store.url}"):
            try:
                made = self.store.create(name, data)
            except OSError:
                made = False
                if self.store.read_many([name]).get(name) != data:
                    raise
            # A lost answer that was asked again looks like another writer's segment.
            made = made or self.store.read_many([name]).get(name) == data
        self._next += made
        return made

    def files(self, number: int) -> list[TakenFile]:
        """The files of a segment.

        Raises:
            StreamDamaged: it cannot be trusted.
            StreamError: it cannot be read.
        """
        name = _name(number)
        with as_stream_error(f"cannot read {name} of {self.store.url}"):
            data = self.store.read(name)
        segment, rows = _decode(data, number, self.store.url)
        try:
            files = [decode_file(line) for line in zlib.decompress(rows).splitlines()]
        except (zlib.error, ValueError, TypeError, RecursionError) as error:
            raise StreamDamaged(f"{name} of {self.store.url} cannot be read: {error}") from error
        if len(files) != segment.count:
            raise StreamDamaged(
                f"{name} of {self.store.url} has {len(files)} files, its header says {segment.count}"
            )
        return files


class KeySet:
    """A set of 16-byte keys in sorted arrays: 16 bytes a key, looked up many at a time."""

    def __init__(self) -> None:
        self._levels: list[Keys] = []

    def __len__(self) -> int:
        """Keys that were added, equal ones counted each time."""
        return sum(level.size for level in self._levels)

    def add(self, keys: Keys) -> None:
        """Add many. Levels double in size, so that each key is sorted a few times only."""
        if not keys.size:
            return
        level = keys[["high", "low"]].astype(_PAIR)
        while self._levels and self._levels[-1].size < 2 * level.size:
            level = np.concatenate([self._levels.pop(), level])
        self._levels.append(level[np.lexsort((level["low"], level["high"]))])

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Of each key, bool [keys], whether it is in the set."""
        found = np.zeros(keys.size, np.bool_)
        for level in self._levels:
            start = np.searchsorted(level["high"], keys["high"], "left")
            stop = np.searchsorted(level["high"], keys["high"], "right")
            longest = int((stop - start).max()) if keys.size else 0
            for step in range(longest):  # 1, but for equal keys
                at = np.minimum(start + step, level.size - 1)
                found |= (start + step < stop) & (level["low"][at] == keys["low"])
        return found


class PathSet:
    """A set of the paths in keys: 8 bytes a path, looked up many at a time."""

    def __init__(self) -> None:
        self._levels: list[NDArray[np.uint64]] = []

    def add(self, keys: Keys) -> None:
        """Add many."""
        level = keys["path"].astype(np.uint64)
        while self._levels and self._levels[-1].size < 2 * level.size:
            level = np.concatenate([self._levels.pop(), level])
        if level.size:
            self._levels.append(np.unique(level))

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Of each key, bool [keys], whether its path is in the set."""
        found = np.zeros(keys.size, np.bool_)
        for level in self._levels:
            at = np.minimum(np.searchsorted(level, keys["path"]), level.size - 1)
            found |= level[at] == keys["path"]
        return found


def _name(number: int) -> str:
    return f"taken/{number:020d}.list"


def _decode(data: bytes, number: int, url: str) -> tuple[Segment, bytes]:
    """A segment and its deflated rows."""
    where = f"{_name(number)} of {url}"
    head, _, rest = data.partition(b"\n")
    try:
        body = decode_checked(head)
        if body["version"] != VERSION:
            raise StreamDamaged(f"{where} has version {body['version']!r}; this program reads {VERSION}")
        count, size = int(body["count"]), int(body["rows"])
        first, upto = int(body["first"]), int(body["upto"])
        source, settled, check = str(body["source"]), bool(body["settled"]), int(body["crc"])
    except (ValueError, TypeError, KeyError) as error:
        raise StreamDamaged(f"{where} cannot be read: {error}") from error
    at = count * _KEY.itemsize
    if count < 0 or first < 0 or len(rest) != at + size or zlib.crc32(rest) != check:
        raise StreamDamaged(f"{where} is cut short or has a wrong checksum")
    keys = np.frombuffer(rest[:at], _KEY)
    return Segment(number, source, first, count, settled, upto, keys), rest[at:]
