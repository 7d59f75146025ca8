"""What one batch of a run holds of its stream: how many shards, and how many classes where records say one.

Places are worked out as a reader would, from the manifest alone. Labels are read from the records, without
their images, and only from local streams: a request for each of them would be dear elsewhere.
"""

from dataclasses import dataclass
from itertools import islice

from ops.config.schema import RunConfig
from stream.errors import StreamMismatch
from stream.lanes import Position
from stream.shards.source import ShardSource, ShardSpec
from stream.storage import LocalStore

_TRIED = 64
"""Records without a label after which no more are looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """The first batch of a run."""

    samples: int
    """Records that were looked at: the batch, or fewer where not so many can be read yet."""
    shards: int
    """Shards that they lie in."""
    shards_shuffled: float
    """Shards to be expected if they were drawn from the whole stream at random."""
    classes: int | None
    """Different labels among them; None where records have none, or were not looked at."""

    def __str__(self) -> str:
        classes = "" if self.classes is None else f" and {self.classes:,} classes"
        return (
            f"the first batch: {self.samples:,} records of {self.shards:,} shards{classes} "
            f"(drawn from the whole stream at random: {self.shards_shuffled:,.0f} shards)"
        )


def look_at_batch(url: str, config: RunConfig) -> Mixing | None:
    """The first batch that a run with these settings would read from a stream of shards.

    Returns:
        None where nothing can be read yet.

    Raises:
        StreamError: the stream cannot be read.
    """
    spec = ShardSpec(url=url, lanes=config.lanes, window=config.window, seed=config.seed, order=config.order)
    try:
        source = spec.open()
    except StreamMismatch:  # window = 0 on an open stream, of which the warnings tell
        return None
    try:
        found = [
            (place.number, place.record)
            for lane in range(config.lanes)
            for place, _ in islice(source.places(Position(lane=lane, unit=source.begin), 0), config.chunk)
        ]
        if not found:
            return None
        counts = source.manifest.counts()[source.begin :]
        missed = (1 - counts / counts.sum()) ** len(found)
        return Mixing(
            samples=len(found),
            shards=len({number for number, _ in found}),
            shards_shuffled=float((1 - missed).sum()),
            classes=_classes(source, found),
        )
    finally:
        source.close()


def _classes(source: ShardSource, found: list[tuple[int, int]]) -> int | None:
    if not isinstance(source.manifest.store, LocalStore):
        return None
    labels: set[int | str] = set()
    for tried, (number, record) in enumerate(found):
        if tried >= _TRIED and not labels:
            return None
        label = source.label(number, record)
        if label is not None:
            labels.add(label)
    return len(labels) or None
