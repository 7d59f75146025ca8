"""The objective: which features give codes, and when."""

import pytest
import torch
from torch import Tensor

from learner.collective import SingleProcess
from learner.config import SwavConfig
from learner.model import on_the_sphere
from learner.objectives.swav import Swav
from learner.sinkhorn import Codes, assign

K, D, B = 6, 5, 8


def sphere(*shape: int, seed: int) -> Tensor:
    return on_the_sphere(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def made(**change: object) -> Swav:
    fields: dict[str, object] = {"prototypes": (K,), "queue_samples": 2 * B}
    return Swav(SwavConfig(**(fields | change)), dim=D, group=SingleProcess())  # type: ignore[arg-type]  # by test


def codes_of(swav: Swav, z_ABD: Tensor, prototypes_KD: Tensor) -> Codes:
    (codes,) = swav.codes(swav.scores(z_ABD, [prototypes_KD]), [None], samples=z_ABD.shape[1])
    return codes


def test_codes_with_a_full_queue_are_those_of_the_joined_batch_under_todays_prototypes() -> None:
    swav = made()
    for seed in (1, 2):
        swav.remember(sphere(2, B, D, seed=seed), torch.arange(B), samples=seed * B, total=B)
    today, z = sphere(K, D, seed=9), sphere(2, B, D, seed=3)
    codes = codes_of(swav, z, today)
    joined = torch.cat([z, sphere(2, B, D, seed=1), sphere(2, B, D, seed=2)], dim=1) @ today.T
    expected = assign(joined, epsilon=0.05, iterations=3)
    torch.testing.assert_close(codes.codes_ABK, expected.codes_ABK[:, :B])
    torch.testing.assert_close(codes.mass_AK, expected.mass_AK)


def test_the_batch_itself_is_counted_once() -> None:
    swav = made()
    for seed in (1, 2):
        swav.remember(sphere(2, B, D, seed=seed), torch.arange(B), samples=seed * B, total=B)
    codes = codes_of(swav, sphere(2, B, D, seed=3), sphere(K, D, seed=9))
    torch.testing.assert_close(codes.mass_AK.sum(1), torch.full((2,), 3.0 * B))


def test_a_queue_that_is_not_full_yet_takes_no_part() -> None:
    swav = made()
    swav.remember(sphere(2, B, D, seed=1), torch.arange(B), samples=0, total=B)
    z, prototypes = sphere(2, B, D, seed=3), sphere(K, D, seed=9)
    codes = codes_of(swav, z, prototypes)
    expected = assign(z @ prototypes.T, epsilon=0.05, iterations=3)
    assert torch.equal(codes.codes_ABK, expected.codes_ABK)


def test_the_queue_begins_to_fill_at_its_sample() -> None:
    swav = made(queue_start_samples=100)
    swav.remember(sphere(2, B, D, seed=1), torch.arange(B), samples=99, total=B)
    assert len(swav.queue) == 0
    swav.remember(sphere(2, B, D, seed=1), torch.arange(B), samples=100, total=B)
    assert len(swav.queue) == B


def test_small_crops_are_predicted_from_and_give_no_codes() -> None:
    swav = made(queue_samples=0)
    prototypes = sphere(K, D, seed=9)
    z = sphere(5, B, D, seed=3)
    codes = codes_of(swav, z[:2], prototypes)
    assert codes.codes_ABK.shape == (2, B, K)
    z.requires_grad_()
    loss = swav.losses(z, [prototypes], [codes.codes_ABK], frozen=False).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert bool(gradient.flatten(1).any(1).all())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_prototypes_get_no_gradient_and_not_a_zero_one(frozen: bool) -> None:
    swav = made(queue_samples=0)
    prototypes = torch.nn.Parameter(sphere(K, D, seed=9))
    z = sphere(3, B, D, seed=3).requires_grad_()
    codes = codes_of(swav, z[:2].detach(), prototypes)
    torch.autograd.backward(swav.losses(z, [prototypes], [codes.codes_ABK], frozen=frozen).sum())
    assert (prototypes.grad is None) == frozen


def test_prototypes_are_frozen_by_samples_seen() -> None:
    swav = made(freeze_samples=50)
    assert [swav.frozen(samples) for samples in (0, 49, 50)] == [True, True, False]


def test_the_power_law_follows_usage_and_uniform_needs_no_prior() -> None:
    usage = torch.tensor([5, 1, 9, 2, 0, 3])
    assert made().priors([usage], torch.device("cpu")) == [None]
    (prior,) = made(prior="powerlaw", prior_exponent=1.0).priors([usage], torch.device("cpu"))
    assert prior is not None
    assert torch.equal(prior.argsort(descending=True), usage.argsort(descending=True))


def test_a_smaller_epsilon_gives_sharper_codes() -> None:
    z, prototypes = sphere(2, 64, D, seed=3), sphere(K, D, seed=9)
    entropies = []
    for epsilon in (0.01, 0.03, 0.05, 0.3):
        codes = codes_of(made(queue_samples=0, epsilon=epsilon), z, prototypes)
        entropies.append(float(torch.special.entr(codes.codes_ABK).sum(-1).mean()))
    assert entropies == sorted(entropies)
