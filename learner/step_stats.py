"""What one update looked like, over all ranks: a few sums of each rank, added in one collective.

A assigned views   B samples of this rank   N samples over all ranks   H heads   K prototypes   D embedding
size
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner import health
from learner.collective import Group, gather_rows
from learner.config import HealthConfig, SwavConfig
from learner.drift import Watched
from learner.health import UsageWindow
from learner.report import HealthReport
from learner.sinkhorn import Codes, marginal_error

HEALTH_SAMPLES = 1024
"""Samples of the batch from which ranks, uniformity and the like are taken; bounds their cost whatever the
batch."""

GROUPS = 32
"""Fixed groups of prototypes for panels and drift: few enough for a label each."""

EXTREMES = 10
"""Largest and smallest shares of usage that are listed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What this rank has worked out in one step; tensors without gradient."""

    loss_H: Tensor
    """[H] this rank's share of the mean loss."""
    z_ABD: Tensor
    """Features of the assigned views."""
    lane_B: Tensor
    """[B] int64 on the CPU."""
    prototypes_H: Sequence[Tensor]
    """[K, D] each; the live ones, so after the update they show what they have become."""
    scores_H: Sequence[Tensor]
    """[A, B, K] each, raw cosines that the codes were made from."""
    codes_H: Sequence[Codes]
    """Of the batch, with the mass over batch and queue."""
    priors_H: Sequence[Tensor | None]
    """Wanted mass of each head; None = uniform."""
    counts: Sequence[int]
    """Samples of every rank."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """Figures of one step over all ranks; the first head's where a head is not named."""

    loss: float
    loss_over_ln_k: float
    code_entropy_nats: float
    prediction_entropy_nats: float
    view_agreement: float
    """Not corrected for chance."""
    sinkhorn_residual: float
    """The worst of all views and heads."""
    feature_std_ratio: float
    gradient_norm: float
    assigned_HN: tuple[Tensor, ...]
    """Of each head, int64 on the CPU: arg-max of view 0 of every sample of every rank."""
    assigned_B: Tensor
    """Of this rank, first head, on the CPU."""
    score_B: Tensor


@torch.no_grad()
def measure(outcome: Outcome, gradient_norm: Tensor, config: SwavConfig, group: Group) -> Measured:
    """Add up this rank's share of every figure, sum over ranks in one collective, and divide.

    Everything is read back from the device at once, with what needs no sum behind it: a GPU is waited for
    only here. And it is waited for here, not an update later: what is not finite must be known before the
    weights move, and keeping all that an update changes until then would cost more than the wait.

    Args:
        outcome: of the step.
        gradient_norm: [] of the summed gradient, the same on every rank.
        config: settings.
        group: the ranks.
    """
    z_ABD, counts, priors_H = outcome.z_ABD, outcome.counts, outcome.priors_H
    scores_H, codes_H = outcome.scores_H, outcome.codes_H
    views, samples, _ = z_ABD.shape
    total, first = sum(counts), sum(counts[: group.rank])
    best_H = [scores_ABK.max(-1) for scores_ABK in scores_H]
    top_AB = best_H[0].indices
    log_p_ABK = torch.log_softmax(scores_H[0] / config.temperature, dim=-1)
    z_BD = z_ABD[0].double()
    assigned_HN = torch.zeros(len(scores_H), total, dtype=torch.float64, device=z_ABD.device)
    for row, best in zip(assigned_HN, best_H, strict=True):
        row[first : first + samples] = best.indices[0]
    shares = [
        outcome.loss_H.double(),
        health.summed_entropy(codes_H[0].codes_ABK)[None] / views,
        health.summed_entropy(log_p_ABK.exp(), log_p_ABK)[None] / views,
        (top_AB[0] == top_AB[min(1, views - 1)]).sum().double()[None],
        z_BD.sum(0),
        z_BD.square().sum(0),
        assigned_HN.flatten(),
        *[codes.mass_AK.double().flatten() for codes in codes_H],
    ]
    own = [gradient_norm.double()[None], best_H[0].values[0].double()]
    own += [prior_K.double() for prior_K in priors_H if prior_K is not None]
    read = torch.cat([group.sum(torch.cat(shares)), *own]).cpu()
    parts = torch.split(read, [len(part) for part in (*shares, *own)])
    losses, code_entropy, prediction_entropy, agreeing, z_D, square_D, assigned = parts[:7]
    masses_H, (norm, score_B, *wanted_H) = parts[7 : len(shares)], parts[len(shares) :]
    ln_k = torch.tensor([math.log(scores.shape[-1]) for scores in scores_H], dtype=torch.float64)
    residual = max(
        float(marginal_error(mass.view(views, -1), wanted_K).max())
        for mass, wanted_K in zip(masses_H, wanted_H or priors_H, strict=True)
    )
    return Measured(
        loss=float(losses.mean()),
        loss_over_ln_k=float((losses / ln_k).mean()),
        code_entropy_nats=float(code_entropy / total),
        prediction_entropy_nats=float(prediction_entropy / total),
        view_agreement=float(agreeing / total) if views > 1 else 0.0,
        sinkhorn_residual=residual,
        feature_std_ratio=health.feature_std(z_D, square_D, total),
        gradient_norm=float(norm),
        assigned_HN=tuple(assigned.long().view(len(scores_H), total)),
        assigned_B=assigned[first : first + samples].long(),
        score_B=score_B.float(),
    )


