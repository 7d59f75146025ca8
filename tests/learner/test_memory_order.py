"""Memory order by device and precision: NCHW where it is the more exact one, NHWC elsewhere."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from learner.config import ModelConfig
from learner.model import SwavModel
from learner.network import memory_order
from tests.learner.small_run import batch, same_bits, small_config, small_learner, weights_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "precision", "wanted", "order"),
    [
        (CPU, "float32", True, torch.contiguous_format),
        (CPU, "float64", True, torch.channels_last),
        (CPU, "bfloat16", True, torch.channels_last),
        (CUDA, "float32", True, torch.channels_last),
        (CUDA, "bfloat16", True, torch.channels_last),
        (CPU, "bfloat16", False, torch.contiguous_format),
        (CUDA, "bfloat16", False, torch.contiguous_format),
    ],
)
def test_only_float32_on_a_cpu_stays_in_nchw_whatever_is_wanted(
    device: torch.device, precision: str, wanted: bool, order: torch.memory_format
) -> None:
    assert memory_order(ModelConfig(channels_last=wanted), device, precision) is order


def noise_of_batch_norm(precision: str) -> float:
    """Relative error of a layer's gradient against float64, in the order that the learner takes."""
    order = memory_order(ModelConfig(), CPU, precision)
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(64, 4, 112, 112, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for dtype in (torch.float64, getattr(torch, precision)):
        layer = nn.BatchNorm2d(4).to(dtype)
        at = (x + 0.5).detach().to(dtype).contiguous(memory_format=order).requires_grad_()
        layer(at).backward(dy.to(dtype).contiguous(memory_format=order))
        assert at.grad is not None
        found.append(at.grad.double())
    return float((found[1] - found[0]).norm() / found[0].norm())


def test_the_gradient_of_batch_norm_in_float32_is_as_exact_as_float32() -> None:
    assert noise_of_batch_norm("float32") < 3e-7


def test_the_gradient_of_a_learner_in_float32_comes_from_that_order() -> None:
    """Images and weights of a step are in it, whatever `channels_last` says."""
    learner = small_learner(small_config())
    assert learner.config.model.channels_last
    seen: list[bool] = []
    for module in learner._model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda conv, inputs, y: seen.extend(t.is_contiguous() for t in (conv.weight, *inputs, y))
            )
    learner.step(batch(0))
    assert len(seen) > 20
    assert all(seen)


def test_a_state_of_either_order_goes_on_in_the_other() -> None:
    """Checkpoints hold values and no order: those of runs in NHWC resume."""
    learner = small_learner(small_config())
    learner.step(batch(0))
    state = learner.state_dict()
    for name, tensor in state["tensors"].items():
        if tensor.dim() == 4:
            state["tensors"][name] = tensor.contiguous(memory_format=torch.channels_last)
    others = [small_learner(small_config()), learner]
    others[0].load_state_dict(state)
    for other in others:
        other.step(batch(1))
    assert all(same_bits(*pair) for pair in pairwise(map(weights_of, others)))


def test_a_copy_of_the_model_has_the_order_of_the_run() -> None:
    copy: SwavModel = small_learner(small_config())._network.copy()
    assert all(p.is_contiguous() for p in copy.parameters())
