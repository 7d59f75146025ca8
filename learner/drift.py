"""What only shows over time: drift, novelty, batches that are alike, features that grow old in the queue.

Most of it is seen with a frozen copy of the network, and only when a health report is due.

N samples looked at, over all ranks   K prototypes   D embedding size   G groups of prototypes
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner import checkpoint_state, health
from learner.augment import Views
from learner.collective import Deal, gather_rows
from learner.model import SwavModel, copy_all, cosines
from learner.network import Network

GROUPS = 32
"""Groups of prototypes in whose shares drift is looked for: chance alone moves few groups little."""

SAMPLES = 256
"""Of a batch, through the frozen copy, at each report: bounds the cost."""

PROBES = 64
"""Images that are looked at again when the queue has turned over once."""

REPORTS = 16
"""Reports that the shares of the reference, and those of now, are counted over."""

TRAIL = 64
"""Reports whose mean feature stands for the stream as a whole."""

TRAIL_LEAST = 8
"""Fewer reports than this are no stream to compare with."""

SCORE_CELLS = 512
"""Cells of the histogram of best scores, from -1 to 1; its low quantile is the limit of what is new."""

NOVEL_QUANTILE = 0.01
"""Share of the reference's samples that would count as new: the null value of novelty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """Figures against the reference; None = not known yet."""

    reference_samples: int | None = None
    batch_similarity: float | None = None
    drift_psi: float | None = None
    novelty_ratio: float | None = None
    prototype_shift_p50: float | None = None
    prototype_shift_p99: float | None = None
    queue_staleness_cosine: float | None = None


class FeatureTrail:
    """Mean features of the latest reports; the same on every rank."""

    def __init__(self) -> None:
        self._means: deque[list[float]] = deque(maxlen=TRAIL)

    def similarity(self, total_D: Tensor, num: int) -> float | None:
        """`health.batch_similarity` of a batch with those before it, which it then joins."""
        found = None
        if len(self._means) >= TRAIL_LEAST:
            past_D = torch.tensor(list(self._means), dtype=torch.float64).mean(0)
            found = health.batch_similarity(total_D, num, past_D)
        self._means.append((total_D.double() / max(1, num)).tolist())
        return found

    def state(self) -> list[list[float]]:
        """JSON values."""
        return list(self._means)

    def load(self, saved: list[list[float]]) -> None:
        """Go on from them."""
        self._means.clear()
        self._means.extend(saved)


