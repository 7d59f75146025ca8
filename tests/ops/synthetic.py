"""Made-up values of the learner's types, for the tests of what follows a run."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from learner import health
from learner.checkpoint_state import digest
from learner.report import HealthReport, Snapshot, StepReport
from ops.snapshots.reader import snapshot_digest
from stream.lanes import LaneStats


def snapshot(
    seed: int = 0, *, prototypes: int = 8, dim: int = 4, verdict: str = "healthy", width: int = 3
) -> Snapshot:
    """A small snapshot whose digests are true; another seed gives other weights."""
    draw = torch.Generator().manual_seed(seed)
    encoder = {
        "conv1.weight": torch.randn(width, 3, 3, 3, generator=draw),
        "bn1.running_mean": torch.randn(width, generator=draw),
        "bn1.num_batches_tracked": torch.tensor(seed, dtype=torch.int64),
    }
    directions = torch.randn(prototypes, dim, generator=draw)
    tensors = {
        "prototypes": torch.nn.functional.normalize(directions, dim=1),
        "head.0.weight": torch.randn(dim, width, generator=draw),
        "usage": torch.full((prototypes,), 1 / prototypes),
        "generation": torch.zeros(prototypes, dtype=torch.int64),
    }
    return Snapshot(
        encoder=encoder,
        tensors=tensors,
        digest=snapshot_digest(encoder, tensors),
        encoder_digest=digest(encoder),
        health={"verdict": verdict, "limits": {"twins": {"value": 0.0, "limit": 0.1, "passed": True}}},
    )


def shares(prototypes: int, *, skew: float = 0.5, seed: int = 0) -> Tensor:
    """[K] float32 shares that sum to 1; a larger skew is less even."""
    weight = torch.exp(skew * torch.randn(prototypes, generator=torch.Generator().manual_seed(seed)))
    return weight / weight.sum()


def stats(used: int = 64, skipped: Mapping[str, int] | None = None) -> LaneStats:
    """What reading a batch cost."""
    skipped = skipped or {}
    return LaneStats(
        read=used + sum(skipped.values()),
        used=used,
        skipped=skipped,
        bytes=1000 * used,
        read_s=0.01,
        decode_s=0.05,
        crop_s=0.02,
    )


def health_report(
    samples: int, usage: Tensor, *, loss: float, twins: int = 0, window: int = 1000
) -> HealthReport:
    """A health report of a run that is well, with the usage given."""
    prototypes = len(usage)
    top = usage.sort(descending=True).values
    ln_k = math.log(prototypes)
    return HealthReport(
        samples=samples,
        prototypes=prototypes,
        usage_samples=min(samples, window),
        usage_window_samples=window,
        usage_perplexity=health.perplexity(usage),
        usage_perplexity_raw=health.perplexity(usage),
        usage_kl_to_prior_nats=health.divergence_from_prior(usage),
        usage_gini_ratio=health.gini(usage),
        dead_prototypes=health.dead_prototypes(usage),
        unused_by_chance=0.0,
        usage_histogram=health.usage_histogram(usage),
        usage_top=tuple(top[:10].tolist()),
        usage_bottom=tuple(top.flip(0)[:10].tolist()),
        group_usage=tuple(health.group_shares(usage, min(32, prototypes)).tolist()),
        prototype_twins=twins,
        nn_cosine_mean=0.3,
        nn_cosine_p50=0.3,
        nn_cosine_p99=0.42,
        nn_cosine_max=0.45,
        loss=loss,
        loss_excess_ratio=1 - loss / ln_k,
        code_entropy_nats=0.6 * ln_k,
        prediction_entropy_nats=0.7 * ln_k,
        sinkhorn_residual=0.02,
        view_agreement=0.6,
        view_agreement_corrected=0.58,
        feature_std_ratio=0.9,
        effective_rank=40.0,
        alpha_req=None,
        lidar_rank=None,
        uniformity=-3.1,
        alignment=0.4,
        queue_age_mean_samples=None,
        queue_age_max_samples=None,
        stream_autocorrelation=0.01,
        batch_similarity=0.002,
        queue_staleness_cosine=None,
        reference_samples=64,
        drift_psi=0.01,
        novelty_ratio=0.01,
        prototype_shift_p50=0.02,
        prototype_shift_p99=0.1,
    )


def report(
    samples: int,
    usage: Tensor,
    *,
    over_ln_k: float = 0.8,
    batch: int = 64,
    assigned: Tensor | None = None,
    score: Tensor | None = None,
    with_health: bool = True,
    feature_std: float = 0.9,
    twins: int = 0,
    window: int = 1000,
    reseeded: int = 0,
) -> StepReport:
    """A step report of a run that is well, after so many samples."""
    loss = over_ln_k * math.log(len(usage))
    assigned = torch.zeros(batch, dtype=torch.int64) if assigned is None else assigned
    return StepReport(
        loss=loss,
        loss_over_ln_k=over_ln_k,
        learning_rate=0.1,
        gradient_norm=1.5,
        samples=samples,
        updates=samples // batch,
        queue_fill=0.0,
        usage_perplexity=health.perplexity(usage),
        usage_window_fill=min(1.0, samples / window),
        dead_prototypes=health.dead_prototypes(usage),
        sinkhorn_residual=0.02,
        code_entropy_nats=0.6 * math.log(len(usage)),
        prediction_entropy_nats=0.7 * math.log(len(usage)),
        view_agreement=0.58,
        feature_std_ratio=feature_std,
        assigned_B=assigned,
        assigned_N=assigned,
        score_B=torch.full((batch,), 0.5) if score is None else score,
        seconds={"augment": 0.02, "forward": 0.1, "sinkhorn": 0.01, "backward": 0.2, "optim": 0.01},
        health=health_report(samples, usage, loss=loss, twins=twins, window=window) if with_health else None,
        reseeded=reseeded,
    )


def thumbs(count: int, *, side: int = 16, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """[N, 3, T, T] uint8 noise, no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
