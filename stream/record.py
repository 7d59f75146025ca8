"""Record: one encoded image with what is known of it, and its form as a WebDataset sample.

A sample has the image under the extension of its media type, a JSON member, and a `.cls` member when there
is a class number. The JSON member holds sha256, media_type, width, height, source, label and label_name; what
is not known is absent. The SHA-256 of the stored bytes is the record's identity.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream.errors import BadRecord

EXTENSIONS: Mapping[str, str] = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "image/jp2": "jp2",
    "image/jxl": "jxl",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/x-portable-anymap": "ppm",
    "image/x-icon": "ico",
    "image/vnd.adobe.photoshop": "psd",
    "image/qoi": "qoi",
}
"""Extension of the image member, by media type; other types are stored as `img`."""

IMAGE_EXTENSIONS = frozenset(EXTENSIONS.values()) | {
    "jpeg", "jpe", "jfif", "tiff", "dib", "j2k", "jpx", "heif", "pgm", "pbm", "pnm", "apng", "img",
}  # fmt: skip
"""Member extensions (lower case) that mean an image in a foreign tar."""

UNKNOWN_TYPE = "application/octet-stream"
LARGEST_LABEL = 2**31 - 1
"""Class numbers are kept as 32-bit integers by what reads them."""

_BRANDS = {b"avif": "image/avif", b"avis": "image/avif"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "image/heic"
)
_PREFIXES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"II+\x00", "image/tiff"),
    (b"MM\x00+", "image/tiff"),
    (b"\x00\x00\x00\x0cjP  ", "image/jp2"),
    (b"\xff\x4f\xff\x51", "image/jp2"),
    (b"\x00\x00\x00\x0cJXL ", "image/jxl"),
    (b"\xff\x0a", "image/jxl"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
    (b"8BPS", "image/vnd.adobe.photoshop"),
    (b"qoif", "image/qoi"),
)
_NUMBER = re.compile(rb"[0-9]{1,10}")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One encoded image on the stream."""

    payload: bytes
    """The encoded image, as stored."""
    sha256: str
    """Hex SHA-256 of `payload`: the record's identity. Empty for adopted tars that do not say it."""
    media_type: str
    """For example image/jpeg."""
    width: int = 0
    """Pixels, after orientation; 0 = not stated."""
    height: int = 0
    """Pixels, after orientation; 0 = not stated."""
    source: str = ""
    """Where it came from: a path, or archive#member, as the ingest saw it."""
    label: int | None = None
    """Class number for evaluation; never enters a chunk."""
    label_name: str | None = None
    """Name of the class."""
    bad_label: bool = False
    """A label was stated that cannot be used (or the member that states it cannot be read)."""


def sha256_of(payload: bytes) -> str:
    """Identity of a record: the hex SHA-256 of its encoded image."""
    return hashlib.sha256(payload).hexdigest()


def media_type_of(payload: bytes | memoryview) -> str | None:
    """Media type by the first bytes, never by a name; None when they are of no known image format."""
    head = bytes(payload[:32])
    for prefix, media_type in _PREFIXES:
        if head.startswith(prefix):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    # "BM" alone begins many texts: the two reserved words and the size of the next header tell them apart.
    if head[:2] == b"BM" and len(head) >= 18 and head[6:10] == bytes(4) and head[15:18] == bytes(3):
        return "image/bmp"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in (b"\n", b"\r", b" ", b"\t"):
        return "image/x-portable-anymap"
    return None


def metadata_of(record: Record) -> dict[str, str | int]:
    """What travels beside the image, under the same names on both carriers; what is not known is absent."""
    known: dict[str, str | int] = {"sha256": record.sha256, "media_type": record.media_type}
    if record.width and record.height:
        known |= {"width": record.width, "height": record.height}
    if record.source:
        known["source"] = record.source
    if record.label is not None:
        known["label"] = record.label
    if record.label_name is not None:
        known["label_name"] = record.label_name
    return known


