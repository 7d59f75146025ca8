"""From a batch to the gradient of its swapped prediction: features, codes, loss, over parts and ranks.

n views   A assigned views, the first of them   B samples of this rank   N samples over all ranks   H heads
K prototypes   D embedding size
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.augment import Views
from learner.collective import sent
from learner.gradients import GradientSums
from learner.network import Network, PhaseTimer
from learner.objectives.swav import Swav
from learner.step_stats import Outcome


class BatchGradient:
    """Leaves the gradient of a batch in the parameters of the network; changes nothing else.

    Args:
        network: of this rank.
        swav: codes and loss; its queue is read.
        sums: sums gradients over ranks while backward is at work.
        assigned: A.

    Source: Caron et al. 2020, arXiv:2006.09882, sec. 3 and the pseudo-code of its appendix.
    """

    def __init__(self, network: Network, swav: Swav, sums: GradientSums, *, assigned: int) -> None:
        self._network, self._swav, self._sums, self._assigned = network, swav, sums, assigned
        self._prototypes_H = list(network.model.prototypes)

    def of(
        self,
        views: Views,
        lane_B: Tensor,
        parts: Sequence[Tensor],
        *,
        counts: Sequence[int],
        samples: int,
        usage_H: Sequence[Tensor],
        timer: PhaseTimer,
    ) -> Outcome:
        """Features, codes, swapped loss and its gradient, summed over parts and ranks; all ranks call it.

        Args:
            views: crops of this rank's samples.
            lane_B: [B] lane of each of them.
            parts: indices of the samples that go through the network together, as `Network.parts` gives them.
            counts: samples of each rank.
            samples: seen before this batch: what is frozen follows from it.
            usage_H: [K] counts of use for each head, for a prior that follows usage.
            timer: the phases are timed by.
        """
        frozen = self._swav.frozen(samples)
        priors_H = self._swav.priors(usage_H, self._network.device)
        if len(parts) == 1:
            z_nBD = self._network.embed(views, lane_B, timer)
            z_ABD = z_nBD[: self._assigned].detach()
        else:
            z_ABD = self._network.embed_first(views, lane_B, parts, assigned=self._assigned, timer=timer)
        scores_H = self._swav.scores(z_ABD, self._prototypes_H)
        codes_H = self._swav.codes(scores_H, priors_H, samples=len(lane_B))
        timer.lap("sinkhorn")
        loss_H = torch.zeros(len(self._prototypes_H), dtype=torch.float64, device=z_ABD.device)
        for part in parts:
            part_codes_H = [codes.codes_ABK for codes in codes_H]
            if len(parts) > 1:
                z_nBD = self._network.embed(views.part(part), lane_B[part], timer)
                there = sent(part, self._network.device)
                part_codes_H = [codes_ABK[:, there] for codes_ABK in part_codes_H]
            loss_HB = self._swav.losses(z_nBD, self._prototypes_H, part_codes_H, frozen=frozen)
            loss_H += loss_HB.detach().sum(1) / sum(counts)
            timer.lap("forward")
            # A sum over samples by N: summed over parts and ranks it is the mean over the global batch.
            share = loss_HB.mean(0).sum() / sum(counts)
            if part is parts[-1]:
                with self._sums.summed(without=self._prototypes_H if frozen else ()):
                    torch.autograd.backward(share)
            else:
                torch.autograd.backward(share)
            timer.lap("backward")
        return Outcome(
            loss_H=loss_H,
            z_ABD=z_ABD,
            lane_B=lane_B,
            prototypes_H=[prototypes_KD.detach() for prototypes_KD in self._prototypes_H],
            scores_H=[scores_ABK[:, : len(lane_B)] for scores_ABK in scores_H],
            codes_H=codes_H,
            priors_H=priors_H,
            counts=counts,
        )
