"""Re-seeding: a prototype that no sample comes to any more begins anew at a sample that none explains well.

N samples over all ranks   P samples that new prototypes are chosen among   H heads   K prototypes   D
embedding size
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from learner.collective import Group, gather_rows
from learner.config import ReseedConfig

WORST_SHARE = 4
"""New prototypes are drawn from this part (a fourth) of the batch, the part that is explained worst: the
single worst samples of an uncurated stream are often no pictures of anything."""


class Reseeder:
    """Knows when each prototype was last the arg-max of a sample, and moves the dead ones.

    All ranks decide alike: who is dead follows from the arg-maxes of all, candidates are put in the order of
    their lanes, and the draw is a function of seed, samples and head alone. So one rank and many, and a run
    resumed anywhere, do the same.

    Args:
        config: settings; `after_samples` = 0 switches it off.
        prototypes: K of each head.
        seed: of the run.
        freeze_samples: prototypes stand still until then; nobody counts as dead for that time.
        twin_cosine: two new prototypes are never closer than this.
        group: the ranks.

    Source: Zeghidour et al. 2021, arXiv:2107.03312, sec. III-C (unused entries of a codebook are replaced by
        vectors of the current batch); Caron et al. 2018, arXiv:1807.05520 (empty clusters).
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
        self._twin_cosine = twin_cosine
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
        z_BD: Tensor,
        lane_B: Tensor,
        scores_H: Sequence[Tensor],
        prototypes_H: Sequence[Tensor],
        generations_H: Sequence[Tensor],
        optimizer: Optimizer,
        *,
        samples: int,
        counts: Sequence[int],
    ) -> int:
        """Move the dead prototypes of every head; a collective where some are dead, on every rank alike.

        A row that is moved loses its momentum, and its generation goes up by one.

        Args:
            z_BD: features of view 0 of this rank.
            lane_B: [B] their lanes, on the CPU.
            scores_H: [B, K] each, their raw cosines.
            prototypes_H: [K, D] each, the parameters; changed in place.
            generations_H: [K] int64 each, on the CPU; changed in place.
            optimizer: of the prototypes; its state is changed in place.
            samples: seen, this batch included.
            counts: samples of every rank.

        Returns:
            How many were moved.
        """
        moved = 0
        for head, prototypes_KD in enumerate(prototypes_H):
            dead_M = self.dead(head, samples=samples)
            if len(dead_M) == 0:
                continue
            candidates_PD = self._candidates(z_BD, lane_B, scores_H[head], counts)
            draw = self._draw(samples, head)
            chosen_MD = self._apart(candidates_PD[torch.randperm(len(candidates_PD), generator=draw)], dead_M)
            dead_M = dead_M[: len(chosen_MD)]
            rows = dead_M.to(prototypes_KD.device)
            prototypes_KD[rows] = chosen_MD.to(prototypes_KD)
            for value in optimizer.state.get(prototypes_KD, {}).values():
                if isinstance(value, Tensor) and value.shape == prototypes_KD.shape:
                    value[rows] = 0
            generations_H[head][dead_M] += 1
            self._last_used[head][dead_M] = samples
            moved += len(dead_M)
        self.total += moved
        return moved

    def _candidates(self, z_BD: Tensor, lane_B: Tensor, scores_BK: Tensor, counts: Sequence[int]) -> Tensor:
        """[P, D] on the CPU: features of the samples that are explained worst, in order of lanes."""
        best_B1 = scores_BK.max(-1).values[:, None]
        lane_B1 = lane_B[:, None].to(z_BD)
        rows_ND = gather_rows(self._group, torch.cat([lane_B1, best_B1.to(z_BD), z_BD], dim=1), counts).cpu()
        rows_ND = rows_ND[rows_ND[:, 0].argsort(stable=True)]
        worst_N = rows_ND[:, 1].argsort(stable=True)[: max(1, len(rows_ND) // WORST_SHARE)]
        return rows_ND[worst_N.sort().values, 2:]

    def _apart(self, candidates_PD: Tensor, dead_M: Tensor) -> Tensor:
        """The first candidates of which no two are twins, as many as there are dead, or as can be had."""
        chosen: list[Tensor] = []
        for z_D in torch.nn.functional.normalize(candidates_PD, dim=1):
            if len(chosen) == len(dead_M):
                break
            if not chosen or float((torch.stack(chosen) @ z_D).max()) < self._twin_cosine:
                chosen.append(z_D)
        return torch.stack(chosen)

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
        """Go on from a state; one without any (it was off then) counts everybody as used just now.

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
