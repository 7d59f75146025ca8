"""What a reader does for a replay or a tail: samples that were read before, by the place of their records.

No pixels are kept anywhere: the record is read and decoded again, and other views are cut from it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stream.errors import BadRecord, StreamDamaged
from stream.layout import Layout
from stream.plan import ReadPlan
from stream.reader import Recalled, Sample
from stream.slabs import Frame
from stream.source import Source


@dataclass(frozen=True, slots=True)
class Recall:
    """Samples that were read before, and where they go (implements reader.Task)."""

    samples: tuple[Sample, ...]
    draw: int
    """0: the views of its arrival, and its thumbnail. Another one at each replay: it gives other views."""
    frame: int
    column: int
    """Of the first one; the others follow."""

    def result(self, source: Source, plan: ReadPlan, frames: Sequence[Frame]) -> Recalled:
        """Lay the samples out.

        Raises:
            StreamDamaged: a record can no longer be used.
            StreamError: what the source raises.
        """
        layout = Layout(plan=plan, frame=frames[self.frame], column=self.column)
        for lane, seq, unit, index in self.samples:
            clock = time.perf_counter()
            entry = source.entry(unit, index)
            layout.read_s += time.perf_counter() - clock
            layout.num_bytes += entry.size
            try:
                layout.add(entry, lane=lane, seq=seq, draw=self.draw)
            except BadRecord as error:
                raise StreamDamaged(
                    f"lane {lane}, unit {unit}, record {index} was used before and is now unusable: {error}; "
                    "mend the stream"
                ) from error
        layout.finish()
        # Counted as read and used when it arrived.
        return Recalled(replace(layout.stats(), used=0))

    def __str__(self) -> str:
        places = ", ".join(f"{unit}/{index}" for _, _, unit, index in self.samples)
        return f"lane {self.samples[0][0]} and on, again, unit/record {places}"
