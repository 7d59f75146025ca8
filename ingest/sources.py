"""What there is to bring in: images and tars of folders and globs, in one order, from any place on.

The order is that of the names' bytes, folder by folder. A position by names holds the last file and how much
of it is done: it stays good only when files are added behind it. Where there is a place for a list of what
was taken, listed.py goes by that list instead.

The label of an image follows the rules that hold for records everywhere, and its folder where asked.
"""

import glob
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes

from ingest.errors import SourceChanged, SourceEmpty, SourceNotFound, SourceUnreadable
from ingest.listing import Unit, absolute, is_plain_tar, looked_at, matches, walk
from ingest.names import shown
from ingest.survey import Survey, size_of
from ingest.tars import TarSample
from ingest.zips import read_archive
from stream.errors import BadRecord
from stream.file_types import ending_of
from stream.record import LARGEST_LABEL, decode_sample
from stream.tar import MOST_META_BYTES, TarLoss


@dataclass(frozen=True, slots=True)
class Labels:
    """The label of one image."""

    label: int | None = None
    label_name: str | None = None
    bad: bool = False
    """A label was stated, or asked for, and could not be had; the image is none the worse."""


NO_LABELS = Labels()


def parent_of(path: str) -> str:
    """Name of the folder that a file lies in; may be empty."""
    return path.rpartition("/")[0].rpartition("/")[2]


def labels_of(cls: bytes | None, body: bytes | None, parent: str, label_from: str) -> Labels:
    """Label of an image.

    Args:
        cls: content of its `.cls`, or None.
        body: content of its `.json`, or None.
        parent: name of the folder that it lies in; may be empty.
        label_from: empty, or `parent`: the folder's name is the label's name (and, if it is a whole number,
            the label), and `.cls` and `.json` count only where there is no folder.
    """
    if label_from == "parent" and parent not in {"", ".", ".."}:
        number = int(parent) if parent.isascii() and parent.isdecimal() and len(parent) <= 10 else -1
        name = parent.encode("utf-8", "backslashreplace").decode("utf-8")
        return Labels(number if 0 <= number <= LARGEST_LABEL else None, name)
    asked = label_from == "parent"
    if cls is None and body is None:
        return Labels(bad=asked)
    record = decode_sample(b"-", "", body, cls)  # the image itself has no say in its label
    none = record.label is None and record.label_name is None
    return Labels(record.label, record.label_name, record.bad_label or (asked and none))


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
    detail: str = ""
    """What was seen besides, where there is a loss."""
    file: str = ""
    """Absolute path of the file, or of the archive that it lies in; empty where there is none."""
    label_only: bool = False
    """Only a label was lost: does not count as found."""
    again: bool = False
    """Its file was taken or begun before: content that the stream has must not come a second time."""

    def read(self, max_bytes: int) -> bytes:
        """The encoded image; of a file above the limit one byte more than the limit, which shows that.

        Raises:
            BadRecord: the file is unreadable.
        """
        if self.payload or not self.path:
            return self.payload
        try:
            with Path(self.path).open("rb") as file:
                return file.read(max_bytes + 1)
        except OSError as error:
            raise BadRecord("unreadable", error.strerror or str(error)) from error


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
    specs: str | Sequence[str],
    *,
    name: str = "",
    label_from: str = "",
    max_bytes: int = 64 * 1024 * 1024,
    exclude: Sequence[str] = (),
) -> "FileSource":
    """A source of local files.

    Args:
        specs: folders, tar or image files, or globs; taken in this order.
        name: identity of the source in a stream; by default it is made of the absolute specs.
        label_from: empty, or `parent`.
        max_bytes: images with more bytes are reported, not read.
        exclude: patterns of files and folders to leave out, see `ingest.listing.is_excluded`.

    Raises:
        SourceNotFound: nothing is at one of the specs.
        SourceEmpty: no image and no archive is there.
        SourceUnreadable: a URL, another kind of file, or nothing but folders and files that cannot be read.
    """
    source = FileSource(
        (specs,) if isinstance(specs, str) else tuple(specs), name, label_from, max_bytes, tuple(exclude)
    )
    source.roots()  # a spec that means nothing is refused before the first image is read
    losses: Counter[str] = Counter()
    unreadable = ""
    for unit in map(looked_at, source.units()):
        if not unit.loss:
            return source
        losses[ending_of(unit.path) if unit.loss == "unsupported_name" else ""] += 1
        if unit.loss != "unsupported_name":
            unreadable = unreadable or f"{shown(unit.path)}: {unit.detail}"
    if unreadable:
        raise SourceUnreadable(
            f"nothing in {', '.join(source.specs)} can be read ({unreadable}): make it readable, or give "
            "another source"
        )
    passed = told_by_ending(losses)
    raise SourceEmpty(
        f"nothing to ingest in {', '.join(source.specs)}: no file there is an image or an archive (tar, zip) "
        "by its name or its first bytes" + (f"; there are {passed}" if passed else "")
    )


