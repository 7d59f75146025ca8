"""What there is to bring in: images and tars of folders and globs, in one order, from any place on.

The order is that of the names' bytes, folder by folder. A position names the last file and how much of it is
done, so it stays good when files are added behind it, and nothing has to be remembered but the position.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes

from ingest.errors import SourceEmpty, SourceUnreadable
from ingest.labels import NO_LABELS, Labels, labels_of, parent_of
from ingest.listing import Unit, absolute, is_plain_tar, matches, walk
from ingest.names import shown
from ingest.tars import TarSample, read_tar
from stream.tars import MOST_META_BYTES, TarLoss

WHOLE = -1
"""In a position: all of the last file is done."""

Position = Mapping[str, Any]
"""A JSON value; what it holds is the source's own business."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One thing that a source has: an image, or the trace of one that cannot be had."""

    name: str
    """Provenance: the path, or archive#member; printable."""
    position: Position
    """The place in the source after this."""
    payload: bytes = b""
    """The encoded image, unless it has to be read from `path`."""
    path: str = ""
    """Where the encoded image is; empty when `payload` has it."""
    tar: str = ""
    """Absolute path of a whole plain tar, where those were asked for; there is no image then."""
    labels: Labels = NO_LABELS
    loss: str = ""
    """Reason why there is no image; empty when there is one."""
    label_only: bool = False
    """Only a label was lost: does not count as found."""


class Source(Protocol):
    """Something to ingest; `items` may be called again and gives the same."""

    source_id: str
    """Names the source within a stream; equal for every start on the same source."""

    def items(self, after: Position | None = None) -> Iterator[Found | None]:
        """Everything behind a position (None: everything); None where nothing comes now. Raises IngestError.

        A source that waits should say None once or twice a second: until it says something, what it said
        before is not committed, and a wish to stop is not heard.
        """
        ...

    def warnings(self) -> list[str]:
        """What a user should know of the last `items`; complete when it has ended."""
        ...


def open_source(
    specs: str | Sequence[str], *, name: str = "", label_from: str = "", max_bytes: int = 64 * 1024 * 1024
) -> "FileSource":
    """A source of local files.

    Args:
        specs: folders, tar or image files, or globs; taken in this order.
        name: identity of the source in a stream; by default it is made of the absolute specs.
        label_from: empty, or `parent`.
        max_bytes: images with more bytes are reported, not read.

    Raises:
        SourceNotFound: nothing is there.
        SourceEmpty: no image and no archive is there.
        SourceUnreadable: a URL, another kind of file, or a folder that cannot be listed.
    """
    source = FileSource((specs,) if isinstance(specs, str) else tuple(specs), name, label_from, max_bytes)
    if next(source.units(), None) is None:
        raise SourceEmpty(
            f"nothing to ingest in {', '.join(source.specs)}: no file there is named like an image "
            "(.jpg, .png, ...) or a tar (.tar, .tar.gz, .tgz)"
        )
    return source


