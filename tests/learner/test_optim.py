"""LARS against plain numbers, schedules against their formula."""

import math

import pytest
import torch
from torch import Tensor, nn

from learner.config import OptimConfig
from learner.optim import Lars, Updater, build_optimizer, learning_rate
from tests.oracles.lars import lars_step


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 2, 3, 3), (1,)]
    made = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    made.append(nn.Parameter(torch.zeros(6, dtype=torch.float64)))  # a bias as it starts
    return made


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    made = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters()]
    if step == 3:
        made[1] = torch.zeros_like(made[1])
    return made


def lars(weights: list[nn.Parameter]) -> Lars:
    return Lars(weights, learning_rate=0.3, momentum=0.9, weight_decay=1e-2, trust_coefficient=0.02)


def test_lars_equals_plain_numbers_over_ten_steps() -> None:
    weights = parameters()
    plain = [(w.flatten().tolist(), [0.0] * w.numel()) for w in weights]
    optimizer = lars(weights)
    for step in range(10):
        rate = 0.3 / (1 + step)
        optimizer.param_groups[0]["lr"] = rate
        for index, gradient in enumerate(gradients(step)):
            weights[index].grad = gradient.clone()
            weight, momentum = plain[index]
            plain[index] = lars_step(
                weight, gradient.flatten().tolist(), momentum, rate=rate, beta=0.9, decay=1e-2, trust=0.02
            )
        optimizer.step()
        for (expected, _), moved in zip(plain, weights, strict=True):
            torch.testing.assert_close(
                moved.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
            )


def test_a_zero_bias_takes_one_plain_step_without_decay() -> None:
    bias = nn.Parameter(torch.zeros(3))
    optimizer = lars([bias])
    bias.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.3, 0.6, -0.9]))


def test_batch_norm_and_biases_take_part_in_lars_and_in_its_decay() -> None:
    layer = nn.BatchNorm1d(4)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(
        OptimConfig(optimizer="lars", weight_decay=0.5, momentum=0), layer.parameters()
    )
    gradient = torch.tensor([1.0, 2.0, 3.0, 4.0])
    layer.weight.grad = gradient.clone()
    optimizer.step()
    size, slope = float(before.norm()), float(gradient.norm())
    trust = 0.001 * size / (slope + 0.5 * size + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), before - 4.8 * trust * (gradient + 0.5 * before))


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_a_parameter_without_gradient_is_left_alone_with_its_momentum_and_decay(name: str) -> None:
    still, moving = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = build_optimizer(OptimConfig(optimizer=name, weight_decay=0.1), [still, moving])
    moving.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(3, 3))
    assert not optimizer.state.get(still)
    assert not torch.equal(moving.detach(), torch.ones(3, 3))


def test_lars_gives_the_same_bits_twice() -> None:
    ends = []
    for _ in range(2):
        weights = parameters()
        optimizer = lars(weights)
        for step in range(4):
            for weight, gradient in zip(weights, gradients(step), strict=True):
                weight.grad = gradient
            optimizer.step()
        ends.append(weights)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_lars_finds_the_bottom_of_a_bowl() -> None:
    target = torch.tensor([3.0, -2.0, 0.5])
    weight = nn.Parameter(torch.ones(3))
    optimizer = Lars([weight], learning_rate=1, momentum=0.9, weight_decay=0, trust_coefficient=0.01)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 1 - step / 400
        weight.grad = 2 * (weight.detach() - target)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), target, rtol=0, atol=0.05)


def test_adamw_decays_kernels_and_matrices_only() -> None:
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    config = OptimConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(config, [matrix, bias])
    matrix.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(bias.detach(), torch.ones(2))


def test_warm_up_is_linear_in_samples_and_then_the_rate_stays() -> None:
    config = OptimConfig(learning_rate=4.8, warmup_samples=1000, warmup_start=0.3)
    rates = [learning_rate(config, samples, None) for samples in (0, 500, 1000, 10**9)]
    assert rates == pytest.approx([0.3, (0.3 + 4.8) / 2, 4.8, 4.8])


def test_cosine_falls_from_the_peak_to_the_final_rate_and_stays_there() -> None:
    config = OptimConfig(
        learning_rate=2.0,
        schedule="cosine",
        warmup_samples=100,
        final_learning_rate=0.5,
        schedule_samples=1100,
    )
    rates = [learning_rate(config, samples, None) for samples in (100, 350, 600, 1100, 5000)]
    assert rates == pytest.approx([2.0, 1.25 + 0.75 * math.cos(math.pi / 4), 1.25, 0.5, 0.5])


def test_cosine_takes_the_length_of_the_run_when_none_is_set() -> None:
    config = OptimConfig(learning_rate=2.0, schedule="cosine")
    assert learning_rate(config, 500, 1000) == pytest.approx(1.0)


def test_a_cosine_whose_end_is_unknown_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"set optim.schedule_samples"):
        Updater(OptimConfig(schedule="cosine"), parameters(), total_samples=None)


def test_an_anneal_falls_from_the_rate_of_its_start_to_the_final_one_and_stays_there() -> None:
    config = OptimConfig(
        learning_rate=2.0, anneal_start_samples=1000, anneal_samples=400, final_learning_rate=0.5
    )
    rates = [learning_rate(config, samples, None) for samples in (0, 999, 1000, 1100, 1225, 1400, 10**9)]
    assert rates == pytest.approx([2.0, 2.0, 2.0, 1.25, 0.875, 0.5, 0.5])


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))]
    config = OptimConfig(
        optimizer="sgd", learning_rate=1.0, momentum=0, weight_decay=0, clip_gradient_norm=0.5
    )
    updater = Updater(config, weights, total_samples=None)
    weights[0].grad, weights[1].grad = torch.full((3,), 3.0), torch.full((4,), -4.0)
    norm = updater.gradient_norm()
    assert float(norm) == pytest.approx(math.sqrt(27 + 64))
    updater.apply(0, norm)
    assert float(torch.cat([w.detach() for w in weights]).norm()) == pytest.approx(0.5, rel=1e-4)
