"""Which files a source has: globs, folders and what is in them, in the order of their names' bytes."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ingest.archive_bytes import first_block, first_bytes
from ingest.errors import SourceNotFound, SourceUnreadable
from stream.file_types import HEAD_BYTES, ZIP_MAGIC, FileKind, kind_by_name, kind_of
from stream.storage import LocalBytes
from stream.tar import BLOCK_BYTES, compression_of, parse_header
from stream.tar_samples import is_hidden


@dataclass(frozen=True, slots=True)
class Unit:
    """One file: an image, an archive, or what may be one."""

    order: tuple[int, tuple[bytes, ...]]
    """Number of the spec and the parts of the absolute path: units are sorted by it."""
    path: str
    archive: bool
    cls: str = ""
    """File beside the image that states its class; empty when there is none."""
    json: str = ""
    unsure: bool = False
    """The name says nothing: `looked_at` decides."""
    loss: str = ""
    """Reason why nothing can be had of it; empty when that is not known."""
    detail: str = ""


def looked_at(unit: Unit) -> Unit:
    """A unit whose kind is known: where the name says nothing, the first bytes are read."""
    if not unit.unsure:
        return unit
    kind, detail = FileKind.IMAGE, ""
    try:
        if Path(unit.path).is_file():  # a pipe or a device would block; what it is, is said when it is read
            kind = kind_of(Path(unit.path).name, *first_bytes(Path(unit.path), HEAD_BYTES))
    except OSError as error:
        return replace(unit, unsure=False, loss="unreadable", detail=error.strerror or "")
    loss = "unsupported_name" if kind is FileKind.UNSUPPORTED else ""
    return replace(unit, unsure=False, archive=kind is FileKind.ARCHIVE, loss=loss, detail=detail)


def matches(spec: str) -> list[str]:
    """The files and folders that a spec (a path or a glob) means, in order.

    Raises:
        SourceNotFound: nothing is there.
        SourceUnreadable: a URL.
    """
    if "://" in spec:
        raise SourceUnreadable(f"{spec} is a URL; sources are folders, tars or globs of this machine")
    if os.path.lexists(spec):
        return [spec]
    if not glob.has_magic(spec):
        raise SourceNotFound(f"nothing is at {spec}: check the path")
    found = sorted(glob.glob(spec, recursive=True), key=parts_of)  # noqa: PTH207
    if not found:
        raise SourceNotFound(f"no file matches {spec}: check the path, and quote globs")
    kept: list[str] = []
    for path in found:  # a folder that matches brings what is in it, which may match too
        if not kept or parts_of(path)[: len(parts_of(kept[-1]))] != parts_of(kept[-1]):
            kept.append(path)
    return kept


def walk(path: str, number: int, *, explicit: bool, exclude: Sequence[str] = ()) -> Iterator[Unit]:
    """What is, or may be, an image or an archive: the file itself, or all files in and below the folder.

    Links are followed, except where they lead back to a folder above. Hidden files and folders are left out,
    and so is what stands beside images by its nature. A folder that cannot be listed is a unit with a loss.

    Args:
        path: a file or a folder.
        number: of the spec that it belongs to.
        explicit: the user named just this file, so a name that says nothing is no reason to leave it out.
        exclude: patterns of what to leave out, see `is_excluded`.

    Raises:
        SourceUnreadable: an explicit file of another kind.
    """
    if not os.path.isdir(path):  # noqa: PTH112  pathlib raises where a folder above may not be entered
        unit = _unit(path, number)
        if explicit:
            yield _explicit(unit)
        elif kind_by_name(path) is not FileKind.BESIDE and not is_excluded(path, "", exclude):
            yield unit
        return
    stack = [(_listed(path, ()), path)]
    while stack:
        listed, folder = stack[-1]
        if isinstance(listed, str):
            yield replace(_unit(folder, number), unsure=False, loss="unreadable_folder", detail=listed)
            stack.pop()
            continue
        entry = next(listed.entries, None)
        if entry is None:
            stack.pop()
        elif is_excluded(entry.path, path, exclude):
            continue
        elif _is_folder(entry):
            stack.append((_listed(entry.path, listed.above), entry.path))
        elif kind_by_name(entry.name) is not FileKind.BESIDE:
            cls, body = (_beside(entry.name, folder, listed.names, label) for label in (".cls", ".json"))
            yield replace(_unit(entry.path, number), cls=cls, json=body)


def _unit(path: str, number: int) -> Unit:
    kind = kind_by_name(path)
    return Unit((number, parts_of(path)), path, archive=kind is FileKind.ARCHIVE, unsure=kind is None)


def is_excluded(path: str, root: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern leaves a file or folder out.

    A pattern without a slash is compared with the name, one that begins with a slash with the absolute path,
    any other one with the path below the source; `*` also matches slashes.
    """
    for pattern in patterns:
        wanted = pattern.rstrip("/")
        if wanted.startswith("/"):
            seen = absolute(path)
        elif "/" in wanted:
            seen = os.path.relpath(path, root) if root else path
        else:
            seen = path.rpartition("/")[2]
        if fnmatchcase(seen, wanted):
            return True
    return False


