"""What the learner hands out: plain frozen values; only ops turns them into metrics, log lines and snapshots.

B samples of this rank   N samples over all ranks   K prototypes
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class NonFinite(Exception):
    """A loss or gradient is not a finite number; raised on every rank before anything has changed.

    Args:
        what: "loss" or "gradient".
        value: what was seen, inf or nan.
        updates: optimizer steps done so far; this one was not.
    """

    def __init__(self, what: str, value: float, updates: int) -> None:
        super().__init__(f"{what} of update {updates + 1} is {value}; nothing was changed")
        self.what = what
        self.value = value
        self.updates = updates


def require_finite(updates: int, **values: float) -> None:
    """Raise NonFinite for the first value that is not finite; values that all ranks share stop them all."""
    for what, value in values.items():
        if not math.isfinite(value):
            raise NonFinite(what, value, updates)


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthReport:
    """The figures that tell whether it still learns; over all ranks, JSON-ready.

    Formulas and null values: `learner.health`, a function each. None = not known yet.
    """

    samples: int
    """Samples seen when it was taken."""
    prototypes: int
    """K of the first head; all usage figures are of that head."""
    usage_samples: int
    """Samples in the usage window now."""
    usage_window_samples: int
    """Samples that the usage window holds when full."""
    usage_perplexity: float
    """Prototypes in use: exp(entropy of usage), corrected for the bias of a short window; 1 .. K."""
    usage_perplexity_raw: float
    """The same, not corrected."""
    usage_kl_to_prior_nats: float
    """Divergence of usage from the wanted prior; 0 = as wanted."""
    usage_gini_ratio: float
    """0 = even, 1 = one prototype takes all."""
    dead_prototypes: int
    """Prototypes used less than a twentieth of the even share."""
    unused_by_chance: float
    """Prototypes that even traffic would leave unused in a window as short as this one."""
    usage_histogram: tuple[int, ...]
    """Prototypes by usage x K, in the cells of `learner.health.USAGE_EDGES`."""
    usage_top: tuple[float, ...]
    """The ten largest shares of usage, falling."""
    usage_bottom: tuple[float, ...]
    """The ten smallest shares of usage, rising."""
    group_usage: tuple[float, ...]
    """Shares of usage of at most 32 fixed groups of prototypes (number modulo groups)."""
    prototype_twins: int
    """Prototypes with another one closer than `health.twin_cosine`."""
    nn_cosine_mean: float
    """Of each prototype's cosine with its nearest other one."""
    nn_cosine_p50: float
    nn_cosine_p99: float
    nn_cosine_max: float
    loss: float
    """Of the step at which the report was taken, nats."""
    loss_excess_ratio: float
    """1 - loss / ln K; 0 = has learned nothing."""
    code_entropy_nats: float
    prediction_entropy_nats: float
    sinkhorn_residual: float
    view_agreement: float
    """Share of samples whose first two views have the same arg-max."""
    view_agreement_corrected: float
    """The same, corrected for chance; 0 = chance (also under full collapse), 1 = always."""
    feature_std_ratio: float
    """1 = features fill the sphere evenly, 0 = all the same point."""
    effective_rank: float
    """Of the features of view 0 of this batch; 1 .. D."""
    alpha_req: float | None
    """Decay exponent of the features' spectrum."""
    lidar_rank: float | None
    """Effective rank of what tells images apart, against what tells views of one image apart; near D for
    noise."""
    uniformity: float | None
    """log mean exp(-2 d^2) over pairs of samples; lower is more even."""
    alignment: float | None
    """Mean squared distance of the first two views of a sample."""
    queue_age_mean_samples: float | None
    """None while the queue is not in use."""
    queue_age_max_samples: int | None
    stream_autocorrelation: float | None
    """How much closer neighbours in a lane are than other pairs of the batch; 0 = well mixed."""
    batch_similarity: float | None
    """How much closer samples of a batch are than of different ones, by the frozen copy; 0 = mixed well."""
    queue_staleness_cosine: float | None
    """Cosine of features with those of the same images when the queue's oldest were made; 1 = fresh."""
    reference_samples: int | None
    """Samples seen when the frozen copy was taken that drift and novelty are seen with."""
    drift_psi: float | None
    """Population stability index of groups of prototypes against that time, less that of chance; 0 = none."""
    novelty_ratio: float | None
    """Share of samples that fit no prototype of that time; 0.01 = as then."""
    prototype_shift_p50: float | None
    """Of 1 - cosine of each prototype with itself at that time; 0 = has not moved."""
    prototype_shift_p99: float | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepReport:
    """One update; all is over the global batch but `assigned_B` and `score_B`, which are of this rank."""

    loss: float
    """Swapped prediction, nats; mean over samples (and heads)."""
    loss_over_ln_k: float
    """Loss against ln K; 1 = has learned nothing."""
    learning_rate: float
    gradient_norm: float
    """2-norm of the whole gradient before clipping."""
    samples: int
    """Distinct arrivals used so far, this step included."""
    updates: int
    """Optimizer steps done so far, this one included."""
    queue_fill: float
    """Share of the queue that is filled, 0 .. 1; 0 without a queue."""
    usage_perplexity: float
    """As in HealthReport, of the first head."""
    usage_window_fill: float
    """How full the usage window is, 0 .. 1; perplexity and dead prototypes mean little while it is not."""
    dead_prototypes: int
    sinkhorn_residual: float
    """Sum over prototypes of |mass - wanted mass| after Sinkhorn, the worst view and head; 0 .. 2."""
    code_entropy_nats: float
    """Mean entropy of the codes, nats; ln K = codes say nothing."""
    prediction_entropy_nats: float
    """Mean entropy of the predictions of the assigned views, nats."""
    view_agreement: float
    """Share of samples whose first two views have the same arg-max, corrected for chance; 0 = chance."""
    feature_std_ratio: float
    """1 = features fill the sphere evenly, 0 = all the same point."""
    assigned_B: Tensor
    """[B] int64 on the CPU: arg-max of the raw scores of view 0, first head, in the order of the batch."""
    score_B: Tensor
    """[B] float32 on the CPU: that raw score, a cosine."""
    assigned_N: Tensor
    """[N] int64 on the CPU: `assigned_B` of all ranks, one rank after the other."""
    seconds: Mapping[str, float]
    """By phase: augment, forward, sinkhorn, backward, optim, health."""
    health: HealthReport | None
    """At the cadence of `health.interval_samples` and at the first step, else None."""
    reseeded: int = 0
    """Prototypes that were re-seeded after this step, over all heads."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Snapshot:
    """What others use; all tensors are copies on the CPU."""

    encoder: dict[str, Tensor]
    """Backbone with its batch-norm buffers, named as in torchvision where it is torchvision's."""
    tensors: dict[str, Tensor]
    """`prototypes` [K, D] of unit norm, `head.*`, `usage` [K] float32 shares, `generation` [K] int64;
    further heads as `prototypes.1`, `usage.1`, `generation.1` and so on."""
    digest: str
    """SHA-256 (hex) of encoder with batch-norm buffers, head and prototypes: equal weights, equal digest."""
    encoder_digest: str
    """SHA-256 (hex) of the encoder alone."""
    health: dict[str, Any]
    """`verdict`, `limits` and `figures` of this moment, JSON-ready; empty before the first step. Figures that
    need the features of a batch, or the frozen copy, are those of the report at `looked_samples`."""
