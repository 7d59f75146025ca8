"""Everything of the learner as named tensors and JSON values, and back; and the digest of weights.

Equal tensors have an equal digest, on any machine and at any time.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learner.report import HealthReport

VERSION = 2
"""Raised whenever a name, shape or meaning changes; another version is refused."""


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose name begins with `prefix.`, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as copies on the CPU, with `prefix.` before their names."""
    return {f"{prefix}.{name}": copied(tensor) for name, tensor in tensors.items()}


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, row-major, that later steps do not change."""
    fresh = tensor.detach().to("cpu", copy=True)
    return fresh.contiguous()


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """All that the optimiser keeps, by parameter and key; parameters that never moved have nothing."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value
    return tensors


def load_optimizer(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors back where `optimizer_tensors` found them.

    Raises:
        ValueError: a tensor for a parameter that is not there, or of another shape.
    """
    parameters = dict(model.named_parameters())
    loaded: dict[nn.Parameter, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(f"saved optimiser state is for {name!r}, which this network does not have")
        if tensor.dim() > 0 and tensor.shape != parameter.shape:
            raise ValueError(f"saved optimiser state of {name} has shape {tuple(tensor.shape)}")
        place = (
            torch.empty_like(parameter)
            if tensor.dim() > 0
            else torch.empty_like(tensor, device=parameter.device)
        )
        loaded.setdefault(parameter, {})[key] = place.detach().copy_(tensor)
    kept = {key for state in loaded.values() for key in state}
    expected = {"Lars": {"momentum"}, "SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}
    if kept and kept != expected[type(optimizer).__name__]:
        raise ValueError(
            f"saved optimiser state holds {sorted(kept)}, which is not that of {type(optimizer).__name__}: "
            "optim.optimizer cannot change within a run"
        )
    optimizer.state.clear()
    for parameter, state in loaded.items():
        optimizer.state[parameter] = state


def report_to_json(report: HealthReport | None) -> dict[str, Any] | None:
    """A health report as JSON values."""
    return None if report is None else dataclasses.asdict(report)


def report_from_json(body: Mapping[str, Any] | None) -> HealthReport | None:
    """The report back; JSON knows no tuples."""
    if body is None:
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in body.items()
    }
    return HealthReport(**fields)


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