class FileSource:
    """Folders, tars and images of this machine; not thread-safe."""

    def __init__(
        self,
        specs: tuple[str, ...],
        name: str,
        label_from: str,
        max_bytes: int,
        exclude: tuple[str, ...] = (),
    ) -> None:
        if not specs:
            raise ValueError("no source is given: name a folder, a tar or a glob")
        self.specs = tuple(str(Path(spec).expanduser()) if "://" not in spec else spec for spec in specs)
        self.source_id = name or _identity(self.specs)
        self._label_from = label_from
        self._max_bytes = max_bytes
        self._exclude = exclude
        self._warnings: list[str] = []
        self._unlisted: list[str] = []
        self._behind = self._inside = 0
        self._survey: Survey | None = None

    def roots(self) -> list[str]:
        """Absolute paths of the folders and files that the specs mean now."""
        return [absolute(path) for spec in self.specs for path in matches(spec)]

    def warnings(self) -> list[str]:
        """See Source."""
        if not self._unlisted:
            return list(self._warnings)
        more = len(self._unlisted) - 1
        return [
            *self._warnings,
            f"{self._unlisted[0]}{f', and {more:,} more folders,' if more else ''} cannot be listed: "
            "passed; make them readable and run the same command again, or leave them out with --exclude",
        ]

    def check_there(self, path: str) -> None:
        """Raise SourceNotFound when the spec that a path belongs to is gone: its files are not unreadable."""
        number, head, _ = self._under(path)
        if number < len(self.specs) and not os.path.lexists(head or "."):
            raise SourceNotFound(
                f"nothing is at {head} any more: put it back, and run the same command again"
            )

    def spelled(self, path: str) -> str:
        """An absolute path as the specs say it, so that a record names its file as its user does."""
        _, head, rest = self._under(path)
        return os.path.join(head, rest) if rest else head  # noqa: PTH118  an empty head stays empty

    def inside(self, path: str) -> str:
        """An absolute path from its spec on: the same wherever the source lies."""
        number, head, rest = self._under(path)
        return f"{number}/{rest or Path(head).name}"

    def _under(self, path: str) -> tuple[int, str, str]:
        """Number of the first spec that a path belongs to, what is said of it there, and the rest."""
        for number, spec in enumerate(self.specs):
            head = spec if not glob.has_magic(spec) or os.path.lexists(spec) else _before_magic(spec)
            root = absolute(head or ".")
            if path == root:
                return number, head, ""
            if path.startswith(root.rstrip("/") + "/"):
                return number, head, path[len(root.rstrip("/")) + 1 :]
        return len(self.specs), path, ""

    def units(self) -> Iterator[Unit]:
        """Files that are may be images or archives, and unreadable folders, in order. Raises IngestError."""
        for number, spec in enumerate(self.specs):
            found = matches(spec)
            for path in found:
                yield from walk(path, number, explicit=found == [spec], exclude=self._exclude)

    def measure(self) -> None:
        """Count the bytes of all files in a thread, so that `total` is known some time later."""
        self._survey = self._survey or Survey(self.units)

    @property
    def total(self) -> int | None:
        """Bytes of all files; None while they are not counted."""
        return None if self._survey is None else self._survey.bytes

    @property
    def reached(self) -> int:
        """Bytes that are behind, of files and of the begun archive; files only once `measure` was called."""
        return self._behind + self._inside

    def start(self) -> None:
        """Nothing is behind."""
        self._behind = self._inside = 0

    def passed(self, size: int) -> None:
        """A file of so many bytes is behind."""
        self._inside = 0
        if self._survey is not None:
            self._behind += max(size, 0)

    def walked(self) -> Iterator[Unit]:
        """All units, with note of those that cannot be listed."""
        self._unlisted = []
        for unit in self.units():
            if unit.loss == "unreadable_folder":
                self._unlisted.append(f"{shown(unit.path)} ({unit.detail})")
            yield unit

    def _measured(self) -> Iterator[Unit]:
        """The same, with note of the bytes behind."""
        self.start()
        for unit in self.walked():
            yield unit
            self.passed(size_of(unit) if self._survey is not None else 0)

    def items(
        self, after: Position | None = None, *, whole_tars: bool = False, refuse: bool = False
    ) -> Iterator[Found | None]:
        """See Source; in the order of names, from a place by names: listed.py knows better.

        Args:
            after: a position.
            whole_tars: a plain tar comes in one piece, not image by image.
            refuse: raise SourceChanged where files that are before the place would be left out.
        """
        self._warnings = []
        if after is not None and "index" in after:
            raise SourceUnreadable(
                "this ingest keeps a list of what was taken, which is not here: give the same --state DIR as "
                "when it began"
            )
        last = read_place(after) if after is not None else None
        before = 0
        told = last is None
        for unit in self._measured():
            if last is not None and unit.order < last.order:
                before += 1
                continue
            if last is not None and not told:
                self._compare(last, unit, before, refuse=refuse)
                told = True
            taken = last.taken if last is not None and unit.order == last.order else 0
            if taken != WHOLE:
                yield from self.of(looked_at(unit), _position(unit, before), taken, whole_tars=whole_tars)
            before += 1
        if last is not None and not told:
            self._compare(last, None, before, refuse=refuse)

    def of(self, unit: Unit, base: dict[str, Any], taken: int, *, whole_tars: bool) -> Iterator[Found | None]:
        """Everything of a unit whose kind is known, behind the first `taken` things of it.

        Positions are `base` and how many are `taken` then.
        """
        if unit.loss:
            if not taken:
                yield _lost(unit, base | {"taken": 1})
        elif unit.archive and whole_tars and not taken and is_plain_tar(unit.path):
            yield Found(name=shown(unit.path), position=base | {"taken": WHOLE}, tar=absolute(unit.path))
        elif unit.archive:
            yield from self._archive(unit, base, taken)
        elif not taken:
            yield self._image(unit, base | {"taken": 1})

    def _compare(self, last: "Place", unit: Unit | None, before: int, *, refuse: bool) -> None:
        """Say when what was taken already is not what it was: what was put there since is not taken."""
        remedy = "give --state DIR, a folder for the list of what was taken: then all that is new is taken"
        if before != last.units:
            changed = (
                f"{shown(last.path)}: {before} files stand before the place where the last ingest of this "
                f"source ended, then it was {last.units}; files added there are not taken"
            )
            if refuse and before > last.units:
                raise SourceChanged(f"{changed}: {remedy}")
            self._warnings.append(f"{changed} ({remedy})")
        if unit is not None and unit.order == last.order and _size(unit.path) != last.size:
            changed = (
                f"{shown(last.path)}: has another size than when the last ingest of this source ended; "
                "the file may have been replaced"
            )
            if refuse:
                raise SourceChanged(f"{changed}: {remedy}")
            self._warnings.append(f"{changed} ({remedy})")

    def _image(self, unit: Unit, position: Position) -> Found:
        file = absolute(unit.path)
        trouble, detail = _no_file(unit.path)  # a pipe or a device would block
        if trouble:
            return _lost(replace(unit, loss=trouble, detail=detail), position)
        labels = labels_of(_sidecar(unit.cls), _sidecar(unit.json), parent_of(file), self._label_from)
        return Found(name=shown(unit.path), position=position, path=unit.path, labels=labels, file=file)

    def _archive(self, unit: Unit, base: dict[str, Any], skip: int) -> Iterator[Found | None]:
        count = 0
        loss, detail = _no_file(unit.path)
        try:
            if not loss:
                for event in read_archive(Path(unit.path), max_bytes=self._max_bytes, reached=self._reach):
                    if event is None:
                        yield None
                        continue
                    count += 1
                    if count > skip:
                        yield self._event(unit, event, base | {"taken": count})
        except OSError as error:
            loss, detail = "unreadable", error.strerror or ""
        if loss and count >= skip:
            yield _lost(replace(unit, loss=loss, detail=detail), base | {"taken": count + 1})

    def _reach(self, inside: int) -> None:
        self._inside = inside

    def _event(self, unit: Unit, event: TarSample | TarLoss, position: Position) -> Found:
        name, file = f"{shown(unit.path)}#{shown(event.name)}", absolute(unit.path)
        if isinstance(event, TarLoss):
            return Found(
                name=name, position=position, loss=event.reason, label_only=event.label_only, file=file
            )
        labels = labels_of(event.cls, event.json, parent_of(event.name), self._label_from)
        return Found(name=name, position=position, payload=event.payload, labels=labels, file=file)


