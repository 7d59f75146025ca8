"""SwAV: from a batch to codes, to the gradient of their swapped prediction, and into the queue.

`BatchGradient` is the paper's pseudo-code up to the update, over parts of the batch and over ranks; its lines
are those of `Swav`: scores, codes, losses. `Learner.step` makes the update, and puts the batch in the queue.

n views   A assigned views, the first of them   B samples of this rank   N samples over all ranks   H heads
K prototypes   D embedding size
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.augment import Views
from learner.collective import Group, sent, sent_together
from learner.config import SwavConfig
from learner.gradients import GradientSums
from learner.model import cosines
from learner.network import Network, PhaseTimer
from learner.queue import FeatureQueue
from learner.sinkhorn import Codes, assign, power_law_prior
from learner.step_stats import StepTensors


class BatchGradient:
    """Leaves the gradient of a batch in the parameters of the network; changes nothing else.

    Args:
        network: of this rank.
        swav: codes and loss; its queue is read.
        sums: sums gradients over ranks while backward is at work.
        assigned: A.

    Source: Caron et al. 2020, arXiv:2006.09882, sec. 3 and the pseudo-code of its appendix.
    """

    def __init__(self, network: Network, swav: "Swav", sums: GradientSums, *, assigned: int) -> None:
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
    ) -> StepTensors:
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
        return StepTensors(
            loss_H=loss_H,
            z_ABD=z_ABD,
            lane_B=lane_B,
            prototypes_H=[prototypes_KD.detach() for prototypes_KD in self._prototypes_H],
            scores_H=[scores_ABK[:, : len(lane_B)] for scores_ABK in scores_H],
            codes_H=codes_H,
            priors_H=priors_H,
            counts=counts,
        )


class Swav:
    """Codes, queue and loss of section 3 of the paper; prototypes belong to the model and are passed in.

    Args:
        config: settings.
        dim: D.
        group: ranks that share the batch.

    Source: Caron et al. 2020, arXiv:2006.09882, sec. 3.
    """

    def __init__(self, config: SwavConfig, *, dim: int, group: Group) -> None:
        self.queue = FeatureQueue(views=config.assign_views, dim=dim, capacity=config.queue_samples)
        self._config = config
        self._group = group

    def frozen(self, samples: int) -> bool:
        """Whether prototypes stand still at the update that starts after so many samples."""
        return samples < self._config.freeze_samples

    def priors(self, usage_H: Sequence[Tensor], device: torch.device) -> list[Tensor | None]:
        """Mass wanted on the prototypes of each head; None = uniform.

        Args:
            usage_H: [K] each, counts of use so far.
            device: where they are needed.
        """
        if self._config.prior == "uniform":
            return [None for _ in usage_H]
        exponent = self._config.prior_exponent
        return list(sent_together([power_law_prior(usage_K, exponent) for usage_K in usage_H], device))

    @torch.no_grad()
    def scores(self, z_ABD: Tensor, prototypes_H: Sequence[Tensor]) -> list[Tensor]:
        """[A, B + L, K] raw cosines for each head: of the batch, and after it of a full queue.

        Queued features meet today's prototypes: features are queued, scores are not.
        """
        if self.queue.full:
            z_ABD = torch.cat([z_ABD, self.queue.features()], dim=1)
        return [cosines(z_ABD, prototypes_KD) for prototypes_KD in prototypes_H]

    @torch.no_grad()
    def codes(
        self, scores_H: Sequence[Tensor], priors_H: Sequence[Tensor | None], *, samples: int
    ) -> list[Codes]:
        """Codes of the first `samples` samples, balanced over all of them on all ranks (eq. 3 to 5)."""
        return [
            assign(
                scores_ABK,
                epsilon=self._config.epsilon,
                iterations=self._config.sinkhorn_iterations,
                prior_K=prior_K,
                hard=self._config.hard_codes,
                keep=samples,
                group=self._group,
            )
            for scores_ABK, prior_K in zip(scores_H, priors_H, strict=True)
        ]

    def losses(
        self, z_nBD: Tensor, prototypes_H: Sequence[Tensor], codes_H: Sequence[Tensor], *, frozen: bool
    ) -> Tensor:
        """[H, B] loss of every sample under every head (eq. 1, 2 and 6).

        Frozen prototypes get no gradient at all, and not a zero one: momentum and decay pass them by too.
        """
        losses = []
        for prototypes_KD, codes_ABK in zip(prototypes_H, codes_H, strict=True):
            scores_nBK = cosines(z_nBD, prototypes_KD.detach() if frozen else prototypes_KD)
            losses.append(swapped_loss(scores_nBK, codes_ABK, temperature=self._config.temperature))
        return torch.stack(losses)

    def remember(self, z_ABD: Tensor, lane_B: Tensor, *, samples: int, total: int) -> None:
        """Put the batch in the queue once its update is done, so that it does not meet itself there.

        With replays the queue takes every update's batch: it spans fewer arrivals than its length says, and
        may hold older features of a sample that is in the batch.

        Args:
            z_ABD: features of the assigned views of this rank.
            lane_B: [B] their lanes, on the CPU.
            samples: seen before this batch.
            total: samples of the batch over all ranks.
        """
        if self._config.queue_samples > 0 and samples >= self._config.queue_start_samples:
            self.queue.push(z_ABD, lane_B, stamp=samples, total=total)


def swapped_loss(scores_nBK: Tensor, codes_ABK: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy between the codes of the assigned views and the predictions of every *other* view.

        l_b = - 1/A sum_{i in A} 1/(n-1) sum_{v != i} sum_k q_ibk log softmax(s_vb / temperature)_k

    The inner sum over v != i is taken as (sum over all v) - (v = i), so that there is no loop over pairs.

    Args:
        scores_nBK: [n, B, K] cosines, assigned views first; float64 stays, half precision is
            raised to float32, also under autocast.
        codes_ABK: [A, B, K] without gradient, each sample sums to 1.
        temperature: > 0.

    Returns:
        [B] loss of each sample, nats; their mean is the loss of the batch. About ln K when nothing is
        learned.

    Raises:
        ValueError: fewer than two views, more codes than views, or codes that would pass a gradient.

    Source: Caron et al. 2020, arXiv:2006.09882, eq. 1, 2 and 6.
    """
    num_views, num_assigned = len(scores_nBK), len(codes_ABK)
    if num_views < 2 or num_assigned > num_views:
        raise ValueError(f"{num_assigned} codes need as many views, and at least two; got {num_views} views")
    if codes_ABK.requires_grad:
        raise ValueError("codes must carry no gradient: they are the target")
    with torch.autocast(scores_nBK.device.type, enabled=False):
        scores_nBK = scores_nBK if scores_nBK.dtype == torch.float64 else scores_nBK.float()
        log_p_nBK = torch.log_softmax(scores_nBK / temperature, dim=-1)
        all_views_B = (codes_ABK.sum(0) * log_p_nBK.sum(0)).sum(-1)
        own_view_B = (codes_ABK * log_p_nBK[:num_assigned]).sum((0, -1))
        return (own_view_B - all_views_B) / (num_assigned * (num_views - 1))