class DriftMonitor:
    """A frozen copy of the network from a moment when the run was well, and what it says of the stream since.

    Drift seen with the live encoder would be that of the training itself; a copy that stands still sees only
    the stream. All methods are called by every rank at the same step.

    Args:
        network: the live one.
        group: the ranks.
        prototypes: K of the first head.
    """

    def __init__(self, network: Network, deal: Deal, prototypes: int) -> None:
        self._network, self._deal, self._group = network, deal, deal.ranks
        self._groups = min(GROUPS, prototypes)
        self._frozen: SwavModel | None = None
        self._taken = 0
        self._reference = self._nothing()
        self._reports = 0
        self._now: deque[Tensor] = deque(maxlen=REPORTS)
        self._trail = FeatureTrail()
        self._probes: Tensor | None = None
        self._probe_z: Tensor | None = None
        self._stamp = 0
        self._staleness: float | None = None

    def refresh_reference(self, samples: int, *, every: int) -> None:
        """The run is well: take a new reference when there is none, or when the old one is old enough.

        Args:
            samples: seen so far.
            every: samples after which a reference is replaced; 0 = none is ever taken.
        """
        if every <= 0 or (self._frozen is not None and samples - self._taken < every):
            return
        self._frozen = self._network.copy()
        self._taken, self._reports, self._reference = samples, 0, self._nothing()
        self._now.clear()
        self._trail.load([])

    def observe(
        self,
        views: Views,
        counts: tuple[int, ...],
        *,
        samples: int,
        queue_age: int | None,
        prototypes_KD: Tensor,
    ) -> DriftReport:
        """Look at a batch.

        Args:
            views: of this rank's samples.
            counts: samples of every rank.
            samples: seen so far.
            queue_age: largest age of a feature in the queue; None while it is not in use.
            prototypes_KD: the live ones.
        """
        if queue_age is not None:
            self._look_at_probes(views, counts, samples=samples, age=queue_age)
        if self._frozen is None:
            return DriftReport(queue_staleness_cosine=self._staleness)
        seen, total_D = self._seen(views, counts, self._frozen)
        if self._reports < REPORTS:
            self._reference += seen
            self._reports += 1
        else:
            self._now.append(seen)
        shift_K = health.prototype_shift(self._frozen.prototypes[0].detach(), prototypes_KD).cpu()
        p50, p99 = health.quantiles(shift_K, (0.5, 0.99))
        drift, new = self._compared()
        return DriftReport(
            reference_samples=self._taken,
            batch_similarity=self._trail.similarity(total_D, int(seen[: self._groups].sum())),
            drift_psi=drift,
            novelty_ratio=new,
            prototype_shift_p50=p50,
            prototype_shift_p99=p99,
            queue_staleness_cosine=self._staleness,
        )

    def _nothing(self) -> Tensor:
        return torch.zeros(self._groups + SCORE_CELLS, dtype=torch.int64)

    def _seen(self, views: Views, counts: tuple[int, ...], frozen: SwavModel) -> tuple[Tensor, Tensor]:
        """[G + cells] int64: samples by group of prototypes and by best score; sum of features."""
        images = self._some(views, counts, SAMPLES)[0]
        device, prototypes_KD = self._network.device, frozen.prototypes[0]
        seen = torch.zeros(self._groups + SCORE_CELLS, dtype=torch.int64, device=device)
        total_D = torch.zeros(prototypes_KD.shape[1], dtype=torch.float64, device=device)
        if len(images) > 0:
            z_ND = self._network.embeddings(images, frozen)
            best = cosines(z_ND, prototypes_KD).max(1)
            seen[: self._groups] = torch.bincount(best.indices % self._groups, minlength=self._groups)
            cell_N = ((best.values + 1) * (SCORE_CELLS / 2)).long().clamp(0, SCORE_CELLS - 1)
            seen[self._groups :] = torch.bincount(cell_N, minlength=SCORE_CELLS)
            total_D += z_ND.sum(0)
        return self._group.sum(seen).cpu(), self._group.sum(total_D).cpu()

    def _compared(self) -> tuple[float | None, float | None]:
        """Drift and novelty of now against the reference; None until there is enough of both."""
        if self._reports < REPORTS or len(self._now) < REPORTS // 2:
            return None, None
        now = torch.stack(list(self._now)).sum(0)
        drift = health.corrected_drift(now[: self._groups], self._reference[: self._groups])
        scores_C, reference_C = now[self._groups :], self._reference[self._groups :]
        return drift, health.novelty(scores_C, reference_C, NOVEL_QUANTILE)

    def _look_at_probes(self, views: Views, counts: tuple[int, ...], *, samples: int, age: int) -> None:
        """Once the queue has turned over: how much the features of the probes have moved; then new probes."""
        if self._probes is not None and self._probe_z is not None:
            if samples - self._stamp < age:
                return
            z_ND = self._network.embeddings(self._probes).cpu()
            self._staleness = float((z_ND.double() * self._probe_z.double()).sum(1).mean())
        images, chosen = self._some(views, counts, PROBES)
        device = self._network.device
        lane_B = views.lanes(self._deal)[: len(images)]
        lane_N = gather_rows(self._group, lane_B.to(device), chosen).cpu()
        gathered = gather_rows(self._group, images.to(device), chosen).cpu()
        # Lane by lane, so that the state is the same whatever the number of ranks.
        self._probes, self._stamp = gathered[lane_N.argsort(stable=True)], samples
        self._probe_z = self._network.embeddings(self._probes).cpu()

    def _some(self, views: Views, counts: tuple[int, ...], most: int) -> tuple[Tensor, list[int]]:
        """At most so many images over all ranks: those of this rank, and how many each rank brings."""
        chosen = [count * most // max(most, sum(counts)) for count in counts]
        return views.crops[0][0, : chosen[self._group.rank]], chosen

    def state_dict(self) -> dict[str, Any]:
        """Everything; the same on every rank, no collective."""
        tensors: dict[str, Tensor] = {}
        if self._frozen is not None:
            tensors = checkpoint_state.under("frozen", self._frozen.state_dict())
            tensors["reference"] = self._reference.clone()
            if self._now:
                tensors["now"] = torch.stack(list(self._now))
        if self._probes is not None and self._probe_z is not None:
            tensors |= {"probes": self._probes, "probe_z": self._probe_z}
        values = {
            "taken": self._taken,
            "reports": self._reports,
            "stamp": self._stamp,
            "staleness": self._staleness,
            "trail": self._trail.state(),
        }
        return {"tensors": tensors, "values": values}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state of any number of ranks.

        Raises:
            ValueError: the frozen copy is of another network.
        """
        tensors, values = saved["tensors"], saved["values"]
        self._taken, self._reports = values["taken"], values["reports"]
        self._stamp, self._staleness = values["stamp"], values["staleness"]
        self._trail.load(values["trail"])
        self._now.clear()
        self._frozen, self._reference = None, self._nothing()
        frozen = checkpoint_state.below("frozen", tensors)
        if frozen:
            self._frozen = self._network.copy()
            copy_all(self._frozen.state_dict(), frozen)
            self._reference = tensors["reference"].clone()
            self._now.extend(tensors.get("now", self._nothing()[None][:0]).unbind(0))
        self._probes, self._probe_z = tensors.get("probes"), tensors.get("probe_z")
