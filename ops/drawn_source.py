"""Drawn pictures as a source to ingest: endless, and resumable like a folder."""

import io
from collections.abc import Iterator

from PIL import Image

from ingest.labels import Labels
from ingest.sources import Found, Position
from ops.pictures import KINDS, draw

QUALITY = 90
"""Of the JPEGs."""


class DrawnSource:
    """Implements `ingest.sources.Source` over `ops.pictures`; it never ends by itself.

    The position is the number of the next picture, so a second start draws on where the first was stopped.

    Args:
        seed: which stream of pictures; 0 .. 2^64 - 1.
        size: side, pixels; >= 8.
    """

    def __init__(self, *, seed: int, size: int) -> None:
        self.source_id = f"drawn-{seed}-{size}"
        self._seed = seed
        self._size = size

    def items(self, after: Position | None = None) -> Iterator[Found]:
        """See Source."""
        number = int(after["number"]) if after is not None else 0
        while True:
            payload, kind = encoded(self._seed, number, self._size)
            yield Found(
                name=f"{self.source_id}#{number}",
                position={"number": number + 1},
                payload=payload,
                labels=Labels(KINDS.index(kind), kind),
            )
            number += 1

    def warnings(self) -> list[str]:
        """See Source; there is nothing to warn of."""
        return []


def encoded(seed: int, number: int, size: int) -> tuple[bytes, str]:
    """One picture as JPEG, with its kind; see `ops.pictures.draw`."""
    pixels, kind = draw(seed, number, size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue(), kind
