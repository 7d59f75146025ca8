"""Re-seeding: a prototype that gets no samples any more is replaced by a half of a busy one.

N samples over all ranks   M prototypes to move   H heads   K prototypes   D embedding size
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from learner.collective import Group, gather_rows
from learner.config import ReseedConfig
from learner.step_stats import StepTensors

SPLIT_COSINE = 0.9
"""Cosine of a new prototype with the busy one that it takes samples from: near, but no twin."""

FEWEST = 2
"""Samples of a prototype in the batch without which it is not split."""

LEAST_SPREAD = 1e-3
"""Norm below which samples of a prototype do not differ: a burst of one image is not split."""


class Reseeder:
    """Knows when each prototype was last the arg-max of a sample, and moves the dead ones.

    The busiest prototypes are split: the new one lies beside the old one, in a direction in which samples of
    the old one differ. It is not put on a sample itself: features lie together in a cone, above all early,
    and a prototype in its middle would be nearest to nearly all of them.

    All ranks decide alike: who is dead and who is busy follows from the arg-maxes of all, samples are put in
    the order of their lanes, and the draw is a function of seed, samples and head alone. So one rank and
    many, and a run resumed anywhere, do the same.

    Args:
        config: settings; `after_samples` = 0 switches it off.
        prototypes: K of each head.
        seed: of the run.
        freeze_samples: prototypes stand still until then; none counts as dead for that time.
        twin_cosine: a new prototype is not as close as this to the one that it is split from.
        group: the ranks.

    Source: Caron et al. 2018, arXiv:1807.05520, sec. 3.3 (an empty cluster is placed beside the centroid of
        another one); after how long, and how many at once, is ours.
    """

    def __init__(
        self,
        config: ReseedConfig,
        *,
        prototypes: Sequence[int],
        seed: int,
        freeze_samples: int,
        twin_cosine: float,
        group: Group,
    ) -> None:
        self.total = 0
        """Prototypes re-seeded so far, over all heads."""
        self._config = config
        self._seed = seed
        self._freeze_samples = freeze_samples
        self._cosine = min(SPLIT_COSINE, twin_cosine - 0.05)
        self._group = group
        self._last_used = [torch.zeros(k, dtype=torch.int64) for k in prototypes]

    @property
    def on(self) -> bool:
        """Whether anything is ever re-seeded."""
        return self._config.after_samples > 0

    def note(self, assigned_HN: Sequence[Tensor], *, samples: int) -> None:
        """Remember who was used by a batch of arrivals.

        Args:
            assigned_HN: of each head, arg-max of every sample of every rank; on the CPU.
            samples: seen, this batch included.
        """
        if self.on:
            for last_used_K, assigned_N in zip(self._last_used, assigned_HN, strict=True):
                last_used_K[assigned_N] = samples

    def due(self, *, samples: int, batch: int) -> bool:
        """Whether the batch that was just counted ended an interval; a function of samples alone."""
        interval = self._config.interval_samples
        ended = samples // interval != (samples - batch) // interval
        return self.on and ended and samples - batch >= self._freeze_samples

    def dead(self, head: int, *, samples: int) -> Tensor:
        """[M] int64: prototypes to move now, those unused for longest first, at most their share."""
        last_K = self._last_used[head].clamp_min(self._freeze_samples)
        order_K = last_K.argsort(stable=True)
        dead = int((samples - last_K >= self._config.after_samples).sum())
        return order_K[: min(dead, max(1, int(self._config.share * len(last_K))))]

    @torch.no_grad()
    def reseed(
        self,
        batch: StepTensors,
        prototypes_H: Sequence[Tensor],
        usage_H: Sequence[Tensor],
        generations_H: Sequence[Tensor],
        optimizer: Optimizer,
        *,
        samples: int,
    ) -> int:
        """Move the dead prototypes of every head; a collective where some are dead, on every rank alike.

        A row that is moved loses its momentum, and its generation goes up by one. A prototype is split once
        at a time, so where few are busy, few are moved.

        Args:
            batch: of this rank; features of its view 0 give the new prototypes their directions.
            prototypes_H: [K, D] each, the parameters; changed in place.
            usage_H: [K] each, counts of use; on the CPU.
            generations_H: [K] int64 each, on the CPU; changed in place.
            optimizer: of the prototypes; its state is changed in place.
            samples: seen, this batch included.

        Returns:
            How many were moved.
        """
        moved = 0
        for head, prototypes_KD in enumerate(prototypes_H):
            dead_M = self.dead(head, samples=samples)
            if len(dead_M) == 0:
                continue
            z_ND, best_N, assigned_N = self._gathered(batch, head)
            draw = self._draw(samples, head)
            halves: list[Tensor] = []
            for busy in usage_H[head].argsort(descending=True, stable=True).tolist():
                own_N = (assigned_N == busy).nonzero().squeeze(1)
                if len(halves) < len(dead_M) and len(own_N) >= FEWEST:
                    worst_N = own_N[best_N[own_N].argsort(stable=True)][: max(1, len(own_N) // 2)]
                    chosen = worst_N[int(torch.randint(len(worst_N), (), generator=draw))]
                    halves += self._half(prototypes_KD[busy].cpu().to(z_ND), z_ND, own_N, int(chosen))
            if not halves:
                continue
            dead_M = dead_M[: len(halves)]
            rows = dead_M.to(prototypes_KD.device)
            prototypes_KD[rows] = torch.stack(halves).to(prototypes_KD)
            for value in optimizer.state.get(prototypes_KD, {}).values():
                if isinstance(value, Tensor) and value.shape == prototypes_KD.shape:
                    value[rows] = 0
            generations_H[head][dead_M] += 1
            self._last_used[head][dead_M] = samples
            moved += len(dead_M)
        self.total += moved
        return moved

    def _gathered(self, batch: StepTensors, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """[N, D], [N], [N] on the CPU, in order of lanes: features, largest scores, and whose they are."""
        z_BD = batch.z_ABD[0]
        best_B, assigned_B = batch.scores_H[head][0].max(-1)
        columns = torch.stack([batch.lane_B.to(z_BD), best_B.to(z_BD), assigned_B.to(z_BD)], dim=1)
        rows_N = gather_rows(self._group, torch.cat([columns, z_BD], dim=1), batch.counts).cpu()
        rows_N = rows_N[rows_N[:, 0].argsort(stable=True)]
        return rows_N[:, 3:], rows_N[:, 1], rows_N[:, 2].long()

    def _half(self, busy_D: Tensor, z_ND: Tensor, own_N: Tensor, chosen: int) -> list[Tensor]:
        """A prototype beside a busy one, towards one of its samples; none where those do not differ.

        The direction is orthogonal to the busy prototype and to the mean of all features, so that the new
        one is not nearer to everything than the old one was.
        """
        towards_D = z_ND[chosen] - z_ND[own_N].mean(0)
        mean_D = z_ND.mean(0)
        mean_D = torch.nn.functional.normalize(mean_D - (mean_D @ busy_D) * busy_D, dim=0)
        for axis_D in (busy_D, mean_D):
            towards_D = towards_D - (towards_D @ axis_D) * axis_D
        norm = float(towards_D.norm())
        if norm < LEAST_SPREAD:
            return []
        half_D = self._cosine * busy_D + math.sqrt(1 - self._cosine**2) * towards_D / norm
        return [torch.nn.functional.normalize(half_D, dim=0)]

    def _draw(self, samples: int, head: int) -> torch.Generator:
        """A generator of its own for each draw, so that nothing of it has to be saved."""
        key = hashlib.sha256(f"reseed:{self._seed}:{samples}:{head}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)

    def state_dict(self) -> dict[str, Any]:
        """{"tensors": {"<head>" [K] int64: samples when last used}, "values": JSON}; empty when off."""
        if not self.on:
            return {"tensors": {}, "values": {}}
        tensors = {str(head): last_used_K.clone() for head, last_used_K in enumerate(self._last_used)}
        return {"tensors": tensors, "values": {"seed": self._seed, "total": self.total}}

    def load_state_dict(self, state: Mapping[str, Any], *, samples: int) -> None:
        """Go on from a state; one without any (it was off then) counts every prototype as used just now.

        Raises:
            ValueError: another number of prototypes.
        """
        tensors, values = state["tensors"], state["values"]
        for head, last_used_K in enumerate(self._last_used):
            saved_K = tensors.get(str(head))
            if saved_K is None:
                last_used_K.fill_(samples)
            elif saved_K.shape != last_used_K.shape:
                raise ValueError(
                    f"saved ages are of {len(saved_K)} prototypes, this head has {len(last_used_K)}"
                )
            else:
                last_used_K.copy_(saved_K)
        self._seed = values.get("seed", self._seed)
        self.total = values.get("total", 0)
