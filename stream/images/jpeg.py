"""What a JPEG says about itself, and its pixels from a decoder whose warnings are heard.

libjpeg goes on over damage: it fills what is missing with grey, and says so in a warning. torchvision and
Pillow drop that warning, so the pixels come from simplejpeg, which reports it. Not all that it says matters:

- the data of the pixels end too soon, are no codes, or are out of step: part of the picture is made up;
- bytes too many, a version or a profile that is not known: all pixels are there.

libjpeg tells its first warning only. A file with a warning is therefore brought into the form that libjpeg
has no harmless word about (`_bare_parts`), so that what it still says is about the pixels. Two things are not
seen: codes that are valid, but others than there were (a splice, some holes in progressive files), and, in a
file whose sampling factors the TurboJPEG interface does not know, any warning: Pillow decodes those.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from stream.errors import BadRecord

# Markers, ITU-T T.81 table B.1.
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BASELINE = frozenset({0xC0, 0xC1})
"""Frames of sequential JPEG with Huffman codes."""
SEQUENTIAL = BASELINE | {0xC9}
_HUFFMAN_TABLES = 0xC4
START_OF_SCAN, END_OF_IMAGE, APP0, APP1, APP2, APP14 = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE
_RESTART = range(0xD0, 0xD8)
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd8])")
"""FF 00 is a byte of the codes; 01 and the restarts have no body."""
_PIXELS_DEPEND_ON = START_OF_FRAME | {0xC4, 0xCC, 0xDB, 0xDD}
"""Frame, tables of codes, quantisation, restart interval."""

MOST_SCANS = 200
"""Ordinary progressive files have about ten. A scan costs its author a dozen bytes and the decoder a pass
over all pixels, so a small file with a million of them would hold a reader for hours."""

_CODES = 0
"""In place of a marker: the codes of a scan."""
_JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_MOST_TRIALS = 40
_ZEROS = bytes(64)
_HOLE = "bad codes: zeros among them"

_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_ENDS_TOO_SOON = re.compile(r"premature end", re.IGNORECASE)
_BAD_CODES = re.compile(
    r"bad (Huffman code|arithmetic code|codes)|instead of RST|Inconsistent progression|extraneous"
)


class Segment(NamedTuple):
    """One marker and its body."""

    marker: int
    start: int
    """Place of the marker, with the fill bytes before it."""
    body: int
    """First byte behind the length."""
    stop: int
    """First byte behind the body; codes of a scan lie between it and the `start` of the next segment."""


def segments(payload: bytes) -> Iterator[Segment]:
    """The segments of a JPEG, up to its end marker and with it; steps over what libjpeg steps over.

    What lies behind the end marker is not looked at. Codes are searched when the next segment is asked for.
    """
    at, end = 2, len(payload)
    while (found := _NEXT_MARKER.search(payload, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            yield Segment(marker, found.start(), at, at)
            return
        if at + 2 > end:
            return
        stop = min(end, at + max(2, payload[at] << 8 | payload[at + 1]))
        yield Segment(marker, found.start(), at + 2, stop)
        at = stop


def jpeg_frame(payload: bytes) -> tuple[int, int, int] | None:
    """Width, height (as stored) and number of components of an 8-bit JPEG, without decoding it.

    Walks the markers as libjpeg does, so that both see the same frame header.

    Returns:
        None when there is no frame header of 8-bit samples.
    """
    for marker, _, body, stop in segments(payload):
        if marker in {START_OF_SCAN, END_OF_IMAGE}:
            return None
        if marker in START_OF_FRAME:
            if stop < body + 6 or payload[body] != 8:
                return None
            height, width = (
                payload[body + 1] << 8 | payload[body + 2],
                payload[body + 3] << 8 | payload[body + 4],
            )
            return width, height, payload[body + 5]
    return None


def check_scans(payload: bytes) -> None:
    """Refuse a JPEG with a flood of scans, or without a scan that its pixels need.

    libjpeg takes a file that ends between two scans for complete. The standard asks for the mean of each
    block only; where the end marker is there, a writer may have left out the rest on purpose.

    Raises:
        BadRecord: `undecodable` or `truncated`.
    """
    sent: dict[int, dict[int, int]] = {}
    sequential = closed = False
    scans = 0
    for segment in segments(payload):
        marker, _, body, stop = segment
        closed = marker == END_OF_IMAGE
        if marker in START_OF_FRAME and not sent:
            sequential = marker in SEQUENTIAL
            sent = {component: {} for component in payload[body + 6 : stop : 3]}
        if marker != START_OF_SCAN:
            continue
        scans += 1
        if scans > MOST_SCANS:
            raise BadRecord("undecodable", f"more than {MOST_SCANS} scans")
        parts, first, last, low = _scan(payload, segment)
        if sequential and len(parts) == len(sent):
            return  # libjpeg takes no second one
        for part in parts:
            sent.setdefault(part, {}).update(dict.fromkeys(range(first, last + 1), low))
    needed = range(1 if closed or sequential else 64)
    if scans and any(
        bits.get(at) is None or (bits[at] and not closed) for bits in sent.values() for at in needed
    ):
        raise BadRecord("truncated", "scans are missing")
    if not (scans or closed or payload.endswith(b"\xff\xd9")):
        raise BadRecord("truncated", "it ends before its first scan")


def _scan(payload: bytes, segment: Segment) -> tuple[bytes, int, int, int]:
    """Components of a scan, its first and last coefficient, and the lowest bit of them that it sends."""
    first, last, bits = payload[segment.stop - 3 : segment.stop].ljust(3, b"\0")
    return payload[segment.body + 1 : segment.stop - 3 : 2], first, min(last, 63), bits & 15


def check_holes(payload: bytes) -> None:
    """Refuse a sequential JPEG with a hole of zeros among its codes, which libjpeg may take for codes.

    Where the code of "the rest of the block is zero" is itself all zeros, as in some files with tables of
    their own, zeros may be an even surface. In others, as with the tables of the standard, they would be
    blocks whose coefficients are all the same, which no photo has.

    Raises:
        BadRecord: `undecodable`.
    """
    if _ZEROS not in payload:
        return
    zero_code: dict[int, int] = {}
    codes = 0
    for segment in segments(payload):
        marker, start, body, stop = segment
        if codes:
            _check_hole(payload[codes:start])
            codes = 0
        if marker == _HUFFMAN_TABLES:
            zero_code.update(_zero_codes(payload[body:stop]))
        elif marker in START_OF_FRAME and marker not in BASELINE:
            return
        elif marker == START_OF_SCAN:
            if payload.find(_ZEROS, stop) < 0:
                return
            tables = (table & 15 for table in payload[body + 2 : stop - 3 : 2])
            codes = stop if any(zero_code.get(table, 1) for table in tables) else 0
    if codes:
        _check_hole(payload[codes:])


def _check_hole(codes: bytes) -> None:
    if _ZEROS in codes.rstrip(b"\0"):  # behind the codes they are padding
        raise BadRecord("undecodable", _HOLE)


def _zero_codes(content: bytes) -> dict[int, int]:
    """By AC table: the symbol whose code is all zeros, which is the first."""
    found, at = {}, 0
    while at + 17 < len(content):
        if content[at] >> 4 == 1:
            found[content[at] & 15] = content[at + 17]
        at += 17 + sum(content[at + 1 : at + 17])
    return found


def decode_jpeg(payload: bytes, colours: str = "RGB") -> NDArray[np.uint8] | None:
    """Decode a JPEG of 8 bits, and refuse one of whose pixels some are made up.

    Args:
        payload: a JPEG; its size and scans are checked already.
        colours: RGB for one and three components, CMYK for four.

    Returns:
        [H, W, 3 or 4] uint8 as stored, not turned. None: this decoder does not read the variant.

    Raises:
        BadRecord: `truncated`, `undecodable` or `too_large`.
    """
    check_holes(payload)
    pixels, said = _decoded(payload, colours)
    if pixels is not None:
        return pixels
    parts = _bare_parts(payload)
    pixels, said = _decoded(_joined(parts), colours)
    if pixels is None and _EXTRANEOUS.search(said):
        said = _said_behind(parts, said, colours)
        if not said:
            pixels = simplejpeg.decode_jpeg(_joined(parts), colours, strict=False)
    if pixels is None and _ENDS_TOO_SOON.search(said):
        raise BadRecord("truncated", said)
    if pixels is None and _BAD_CODES.search(said):
        raise BadRecord("undecodable", said)
    return pixels


def bare_jpeg(payload: bytes) -> bytes:
    """A JPEG with all that its pixels depend on and its colour profile, and nothing else."""
    return _joined(_bare_parts(payload, profile=True))


def _decoded(payload: bytes, colours: str) -> tuple[NDArray[np.uint8] | None, str]:
    """Pixels, or the first word of libjpeg against them."""
    try:
        return simplejpeg.decode_jpeg(payload, colours), ""
    except ValueError as error:
        return None, str(error)
    except MemoryError as error:
        raise BadRecord("too_large", "no memory for the pixels") from error


def _said_behind(parts: list[tuple[int, bytes]], said: str, colours: str) -> str:
    """What libjpeg says after a warning of bytes too many behind the codes of a scan; empty = nothing.

    The bytes are taken away and the rest is decoded. Which scan it was is not known, only the marker behind
    it: where a scan had none too many, taking them away is a damage that shows.
    """
    damage, trials = "", 0
    while (found := _EXTRANEOUS.search(said)) is not None and trials < _MOST_TRIALS:
        count, marker = int(found[1]), int(found[2], 16)
        if marker == END_OF_IMAGE:  # behind all pixels
            return _HOLE if _has_hole(parts, count) else ""
        if marker in _RESTART:
            return said  # an interval that is full before its codes end: they are out of step
        for at in [at for at, part in enumerate(parts) if part[0] == _CODES and parts[at + 1][0] == marker]:
            trial = [*parts[:at], (_CODES, parts[at][1][:-count]), *parts[at + 1 :]]
            trials += 1
            pixels, now = _decoded(_joined(trial), colours)
            if pixels is not None:
                return ""
            if _EXTRANEOUS.search(now):
                parts, said = trial, now
                break
            damage = damage or now
        else:
            return damage
    return damage


def _has_hole(parts: list[tuple[int, bytes]], too_many: int) -> bool:
    """Whether zeros stand among the codes, and not only in what is too many behind them.

    Zeros can be codes, of an even picture; a decoder that also comes out with too many bytes read others.
    """
    codes = [content for marker, content in parts if marker == _CODES]
    return any(_ZEROS in content for content in [*codes[:-1], codes[-1][:-too_many]])


def _joined(parts: list[tuple[int, bytes]]) -> bytes:
    return b"".join(part for _, part in parts)


def _bare_parts(payload: bytes, *, profile: bool = False) -> list[tuple[int, bytes]]:
    """What the pixels depend on, by marker, in a form that libjpeg has no harmless word about."""
    parts = [(0xD8, b"\xff\xd8")]
    sequential = False
    components = codes = 0
    for marker, start, body, stop in segments(payload):
        if codes:
            parts.append((_CODES, payload[codes:start]))
            codes = 0
        content = payload[body:stop]
        if marker in START_OF_FRAME:
            sequential, components = marker in SEQUENTIAL, content[5] if len(content) > 5 else 0
        if marker == START_OF_SCAN:
            if sequential:  # they mean nothing here, and some writers set them to anything
                content = content[:-3] + b"\x00\x3f\x00"
            codes = stop
        if marker in _PIXELS_DEPEND_ON or marker == START_OF_SCAN:
            parts.append((marker, _segment(marker, content)))
        elif marker == APP0 and content.startswith(b"JFIF\0") and len(content) >= 14:
            parts.append((marker, _JFIF))  # from it follows what the components are
        elif marker == APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            parts.append((marker, content))
        elif profile and marker == APP2 and content.startswith(b"ICC_PROFILE\0") and len(content) > 14:
            parts.append((marker, _segment(marker, content)))
    if codes:
        parts.append((_CODES, payload[codes:]))
    return [
        *((marker, _adobe(part, components) if marker == APP14 else part) for marker, part in parts),
        (END_OF_IMAGE, b"\xff\xd9"),
    ]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def _adobe(content: bytes, components: int) -> bytes:
    """Adobe's segment; a transform that does not exist is what libjpeg takes it for."""
    transform = content[11] if content[11] <= 2 else (2 if components == 4 else 1)
    return _segment(APP14, content[:11] + bytes((transform,)))
