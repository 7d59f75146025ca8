"""What ranks do to show in which order they sum gradients; each function runs in all processes of a crew."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learner.collective import Group
from learner.config import LearnerConfig
from learner.learner import Learner
from tests.learner.rank_jobs import arrays
from tests.learner.small_run import batch, counting_clock, deal_of

Call = tuple[str, int]
"""Which collective, and of how many numbers."""


class Noted:
    """A group that notes the order of its collectives."""

    def __init__(self, group: Group) -> None:
        self.rank, self.world_size = group.rank, group.world_size
        self.calls: list[Call] = []
        self._group = group

    def sum(self, tensor: Tensor) -> Tensor:
        self.calls.append(("sum", tensor.numel()))
        return self._group.sum(tensor)

    def max(self, tensor: Tensor) -> Tensor:
        self.calls.append(("max", tensor.numel()))
        return self._group.max(tensor)

    def sum_(self, tensor: Tensor) -> None:
        self.calls.append(("sum_", tensor.numel()))
        self._group.sum_(tensor)

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        self.calls.append(("later", tensor.numel()))
        wait = self._group.sum_later(tensor)

        def noted_wait() -> None:
            self.calls.append(("wait", 0))
            wait()

        return noted_wait

    def parts(self, sets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Group]:
        """All of them together are noted; some of them are not."""
        found = self._group.parts(sets)
        return {members: self if group is self._group else group for members, group in found.items()}


def train(
    group: Group,
    *,
    config: LearnerConfig,
    steps: int,
    bucket_bytes: int,
    accumulate: int = 1,
    still_head: bool = False,
) -> dict[str, Any]:
    """Some steps in float64: losses, state, and the collectives of each step."""
    noted = Noted(group)
    learner = Learner(
        config,
        seed=0,
        device=torch.device("cpu"),
        precision="float64",
        total_samples=None,
        clock=counting_clock(),
        deal=deal_of(config, noted),
        bucket_bytes=bucket_bytes,
    )
    learner._model.head.requires_grad_(not still_head)
    losses, calls = [], []
    for step in range(steps):
        noted.calls.clear()
        views = batch(step, ranks=group.world_size, rank=group.rank, groups=config.model.bn_groups)
        report = learner.step(views, accumulate=accumulate)
        losses.append(report.loss)
        calls.append(list(noted.calls))
    gradients = [p for p in learner._model.parameters() if p.requires_grad]
    return {
        "losses": losses,
        "state": arrays(learner.state_dict()),
        "calls": calls,
        "numbers": sum(p.numel() for p in gradients),
        "prototypes": sum(p.numel() for p in learner._model.prototypes),
    }
