"""What the demo's prototypes have come to stand for, judged on pictures that were not learned from."""

# N pictures   S side of a view   F width of a feature   K prototypes

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.learner import Learner
from ops.demo.contact_sheet import CELL_PX, COLUMNS, DARK, busiest, contact_sheet
from ops.demo.drawings.pictures import KINDS, draw
from ops.evaluate.features import ChannelMoments, raw_view
from ops.evaluate.knn import NearestNeighbours, purity, purity_by_chance
from ops.inference import load_model
from ops.inference.images import centre_view, resized, see
from ops.inference.load_model import Network
from ops.live_page.exemplars import OFFERS, Exemplars
from stream.errors import BadRecord
from stream.lanes import Position
from stream.order import SHARD
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec

FRESH_FROM = 1 << 40
"""Number of the first picture used here; the stream begins at 0 and never gets so far."""
PICTURES = 4000
NEIGHBOURS = 20

_QUERIES = 1000
_SHEET_RECORDS = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Figures by kind of picture; the kind was never shown to the learner."""

    purity: dict[str, float]
    """Of trained and untrained prototypes and by chance, 0 .. 1."""
    knn: dict[str, float]
    """Top-1 of 20 neighbours in percent: trained, untrained, raw_pixels."""
    pictures: int
    prototypes: dict[int, tuple[int, list[tuple[str, float]]]]
    """Of each that has pictures: how many, and its commonest kinds with their shares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """The contact sheet, and the use of all prototypes over the pictures that it was made from."""

    png: bytes
    dark_png: bytes
    """The same on a dark ground."""
    prototypes: tuple[int, ...]
    """Its rows, the busiest first."""
    usage: tuple[float, ...]
    images: int


def judge(network: Network, *, seed: int, size: int) -> Judgement:
    """Compare the network with itself before learning, on pictures that the stream does not hold.

    Args:
        network: the demo's.
        seed: of the stream of pictures.
        size: side of the pictures, pixels.
    """
    drawn = [draw(seed, number, size) for number in range(FRESH_FROM, FRESH_FROM + PICTURES)]
    kinds_N = torch.tensor([KINDS.index(kind) for _, kind in drawn])
    views_N3SS = torch.stack([
        centre_view(torch.from_numpy(pixels).permute(2, 0, 1), network.view_px) for pixels, _ in drawn
    ])  # fmt: skip
    initial = load_model.untrained(network)
    initial.estimate_statistics([views_N3SS])
    assigned_N = _assigned(network.learner, views_N3SS)
    moments = ChannelMoments()
    moments.add(raw_view(views_N3SS))
    return Judgement(
        purity={
            "trained": purity(assigned_N, kinds_N),
            "untrained": purity(_assigned(initial, views_N3SS), kinds_N),
            "chance": purity_by_chance(assigned_N, kinds_N),
        },
        knn={
            "trained": _top1(network.learner.features(views_N3SS), kinds_N),
            "untrained": _top1(initial.features(views_N3SS), kinds_N),
            "raw_pixels": _top1(moments.standardised(raw_view(views_N3SS)), kinds_N),
        },
        pictures=PICTURES,
        prototypes=_contents(assigned_N.tolist(), kinds_N.tolist()),
    )


def draw_sheet(network: Network, stream: str) -> Sheet:
    """The contact sheet of the newest images of a stream, as the network sees them now."""
    prototypes = network.config.swav.prototypes[0]
    exemplars = Exemplars(prototypes, each=COLUMNS, thumbnail_px=CELL_PX)
    counts_K = torch.zeros(prototypes, dtype=torch.int64)
    pixels = network.config.reader.max_pixels
    for seen in see(_newest(stream), size=CELL_PX, max_pixels=pixels):
        if not len(seen.views_B3SS):
            continue
        keys = [name for name, error in zip(seen.names, seen.errors, strict=True) if error is None]
        scores_BK = network.learner.scores(resized(seen.views_B3SS, network.view_px))
        score_B, assigned_B = scores_BK.max(dim=1)
        counts_K += torch.bincount(assigned_B, minlength=prototypes)
        # More at once, and most are not looked at: a busy prototype would be left without a picture.
        for start in range(0, len(keys), OFFERS):
            part = slice(start, start + OFFERS)
            exemplars.observe(
                assigned_B[part].numpy(), score_B[part].numpy(), keys[part], seen.views_B3SS[part].numpy(),
                samples=0,
            )  # fmt: skip
    images = int(counts_K.sum())
    usage_K = (counts_K.double() / max(1, images)).numpy().astype(np.float32)
    return Sheet(
        png=contact_sheet(exemplars, usage_K),
        dark_png=contact_sheet(exemplars, usage_K, inks=DARK),
        prototypes=tuple(busiest(exemplars, usage_K)),
        usage=tuple(usage_K.tolist()),
        images=images,
    )


def _assigned(learner: Learner, views_N3SS: Tensor) -> Tensor:
    return learner.scores(views_N3SS).argmax(dim=1)


def _top1(features_NF: Tensor, kinds_N: Tensor) -> float:
    """Top-1 in percent of the first pictures by the others."""
    nearest = NearestNeighbours(features_NF[:_QUERIES], k=NEIGHBOURS)
    nearest.add(features_NF[_QUERIES:], kinds_N[_QUERIES:])
    return nearest.top1(NEIGHBOURS, kinds_N[:_QUERIES])


def _contents(assigned: list[int], kinds: list[int]) -> dict[int, tuple[int, list[tuple[str, float]]]]:
    held: dict[int, Counter[str]] = {}
    for prototype, kind in zip(assigned, kinds, strict=True):
        held.setdefault(prototype, Counter())[KINDS[kind]] += 1
    return {
        prototype: (count.total(), [(kind, of / count.total()) for kind, of in count.most_common(3)])
        for prototype, count in held.items()
    }


def _newest(stream: str) -> Iterator[tuple[str, bytes | BadRecord]]:
    """Digest and bytes of the last records of a stream: some more than `_SHEET_RECORDS`, or all."""
    manifest = Manifest.open(stream)
    first = len(manifest)
    while first > manifest.floor.first and manifest.records - manifest.before(first) < _SHEET_RECORDS:
        first -= 1
    source = ShardSpec(url=stream, lanes=1, window=1, seed=0, order=SHARD).open()
    try:
        for entry, _ in source.read(Position(lane=0, unit=first), 0):
            if entry.record is not None:
                yield entry.record.sha256, entry.record.payload
    finally:
        source.close()