def encode_sample(record: Record, key: str) -> dict[str, str | bytes]:
    """Members of a WebDataset sample, as `webdataset.TarWriter.write` takes them.

    Args:
        record: what is stored.
        key: name of the sample; without a dot, since WebDataset ends keys at the first one.

    Returns:
        `__key__`, the image under its extension, `json`, and `cls` when the record has a class number.

    Raises:
        ValueError: a key with a dot or a slash, a label out of range, or a digest that is not one.
    """
    if not key or "." in key or "/" in key:
        raise ValueError(f"a sample's key must be a name without dots and slashes, got {key!r}")
    if not _HEX_DIGEST.fullmatch(record.sha256):
        raise ValueError(f"a record to be stored needs its hex SHA-256, got {record.sha256!r}")
    if record.label is not None and not 0 <= record.label <= LARGEST_LABEL:
        raise ValueError(f"a label must be in 0..{LARGEST_LABEL}, got {record.label}")
    # ASCII only, so that a file name with undecodable bytes survives the way to UTF-8 and back.
    text = json.dumps(metadata_of(record), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    sample: dict[str, str | bytes] = {
        "__key__": key,
        EXTENSIONS.get(record.media_type, "img"): record.payload,
        "json": text.encode("ascii"),
    }
    if record.label is not None:
        sample["cls"] = str(record.label).encode("ascii")
    return sample


def decode_sample(image: bytes, media_ext: str, json_bytes: bytes | None, cls: bytes | None) -> Record:
    """Put a record together from the members of a sample, its own writer's or a stranger's.

    A label is taken from `cls`, else from the JSON's `label`, both whole numbers from 0 on; a label that is
    anything else, or a JSON member that cannot be read where no `cls` stands, leaves the image in and sets
    `bad_label`. `sha256` is what the JSON says (nothing is hashed here), or empty.

    Args:
        image: the encoded image.
        media_ext: extension of its member; believed only where neither the first bytes nor the JSON tell.
        json_bytes: the JSON member, or None.
        cls: the class member, or None.

    Raises:
        BadRecord: reason `empty` when the image has no bytes.
    """
    if not image:
        raise BadRecord("empty")
    body, readable = _parse(json_bytes)
    label, bad = _label(body, readable, cls)
    name = body.get("label_name")
    if name is not None and not (isinstance(name, str) and name):
        name, bad = None, True
    return Record(
        payload=image,
        sha256=_digest(body.get("sha256")),
        media_type=media_type_of(image) or _stated_type(body.get("media_type"), media_ext),
        width=_size(body.get("width")),
        height=_size(body.get("height")),
        source=_text(body.get("source")) or _text(body.get("url")) or "",
        label=label,
        label_name=name,
        bad_label=bad,
    )


def decode_label(json_bytes: bytes | None, cls: bytes | None) -> int | str | None:
    """The label of a sample, as `decode_sample` finds it: its number, else its name; None without one."""
    body, readable = _parse(json_bytes)
    label, _ = _label(body, readable, cls)
    name = body.get("label_name")
    return label if label is not None else name if isinstance(name, str) and name else None


def _parse(json_bytes: bytes | None) -> tuple[dict[str, Any], bool]:
    """Body of the JSON member, and whether it could be read (an absent one can)."""
    if json_bytes is None:
        return {}, True
    try:
        body = json.loads(json_bytes)
    except (ValueError, RecursionError):  # bytes that are no JSON, no UTF-8, or nested too deep
        return {}, False
    return (body, True) if isinstance(body, dict) else ({}, False)


def _label(body: Mapping[str, Any], readable: bool, cls: bytes | None) -> tuple[int | None, bool]:
    """The class number, and whether one was stated that cannot be used."""
    stated = body.get("label")
    if cls is not None:
        text = cls.strip()
        label = int(text) if _NUMBER.fullmatch(text) else None
    elif stated is not None:
        label = stated if isinstance(stated, int) and not isinstance(stated, bool) else None
    else:
        return None, not readable
    if label is None or not 0 <= label <= LARGEST_LABEL:
        return None, True
    return label, False


def _digest(value: object) -> str:
    return value if isinstance(value, str) and _HEX_DIGEST.fullmatch(value) else ""


def _stated_type(value: object, media_ext: str) -> str:
    if isinstance(value, str) and re.fullmatch(r"image/[a-z0-9.+-]{1,40}", value):
        return value
    extension = media_ext.lower().rpartition(".")[2]
    for media_type, known in EXTENSIONS.items():
        if extension == known:
            return media_type
    return {"jpeg": "image/jpeg", "tiff": "image/tiff"}.get(extension, UNKNOWN_TYPE)


def _size(value: object) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and isinstance(value, int) and 0 < value < 2**31 else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
