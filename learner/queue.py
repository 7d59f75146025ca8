"""The feature queue: samples of the latest batches take part in Sinkhorn when one batch is too small for K.

A assigned views   B samples of this rank   L samples of this rank in the queue   D embedding size
"""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.collective import Deal, Group, counts_of_ranks, gather_rows, sent


class _Batch(NamedTuple):
    features_ABD: Tensor
    lane_B: Tensor
    """On the CPU."""
    stamp: int
    """Samples that the run had seen before this batch."""
    total: int
    """Samples of the batch over all ranks."""


class FeatureQueue:
    """A ring of the latest whole batches of features, each assigned view with its own.

    Holds normalised features, not scores: today's prototypes score them at every step. Every rank keeps the
    samples of its own lanes and nothing is ever broadcast; as whole batches come and go, the ranks together
    hold the same samples whatever their number.

    Args:
        views: A.
        dim: D.
        capacity: samples over all ranks; what does not hold a whole batch more stays unused.
    """

    def __init__(self, *, views: int, dim: int, capacity: int) -> None:
        self.capacity = capacity
        self._views = views
        self._dim = dim
        self._batches: deque[_Batch] = deque()

    def __len__(self) -> int:
        """Samples in it, over all ranks."""
        return sum(batch.total for batch in self._batches)

    @property
    def full(self) -> bool:
        """No further batch fits. Only then is it used: a half filled queue would distort the codes."""
        return bool(self._batches) and len(self) + self._largest() > self.capacity

    @property
    def fill(self) -> float:
        """Share that is filled, 0 .. 1, of the whole batches that it can hold."""
        if not self._batches:
            return 0.0
        return min(1.0, len(self) / (self.capacity // self._largest() * self._largest()))

    def push(self, features_ABD: Tensor, lane_B: Tensor, *, stamp: int, total: int) -> None:
        """Take in one batch and let go of the oldest ones that no longer fit.

        Args:
            features_ABD: [A, B, D] of this rank, normalised; kept without gradient.
            lane_B: [B] int64 on the CPU.
            stamp: samples that the run had seen before.
            total: samples of the batch over all ranks.

        Raises:
            ValueError: one batch is more than the capacity.
        """
        if total > self.capacity:
            raise ValueError(
                f"swav.queue_samples = {self.capacity} does not hold one batch of {total}: "
                "set it to 0 or to several batches"
            )
        # In lane order, so that a saved queue comes back in the same order.
        order_B = lane_B.argsort(stable=True)
        in_order = bool((order_B[1:] > order_B[:-1]).all())
        features_ABD = features_ABD.detach()
        device = features_ABD.device
        features_ABD = features_ABD.clone() if in_order else features_ABD[:, sent(order_B, device)]
        while self._batches and len(self) + total > self.capacity:
            self._batches.popleft()
        self._batches.append(_Batch(features_ABD, lane_B[order_B], stamp, total))

    def features(self) -> Tensor:
        """[A, L, D]: all of this rank, oldest first."""
        return torch.cat([batch.features_ABD for batch in self._batches], dim=1)

    def ages(self, samples: int) -> tuple[float, int] | None:
        """Mean and largest age of a queued feature, in samples seen since; None when empty."""
        if not self._batches:
            return None
        mean = sum((samples - batch.stamp) * batch.total for batch in self._batches) / len(self)
        return mean, samples - self._batches[0].stamp

    def state_dict(self, group: Group, device: torch.device) -> dict[str, Any]:
        """The queue of all ranks as one sequence, oldest first and lane by lane.

        Every rank calls it, or `hand_over` where the sequence is not wanted.

        Returns:
            {"tensors": {"features" [A, all, D], "lane" [all]}, "values": {"batches": [[stamp, total], ...]}};
            no tensors when empty.
        """
        batches = [[batch.stamp, batch.total] for batch in self._batches]
        if not batches:
            return {"tensors": {}, "values": {"batches": []}}
        key_L2, features_LAD = self._of_all_ranks(group, device)
        key_L2 = key_L2.cpu()
        order_L = (key_L2[:, 0] * (int(key_L2[:, 1].max()) + 1) + key_L2[:, 1]).argsort(stable=True)
        features_ALD = features_LAD[order_L.to(device)].transpose(0, 1).contiguous()
        tensors = {"features": features_ALD, "lane": key_L2[order_L, 1]}
        return {"tensors": tensors, "values": {"batches": batches}}

    def hand_over(self, group: Group, device: torch.device) -> None:
        """This rank's part of `state_dict`, for those that call that one meanwhile."""
        if self._batches:
            self._of_all_ranks(group, device)

    def _of_all_ranks(self, group: Group, device: torch.device) -> tuple[Tensor, Tensor]:
        """Batch and lane [L, 2] and features [L, A, D] of all ranks, one rank after the other."""
        lane_L = torch.cat([batch.lane_B for batch in self._batches])
        batch_L = torch.repeat_interleave(torch.tensor([len(batch.lane_B) for batch in self._batches]))
        counts = counts_of_ranks(group, len(lane_L))
        key_L2 = gather_rows(group, torch.stack([batch_L, lane_L], dim=1).to(device), counts)
        return key_L2, gather_rows(group, self.features().transpose(0, 1).contiguous(), counts)

    def load_state_dict(self, state: dict[str, Any], deal: Deal, device: torch.device) -> None:
        """Take this rank's share of a saved queue: the samples of the lanes that are dealt to it now.

        Raises:
            ValueError: features of another shape.
        """
        self._batches.clear()
        batches = state["values"]["batches"]
        if not batches:
            return
        features_ALD, lane_L = state["tensors"]["features"], state["tensors"]["lane"].cpu()
        length = sum(total for _, total in batches)
        if features_ALD.shape != (self._views, length, self._dim) or lane_L.shape != (length,):
            raise ValueError(
                f"saved queue has shape {tuple(features_ALD.shape)}, this run needs "
                f"{(self._views, length, self._dim)}"
            )
        first = 0
        for stamp, total in batches:
            lane_B = lane_L[first : first + total]
            own_B = torch.nonzero(deal.mine(lane_B)).squeeze(1)
            own_ABD = features_ALD[:, first : first + total].to(device)[:, own_B.to(device)]
            self._batches.append(_Batch(own_ABD, lane_B[own_B], stamp, total))
            first += total
        while len(self) > self.capacity:  # a shorter queue was asked for since
            self._batches.popleft()

    def _largest(self) -> int:
        return max(batch.total for batch in self._batches)
