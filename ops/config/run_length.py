"""How many samples a run has: the one place where its length is computed from what its stream holds."""

from collections.abc import Sequence

from ops.config.schema import RunConfig
from stream.loader.tail import trainable


def pass_samples(config: RunConfig, records: int | Sequence[int], *, available: bool = False) -> int:
    """Samples of one pass over a stream that has its end, when all of its records are good.

    Args:
        config: of the run.
        records: of the stream, which its lanes share to within one; or of each lane.
        available: a step takes its chunks from whichever lanes have some, and not one from each.
    """
    if isinstance(records, int):
        total, steps = records, records // config.lanes // config.chunk
    else:
        chunks = [of_lane // config.chunk for of_lane in records]
        total, steps = sum(records), sum(chunks) // config.lanes if available else min(chunks)
    whole = steps * config.batch
    if config.tail != "train":
        return whole
    return whole + trainable(total - whole, lanes=config.lanes, batch=config.batch)


def run_samples(config: RunConfig, records: int) -> int:
    """Samples of a run over so many good records, in all passes; it ends after a whole batch."""
    samples = pass_samples(config, records) * config.passes
    return min(samples, -(-config.end_samples // config.batch) * config.batch or samples)
