"""What a file is, by its name and its first bytes: the one rule for folders, tars and zips.

A name that promises an image or an archive is believed; decoding shows whether it was right. Where a name
says nothing (files of crawls are named by a hash or by a whole URL) the first bytes decide. What is neither
is `UNSUPPORTED`: it is counted, never left out in silence. Only what stands beside images by its nature
(labels, captions, lists, checksums) is not counted.
"""

import re
from enum import Enum

from stream.record import IMAGE_EXTENSIONS as RECORD_EXTENSIONS
from stream.record import media_type_of

HEAD_BYTES = 512
"""First bytes of a file that are enough to tell what it is."""

IMAGE_EXTENSIONS = RECORD_EXTENSIONS | frozenset((
    "avifs", "blp", "bw", "cur", "dcx", "dds", "emf", "eps", "fit", "fits",
    "flc", "fli", "ftc", "ftu", "gbr", "heics", "heifs", "hif", "icb", "icns",
    "iim", "im", "j2c", "jif", "jpc", "jpf",
    "mpo", "msp", "pcd", "pcx", "pfm", "pxr",
    "ras", "rgb", "rgba", "sgi", "sun", "svg", "svgz", "tga", "vda", "vst", "wmf",
    "xbm", "xpm",
))  # fmt: skip
"""Names that promise an image, whether or not it can be decoded: what cannot is counted, not overlooked."""
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".zip")
BESIDE_EXTENSIONS = frozenset((
    "asc", "caption", "cfg", "cls", "csv", "idx", "index", "ini", "json", "jsonl", "log", "md", "md5",
    "ndjson", "rst", "sha1", "sha256", "sha512", "sig", "toml", "tsv", "txt", "xml", "yaml", "yml",
))  # fmt: skip
"""Names of what stands beside images: text about them. It is not found, looked at or counted."""
RAW_EXTENSIONS = frozenset((
    "3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "fff", "gpr", "iiq", "k25", "kdc", "mdc",
    "mef", "mos", "mrw", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f",
))  # fmt: skip
"""Names of what cameras write. Most are TIFFs by their first bytes, whose first image is a thumbnail."""

_TAILED = re.compile(
    r"\.(?:jpe?g|jpe|jfif|png|gif|webp|avif|bmp|tiff?|heic|jxl|jp2)(?:[^a-z0-9.].*|\.\d+)", re.S
)
"""An image's ending with what crawlers leave behind it: `.jpg?w=3`, `.jpg_large`, `.jpeg:large`, `.jpg.1`."""
_ENDING = re.compile(r"\.[a-z0-9_-]{1,12}")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".z", ".lz4", ".br")
_TAR_MAGIC = slice(257, 262)
_TIFF = "image/tiff"
_CR2 = slice(8, 10)
# Formats that the decoder reads and records have no media type for.
_OTHER_IMAGES = (b"DDS ", b"icns", b"\x59\xa6\x6a\x95", b"\x00\x00\x02\x00\x01\x00")
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


class FileKind(Enum):
    """What a file is taken for."""

    IMAGE = "image"
    ARCHIVE = "archive"
    """A tar, plain or compressed, or a zip."""
    BESIDE = "beside"
    """Text that stands beside images."""
    UNSUPPORTED = "unsupported"
    """Neither image nor archive, or of a kind that nothing here reads."""


def kind_by_name(name: str) -> FileKind | None:
    """What a name promises; None when it says nothing and the first bytes decide (see `kind_of`)."""
    last = name.rpartition("/")[2].lower()
    extension = last.rpartition(".")[2] if "." in last else ""
    if last.endswith(ARCHIVE_ENDINGS):
        return FileKind.ARCHIVE
    if extension in IMAGE_EXTENSIONS:
        return FileKind.IMAGE
    packed = last.rpartition(".")[0].rpartition(".")[2] if last.endswith(_PACKED) else ""
    if extension in BESIDE_EXTENSIONS or packed in BESIDE_EXTENSIONS:
        return FileKind.BESIDE
    if _TAILED.search(last) and not last.endswith(_PACKED):
        return FileKind.IMAGE
    return None


def kind_of(name: str, head: bytes, inflated: bytes = b"") -> FileKind:
    """What a file is by its name and, where that says nothing, by its first bytes.

    Args:
        name: of the file or member; only the part behind the last slash counts.
        head: its first bytes, up to HEAD_BYTES.
        inflated: first bytes of what is compressed in it, where it is a compressed file.
    """
    by_name = kind_by_name(name)
    if by_name is not None:
        return by_name
    if b"ustar" in {head[_TAR_MAGIC], inflated[_TAR_MAGIC]}:
        return FileKind.ARCHIVE
    ending = ending_of(name)
    if head.startswith(ZIP_MAGIC):  # documents and programs are zips too, and say so by their names
        nameless = not ending or ending[1:].isdigit()
        return FileKind.ARCHIVE if nameless else FileKind.UNSUPPORTED
    media_type = media_type_of(head)
    if media_type == _TIFF and (ending[1:] in RAW_EXTENSIONS or head[_CR2] == b"CR"):
        return FileKind.UNSUPPORTED
    known = media_type is not None or head.startswith(_OTHER_IMAGES)
    return FileKind.IMAGE if known else FileKind.UNSUPPORTED


def ending_of(name: str) -> str:
    """The ending of a name for counting, lower case with its dot; empty when there is none."""
    last = name.rpartition("/")[2].lower()
    stem, dot, _ = last.rpartition(".")
    ending = last[len(stem) :] if dot and stem else ""
    if ending in _PACKED and stem.endswith(".tar"):
        ending = f".tar{ending}"
    return ending if ending.startswith(".tar") or _ENDING.fullmatch(ending) else ""
