"""Purity: how far the images of one prototype are of one kind, with what chance alone would give."""

# N images   K prototypes

import torch
from torch import Tensor


def purity(assigned_N: Tensor, kinds_N: Tensor) -> float:
    """Share of images that are of the commonest kind of their prototype.

    Grows with the number of prototypes (one image each is pure), so it means something only beside
    `purity_by_chance` or another network with as many.

    Args:
        assigned_N: [N] int64, the prototype of each image.
        kinds_N: [N] int64, the kind of each image.

    Returns:
        In (0, 1].

    Raises:
        ValueError: no images, or not one kind for each.

    Source: Manning, Raghavan and Schuetze 2008, Introduction to Information Retrieval, section 16.3.
    """
    if len(assigned_N) == 0 or assigned_N.shape != kinds_N.shape:
        raise ValueError(
            f"purity needs one kind for each of at least one image, got {len(kinds_N)} for {len(assigned_N)}"
        )
    kinds = int(kinds_N.max()) + 1
    counts_K = torch.bincount(assigned_N * kinds + kinds_N, minlength=(int(assigned_N.max()) + 1) * kinds)
    return float(counts_K.view(-1, kinds).amax(dim=1).sum()) / len(assigned_N)


def purity_by_chance(assigned_N: Tensor, kinds_N: Tensor, *, seed: int = 0, draws: int = 20) -> float:
    """Mean purity of prototypes of the same sizes when the kinds are dealt out at random; in (0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    found = 0.0
    for _ in range(draws):
        order = torch.randperm(len(kinds_N), generator=generator)
        found += purity(assigned_N, kinds_N[order])
    return found / draws
