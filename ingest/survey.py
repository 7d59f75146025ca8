"""How many bytes a source has, counted beside the work, so that a share and the time left are known."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ingest.errors import IngestError
from ingest.listing import Unit


class Survey:
    """Walks a source once more in a thread that ends with the process and holds nothing up.

    It asks for names and sizes only. On a file system where that is slow the total comes late.

    Args:
        units: gives the files of the source; may be called while others do.
    """

    def __init__(self, units: Callable[[], Iterator[Unit]]) -> None:
        self._units = units
        self.bytes: int | None = None
        """Of all files; None while they are not all counted, and where they cannot be."""
        self.thread = threading.Thread(target=self._count, name="ingest-survey", daemon=True)
        self.thread.start()

    def _count(self) -> None:
        total = 0
        try:
            for unit in self._units():
                total += size_of(unit)
        except IngestError:  # whoever reads the source is told
            return
        self.bytes = total


def size_of(unit: Unit) -> int:
    """Bytes of a file; 0 of a folder and of what cannot be asked for."""
    if unit.loss:
        return 0
    try:
        return Path(unit.path).stat().st_size
    except OSError:
        return 0
