"""The list of what was rejected: a line for each thing that was found and not written, beside the stream.

    rejects/<source>.jsonl                where the stream is a folder: one file for each source, appended to
    rejects/<source>/<first line>.jsonl   in an object store, which cannot append: a file for each commit

A line is a JSON object: reason (one of `ingest.transcode.REASONS`), source (as a record says it: the path, or
archive#member), detail (what was seen; may be empty) and path (absolute, of the file or its archive).
`<source>` is a hash of the source's name.

Lines are made durable before the commit that counts them, and the position in that commit says how far the
list goes. Lines behind it are those of an ingest that was killed: they are cut off before it goes on, which
finds the same again, and no reader shows them. So over kills, restarts and losses of power the committed list
has exactly one line for each thing that the commits count as skipped, in their order. What tars
that are adopted where they are (`--reference`) have skipped is listed too.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stream.errors import StreamDamaged
from stream.shards.manifest import Manifest
from stream.storage import LocalStore, Store, as_stream_error, sync_path

FOLDER = "rejects"
SPILL_BYTES = 1024 * 1024
"""Lines that wait for a commit in memory; more of them are written before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """Something that was found and not written."""

    reason: str
    source: str
    """The path, or archive#member, as records say it; printable."""
    detail: str = ""
    path: str = ""
    """Absolute path of the file or its archive, surrogates for undecodable bytes; empty = there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """How far a list goes."""

    lines: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, position: object) -> "Listed | None":
        """What a position of an ingest says of its list; None in one of an earlier build, which has none."""
        found = position.get("rejects") if isinstance(position, Mapping) else None
        if not isinstance(found, Mapping):
            return None
        values = [found.get(key) for key in ("lines", "bytes")]
        lines, size = (value if type(value) is int and value >= 0 else 0 for value in values)
        return cls(lines=lines, bytes=size)


class RejectList(Protocol):
    """The list of one source, written by one process; not thread-safe. Every method may raise OSError."""

    listed: Listed
    """Including what is not written yet."""

    def resume(self, listed: Listed) -> int:
        """Cut off what is behind; how many of the lines that should be there are not."""
        ...

    def add(self, reject: Reject) -> None:
        """Append a line; it may be lost until `flush`."""
        ...

    def flush(self, *, durable: bool = True) -> None:
        """Write what was added; `durable` also over a loss of power."""
        ...


def open_list(store: Store, source_id: str) -> RejectList:
    """The list of a source beside a stream. Nothing is made before the first line."""
    name = f"{FOLDER}/{_short(source_id)}"
    return FileList(store.path(f"{name}.jsonl")) if isinstance(store, LocalStore) else StoreList(store, name)


class FileList:
    """A list in a local file. Implements RejectList."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._undurable = False
        self.listed = Listed()

    def resume(self, listed: Listed) -> int:
        """See RejectList."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            size = 0
        self.listed = listed
        if size > listed.bytes:
            os.truncate(self._path, listed.bytes)
        if size < listed.bytes:  # removed or cut from outside: what is left is kept, and counted as it is
            content = self._path.read_bytes() if size else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < size:
                os.truncate(self._path, len(whole))
            self.listed = Listed(lines=whole.count(b"\n"), bytes=len(whole))
        return listed.lines - self.listed.lines

    def add(self, reject: Reject) -> None:
        """See RejectList."""
        line = _encoded(reject)
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self.listed = Listed(lines=self.listed.lines + 1, bytes=self.listed.bytes + len(line))
        if self._waiting_bytes > SPILL_BYTES:
            self.flush(durable=False)

    def flush(self, *, durable: bool = True) -> None:
        """See RejectList."""
        if self._waiting:
            new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(b"".join(self._waiting))
            self._waiting, self._waiting_bytes = [], 0
            self._undurable = True
            if new:
                sync_path(self._path.parent)
                sync_path(self._path.parent.parent)
        if durable and self._undurable:
            sync_path(self._path)
            self._undurable = False


class StoreList:
    """A list in a store that only takes whole files. Implements RejectList."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.listed = Listed()

    def resume(self, listed: Listed) -> int:
        """See RejectList; whether lines are missing shows when they are read."""
        self.listed = listed
        for first in _firsts(self._store, self._name):
            if first >= listed.lines:
                self._store.delete(_part(self._name, first))
        return 0

    def add(self, reject: Reject) -> None:
        """See RejectList."""
        line = _encoded(reject)
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self.listed = Listed(lines=self.listed.lines + 1, bytes=self.listed.bytes + len(line))
        if self._waiting_bytes > SPILL_BYTES:
            self.flush()

    def flush(self, *, durable: bool = True) -> None:
        """See RejectList."""
        if self._waiting:
            first = self.listed.lines - len(self._waiting)
            self._store.replace(_part(self._name, first), b"".join(self._waiting))
            self._waiting, self._waiting_bytes = [], 0


def read_rejects(manifest: Manifest) -> Iterator[Reject]:
    """What a stream's commits count as skipped, source by source; streams of earlier builds have no list.

    Raises:
        StreamDamaged: a list has fewer lines than its commits count, or one that cannot be read.
        StreamError: the store does not answer.
    """
    for source_id, listed in lists_of(manifest):
        name = f"{FOLDER}/{_short(source_id)}"
        lines = 0
        with as_stream_error(f"cannot read the list of rejects of {manifest.url}"):
            for line in _lines(manifest.store, name):
                if lines == listed.lines:
                    break
                lines += 1
                yield _decoded(line, name)
        if lines < listed.lines:
            raise StreamDamaged(
                f"{name} of the stream at {manifest.url} has {lines} lines, its commits count {listed.lines}"
            )


def lists_of(manifest: Manifest) -> Iterator[tuple[str, Listed]]:
    """Sources of a stream that have a list, and how far it goes."""
    for source_id, known in manifest.sources().items():
        listed = Listed.of(manifest.entry(known.last).source_position)
        if listed is not None:
            yield source_id, listed


def state_list(folder: Path, url: str, source_id: str) -> RejectList:
    """The list of a source whose destination has no files: it lies in a folder that the user names."""
    return FileList(folder / f"rejects-{_short(f'{url} {source_id}')}.jsonl")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _part(name: str, first: int) -> str:
    return f"{name}/{first:020d}.jsonl"


def _firsts(store: Store, name: str) -> list[int]:
    stems = (one.removesuffix(".jsonl") for one in store.names(name))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _lines(store: Store, name: str) -> Iterator[bytes]:
    if isinstance(store, LocalStore):
        path = store.path(f"{name}.jsonl")
        if path.exists():
            with path.open("rb") as file:
                yield from file
        return
    for first in _firsts(store, name):
        yield from store.read(_part(name, first)).splitlines(keepends=True)


def _encoded(reject: Reject) -> bytes:
    body: dict[str, Any] = {"reason": reject.reason, "source": reject.source, "detail": reject.detail}
    if reject.path:
        body["path"] = reject.path
    return json.dumps(body, ensure_ascii=True).encode("ascii") + b"\n"


def _decoded(line: bytes, name: str) -> Reject:
    try:
        body = json.loads(line)
        return Reject(
            reason=str(body["reason"]),
            source=str(body["source"]),
            detail=str(body["detail"]),
            path=str(body.get("path", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StreamDamaged(f"{name} has a line that cannot be read: {line[:80]!r}") from error
