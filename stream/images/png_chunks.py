"""The chunks of a PNG."""

from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunks(payload: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, body and stated checksum of each whole chunk, up to the end chunk."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(payload):
        length = int.from_bytes(payload[at : at + 4], "big")
        kind = payload[at + 4 : at + 8]
        if at + 12 + length > len(payload):
            return
        body = payload[at + 8 : at + 8 + length]
        yield kind, body, int.from_bytes(payload[at + 8 + length : at + 12 + length], "big")
        if kind == b"IEND":
            return
        at += 12 + length
