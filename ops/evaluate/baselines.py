"""What a trained network must beat: its own untrained weights, raw pixels, and k-means of small patches.

Each baseline learns from views of the bank, never from labels, and then describes a view by a feature.
"""

# B images of a piece   S side of a view in pixels   F width of a feature   K centres   M patches of an image

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learner.checkpoint_state import digest
from learner.patches import SIDE, PatchDictionary, encode, learn_dictionary, patches_at
from ops.distributed.device import device_of
from ops.evaluate.features import ChannelMoments, raw_view
from ops.inference import load_model
from ops.inference.load_model import Network

PATCHES = 200_000
"""Patches that a dictionary is learned from, about: as many from each image."""
MOST_PER_IMAGE = 100
"""Patches of one image at most: a small bank gives fewer than `PATCHES`."""
SEED = 0

Describe = Callable[[Tensor], Tensor]
"""From views, uint8 [B, 3, S, S], to features, float32 [B, F]."""


@dataclass(frozen=True, slots=True)
class BankViews:
    """The views of the bank, as often as wanted."""

    images: int
    passing: Callable[[str], Iterator[Tensor]]
    """One pass in pieces, uint8 [B, 3, S, S]; the argument says what for."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """One kind of features."""

    prepare: Callable[[BankViews], Describe]
    basis: dict[str, object] = field(default_factory=dict)
    """What its features depend on besides the views; plain JSON values."""


def untrained(network: Network) -> Baseline:
    """The run's own network as its seed draws it, with batch-norm statistics estimated on the bank."""
    initial = load_model.untrained(network)
    weights = digest(initial.snapshot().encoder)

    def prepare(bank: BankViews) -> Describe:
        initial.estimate_statistics(bank.passing("batch norm"))
        return initial.features

    config = network.config
    colour = {"mean": config.augment.mean, "std": config.augment.std}
    return Baseline(
        prepare,
        {"weights": weights, "precision": config.precision, "device": device_of(config).type, **colour},
    )


def raw_pixels() -> Baseline:
    """Pixels of the view at 32 x 32 at most, standardised a channel on the bank."""

    def prepare(bank: BankViews) -> Describe:
        moments = ChannelMoments()
        for views_B3SS in bank.passing("mean and deviation"):
            moments.add(raw_view(views_B3SS))
        return lambda views_B3SS: moments.standardised(raw_view(views_B3SS))

    return Baseline(prepare)


def patch_kmeans(centres: int) -> Baseline:
    """Online k-means of patches of the view at 32 x 32 at most, see `learner.patches`; 4 K numbers."""

    def prepare(bank: BankViews) -> Describe:
        dictionary = learn_patches(bank, centres)
        return lambda views_B3SS: encode(raw_view(views_B3SS), dictionary)

    return Baseline(prepare, {"seed": SEED, "patches": PATCHES, "most_per_image": MOST_PER_IMAGE})


def learn_patches(bank: BankViews, centres: int) -> PatchDictionary:
    """A dictionary of K centres from random patches of the bank, the same each time."""
    each = min(-(-PATCHES // bank.images), MOST_PER_IMAGE)
    generator = torch.Generator().manual_seed(SEED)
    found: list[Tensor] = []
    for piece in bank.passing("patches"):
        small_B3SS = raw_view(piece)
        places = small_B3SS.shape[-1] - SIDE + 1
        # Image after image, so that the cut into pieces changes nothing.
        corners_BM2 = torch.randint(places, (len(small_B3SS), each, 2), generator=generator)
        found.append(patches_at(small_B3SS, corners_BM2[:, :, 0], corners_BM2[:, :, 1]))
    return learn_dictionary(torch.cat(found), centres=centres, generator=generator)


BASELINES: dict[str, Callable[[Network], Baseline]] = {
    "untrained": untrained,
    "raw_pixels": lambda _network: raw_pixels(),
    "kmeans_400": lambda _network: patch_kmeans(400),
    "kmeans_1600": lambda _network: patch_kmeans(1600),
}
"""Rows beside the trained network, in the order in which they are shown."""
