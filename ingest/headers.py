"""Header blocks of tar archives, of every dialect."""

from dataclasses import dataclass

BLOCK = 512
"""Tars are made of blocks of this many bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """What one header block says."""

    name: str
    size: int
    kind: bytes


def parse_header(block: bytes) -> Header | None:
    """Read a header block of any dialect (v7, ustar, GNU, PAX); None when its checksum or size is wrong."""
    stated = _number(block[148:156])
    if stated is None:
        return None
    head, tail = block[:148], block[156:]
    unsigned = sum(head) + sum(tail) + 8 * ord(" ")
    if stated != unsigned:
        # Some old writers added the bytes as signed numbers.
        high = sum(byte >= 0x80 for byte in head) + sum(byte >= 0x80 for byte in tail)
        if stated != unsigned - 256 * high:
            return None
    size = _number(block[124:136])
    if size is None or size < 0:
        return None
    name = text_of(block[:100].split(b"\0", 1)[0])
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = f"{text_of(prefix)}/{name}"
    return Header(name, size, block[156:157])


def _number(text: bytes) -> int | None:
    """Octal digits, or (first bit set) a binary number."""
    if text[0] & 0x80:
        return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big") if text[0] != 0xFF else -1
    digits = text.strip(b" \0")
    if not digits:
        return 0
    try:
        return int(digits.split(b"\0", 1)[0], 8)
    except ValueError:
        return None


def pax_records(body: bytes) -> dict[str, str]:
    """Records `<length> <key>=<value>` of a PAX header; stops at the first that is not one."""
    values: dict[str, str] = {}
    at = 0
    while at < len(body):
        length, space, _ = body[at : at + 12].partition(b" ")
        if not space or not length.isdigit() or int(length) <= len(length) + 1:
            break
        record = body[at + len(length) + 1 : at + int(length)]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals:
            break
        values[text_of(key)] = text_of(value)
        at += int(length)
    return values


def text_of(raw: bytes) -> str:
    """A name; bytes that are no UTF-8 survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")
