"""Which files a source has: globs, folders and what is in them, in the order of their names' bytes."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.archives import first_block
from ingest.errors import SourceNotFound, SourceUnreadable
from ingest.names import OTHER_ARCHIVES, is_archive, is_hidden, is_image, shown
from stream.local_store import LocalBytes
from stream.tars import BLOCK_BYTES, compression_of, parse_header


@dataclass(frozen=True, slots=True)
class Unit:
    """One file: an image or an archive."""

    order: tuple[int, tuple[bytes, ...]]
    """Number of the spec and the parts of the absolute path: units are sorted by it."""
    path: str
    archive: bool
    cls: str = ""
    """File beside the image that states its class; empty when there is none."""
    json: str = ""


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


def walk(path: str, number: int, *, explicit: bool) -> Iterator[Unit]:
    """Images and archives at a path: the file itself, or all in the folder and the folders in it.

    Links are followed, except where they lead back to a folder above. Hidden files and folders are left out.

    Args:
        path: a file or a folder.
        number: of the spec that it belongs to.
        explicit: the user named just this file, so a name that says nothing is no reason to leave it out.

    Raises:
        SourceUnreadable: a folder that cannot be listed, or an explicit file of another kind.
    """
    if not Path(path).is_dir():
        unit = Unit((number, parts_of(path)), path, archive=is_archive(path) or not is_image(path))
        if explicit and not is_archive(path) and not is_image(path):
            _check_archive(path)
        if explicit or is_archive(path) or is_image(path):
            yield unit
        return
    stack = [(_listed(path, ()), path)]
    while stack:
        (entries, names, above), folder = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif _is_folder(entry):
            stack.append((_listed(entry.path, above), entry.path))
        elif is_image(entry.name) or is_archive(entry.name):
            order = (number, parts_of(entry.path))
            if is_archive(entry.name):
                yield Unit(order, entry.path, archive=True)
            else:
                cls, body = (_beside(entry.name, folder, names, kind) for kind in (".cls", ".json"))
                yield Unit(order, entry.path, archive=False, cls=cls, json=body)


_Listed = tuple[Iterator["os.DirEntry[str]"], frozenset[str], tuple[tuple[int, int], ...]]


def _listed(folder: str, above: tuple[tuple[int, int], ...]) -> _Listed:
    """Entries of a folder in order, their names, and the folders that lead here (links may go in circles)."""
    try:
        status = Path(folder).stat()
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise SourceUnreadable(
            f"cannot list the folder {shown(folder)}: {error.strerror}; make it readable, or move it out of "
            "the source"
        ) from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return iter(()), frozenset(), above
    visible = [entry for entry in entries if not is_hidden(entry.name)]
    return iter(visible), frozenset(entry.name for entry in visible), (*above, here)


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
    if path.lower().endswith(OTHER_ARCHIVES):
        raise SourceUnreadable(f"{path}: archives of this kind are not read; unpack it, or make it a tar")
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
    raise SourceUnreadable(f"{path} is neither a folder, nor a tar, nor named like an image")


def is_plain_tar(path: str) -> bool:
    """Whether a file that is named like a tar is not compressed, whatever is wrong with it otherwise."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            return not compression_of(file.read(BLOCK_BYTES))
    except OSError:
        return False


def absolute(path: str) -> str:
    """The path from the root of the file system, without `.` and `..`; links stay."""
    return os.path.normpath(Path(path).absolute())


def parts_of(path: str) -> tuple[bytes, ...]:
    """What paths are ordered by: a folder's files stand together, whatever its name ends in."""
    return tuple(os.fsencode(absolute(path)).split(b"/"))
