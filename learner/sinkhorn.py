"""Codes: the balanced soft assignment of samples to prototypes.

A assigned views (or any leading dimensions, each on its own)   B samples of this rank   K prototypes
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learner.collective import Group, SingleProcess

ALONE = SingleProcess()

FINE_EPSILON = 0.03
"""Below, and under a prior, all is worked out in float64. Scalings of prototypes, and of samples, differ by
factors up to exp(2 / epsilon): 9e28 at 0.03, which float32 holds (to 3e38), 3e43 at 0.02, which it does not.
A prior adds its own spread."""

TINY = {torch.float32: 1e-37, torch.float64: 1e-300}
"""Floor of the denominators, near the smallest number: keeps a prototype or sample whose whole row has
underflowed finite."""


class Codes(NamedTuple):
    """What `assign` returns."""

    codes_ABK: Tensor
    """[A, keep, K], each sample sums to 1; no gradient."""
    mass_AK: Tensor
    """[A, K], sum of the codes of *all* samples of this rank; summed over ranks it goes into
    `marginal_error`."""


@torch.no_grad()
def assign(
    scores_ABK: Tensor,
    *,
    epsilon: float,
    iterations: int,
    prior_K: Tensor | None = None,
    hard: bool = False,
    keep: int | None = None,
    group: Group = ALONE,
) -> Codes:
    """Balanced soft assignment by Sinkhorn-Knopp over the samples of all ranks.

    Finds q = diag(u) exp(scores / epsilon) diag(v) by scaling prototypes to their prior and samples to 1 in
    turn, ending on samples. The scores are first shifted per prototype (f, their maximum over all ranks'
    samples) and then per sample (g = max over k of s - f): every row and column of the kernel then holds a
    1, so nothing can overflow and nothing starves. f is absorbed by the first scaling of prototypes; g is
    given back by starting from v = exp(g / epsilon). Constant factors (1/K, 1/B, the total) cancel at the
    next scaling and are left out.

    Costs iterations + 1 small collectives of [A, K], whatever A; ranks may hold different numbers of samples.

    Args:
        scores_ABK: [A, B, K] cosines in [-1, 1]. Half precision is raised to float32; float64 stays.
        epsilon: entropy weight, [0.005, 1]; smaller is harder.
        iterations: rounds of prototypes and samples, >= 1.
        prior_K: [K], > 0, sums to 1: mass wanted on each prototype; None = uniform.
        hard: give all of a sample to its largest code (the balance is that of the soft ones).
        keep: codes are returned for the first so many samples; the others (the queue) only take part in the
            balance. None = all.
        group: ranks that share the batch.

    Returns:
        Codes, in float32 (float64 for float64 scores).

    Raises:
        ValueError: epsilon or iterations out of range, or a prior of another length.

    Source: Caron et al. 2020, arXiv:2006.09882, eq. 3 to 5; Cuturi 2013, arXiv:1306.0895.
    """
    if not 0.005 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0.005, 1], got {epsilon}")
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1, got {iterations}")
    num_prototypes = scores_ABK.shape[-1]
    if prior_K is not None and prior_K.shape != (num_prototypes,):
        raise ValueError(f"prior has shape {tuple(prior_K.shape)}, but there are {num_prototypes} prototypes")
    with torch.autocast(scores_ABK.device.type, enabled=False):
        dtype = torch.float64 if scores_ABK.dtype == torch.float64 else torch.float32
        inner = torch.float64 if epsilon < FINE_EPSILON or prior_K is not None else dtype
        tiny = TINY[inner]
        prior = 1.0 if prior_K is None else prior_K.to(scores_ABK.device, inner)
        f_A1K = group.max(scores_ABK.to(dtype).amax(-2, keepdim=True))
        shifted_ABK = scores_ABK.to(inner) - f_A1K
        logits_ABK = shifted_ABK[..., :keep, :] / epsilon
        g_AB1 = shifted_ABK.amax(-1, keepdim=True)
        kernel_ABK = shifted_ABK.sub_(g_AB1).div_(epsilon).exp_()
        v_A1B = g_AB1.div(epsilon).exp_().mT
        u_A1K = torch.ones_like(f_A1K, dtype=inner)
        for _ in range(iterations):
            u_A1K = prior / group.sum(v_A1B @ kernel_ABK).clamp_min_(tiny)
            u_A1K = u_A1K / u_A1K.amax(-1, keepdim=True)  # its scale is free: keep it from drifting to inf
            v_A1B = (kernel_ABK @ u_A1K.mT).clamp_min_(tiny).reciprocal_().mT
        mass_AK = ((v_A1B @ kernel_ABK) * u_A1K).squeeze(-2).to(dtype)
        # The last scaling of samples once more, in the log domain: exact where the kernel has underflowed.
        codes_ABK = logits_ABK.add_(u_A1K.clamp_min(tiny).log_()).softmax(-1).to(dtype)
        if hard:
            codes_ABK = torch.zeros_like(codes_ABK).scatter_(-1, codes_ABK.argmax(-1, keepdim=True), 1.0)
    return Codes(codes_ABK, mass_AK)


def marginal_error(mass_AK: Tensor, prior_K: Tensor | None = None) -> Tensor:
    """How far Sinkhorn has stopped from balance: sum over prototypes of |mass - wanted mass|.

    Args:
        mass_AK: [A, K] sum of the codes over all samples of all ranks.
        prior_K: [K], sums to 1; None = uniform.

    Returns:
        [A] in [0, 2]; 0 = balanced. Falls as iterations grow; rises before codes go wrong.
    """
    share_AK = mass_AK / mass_AK.sum(-1, keepdim=True)
    wanted = 1.0 / mass_AK.shape[-1] if prior_K is None else prior_K.to(share_AK)
    return (share_AK - wanted).abs().sum(-1)


def power_law_prior(usage_K: Tensor, exponent: float) -> Tensor:
    """A prior for long-tailed streams: mass (i + 1)^-exponent for the i-th most used prototype.

    Sorted by usage, and not by number, so that no prototype is made the largest for ever.

    Args:
        usage_K: [K] counts or shares of use; ties keep their order.
        exponent: >= 0; 0 = uniform.

    Returns:
        [K] float32 on the device of usage, sums to 1.

    Source: the power-law variant of Sinkhorn in VISSL (MIT), which ties rank to number; Assran et al. 2023,
        arXiv:2210.07277.
    """
    rank_K = torch.arange(1, len(usage_K) + 1, dtype=torch.float32, device=usage_K.device)
    mass_K = rank_K.pow(-exponent)
    order_K = usage_K.argsort(descending=True, stable=True)
    prior_K = torch.empty_like(mass_K)
    prior_K[order_K] = mass_K / mass_K.sum()
    return prior_K
