"""How records become samples, the same for every request of a loader."""

from dataclasses import dataclass

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor
from stream.loader.shared_memory import SharedBytes
from stream.processes import InFlightRecord, RecordRef


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPlan:
    """What a reader does with records."""

    seed: int
    chunk: int
    """C, samples of one chunk."""
    crops: tuple[CropConfig, ...]
    thumbnail_px: int
    max_pixels: int
    max_bad_fraction: float
    bad_window: int
    columns: int
    """Samples of one batch of this rank."""
    batch: int
    """B, samples of one batch of all ranks."""
    deadly: frozenset[RecordRef] = frozenset()
    """Records that are not decoded, because that kills."""
    accepted: int = 0
    """So many unusable records of a chunk or tail cost nothing of the budget: accepted beforehand."""
    images: SharedBytes | None = None
    """Where the encoded images of replays lie; None when they are read from the stream again. Where it is
    set, a chunk brings its own images."""
    in_flight: InFlightRecord | None = None
    """Where a reader process leaves the name of the record that it decodes."""

    def over_budget(self, read: int, bad: int) -> bool:
        """Whether so many records hold too many unusable ones."""
        return read >= self.bad_window and bad > self.max_bad_fraction * read


def plan_of(
    cursor: Cursor,
    crops: tuple[CropConfig, ...],
    config: ReaderConfig,
    *,
    lanes: int,
    images: SharedBytes | None = None,
) -> ReadPlan:
    """The plan of a rank with so many lanes, of the run that the cursor is of."""
    return ReadPlan(
        seed=cursor.seed,
        chunk=cursor.chunk,
        crops=crops,
        thumbnail_px=config.thumbnail_px,
        max_pixels=config.max_pixels,
        max_bad_fraction=config.max_bad_fraction,
        bad_window=config.bad_window,
        columns=lanes * cursor.chunk,
        batch=cursor.lanes * cursor.chunk,
        deadly=frozenset(cursor.deadly),
        images=images,
    )