class FileSource:
    """Folders, tars and images of this machine; not thread-safe."""

    def __init__(self, specs: tuple[str, ...], name: str, label_from: str, max_bytes: int) -> None:
        if not specs:
            raise ValueError("no source is given: name a folder, a tar or a glob")
        self.specs = tuple(str(Path(spec).expanduser()) if "://" not in spec else spec for spec in specs)
        self.source_id = name or _identity(self.specs)
        self._label_from = label_from
        self._max_bytes = max_bytes
        self._warnings: list[str] = []

    def roots(self) -> list[str]:
        """Absolute paths of the folders and files that the specs mean now."""
        return [absolute(path) for spec in self.specs for path in matches(spec)]

    def warnings(self) -> list[str]:
        """See Source."""
        return list(self._warnings)

    def units(self) -> Iterator[Unit]:
        """All files that are images or archives by name, in order. Raises IngestError."""
        for number, spec in enumerate(self.specs):
            found = matches(spec)
            for path in found:
                yield from walk(path, number, explicit=found == [spec])

    def items(self, after: Position | None = None, *, whole_tars: bool = False) -> Iterator[Found | None]:
        """See Source; with `whole_tars` a plain tar comes in one piece, not image by image."""
        self._warnings = []
        last = _read_position(after) if after is not None else None
        before = 0
        told = last is None
        for unit in self.units():
            if last is not None and unit.order < last.order:
                before += 1
                continue
            if last is not None and not told:
                self._compare(last, unit, before)
                told = True
            taken = last.taken if last is not None and unit.order == last.order else 0
            if taken == WHOLE:
                pass
            elif unit.archive and whole_tars and not taken and is_plain_tar(unit.path):
                position = _position(unit, before) | {"taken": WHOLE}
                yield Found(name=shown(unit.path), position=position, tar=absolute(unit.path))
            elif unit.archive:
                yield from self._archive(unit, before, taken)
            elif not taken:
                yield self._image(unit, before)
            before += 1
        if last is not None and not told:
            self._compare(last, None, before)

    def _compare(self, last: "_Place", unit: Unit | None, before: int) -> None:
        """Say when what was taken already is not what it was: what was put there since is not taken."""
        if before != last.units:
            self._warnings.append(
                f"{shown(last.path)}: {before} files stand before the place where the last ingest of this "
                f"source ended, then it was {last.units}; files added there are not taken (give them a "
                "source of their own)"
            )
        if unit is not None and unit.order == last.order and _size(unit.path) != last.size:
            self._warnings.append(
                f"{shown(last.path)}: has another size than when the last ingest of this source ended; "
                "the file may have been replaced (a new `--name` takes it as a new source)"
            )

    def _image(self, unit: Unit, before: int) -> Found:
        path, name, position = Path(unit.path), shown(unit.path), _position(unit, before) | {"taken": 1}
        if not path.is_file():  # a pipe or a device would block
            return Found(name=name, position=position, loss="not_a_file" if path.exists() else "unreadable")
        parent = parent_of(absolute(unit.path))
        labels = labels_of(_sidecar(unit.cls), _sidecar(unit.json), parent, self._label_from)
        return Found(name=name, position=position, path=unit.path, labels=labels)

    def _archive(self, unit: Unit, before: int, skip: int) -> Iterator[Found | None]:
        base = _position(unit, before)
        count = 0
        loss = ""
        try:
            path = Path(unit.path)
            if path.exists() and not path.is_file():
                loss = "not_a_file"
            else:
                for event in read_tar(path, max_bytes=self._max_bytes):
                    if event is None:
                        yield None
                        continue
                    count += 1
                    if count > skip:
                        yield self._event(unit, event, base | {"taken": count})
        except OSError:
            loss = "unreadable"
        if loss and count >= skip:
            yield Found(name=shown(unit.path), position=base | {"taken": count + 1}, loss=loss)

    def _event(self, unit: Unit, event: TarSample | TarLoss, position: Position) -> Found:
        name = f"{shown(unit.path)}#{shown(event.name)}"
        if isinstance(event, TarLoss):
            return Found(name=name, position=position, loss=event.reason, label_only=event.label_only)
        labels = labels_of(event.cls, event.json, parent_of(event.name), self._label_from)
        return Found(name=name, position=position, payload=event.payload, labels=labels)


def _identity(specs: Sequence[str]) -> str:
    places = json.dumps([absolute(spec) for spec in specs])
    base = "".join(letter if letter.isalnum() else "-" for letter in Path(specs[0]).name)
    return f"{base.strip('-')[:24] or 'source'}-{hashlib.sha256(places.encode()).hexdigest()[:12]}"


def _sidecar(path: str) -> bytes | None:
    """Content of a label file; what cannot be read is as bad as an empty one."""
    if not path:
        return None
    try:
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                return file.read(MOST_META_BYTES)
    except OSError:
        pass
    return b""


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


@dataclass(frozen=True, slots=True)
class _Place:
    order: tuple[int, tuple[bytes, ...]]
    path: str
    taken: int
    units: int
    size: int


def _position(unit: Unit, before: int) -> dict[str, Any]:
    path = quote(os.fsencode(absolute(unit.path)), safe="/ ,;:=+@()[]{}!&'")
    return {"spec": unit.order[0], "path": path, "units": before, "size": _size(unit.path)}


def _read_position(position: Position) -> _Place:
    try:
        raw = unquote_to_bytes(position["path"])
        order = (int(position["spec"]), tuple(raw.split(b"/")))
        numbers = (int(position[key]) for key in ("taken", "units", "size"))
        return _Place(order, os.fsdecode(raw), *numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnreadable(f"the stream's record of this source cannot be read: {position!r}") from error