@torch.no_grad()
def health_report(
    outcome: Outcome,
    measured: Measured,
    config: HealthConfig,
    group: Group,
    *,
    samples: int,
    usage: UsageWindow,
    queue_ages: tuple[float, int] | None,
    watched: Watched,
) -> HealthReport:
    """The dearer figures; a collective, at the same step on every rank."""
    z_ABD, counts = outcome.z_ABD, outcome.counts
    chosen = [count * HEALTH_SAMPLES // max(HEALTH_SAMPLES, sum(counts)) for count in counts]
    own = chosen[group.rank]
    z_NAD = gather_rows(group, z_ABD[:, :own].transpose(0, 1).contiguous(), chosen).cpu()
    lane_N = gather_rows(group, outcome.lane_B[:own].to(z_ABD.device), chosen).cpu()
    z_ANND = z_NAD.transpose(0, 1)
    return HealthReport(
        **_without_features(
            measured,
            config,
            samples=samples,
            usage=usage,
            prototypes_KD=outcome.prototypes_H[0],
            prior_K=outcome.priors_H[0],
        ),
        effective_rank=health.effective_rank(z_ANND[0]),
        alpha_req=health.alpha_req(z_ANND[0]),
        lidar_rank=health.lidar_rank(z_ANND),
        uniformity=health.uniformity(z_ANND[0]),
        alignment=health.alignment(z_ANND[0], z_ANND[1]) if len(z_ABD) > 1 else None,
        queue_age_mean_samples=None if queue_ages is None else queue_ages[0],
        queue_age_max_samples=None if queue_ages is None else queue_ages[1],
        stream_autocorrelation=health.autocorrelation(z_ANND[0], lane_N),
        **dataclasses.asdict(watched),
    )


@torch.no_grad()
def brought_up_to_date(
    report: HealthReport,
    measured: Measured,
    config: HealthConfig,
    *,
    samples: int,
    usage: UsageWindow,
    prototypes_KD: Tensor,
    prior_K: Tensor | None,
) -> HealthReport:
    """An earlier report with what is known of a later step: all that is judged. No collective.

    What needs the features themselves, or the frozen copy of the network, stays as it was.

    Args:
        report: the latest one.
        measured: the later step.
        config: settings.
        samples: seen by then.
        usage: of the first head, by then.
        prototypes_KD: of the first head, by then.
        prior_K: wanted mass; None = uniform.
    """
    later = _without_features(
        measured, config, samples=samples, usage=usage, prototypes_KD=prototypes_KD, prior_K=prior_K
    )
    return dataclasses.replace(report, **later)


def _without_features(
    measured: Measured,
    config: HealthConfig,
    *,
    samples: int,
    usage: UsageWindow,
    prototypes_KD: Tensor,
    prior_K: Tensor | None,
) -> dict[str, Any]:
    """Fields of a report that follow from a step's sums, the usage window and the prototypes."""
    counts_K = usage.counts_K
    share_K = usage.shares()
    nearest_R = health.nearest_cosines(prototypes_KD).cpu()
    p50, p99 = health.quantiles(nearest_R, (0.5, 0.99))
    ordered = share_K.sort(descending=True).values
    num = len(counts_K)
    return {
        "samples": samples,
        "prototypes": num,
        "usage_samples": len(usage),
        "usage_window_samples": usage.samples,
        "usage_perplexity": health.corrected_perplexity(counts_K),
        "usage_perplexity_raw": health.perplexity(counts_K),
        "usage_kl_to_prior_nats": health.divergence_from_prior(
            counts_K, None if prior_K is None else prior_K.cpu()
        ),
        "usage_gini_ratio": health.gini(counts_K),
        "dead_prototypes": health.dead_prototypes(counts_K),
        "unused_by_chance": health.unused_by_chance(num, len(usage)),
        "usage_histogram": health.usage_histogram(counts_K),
        "usage_top": tuple(ordered[:EXTREMES].tolist()),
        "usage_bottom": tuple(ordered.flip(0)[:EXTREMES].tolist()),
        "group_usage": tuple(health.group_shares(counts_K, min(GROUPS, num)).tolist()),
        "prototype_twins": health.twins(nearest_R, config.twin_cosine, num),
        "nn_cosine_mean": float(nearest_R.mean()),
        "nn_cosine_p50": p50,
        "nn_cosine_p99": p99,
        "nn_cosine_max": float(nearest_R.max()),
        "loss": measured.loss,
        "loss_excess_ratio": 1 - measured.loss_over_ln_k,
        "code_entropy_nats": measured.code_entropy_nats,
        "prediction_entropy_nats": measured.prediction_entropy_nats,
        "sinkhorn_residual": measured.sinkhorn_residual,
        "view_agreement": measured.view_agreement,
        "view_agreement_corrected": health.corrected_agreement(measured.view_agreement, share_K),
        "feature_std_ratio": measured.feature_std_ratio,
    }


class Limit(NamedTuple):
    """What a figure of a healthy run keeps."""

    value: float
    rule: str
    """at least or at most."""

    def passed(self, figure: float) -> bool:
        """Whether a figure keeps it."""
        return figure >= self.value if self.rule == "at least" else figure <= self.value


LIMITS = {
    "feature_std_ratio": Limit(0.2, "at least"),
    "loss_excess_ratio": Limit(0.02, "at least"),
    "usage_perplexity_ratio": Limit(0.1, "at least"),
    "dead_prototypes_ratio": Limit(0.2, "at most"),
    "prototype_twins_ratio": Limit(0.1, "at most"),
}
"""What a healthy run keeps. Proposals from measured collapses: a collapsed encoder has a feature deviation
of 0.001 and no loss excess; half the prototypes dead or doubled is far outside."""


def judge(report: HealthReport) -> dict[str, Any]:
    """Verdict and named limits, JSON-ready.

    Returns:
        `verdict`: healthy (every limit holds), warming (not yet, and the usage window is not full), else
        unhealthy; `limits`: for each name `value`, `limit`, `rule` (at least, at most) and `passed`;
        `figures`: the report.
    """
    values = {
        "feature_std_ratio": report.feature_std_ratio,
        "loss_excess_ratio": report.loss_excess_ratio,
        "usage_perplexity_ratio": report.usage_perplexity / report.prototypes,
        "dead_prototypes_ratio": report.dead_prototypes / report.prototypes,
        "prototype_twins_ratio": report.prototype_twins / report.prototypes,
    }
    limits = {
        name: {
            "value": values[name],
            "limit": limit.value,
            "rule": limit.rule,
            "passed": limit.passed(values[name]),
        }
        for name, limit in LIMITS.items()
    }
    if all(row["passed"] for row in limits.values()):
        verdict = "healthy"
    else:
        verdict = "warming" if report.usage_samples < report.usage_window_samples // 2 else "unhealthy"
    return {"verdict": verdict, "limits": limits, "figures": dataclasses.asdict(report)}
