"""Proof that messages are still those that were read: a number that a position keeps.

A leader that was elected without the newest messages gives their offsets to others, a topic may be restored
from a backup, and the log looks whole either way. So a position holds a digest of the message before it, or
of the block that it is in, and reading on compares.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

NONE = 0


class Told(Protocol):
    """What of a message counts."""

    @property
    def offset(self) -> int:
        """Where it stands."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its bytes."""
        ...

    @property
    def headers(self) -> tuple[tuple[str, bytes | None], ...]:
        """Of these the digest of the image, so that it need not be made again."""
        ...


def proof_of(messages: Iterable[Told]) -> int:
    """A number that stands for these messages at these offsets, 1 .. 2^63-1.

    Not of when they were sent: the same image that was sent again to the same place is the same record.
    """
    digest = hashlib.sha256()
    for message in messages:
        known = next((value for name, value in message.headers if name == "sha256" and value), None)
        content = known or hashlib.sha256(message.value or b"").digest()
        digest.update(f"{message.offset} {len(content)} ".encode() + content)
    return int.from_bytes(digest.digest()[:8], "big") >> 1 or 1
