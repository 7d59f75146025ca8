"""Record as a Kafka message: the image is the value, what is known of it stands in headers.

The key is the hex SHA-256 of the value: the record's identity, never its partition. Header names are those of
the JSON member of a WebDataset sample, and besides

    format  version of these headers; a message without it is a stranger's, and is taken as a bare image
    mode    inline: the value is the image. Another mode (an image by reference) is not of this version
    size    bytes of the image
"""

import hashlib
from collections.abc import Iterable, Mapping

from stream.errors import BadRecord
from stream.record import LARGEST_LABEL, UNKNOWN_TYPE, Record, media_type_of, metadata_of

FORMAT = b"1"
INLINE = b"inline"
Headers = list[tuple[str, bytes]]

REASONS: Mapping[str, str] = {
    "empty": "the message has no value",
    "too_large": "the image is larger than a reader takes",
    "unknown_format": "the headers are of another version, or the image is not in the message",
    "bad_checksum": "the bytes are not those that were written",
    "lost": "gone from the topic before it was read (retention, deletion, compaction)",
}
"""Why a message gives no record, beside what a decoder finds."""


def encode_message(record: Record) -> tuple[bytes, Headers]:
    """Key and headers of a record; its payload is the value.

    Raises:
        ValueError: the record has no digest.
    """
    if not record.sha256:
        raise ValueError("a record to be sent needs its hex SHA-256")
    headers: Headers = [("format", FORMAT), ("mode", INLINE), ("size", str(len(record.payload)).encode())]
    # A file name with undecodable bytes survives the way to UTF-8 and back.
    headers += [(k, str(v).encode("utf-8", "surrogateescape")) for k, v in metadata_of(record).items()]
    return record.sha256.encode("ascii"), headers


def decode_message(
    value: bytes | None, headers: Iterable[tuple[str, bytes | None]], *, max_bytes: int, verify: bool
) -> Record:
    """The record of a message, its own writer's or a stranger's.

    A label that cannot be used leaves the image in and sets `bad_label`.

    Args:
        value: of the message.
        headers: of the message; of several of one name the first counts.
        max_bytes: a larger image is not taken.
        verify: compare the SHA-256 of the image with what the headers state.

    Raises:
        BadRecord: a reason of REASONS.
    """
    if not value:
        raise BadRecord("empty")
    if len(value) > max_bytes:
        raise BadRecord("too_large", f"{len(value)} bytes")
    known: dict[str, bytes] = {}
    for name, content in headers:
        known.setdefault(name, content or b"")
    ours = "format" in known
    if ours and (known["format"] != FORMAT or known.get("mode", INLINE) != INLINE):
        version, mode = known["format"][:20], known.get("mode", b"")[:20]
        raise BadRecord("unknown_format", f"format {version!r}, mode {mode!r}")
    sha256 = _text(known, "sha256") if ours else ""
    if ours:
        if known.get("size", str(len(value)).encode()) != str(len(value)).encode():
            raise BadRecord("bad_checksum", f"{len(value)} bytes, the header says {known['size'][:20]!r}")
        if verify and hashlib.sha256(value).hexdigest() != sha256:
            raise BadRecord("bad_checksum")
    label, bad = _label(known.get("label"))
    return Record(
        payload=value,
        sha256=sha256,
        media_type=media_type_of(value) or (_text(known, "media_type") if ours else "") or UNKNOWN_TYPE,
        width=_number(known.get("width")) if ours else 0,
        height=_number(known.get("height")) if ours else 0,
        source=_text(known, "source"),
        label=label,
        label_name=_text(known, "label_name") or None,
        bad_label=bad,
    )


def _text(known: Mapping[str, bytes], name: str) -> str:
    return known.get(name, b"").decode("utf-8", "surrogateescape")


def _number(text: bytes | None) -> int:
    return int(text) if text and text.isdigit() and len(text) <= 10 else 0


def _label(text: bytes | None) -> tuple[int | None, bool]:
    if text is None:
        return None, False
    if text.isdigit() and len(text) <= 10 and int(text) <= LARGEST_LABEL:
        return int(text), False
    return None, True
