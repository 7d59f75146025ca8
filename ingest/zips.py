"""A zip reader for archives that cannot be trusted.

Members come in the order of the zip's directory; the label of one is the member of the same name that ends in
.cls or .json, wherever it stands. Names are never used as paths, sizes are not believed, and a zip that gives
out more than it can hold in reason is left. A zip without its directory, which is its end, is not read: what
is in it cannot be told from what was deleted.
"""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ingest.archive_bytes import BOMB_BYTES, BOMB_RATIO
from ingest.tars import TarSample, read_tar
from stream.file_types import HEAD_BYTES, ZIP_MAGIC, FileKind, kind_by_name, kind_of
from stream.tar import MOST_META_BYTES, TarLoss
from stream.tar_samples import is_hidden

_LOCKED = 0x1
# All that zipfile raises about what it reads; RuntimeError is its word for a password.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, RuntimeError,
    NotImplementedError, OverflowError,
)  # fmt: skip


def read_archive(
    path: Path, *, max_bytes: int, reached: Callable[[int], None] = lambda _: None
) -> Iterator[TarSample | TarLoss | None]:
    """Images and losses of an archive, tar or zip by its first bytes; see `read_tar`."""
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC[0])) in ZIP_MAGIC:
            for event in read_zip(file, max_bytes=max_bytes):
                reached(file.tell())
                yield event
            return
    yield from read_tar(path, max_bytes=max_bytes, reached=reached)


def read_zip(file: BinaryIO, *, max_bytes: int) -> Iterator[TarSample | TarLoss]:
    """Images and losses of one zip, in its order; the same bytes always give the same sequence.

    Args:
        file: opened for reading, at any place.
        max_bytes: images with more bytes are reported, not read.
    """
    try:
        size = file.seek(0, 2)
        pack = zipfile.ZipFile(file)
    except _DAMAGE:
        yield TarLoss("zip_damaged", "")
        return
    with pack:
        members = pack.infolist()
        labels = {one.filename: one for one in members if one.filename.endswith((".cls", ".json"))}
        given = 0
        for member in members:
            if member.is_dir() or is_hidden(member.filename):
                continue
            event = _event(pack, member, labels, max_bytes)
            if event is None:
                continue
            given += len(event.payload) if isinstance(event, TarSample) else 0
            if given > BOMB_BYTES and given > BOMB_RATIO * size:  # members may share their bytes
                yield TarLoss("packed_bomb", member.filename)
                return
            yield event


def _event(
    pack: zipfile.ZipFile, member: zipfile.ZipInfo, labels: dict[str, zipfile.ZipInfo], max_bytes: int
) -> TarSample | TarLoss | None:
    """What one member comes to; None for what is no image by its nature."""
    name = member.filename
    kind = kind_by_name(name)
    if kind is FileKind.BESIDE:
        return None
    if member.flag_bits & _LOCKED:
        return TarLoss("encrypted", name)
    try:
        if kind is None:
            kind = kind_of(name, _content(pack, member, HEAD_BYTES))
        if kind is not FileKind.IMAGE:  # archives inside archives are not opened
            return TarLoss("unsupported_name", name)
        payload = _content(pack, member, max_bytes + 1)
    except _DAMAGE:
        return TarLoss("zip_damaged", name)
    if len(payload) > max_bytes:
        return TarLoss("too_many_bytes", name)
    cls, body = (_label(pack, name, ending, labels) for ending in (".cls", ".json"))
    return TarSample(name, payload, cls, body)


def _label(pack: zipfile.ZipFile, name: str, ending: str, labels: dict[str, zipfile.ZipInfo]) -> bytes | None:
    """The label of an image: same name up to the last dot, else up to the first; empty when unreadable."""
    folder, slash, last = name.rpartition("/")
    for stem in (last.rpartition(".")[0] or last, last.partition(".")[0]):
        found = labels.get(f"{folder}{slash}{stem}{ending}")
        if found is not None:
            try:
                return _content(pack, found, MOST_META_BYTES)
            except _DAMAGE:
                return b""
    return None


def _content(pack: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    with pack.open(member) as opened:
        return opened.read(most)
