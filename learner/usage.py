"""Usage: how often each prototype was the arg-max of the raw scores, over a window of the latest samples.

K prototypes   N samples of one batch, over all ranks
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

SAMPLES_PER_PROTOTYPE = 10
"""Length of the window when none is set: even traffic leaves e^-10 of the prototypes unused, and in a
window of one sample a prototype more than a third."""


class UsageWindow:
    """Ring of the latest whole batches of arg-maxes, and their counts; on the CPU, the same on every rank.

    Args:
        prototypes: K.
        samples: length; 0 = ten for each prototype. At least one batch is always kept.
    """

    def __init__(self, prototypes: int, samples: int) -> None:
        self.samples = samples or SAMPLES_PER_PROTOTYPE * prototypes
        self.counts_K = torch.zeros(prototypes, dtype=torch.int64)
        self._batches: deque[Tensor] = deque()
        self._length = 0

    def __len__(self) -> int:
        """Samples in it."""
        return self._length

    def push(self, assigned_N: Tensor) -> None:
        """Count one batch and forget the oldest ones that no longer fit.

        Args:
            assigned_N: [N] integers in 0 .. K-1, on the CPU.
        """
        self._batches.append(assigned_N.to(torch.int32))
        self._length += len(assigned_N)
        self.counts_K += torch.bincount(assigned_N, minlength=len(self.counts_K))
        while self._length > self.samples and len(self._batches) > 1:
            oldest = self._batches.popleft()
            self._length -= len(oldest)
            self.counts_K -= torch.bincount(oldest, minlength=len(self.counts_K))

    def shares(self) -> Tensor:
        """[K] float32, sums to 1; all zero before the first batch."""
        return self.counts_K.float() / max(1, self._length)

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {"assigned" [samples] int32}, "values": {"batches": [N, ...]}}, oldest first."""
        assigned = torch.cat(list(self._batches)) if self._batches else torch.zeros(0, dtype=torch.int32)
        return {
            "tensors": {"assigned": assigned},
            "values": {"batches": [len(batch) for batch in self._batches]},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what is in it; the length of the window stays as configured.

        Raises:
            ValueError: numbers of prototypes that do not exist, or batches that do not add up.
        """
        assigned, sizes = state["tensors"]["assigned"], state["values"]["batches"]
        if len(assigned) != sum(sizes):
            raise ValueError(f"saved usage window has {len(assigned)} samples in batches of {sum(sizes)}")
        if len(assigned) > 0 and not 0 <= int(assigned.min()) <= int(assigned.max()) < len(self.counts_K):
            raise ValueError(f"saved usage window names prototypes beyond {len(self.counts_K)}")
        self._batches.clear()
        self._length = 0
        self.counts_K.zero_()
        for batch in torch.split(assigned, sizes):
            self.push(batch)
