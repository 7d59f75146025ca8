"""A slowly moving average of the weights, for those who look at images; the updates do not see it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from learner import checkpoint_state
from learner.model import SwavModel, copy_all
from learner.network import Network

FIRST_UPDATES = 10
"""At update t the decay is (1 + t) / (FIRST_UPDATES + t) at most: the first weights are soon forgotten."""


class WeightAverage:
    """Exponential moving average of weights and batch-norm statistics; prototypes keep unit norm.

    The same on every rank, as the weights are. It costs one copy of the weights.

    Args:
        network: whose weights are averaged, from those that it has now.
        decay: share that stays at an update; [0, 1).

    Source: Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780, for the exponential form.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self._live, self._decay, self._updates = network.model, decay, 0
        self.model: SwavModel = network.copy()
        """In evaluation mode, without gradients; a patch branch is that of the network itself."""
        self.model.branch = self._live.branch
        pairs = list(zip(_tensors(self.model).values(), _tensors(self._live).values(), strict=True))
        # Of one memory with those of the models, which are only ever changed in place.
        self._means = [mean for mean, _ in pairs if mean.is_floating_point()]
        self._values = [value for _, value in pairs if value.is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        """Batches that batch norm has counted."""

    @torch.no_grad()
    def update(self) -> None:
        """Follow the weights after an update."""
        decay = min(self._decay, (1 + self._updates) / (FIRST_UPDATES + self._updates))
        self._updates += 1
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has no types for it
        follow(self._means, self._values, None)
        for mean, value in self._counts:
            mean.copy_(value)
        self.model.normalise_prototypes()

    @torch.no_grad()
    def take_prototypes(self, head: int, rows_M: Tensor) -> None:
        """Forget what some prototypes were: they have been moved at once."""
        rows_M = rows_M.to(self.model.prototypes[head].device)
        self.model.prototypes[head][rows_M] = self._live.prototypes[head][rows_M]

    def restart(self) -> None:
        """Begin again from the weights as they are now."""
        copy_all(_tensors(self.model), _tensors(self._live))
        self._updates = 0

    def state_dict(self) -> dict[str, Any]:
        """What the next updates need: copies on the CPU."""
        tensors = {name: checkpoint_state.copied(value) for name, value in _tensors(self.model).items()}
        return {"tensors": tensors, "values": {"updates": self._updates}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is of another network.
        """
        copy_all(_tensors(self.model), saved["tensors"])
        self._updates = saved["values"]["updates"]


def _tensors(model: SwavModel) -> dict[str, Tensor]:
    """Weights and buffers but those of a patch branch."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("branch.")}
