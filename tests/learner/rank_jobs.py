"""What the ranks of a test do; every function runs in each process of the crew, and alone for comparison."""

from typing import Any

import numpy as np
import torch

from learner.collective import Group, counts_of_ranks, gather_rows
from learner.config import LearnerConfig
from learner.drift import DriftMonitor
from learner.gradients import GradientSums
from learner.network import Network
from learner.report import NonFinite
from learner.sinkhorn import assign
from tests.learner.small_run import batch, deal_of, small_learner, spoiled

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(state: dict[str, Any]) -> dict[str, Any]:
    """A learner's state with arrays for tensors, so that it can travel."""
    return state | {"tensors": {name: tensor.numpy() for name, tensor in state["tensors"].items()}}


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    """And back."""
    return state | {
        "tensors": {name: torch.from_numpy(array.copy()) for name, array in state["tensors"].items()}
    }


def train(
    group: Group,
    *,
    config: LearnerConfig,
    precision: str,
    steps: range,
    state: dict[str, Any] | None = None,
    accumulate: int = 1,
) -> dict[str, Any]:
    """Some steps, from a state if there is one."""
    learner = small_learner(config, precision=precision, group=group, seed=0 if state is None else 99)
    if state is not None:
        learner.load_state_dict(tensors(state))
    reports = []
    for step in steps:
        views = batch(step, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups)
        reports.append(learner.step(views, accumulate=accumulate))
    return {
        "losses": [report.loss for report in reports],
        "figures": [
            (
                report.gradient_norm,
                report.code_entropy_nats,
                report.prediction_entropy_nats,
                report.view_agreement,
                report.feature_std_ratio,
                report.sinkhorn_residual,
                report.usage_perplexity,
                report.dead_prototypes,
                report.samples,
                report.queue_fill,
            )
            for report in reports
        ],
        "health": learner.health(),
        "state": arrays(learner.state_dict()),
        "digest": learner.snapshot().digest,
        "judged": [limit["value"] for limit in learner.snapshot().health["limits"].values()],
        "queued": learner._swav.queue.features().numpy() if len(learner._swav.queue) else None,
        "assigned": reports[-1].assigned_B.numpy(),
    }


def meet_a_spoiled_batch(group: Group, *, config: LearnerConfig) -> tuple[str, bool, list[float]]:
    """A sample of rank 1 is not a number: what a rank sees, whether it is as before, and how it goes on."""
    learner = small_learner(config, group=group)
    learner.step(batch(0, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups))
    before = learner.state_dict()
    views = batch(1, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups)
    try:
        learner.step(spoiled(views) if group.rank == 1 else views)
    except NonFinite as error:
        seen = error.what
    else:
        seen = "nothing"
    after = learner.state_dict()
    unchanged = all(torch.equal(tensor, after["tensors"][name]) for name, tensor in before["tensors"].items())
    losses = [
        learner.step(batch(step, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups)).loss
        for step in (1, 2)
    ]
    return seen, unchanged, losses


def codes(
    group: Group,
    *,
    scores: np.ndarray[Any, Any],
    sizes: list[int],
    epsilon: float,
    prior: np.ndarray[Any, Any] | None,
    keep: int | None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Codes of this rank's rows of [A, B, K] scores, and the mass over all ranks."""
    first = sum(sizes[: group.rank])
    own = torch.from_numpy(scores)[:, first : first + sizes[group.rank]]
    before = own.clone()
    prior_K = None if prior is None else torch.from_numpy(prior)
    result = assign(own, epsilon=epsilon, iterations=3, prior_K=prior_K, keep=keep, group=group)
    assert torch.equal(own, before)
    return result.codes_ABK.numpy(), group.sum(result.mass_AK).numpy()


def sums(group: Group, *, bucket_bytes: int) -> dict[str, Any]:
    """Every collective once."""
    given = torch.tensor([1.0, -2.0]) * (group.rank + 1)
    total, largest = group.sum(given), group.max(given)
    counts = counts_of_ranks(group, group.rank + 2)
    rows = torch.full((group.rank + 2, 3), group.rank, dtype=torch.int64)
    parameters = [torch.nn.Parameter(torch.zeros(5, 3)) for _ in range(4)]
    sums = GradientSums(parameters, group, bucket_bytes=bucket_bytes)
    used = [(index, parameter) for index, parameter in enumerate(parameters) if index != 2]
    loss = torch.stack([(group.rank + index) * parameter.sum() for index, parameter in used]).sum()
    with sums.summed():
        torch.autograd.backward(loss)
    return {
        "given": given.numpy(),
        "sum": total.numpy(),
        "max": largest.numpy(),
        "counts": counts,
        "rows": gather_rows(group, rows, counts).numpy(),
        "gradients": [None if p.grad is None else p.grad.numpy() for p in parameters],
    }


def watch(group: Group, *, config: LearnerConfig, steps: range) -> list[Any]:
    """What a frozen copy says of some batches, with probes and a reference."""
    deal = deal_of(config, group)
    assert deal is not None
    network = Network(config, seed=0, device=torch.device("cpu"), precision="float64", deal=deal)
    looking = DriftMonitor(network, deal, config.swav.prototypes[0])
    found = []
    for step in steps:
        views = batch(step, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups)
        counts = counts_of_ranks(group, views.crops[0].shape[1])
        seen = looking.observe(
            views,
            counts,
            samples=step * sum(counts),
            queue_age=3 * sum(counts),
            prototypes_KD=network.model.prototypes[0].detach(),
        )
        looking.refresh_reference(step * sum(counts), every=10**9)
        found.append((seen.drift_psi, seen.novelty_ratio, seen.queue_staleness_cosine))
    return found


def saved_by_the_first(group: Group, *, config: LearnerConfig, steps: range) -> dict[str, Any]:
    """The first rank's state while the others only send their parts; those give their counters."""
    learner = small_learner(config, precision="float64", group=group)
    for step in steps:
        learner.step(batch(step, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups))
    state = learner.state_dict(send_only=group.rank != 0)
    return arrays(state) if state else {"samples": learner.samples}
