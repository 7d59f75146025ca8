"""Small tensors on their way from the host to the device, with nobody waiting.

A copy to CUDA out of ordinary memory goes through a staging buffer of the driver, and the host may have to
wait for all that the device still does. Out of page-locked memory it is put in the stream like any kernel.
What is worked out on the CPU for an update (which rows, by how much) goes this way; on the CPU nothing is
copied.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes at whose multiples the parts of a packed buffer begin: those of the largest dtype."""


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the host goes on at once.

    Args:
        tensor: in ordinary or page-locked memory, not to be changed before the device has got it unless it
            is copied here (ordinary memory is); or on the device already.
        device: where it is needed.
    """
    if device.type in {"cpu", tensor.device.type}:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Several small tensors of any dtypes on the device, in one copy; the host goes on at once.

    Args:
        tensors: on the CPU.
        device: where they are needed.
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    edges = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    packed = torch.empty(edges[-1], dtype=torch.uint8, pin_memory=True)
    for tensor, first, size in zip(tensors, edges, sizes, strict=False):
        packed[first : first + size].view(tensor.dtype).copy_(tensor.reshape(-1))
    far = packed.to(device, non_blocking=True)
    return [
        far[first : first + size].view(tensor.dtype).view(tensor.shape)
        for tensor, first, size in zip(tensors, edges, sizes, strict=False)
    ]
