"""Linear maps to the directions in which pairs differ least, and all rows most, from sums over pairs.

Source: linear discriminant analysis with each pair as a class of its own (Fisher 1936; Hatch, Kajarekar and
Stolcke 2006: within-class covariance normalisation).
"""

# N pairs   F width of a row   W width of a mapped row

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from learner import patches

RIDGE = 0.3
"""Share of the mean variance within pairs that is added to that of every direction: sums over few pairs see
some directions as steadier than they are."""

_LEAST_RATIO = 1e-6


def pair_sums(width: int, *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Zeros for `add_pairs`: over pairs, the sum of their means [F], and of products [F, F].

    The products are those of the mean of a pair and of its difference, each with itself.
    """
    shapes = [(width,), (width, width), (width, width)]
    return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]


def add_pairs(sums: Sequence[Tensor], one_NF: Tensor, other_NF: Tensor, *, weight: int = 1) -> None:
    """Add pairs of rows to sums of `pair_sums`, each so many times."""
    middle_NF, apart_NF = one_NF.add(other_NF).div_(2), one_NF.sub(other_NF)
    sums[0].add_(middle_NF.sum(0), alpha=weight)
    for total_FF, rows_NF in zip(sums[1:], (middle_NF, apart_NF), strict=True):
        total_FF.addmm_(rows_NF.T, rows_NF, alpha=weight)


def map_of_pairs(sums: Sequence[Tensor], weight: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean [F] of the rows of pairs, and their `discriminant_map` [F, W], float64.

    Args:
        sums: of `add_pairs`.
        weight: of all pairs together.
        width: W.
    """
    mean_F, products_FF, apart_FF = (total.double() / weight for total in sums)
    # The difference of two rows has twice their variance within pairs, their mean half of it.
    within_FF = apart_FF.div_(2)
    between_FF = products_FF.sub_(torch.outer(mean_F, mean_F)).sub_(within_FF, alpha=0.5)
    return mean_F, discriminant_map(within_FF, between_FF, width)


def discriminant_map(within_FF: Tensor, between_FF: Tensor, width: int) -> Tensor:
    """The linear map to the directions in which pairs differ most compared with their rows.

    Args:
        within_FF: float64, covariance of the rows of one pair.
        between_FF: float64, covariance of pairs, without that within them.
        width: W; columns of zeros where fewer directions tell pairs apart at all.

    Returns:
        [F, W] float64; mapped rows have a mean squared length of 1. The first has the largest ratio.
    """
    side = len(within_FF)
    steadied_FF = within_FF.clone()
    # Pairs that never differ leave nothing to divide by.
    least = _LEAST_RATIO * between_FF.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    steadied_FF.diagonal().add_(RIDGE * torch.maximum(within_FF.diagonal().mean(), least))
    factor_FF = torch.linalg.cholesky(steadied_FF)
    half_FF = torch.linalg.solve_triangular(factor_FF, between_FF, upper=False)
    ratio_FF = torch.linalg.solve_triangular(factor_FF, half_FF.T, upper=False)
    ratio_FF = ratio_FF.add_(ratio_FF.T.clone()).div_(2)
    _, vectors_FW = patches.leading_eigenpairs(ratio_FF, width)
    directions_FW = torch.linalg.solve_triangular(factor_FF.T, vectors_FW, upper=True)
    largest_W = directions_FW.abs().argmax(0, keepdim=True)
    directions_FW *= directions_FW.gather(0, largest_W).sign()
    lengths = (directions_FW * ((within_FF + between_FF) @ directions_FW)).sum()
    directions_FW /= lengths.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    out = torch.zeros(side, width, dtype=directions_FW.dtype, device=directions_FW.device)
    out[:, : directions_FW.shape[1]] = directions_FW
    return out


def triangle(symmetric_FF: Tensor) -> Tensor:
    """The upper triangle, row by row: half the bytes."""
    rows, columns = torch.triu_indices(*symmetric_FF.shape, device=symmetric_FF.device)
    return symmetric_FF[rows, columns]


def from_triangle(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle."""
    side = math.isqrt(2 * len(triangle))
    rows, columns = torch.triu_indices(side, side, device=triangle.device)
    out = torch.zeros(side, side, dtype=triangle.dtype, device=triangle.device)
    out[rows, columns] = triangle
    out[columns, rows] = triangle
    return out
