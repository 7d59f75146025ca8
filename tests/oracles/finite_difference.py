"""Slope of a function by symmetric differences."""

from collections.abc import Callable

import torch
from torch import Tensor


def slope(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, step: float = 1e-5) -> float:
    """Derivative of a scalar function along a direction; float64 throughout."""
    with torch.no_grad():
        return float((function(at + step * direction) - function(at - step * direction)) / (2 * step))
