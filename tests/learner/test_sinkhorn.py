"""Codes against a log-domain oracle, an assignment solver, and invariants."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.collective import SingleProcess
from learner.objectives.swav import swapped_loss
from learner.sinkhorn import assign, marginal_error, power_law_prior
from tests.oracles.log_sinkhorn import log_sinkhorn


def cosines(samples: int, prototypes: int, *, seed: int = 0, dim: int = 16) -> Tensor:
    """[1, B, K] float32 cosines of random directions."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(samples, dim, generator=generator), dim=1)
    c = torch.nn.functional.normalize(torch.randn(prototypes, dim, generator=generator), dim=1)
    return (z @ c.T)[None]


@pytest.mark.parametrize("epsilon", [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize(("samples", "prototypes", "iterations"), [(64, 2, 3), (40, 300, 3), (256, 64, 10)])
def test_codes_equal_the_float64_log_domain_oracle(
    epsilon: float, samples: int, prototypes: int, iterations: int
) -> None:
    scores = cosines(samples, prototypes)
    codes = assign(scores, epsilon=epsilon, iterations=iterations).codes_ABK[0]
    expected = log_sinkhorn(scores[0], epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(codes.double(), expected, rtol=0, atol=1e-6)


@given(
    seed=st.integers(0, 2**20),
    epsilon=st.floats(0.005, 1.0),
    iterations=st.integers(1, 12),
    samples=st.integers(1, 30),
    prototypes=st.integers(2, 40),
)
@settings(max_examples=60)
def test_float64_codes_equal_the_oracle_for_any_size_and_epsilon(
    seed: int, epsilon: float, iterations: int, samples: int, prototypes: int
) -> None:
    scores = cosines(samples, prototypes, seed=seed, dim=4).double()
    codes = assign(scores, epsilon=epsilon, iterations=iterations).codes_ABK[0]
    expected = log_sinkhorn(scores[0], epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-9)


def clustered(samples: int, prototypes: int, *, seed: int = 0) -> Tensor:
    """[1, B, K] float32 cosines as of a trained network: tight groups of features, of unequal sizes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(6, 16, generator=generator), dim=1)
    sizes = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])

    def drawn(count: int, weights: Tensor) -> Tensor:
        near = centres[torch.multinomial(weights, count, replacement=True, generator=generator)]
        return torch.nn.functional.normalize(near + 0.02 * torch.randn(count, 16, generator=generator), dim=1)

    return (drawn(samples, sizes) @ drawn(prototypes, sizes.flip(0)).T)[None]


@pytest.mark.parametrize("exponent", [0.0, 2.0])
@pytest.mark.parametrize(
    ("epsilon", "iterations"),
    [(0.005, 100), (0.01, 20), (0.01, 100), (0.02, 50), (0.03, 10), (0.03, 100), (0.05, 300)],
)
def test_codes_of_clustered_features_equal_the_oracle_after_many_iterations(
    epsilon: float, iterations: int, exponent: float
) -> None:
    scores = clustered(128, 64)
    prior = power_law_prior(torch.rand(64, generator=torch.Generator().manual_seed(1)), exponent)
    given = prior if exponent else None
    codes, mass = assign(scores, epsilon=epsilon, iterations=iterations, prior_K=given)
    expected = log_sinkhorn(scores[0], epsilon=epsilon, iterations=iterations, prior_K=given)
    torch.testing.assert_close(codes[0].double(), expected, rtol=0, atol=3e-6)
    error = float((expected.sum(0) / 128 - prior.double()).abs().sum())
    assert float(marginal_error(mass, given)) == pytest.approx(error, abs=1e-5)


def test_codes_tend_to_the_best_assignment_as_epsilon_falls() -> None:
    scores = cosines(24, 24)[0].double()
    rows, columns = linear_sum_assignment(-scores.numpy())
    best = float(scores[rows, columns].sum())
    gaps = []
    for epsilon in (0.2, 0.05, 0.01, 0.005):
        codes = assign(scores[None], epsilon=epsilon, iterations=2000).codes_ABK[0]
        gaps.append(best - float((codes * scores).sum()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01 * best
    assert (codes.argmax(1) == torch.as_tensor(columns)).float().mean() > 0.9


def test_each_sample_sums_to_one_even_after_one_iteration() -> None:
    codes = assign(cosines(100, 30), epsilon=0.01, iterations=1).codes_ABK
    torch.testing.assert_close(codes.sum(-1), torch.ones(1, 100), rtol=0, atol=1e-6)


def test_marginal_error_falls_with_iterations_and_is_zero_when_balanced() -> None:
    scores = cosines(512, 32)
    errors = [
        float(marginal_error(assign(scores, epsilon=0.03, iterations=n).mass_AK)) for n in (1, 3, 10, 100)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]
    assert float(marginal_error(torch.full((1, 7), 3.0))) == pytest.approx(0, abs=1e-6)
    assert float(marginal_error(torch.tensor([[1.0, 0, 0, 0]]))) == pytest.approx(1.5)


def test_mass_is_the_sum_of_the_codes_of_all_samples() -> None:
    result = assign(cosines(50, 9), epsilon=0.05, iterations=3)
    torch.testing.assert_close(result.mass_AK, result.codes_ABK.sum(1), rtol=1e-5, atol=1e-6)


def test_codes_follow_a_permutation_of_samples_and_prototypes() -> None:
    scores = cosines(20, 11)
    rows, columns = torch.randperm(20), torch.randperm(11)
    straight = assign(scores, epsilon=0.05, iterations=3).codes_ABK
    mixed = assign(scores[:, rows][:, :, columns], epsilon=0.05, iterations=3).codes_ABK
    torch.testing.assert_close(mixed, straight[:, rows][:, :, columns], rtol=1e-5, atol=1e-6)


def test_adding_a_constant_to_all_scores_of_a_prototype_changes_nothing() -> None:
    scores = cosines(20, 11).double()
    shifted = scores + torch.linspace(-3, 3, 11)
    straight = assign(scores, epsilon=0.05, iterations=3).codes_ABK
    torch.testing.assert_close(assign(shifted, epsilon=0.05, iterations=3).codes_ABK, straight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_raised_so_that_the_exponential_cannot_overflow(dtype: torch.dtype) -> None:
    scores = torch.ones(1, 6, 4, dtype=dtype)
    scores[0, :3, 0] = -1
    codes = assign(scores, epsilon=0.005, iterations=3).codes_ABK
    assert codes.dtype == torch.float32
    expected = log_sinkhorn(scores[0], epsilon=0.005, iterations=3)
    torch.testing.assert_close(codes[0].double(), expected, rtol=0, atol=1e-6)


def test_autocast_around_it_changes_no_bit() -> None:
    scores = cosines(64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = assign(scores, epsilon=0.03, iterations=3).codes_ABK
    assert torch.equal(inside, assign(scores, epsilon=0.03, iterations=3).codes_ABK)


@pytest.mark.parametrize("epsilon", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("iterations", [1, 3, 10, 300])
def test_a_starved_prototype_stays_finite_and_gets_its_share(epsilon: float, iterations: int) -> None:
    scores = cosines(64, 8)
    scores[..., 3] = -1 + 1e-3 * scores[..., 3]
    result = assign(scores, epsilon=epsilon, iterations=iterations)
    assert bool(torch.isfinite(result.codes_ABK).all())
    torch.testing.assert_close(result.codes_ABK.sum(-1), torch.ones(1, 64), rtol=0, atol=1e-5)
    if epsilon == 0.05 and iterations >= 10:
        assert float(result.mass_AK[0, 3]) == pytest.approx(64 / 8, rel=0.05)


@pytest.mark.parametrize("iterations", [1, 10, 1000])
def test_many_iterations_where_the_kernel_has_underflowed_stay_finite(iterations: int) -> None:
    # Two groups of samples and prototypes that see nothing of each other, and the groups are not of one size.
    scores = torch.full((1, 12, 4), -1.0)
    scores[0, :10, :1] = 1.0
    scores[0, 10:, 1:] = 1.0
    codes = assign(scores, epsilon=0.005, iterations=iterations).codes_ABK
    assert bool(torch.isfinite(codes).all())
    torch.testing.assert_close(codes.sum(-1), torch.ones(1, 12), rtol=0, atol=1e-5)


def test_identical_features_give_even_codes() -> None:
    codes = assign(cosines(1, 5).expand(-1, 30, -1), epsilon=0.01, iterations=3).codes_ABK
    torch.testing.assert_close(codes, torch.full((1, 30, 5), 0.2), rtol=0, atol=1e-6)


def test_a_hundred_thousand_prototypes_and_few_samples_are_fine() -> None:
    codes = assign(cosines(3, 100_000, dim=8), epsilon=0.01, iterations=3).codes_ABK
    torch.testing.assert_close(codes.sum(-1), torch.ones(1, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("prototypes", [2, 300, 20_000, 100_000])
def test_float32_codes_of_any_number_of_prototypes_equal_the_oracle(prototypes: int, epsilon: float) -> None:
    scores = cosines(12, prototypes)
    codes = assign(scores, epsilon=epsilon, iterations=3).codes_ABK[0]
    expected = log_sinkhorn(scores[0], epsilon=epsilon, iterations=3)
    torch.testing.assert_close(codes.double(), expected, rtol=0, atol=1e-6)


def test_nothing_is_read_back_from_the_device_while_codes_and_loss_are_made() -> None:
    seen: list[str] = []

    class Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:  # torch's own signature
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    scores = torch.cat([cosines(30, 6), cosines(30, 6)])
    views = scores.clone().requires_grad_()
    with Watched():  # type: ignore[no-untyped-call]
        codes = assign(scores, epsilon=0.01, iterations=3, hard=True, keep=20).codes_ABK
        torch.autograd.backward(swapped_loss(views[:, :20], codes, temperature=0.1).mean())
    assert any("softmax" in name for name in seen)
    assert not [name for name in seen if "local_scalar" in name or "nonzero" in name or "is_nonzero" in name]


def test_codes_carry_no_gradient() -> None:
    scores = cosines(10, 4).requires_grad_()
    result = assign(scores, epsilon=0.05, iterations=3)
    assert not result.codes_ABK.requires_grad
    assert not result.mass_AK.requires_grad


def test_the_scores_of_the_caller_are_not_changed() -> None:
    scores = cosines(10, 4)
    before = scores.clone()
    assign(scores, epsilon=0.05, iterations=3)
    assert torch.equal(scores, before)


def test_codes_of_the_kept_samples_are_those_of_the_whole_balance() -> None:
    scores = cosines(30, 6)
    whole = assign(scores, epsilon=0.05, iterations=3)
    kept = assign(scores, epsilon=0.05, iterations=3, keep=10)
    assert torch.equal(kept.codes_ABK, whole.codes_ABK[:, :10])
    assert torch.equal(kept.mass_AK, whole.mass_AK)


def test_views_are_balanced_each_on_its_own() -> None:
    views = torch.cat([cosines(20, 7, seed=1), cosines(20, 7, seed=2)])
    together = assign(views, epsilon=0.05, iterations=3).codes_ABK
    apart = torch.cat([assign(view[None], epsilon=0.05, iterations=3).codes_ABK for view in views])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


class Counting(SingleProcess):
    """One rank that counts its collectives."""

    def __init__(self) -> None:
        self.calls = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        return tensor


def test_both_views_together_cost_one_collective_more_than_iterations() -> None:
    group = Counting()
    assign(torch.cat([cosines(8, 4), cosines(8, 4)]), epsilon=0.05, iterations=3, group=group)
    assert group.calls == 4


def test_hard_codes_are_the_largest_soft_ones() -> None:
    scores = cosines(40, 6)
    soft = assign(scores, epsilon=0.05, iterations=3).codes_ABK
    hard = assign(scores, epsilon=0.05, iterations=3, hard=True).codes_ABK
    assert torch.equal(hard, torch.nn.functional.one_hot(soft.argmax(-1), 6).float())


def test_mass_follows_a_power_law_prior() -> None:
    usage = torch.tensor([3, 50, 20, 50])
    prior = power_law_prior(usage, 1.0)
    weights = torch.tensor([1 / 4, 1, 1 / 3, 1 / 2])
    torch.testing.assert_close(prior, weights / weights.sum())
    result = assign(cosines(400, 4), epsilon=0.05, iterations=100, prior_K=prior)
    torch.testing.assert_close(result.mass_AK[0] / 400, prior, rtol=0, atol=1e-3)
    assert float(marginal_error(result.mass_AK, prior)) < 1e-3


def test_codes_under_a_prior_equal_the_oracle() -> None:
    prior = power_law_prior(torch.arange(12), 0.7)
    scores = cosines(30, 12).double()
    codes = assign(scores, epsilon=0.03, iterations=3, prior_K=prior).codes_ABK[0]
    expected = log_sinkhorn(scores[0], epsilon=0.03, iterations=3, prior_K=prior)
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-9)


def test_exponent_zero_is_the_uniform_prior() -> None:
    torch.testing.assert_close(power_law_prior(torch.arange(5), 0.0), torch.full((5,), 0.2))


def test_too_small_a_batch_gives_codes_that_say_little() -> None:
    few = assign(cosines(32, 512), epsilon=0.05, iterations=3).codes_ABK
    many = assign(cosines(2048, 512), epsilon=0.05, iterations=3).codes_ABK
    entropy = [float(torch.special.entr(codes).sum(-1).mean()) / math.log(512) for codes in (few, many)]
    assert entropy[0] > entropy[1] + 0.1


@pytest.mark.parametrize("epsilon", [0.0, 0.004, 1.1, -0.1])
def test_an_epsilon_outside_its_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"epsilon must be in \[0.005, 1\]"):
        assign(cosines(4, 3), epsilon=epsilon, iterations=3)


def test_no_iteration_and_a_prior_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations must be >= 1, got 0"):
        assign(cosines(4, 3), epsilon=0.05, iterations=0)
    with pytest.raises(ValueError, match="3 prototypes"):
        assign(cosines(4, 3), epsilon=0.05, iterations=3, prior_K=torch.full((2,), 0.5))