def _explicit(unit: Unit) -> Unit:
    """A file that the user named: one whose name does not tell must look like an image or archive inside."""
    by_name = kind_by_name(unit.path)
    if by_name in {FileKind.IMAGE, FileKind.ARCHIVE}:
        return unit
    known = looked_at(unit)
    if known.loss == "unreadable":
        raise SourceUnreadable(f"cannot read {unit.path}: {known.detail}")
    if by_name is None and not known.loss:
        return unit
    _check_archive(unit.path)
    return replace(unit, unsure=False, archive=True)


@dataclass(frozen=True, slots=True)
class _Listed:
    """A folder as it was listed."""

    entries: Iterator["os.DirEntry[str]"]
    """In order, without hidden ones."""
    names: frozenset[str]
    above: tuple[tuple[int, int], ...]
    """Itself and the folders that lead to it: links may go in circles."""


def _listed(folder: str, above: tuple[tuple[int, int], ...]) -> _Listed | str:
    """What is in a folder; why it cannot be listed when it cannot."""
    try:
        status = Path(folder).stat()
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        return error.strerror or type(error).__name__
    here = (status.st_dev, status.st_ino)
    if here in above:
        return _Listed(iter(()), frozenset(), above)
    visible = [entry for entry in entries if not is_hidden(entry.name)]
    return _Listed(iter(visible), frozenset(entry.name for entry in visible), (*above, here))


def not_listed(folder: str) -> str:
    """Why a folder cannot be listed; empty when it can."""
    listed = _listed(folder, ())
    return listed if isinstance(listed, str) else ""


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed; reading it as a file will say why
        return False


def _beside(name: str, folder: str, names: frozenset[str], kind: str) -> str:
    """The label file of an image: same name up to the last dot, else up to the first."""
    for stem in (name.rpartition(".")[0], name.partition(".")[0]):
        if stem + kind in names:
            return f"{folder}/{stem}{kind}"
    return ""


def _check_archive(path: str) -> None:
    """An explicit file of an unknown name must look like a tar inside."""
    try:
        if Path(path).is_file():
            file = LocalBytes(Path(path))
            try:
                if parse_header(first_block(file)) is not None:
                    return
            finally:
                file.close()
    except OSError as error:
        raise SourceUnreadable(f"cannot read {path}: {error.strerror}") from error
    raise SourceUnreadable(
        f"{path} is neither a folder, nor an image, nor an archive that is read (zip, tar, tar with gzip, "
        "bzip2 or xz) by its name and its first bytes"
    )


def is_plain_tar(path: str) -> bool:
    """Whether an archive is neither compressed nor a zip, whatever is wrong with it otherwise."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            head = file.read(BLOCK_BYTES)
            return not compression_of(head) and not head.startswith(ZIP_MAGIC)
    except OSError:
        return False


def absolute(path: str) -> str:
    """The path from the root of the file system, without `.` and `..`; links stay."""
    return os.path.normpath(Path(path).absolute())


def parts_of(path: str) -> tuple[bytes, ...]:
    """What paths are ordered by: a folder's files stand together, whatever its name ends in."""
    return tuple(os.fsencode(absolute(path)).split(b"/"))
