"""Label-free figures of whether it learns and is balanced, each a pure function; and the usage they rest on.

Usage is how often a prototype is the arg-max of the *raw* scores, over a window of the latest samples. Codes
are balanced by construction, also when everything has collapsed, so nothing here is computed from where
Sinkhorn put a sample. Every function names its null value: what it gives when there is nothing to see.

K prototypes   N samples of one batch, over all ranks   D embedding size   n views of a sample   G groups of
prototypes
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

USAGE_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0, 30.0)
"""Upper edges (inclusive) of the cells of `usage_histogram`, in shares of the even one; the last cell is
open."""

DEAD_SHARE = 0.05
"""A prototype that is used less than this part of the even share counts as dead."""

NEIGHBOUR_ROWS = 8192
"""Prototypes whose nearest neighbour is looked for; with more, evenly spaced ones stand for all."""


def entropy(share_K: Tensor) -> float:
    """Entropy -sum u ln u of shares that sum to 1, nats. Null (even): ln K; 0 when one takes all."""
    return float(torch.special.entr(share_K.double()).sum())


def perplexity(counts_K: Tensor) -> float:
    """How many prototypes are in use: exp(entropy of usage).

    Null (even traffic, long window): K; 1 under full collapse or when nothing was counted. Too low in a short
    window, see `corrected_perplexity`.
    """
    return math.exp(entropy(_shares(counts_K)))


def corrected_perplexity(counts_K: Tensor) -> float:
    """Perplexity without the bias of a short window: entropy + (prototypes seen - 1) / (2 N), at most K.

    Null: K for even traffic once N is a few times K; stays 1 under full collapse.

    Source: Miller 1955 (the Miller-Madow correction).
    """
    total = float(counts_K.sum())
    if total <= 0:
        return 1.0
    seen = int((counts_K > 0).sum())
    return min(float(len(counts_K)), math.exp(entropy(_shares(counts_K)) + (seen - 1) / (2 * total)))


def divergence_from_prior(counts_K: Tensor, prior_K: Tensor | None = None) -> float:
    """KL(usage || prior) = sum u ln(u / r), nats. Null: (K - 1) / (2 N) by chance, 0 in a long window."""
    share_K = _shares(counts_K)
    wanted_K = torch.full_like(share_K, 1 / len(share_K)) if prior_K is None else prior_K.double()
    return float(torch.special.xlogy(share_K, share_K / wanted_K).sum())


def gini(counts_K: Tensor) -> float:
    """Inequality of usage: sum (2 i - K - 1) u_(i) / K over sorted shares.

    Null (even): 0, by chance more in a short window; 1 - 1/K when one takes all.
    """
    share_K = _shares(counts_K).sort().values
    num = len(share_K)
    rank_K = torch.arange(1, num + 1, dtype=torch.float64, device=share_K.device)
    return float(((2 * rank_K - num - 1) * share_K).sum() / num)


def dead_prototypes(counts_K: Tensor) -> int:
    """Number of k with u_k < 0.05 / K. Null (even): `unused_by_chance`, 0 in a window of ten a prototype."""
    return int((_shares(counts_K) < DEAD_SHARE / len(counts_K)).sum())


def unused_by_chance(prototypes: int, samples: int) -> float:
    """Prototypes that even traffic leaves unused: K (1 - 1/K)^N. The null value of `dead_prototypes`."""
    return prototypes * (1 - 1 / prototypes) ** samples


def usage_histogram(counts_K: Tensor) -> tuple[int, ...]:
    """Prototypes in each cell of u_k K, cut at USAGE_EDGES. Null (even): all in the cells around 1."""
    return share_histogram(_shares(counts_K) * len(counts_K))


def share_histogram(even_K: Tensor) -> tuple[int, ...]:
    """The same of usage in units of even shares, u_k K."""
    edges = torch.tensor(USAGE_EDGES, dtype=torch.float64, device=even_K.device)
    cell_K = torch.bucketize(even_K.double(), edges)
    return tuple(torch.bincount(cell_K, minlength=len(USAGE_EDGES) + 1).tolist())


def group_shares(counts_K: Tensor, groups: int) -> Tensor:
    """[G] float64: shares of fixed groups of prototypes, k modulo G. Null (even): 1 / G each."""
    share_K = _shares(counts_K)
    number_K = torch.arange(len(share_K), device=share_K.device) % groups
    return torch.zeros(groups, dtype=torch.float64, device=share_K.device).index_add_(0, number_K, share_K)


def drift(now_G: Tensor, reference_G: Tensor) -> float:
    """Population stability index: sum (x - e) ln(x / e) of two histograms, half a count added to each cell.

    Null: (G - 1) (1/N + 1/M) for N and M samples by chance; take few groups, not all prototypes.
    """
    now = (now_G.double() + 0.5) / (now_G.double() + 0.5).sum()
    reference = (reference_G.double() + 0.5) / (reference_G.double() + 0.5).sum()
    return float(((now - reference) * (now / reference).log()).sum())


def corrected_drift(now_G: Tensor, reference_G: Tensor) -> float:
    """`drift` less what chance alone gives: index - (G - 1) (1/N + 1/M), at least 0. Null: 0.

    Then the usual bands of 0.1 and 0.25 mean the same for any number of groups and samples.
    """
    chance = (len(now_G) - 1) * (1 / max(1.0, float(now_G.sum())) + 1 / max(1.0, float(reference_G.sum())))
    return max(0.0, drift(now_G, reference_G) - chance)


def nearest_cosines(prototypes_KD: Tensor) -> Tensor:
    """[min(K, 8192)]: cosine of each prototype with its nearest other one.

    Null: that of random directions (K = 3000, D = 128: mean 0.31, largest 0.44); near 1 means twins.
    """
    num = len(prototypes_KD)
    unit_KD = torch.nn.functional.normalize(prototypes_KD.float(), dim=1)
    chosen = torch.arange(num, device=unit_KD.device)
    if num > NEIGHBOUR_ROWS:
        chosen = torch.linspace(0, num - 1, NEIGHBOUR_ROWS, device=unit_KD.device).long()
    nearest = []
    for rows in torch.split(chosen, 1024):
        cosine_RK = unit_KD[rows] @ unit_KD.T
        cosine_RK.scatter_(1, rows[:, None], -1.0)
        nearest.append(cosine_RK.amax(1))
    return torch.cat(nearest)


def twins(nearest_R: Tensor, threshold: float, prototypes: int) -> int:
    """Number of the K prototypes with a nearest cosine above the threshold.

    Null: 0. Sees the partial collapse that usage and entropy are blind to.

    Args:
        nearest_R: `nearest_cosines`, of all prototypes or of evenly spaced ones that stand for them.
        threshold: cosine from which two are twins.
        prototypes: K.
    """
    return round(int((nearest_R > threshold).sum()) * prototypes / len(nearest_R))


def summed_entropy(shares_NK: Tensor, log_NK: Tensor | None = None) -> Tensor:
    """[] float64: sum over samples of -sum p ln p, nats, of codes or predictions.

    Null (they say nothing): N ln K.

    Args:
        shares_NK: p; any number of dimensions before K.
        log_NK: ln p, where it is known already.
    """
    terms_NK = torch.special.entr(shares_NK) if log_NK is None else -(shares_NK * log_NK)
    return terms_NK.sum(dtype=torch.float64)


def corrected_agreement(agreement: float, share_K: Tensor) -> float:
    """Agreement corrected for chance: (agreement - c) / (1 - c) with c = sum u^2.

    Null: 0, also under full collapse.
    """
    chance = float(share_K.double().square().sum())
    return (agreement - chance) / (1 - chance) if chance < 1 - 1e-9 else 0.0


def feature_std(total_D: Tensor, square_D: Tensor, num: int) -> float:
    """Mean over d of std(z_d), times sqrt(D). Null (one point): 0; 1 = even on the sphere.

    Args:
        total_D: float64 sum of the features of all ranks.
        square_D: float64 sum of their squares.
        num: N.
    """
    variance_D = (square_D / num - (total_D / num).square()).clamp_min(0)
    return float(variance_D.sqrt().mean() * math.sqrt(len(total_D)))


def effective_rank(z_ND: Tensor) -> float:
    """How many directions the features use: exp(entropy of the singular values' shares).

    Null (all on a line): 1; D for even features with N much larger than D. Compare only within a run: it
    depends on N.

    Source: Garrido et al. 2023, arXiv:2210.02885 (RankMe).
    """
    z_ND = z_ND.double()
    eigen_D = torch.linalg.eigvalsh(z_ND.T @ z_ND).clamp_min(0)
    return math.exp(entropy(_shares(eigen_D.sqrt())))


def alpha_req(z_ND: Tensor) -> float | None:
    """Slope a of eigenvalue ~ index^-a of the covariance, fitted on indices 10 to D/2. Null (even): 0.

    None below D = 32 or with fewer samples than dimensions. Steep: few directions carry all.

    Source: Agrawal et al. 2022 (alpha-ReQ).
    """
    num, dim = z_ND.shape
    if dim < 32 or num < dim:
        return None
    eigen_D = torch.linalg.eigvalsh(torch.cov(z_ND.double().T)).flip(0)[9 : dim // 2]
    if not bool((eigen_D > 0).all()):
        return None
    index = torch.arange(10, 10 + len(eigen_D), dtype=torch.float64, device=z_ND.device).log()
    centred = index - index.mean()
    return float(-(centred * eigen_D.log()).sum() / centred.square().sum())


def lidar_rank(z_nND: Tensor) -> float | None:
    """Directions that tell images apart better than views do: exp(entropy of the shares of a spectrum).

    The spectrum is that of Sw^-1/2 Sb Sw^-1/2, where a class is a sample and its members are its views.

    1 when one direction alone tells images apart; min(D, N - 1) when all do so equally. That is also the null
    value: of features that are noise no direction tells more than another, so that a collapsed encoder whose
    views differ by noise alone has a high rank too. Read it with `feature_std` and the agreement of views.
    None with fewer than two views or samples.

    Source: Thilak et al. 2023, arXiv:2312.04000 (LiDAR); 1e-4 is added to the diagonal of Sw, as there.
    """
    if z_nND.shape[0] < 2 or z_nND.shape[1] < 2:
        return None
    z_nND = z_nND.double()
    centre_ND = z_nND.mean(0)
    between_ND = centre_ND - centre_ND.mean(0)
    within_MD = (z_nND - centre_ND).flatten(0, 1)
    covariance_DD = within_MD.T @ within_MD / len(within_MD)
    values, vectors = torch.linalg.eigh(covariance_DD)
    whitened_ND = between_ND @ vectors * (values.clamp_min(0) + 1e-4).rsqrt()
    eigen_D = torch.linalg.eigvalsh(whitened_ND.T @ whitened_ND / len(whitened_ND)).clamp_min(0)
    return math.exp(entropy(_shares(eigen_D)))


def uniformity(z_ND: Tensor) -> float | None:
    """Logarithm of the mean over pairs of exp(-2 d^2).

        Null (one point): 0; about -4 even on the sphere. None below two samples.
    Source: Wang and Isola 2020, arXiv:2005.10242.
    """
    num = len(z_ND)
    if num < 2:
        return None
    squared_NN = (2 - 2 * z_ND @ z_ND.T).clamp_min(0)
    total = torch.exp(-2 * squared_NN.double()).sum() - num
    return float((total / (num * (num - 1))).log())


def alignment(z1_ND: Tensor, z2_ND: Tensor) -> float:
    """Mean squared distance of two views of a sample. Null (independent, on the sphere): 2; 0 = the same."""
    return float((z1_ND - z2_ND).square().sum(1).mean())


def novelty(now_C: Tensor, reference_C: Tensor, quantile: float) -> float:
    """Share of samples whose best raw score is below a reference's low quantile. Null: that quantile.

    Args:
        now_C: samples in each cell of a histogram of best scores, rising.
        reference_C: those of the reference, in the same cells.
        quantile: of the reference; the limit is the lower edge of the cell that it lies in.
    """
    below_C = reference_C.cumsum(0)
    limit = int(torch.searchsorted(below_C.double(), quantile * float(below_C[-1])))
    return float(now_C[:limit].sum() / now_C.sum())


def prototype_shift(before_KD: Tensor, now_KD: Tensor) -> Tensor:
    """[K]: 1 - cosine of each prototype with itself at an earlier time. Null (has not moved): 0."""
    return 1 - torch.nn.functional.cosine_similarity(before_KD.float(), now_KD.float(), dim=1)


def autocorrelation(z_ND: Tensor, lane_N: Tensor) -> float | None:
    """Mean cosine of neighbours in a lane minus that of all pairs.

    Null (well mixed): 0. None without neighbours.
    """
    neighbours = lane_N[1:] == lane_N[:-1]
    num = len(z_ND)
    if not bool(neighbours.any()):
        return None
    z_ND = z_ND.double()
    near = (z_ND[1:] * z_ND[:-1]).sum(1)[neighbours.to(z_ND.device)].mean()
    total = z_ND.sum(0)
    return float(near - (total @ total - z_ND.square().sum()) / (num * (num - 1)))


def batch_similarity(total_D: Tensor, num: int, past_D: Tensor) -> float | None:
    """How much closer samples of one batch are than samples of different batches.

    Mean cosine over pairs of the batch, (|sum z|^2 - N) / (N (N - 1)), minus that of its samples with those
    of earlier batches.

    Null (well mixed, and also under full collapse): 0. A sorted or video-like stream, whose whole batches are
    alike, shows here although neighbours are no closer than the rest of their batch. Features must not be
    centred on their own batch, as batch norm in training does. None below two samples.

    Args:
        total_D: sum of the batch's features of unit norm.
        num: N.
        past_D: mean feature of earlier batches, over a longer time than the stream stays alike.
    """
    if num < 2:
        return None
    total_D, past_D = total_D.double(), past_D.double()
    within = (total_D @ total_D - num) / (num * (num - 1))
    return float(within - total_D @ past_D / num)


def _shares(counts_K: Tensor) -> Tensor:
    """float64, sum to 1 (all zero when nothing was counted)."""
    counts_K = counts_K.double()
    return counts_K / counts_K.sum().clamp_min(torch.finfo(torch.float64).tiny)


def quantiles(values: Tensor, at: Sequence[float]) -> list[float]:
    """Quantiles by sorting, linear between neighbours."""
    ordered = values.double().sort().values
    places = [q * (len(ordered) - 1) for q in at]
    return [
        float(
            torch.lerp(
                ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)], place - int(place)
            )
        )
        for place in places
    ]


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
