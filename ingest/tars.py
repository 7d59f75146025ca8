"""Images of one archive, to be copied: what stream/tar_samples.py finds in it, read in a second pass.

The first pass reads headers and labels, and of a compressed archive every byte, to its checksums, so that
nothing of it is given out before all of it is known. That costs inflating it twice, and no memory for its
content.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.archive_bytes import open_content
from stream.storage import LocalBytes
from stream.tar import TarLoss
from stream.tar_samples import TarEvent, group_tar, with_length


@dataclass(frozen=True, slots=True)
class TarSample:
    """One image of an archive, with the members that say its label."""

    name: str
    payload: bytes
    cls: bytes | None
    json: bytes | None


def read_tar(
    path: Path, *, max_bytes: int, reached: Callable[[int], None] = lambda _: None
) -> Iterator[TarSample | TarLoss | None]:
    """Images and losses of one archive, in its order; the same bytes always give the same sequence.

    Args:
        path: the archive, plain or compressed.
        max_bytes: images with more bytes are reported, not read.
        reached: told how many bytes of the file are behind an image.

    Yields:
        An image or a loss; None now and then while nothing can be given yet.

    Raises:
        OSError: the file cannot be read any further.
    """
    file = LocalBytes(path)

    def grouped(length: int | None) -> Generator[None, None, list[TarEvent]]:
        return group_tar(open_content(file, length), max_bytes=max_bytes)

    try:
        events = yield from with_length(grouped)
        data = open_content(file)
        for event in events:
            if isinstance(event, TarLoss):
                yield event
                continue
            data.skip(event.place.offset - data.position)
            payload = data.read(event.place.size)
            reached(data.consumed)
            if len(payload) < event.place.size:
                raise OSError(f"{path} became shorter while it was read")
            yield TarSample(event.name, payload, event.cls, event.json)
    finally:
        file.close()
