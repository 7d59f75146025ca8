"""The tail of a pass: how what its whole chunks leave is dealt over all lanes anew.

A pass over a sealed stream ends where some lane can fill no further chunk. The records that remain then, of
whichever lanes, are made into batches of B, the last of them short. In such a batch a sample need not be
taken for one of its own lane: the samples are dealt to all lanes in turn, so that each lane has one at least
and C at most. That is all that batch norm (groups of lanes), the feature queue (kept by lanes) and ranks
(owners of lanes) ever rely on, so a tail is an update like any other, and the same for any number of ranks.
Its loss is the mean over its own samples, at the learning rate of the moment.

Fewer than V samples stay left over, for every number of ranks: dealt to V ranks they would leave one without
a sample, so what is trained would depend on the number. For the same reason no rank just trains what its own
lanes have left: some other number of ranks would have one without any.

Each pass has its tail, and leaves fewer than V good records over: samples + skipped + left over = records x
passes.
"""

from collections.abc import Iterable, Mapping

from stream.reader import Sample


def quotas(unread: Mapping[int, int], *, batch: int) -> dict[int, int]:
    """How many samples the next batch takes of each lane: as even as can be, and all when they fit.

    Args:
        unread: records that each lane has, good or not.
        batch: B.

    Returns:
        For each lane with records, lanes ascending; together the smaller of B and all there are.
    """
    left, found = batch, {}
    lanes = sorted((lane for lane in unread if unread[lane]), key=lambda lane: (unread[lane], lane))
    for done, lane in enumerate(lanes):
        found[lane] = min(unread[lane], left // (len(lanes) - done))
        left -= found[lane]
    return dict(sorted(found.items()))


def dealt(found: Iterable[Sample], lanes: int) -> list[tuple[int, Sample]]:
    """Deal samples to lanes in turn: the first one of each lane, the second ones, and so on.

    So where all lanes have equally many, each sample stays with its own.

    Args:
        found: samples of all ranks; of each lane, the next ones by number.
        lanes: V.

    Returns:
        Each sample with the lane that it is dealt to; these ascending, in each in the order of dealing.
    """
    samples = sorted(found)
    first: dict[int, int] = {}
    for lane, seq, _, _ in samples:
        first.setdefault(lane, seq)
    samples.sort(key=lambda sample: (sample[1] - first[sample[0]], sample[0]))
    places = sorted(range(len(samples)), key=lambda place: (place % lanes, place))
    return [(place % lanes, samples[place]) for place in places]


def trainable(records: int, *, lanes: int, batch: int) -> int:
    """How many of so many remaining records a tail trains, if all of them are good."""
    short = records % batch
    return records if short >= lanes else records - short
