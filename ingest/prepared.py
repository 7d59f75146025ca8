"""What becomes of one image. Imports no decoder: who only handles results does without."""

from dataclasses import dataclass

from stream.errors import BadRecord


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as it is stored."""

    payload: bytes
    sha256: str
    """Hex digest of `payload`."""
    media_type: str
    width: int
    """Pixels, upright."""
    height: int


Result = Prepared | BadRecord
