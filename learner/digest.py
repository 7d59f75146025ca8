"""A name for weights: equal tensors, equal digest, wherever and whenever they were made."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of some tensors.

    Args:
        tensors: of any dtype and device, at most one copy of one tensor is made at a time. Memory order
            does not matter: bytes are those of the row-major tensor, as the machine has them (little-endian
            on all that torch supports).

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{','.join(map(str, tensor.shape))}\0"
        total.update(head.encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
