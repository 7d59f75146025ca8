"""The precision follows the processor."""

import platform

import pytest
import torch

from ops.config.schema import RunConfig
from ops.distributed.device import precision_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("machine", "capability", "device", "expected"),
    [
        ("x86_64", "AVX2", CPU, "float32"),
        ("x86_64", "DEFAULT", CPU, "float32"),
        ("x86_64", "AVX512", CPU, "bfloat16"),
        ("x86_64", "AVX2", CUDA, "bfloat16"),
        ("aarch64", "DEFAULT", CPU, "bfloat16"),
    ],
)
def test_bfloat16_where_it_is_fast(
    machine: str, capability: str, device: torch.device, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision_of(RunConfig.from_dict({"precision": "bfloat16"}), device) == expected


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_others_stay(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert precision_of(RunConfig.from_dict({"precision": precision}), CPU) == precision
