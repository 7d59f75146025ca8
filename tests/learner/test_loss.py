"""Swapped prediction against the loop over pairs, and its gradient against finite differences."""

import math

import pytest
import torch
from torch import Tensor

from learner.objectives.swav import swapped_loss
from tests.oracles import swapped_loss as oracle
from tests.oracles.finite_difference import slope


def made(views: int, assigned: int, samples: int = 5, prototypes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(views, samples, prototypes, generator=generator, dtype=torch.float64) * 2 - 1
    codes = torch.rand(assigned, samples, prototypes, generator=generator, dtype=torch.float64)
    return scores, codes / codes.sum(-1, keepdim=True)


@pytest.mark.parametrize(("views", "assigned"), [(2, 2), (8, 2), (3, 1), (6, 3), (4, 4)])
def test_loss_of_any_layout_equals_the_loop_over_pairs_of_views(views: int, assigned: int) -> None:
    scores, codes = made(views, assigned)
    expected = oracle.swapped_loss(scores.tolist(), codes.tolist(), 0.1)
    torch.testing.assert_close(
        swapped_loss(scores, codes, temperature=0.1), torch.tensor(expected, dtype=torch.float64)
    )


def test_gradient_equals_finite_differences() -> None:
    scores, codes = made(5, 2)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(swapped_loss(scores, codes, temperature=0.1).mean(), scores)
    for seed in range(5):
        direction = torch.randn(
            scores.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        expected = slope(
            lambda at: swapped_loss(at, codes, temperature=0.1).mean(), scores.detach(), direction
        )
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_view_does_not_predict_its_own_code() -> None:
    scores, codes = made(3, 1)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(swapped_loss(scores, codes, temperature=0.1).sum(), scores)
    assert not bool(gradient[0].any())
    assert bool(gradient[1].any())
    assert bool(gradient[2].any())


def test_the_loss_of_scores_that_say_nothing_is_ln_k() -> None:
    _, codes = made(4, 2, prototypes=30)
    loss = swapped_loss(torch.zeros(4, 5, 30, dtype=torch.float64), codes, temperature=0.1)
    torch.testing.assert_close(loss, torch.full((5,), math.log(30), dtype=torch.float64))


def test_under_autocast_scores_of_half_precision_are_raised_to_float32_first() -> None:
    scores, codes = (tensor.float() for tensor in made(4, 2, prototypes=3000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = scores @ torch.eye(3000)
        assert half.dtype == torch.bfloat16
        loss = swapped_loss(half, codes, temperature=0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, swapped_loss(half.float(), codes, temperature=0.1))


def test_codes_that_would_pass_a_gradient_are_refused() -> None:
    scores, codes = made(4, 2)
    with pytest.raises(ValueError, match="must carry no gradient"):
        swapped_loss(scores, codes.requires_grad_(), temperature=0.1)


@pytest.mark.parametrize(("views", "assigned"), [(1, 1), (2, 3)])
def test_too_few_views_are_refused(views: int, assigned: int) -> None:
    scores, codes = made(views, assigned)
    with pytest.raises(ValueError, match="at least two"):
        swapped_loss(scores, codes, temperature=0.1)