def told_by_ending(endings: Mapping[str, int], most: int = 6) -> str:
    """Counts of files by ending for people: the most frequent first."""
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} {ending or 'without an ending'}" for ending, count in ordered[:most]]
    rest = sum(count for _, count in ordered[most:])
    return ", ".join([*told, f"{rest:,} of other endings"] if rest else told)


def _lost(unit: Unit, position: Position) -> Found:
    return Found(
        name=shown(unit.path),
        position=position,
        loss=unit.loss,
        detail=unit.detail,
        file=absolute(unit.path),
    )


def _no_file(path: str) -> tuple[str, str]:
    """Reason and detail when a path is no readable file; pathlib's own questions raise in a shut folder."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        return "unreadable", error.strerror or ""
    return ("", "") if stat.S_ISREG(mode) else ("not_a_file", "")


def _identity(specs: Sequence[str]) -> str:
    places = json.dumps([absolute(spec) for spec in specs])
    base = "".join(letter if letter.isalnum() else "-" for letter in Path(specs[0]).name)
    return f"{base.strip('-')[:24] or 'source'}-{hashlib.sha256(places.encode()).hexdigest()[:12]}"


def _before_magic(spec: str) -> str:
    """The folders of a glob before its first part that is a pattern."""
    parts = spec.split("/")
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:plain]) or ("/" if spec.startswith("/") else "")


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
class Place:
    """A position by names, as it was before there was a list of what was taken; still so for topics."""

    order: tuple[int, tuple[bytes, ...]]
    path: str
    taken: int
    units: int
    size: int


def _position(unit: Unit, before: int) -> dict[str, Any]:
    path = quote(os.fsencode(absolute(unit.path)), safe="/ ,;:=+@()[]{}!&'")
    return {"spec": unit.order[0], "path": path, "units": before, "size": _size(unit.path)}


def read_place(position: Position) -> Place:
    """What a position by names says. Raises SourceUnreadable when it is none."""
    try:
        raw = unquote_to_bytes(position["path"])
        order = (int(position["spec"]), tuple(raw.split(b"/")))
        numbers = (int(position[key]) for key in ("taken", "units", "size"))
        return Place(order, os.fsdecode(raw), *numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnreadable(f"the stream's record of this source cannot be read: {position!r}") from error
