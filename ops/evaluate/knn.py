"""Weighted nearest neighbours and purity: how well features and prototypes sort labelled images.

Nothing is trained on the labels. Purity is how far the images of one prototype are of one kind, beside what
chance alone would give.
"""

import math

import torch
from torch import Tensor

from learner.patches import Whitening, pca_of_rows

# N images in the bank   M queries   F width of a feature   C classes   k neighbours


TEMPERATURE = 0.07
"""Of the vote exp(cosine / temperature); the value of Wu et al. 2018, used by DINO and VISSL too."""
NEIGHBOURS = (20, 200)
"""The two numbers of neighbours that are always reported."""

WHITENED_WIDTH = 128
"""Numbers of a whitened feature at most; features that span fewer directions have fewer."""
WHITENED_FROM = 10_000
"""Rows of the bank, the first, that the whitening is estimated on."""

QUERY_ROWS = 2048
BANK_ROWS = 4096
_TINY = 1e-12


class NearestNeighbours:
    """The nearest neighbours of every query in a bank that is shown piece by piece.

    Holds the queries and, for each, k cosines and labels; never the bank and never M x N numbers.

    Args:
        queries_MF: [M, F] float32, any length; scaled to length 1 here.
        k: how many neighbours to keep; >= 1.
        images_M: [M] int64, a number >= 0 for the image of each query: rows of the bank with the same number
            have no vote on it. None when no query can be in the bank.
        query_rows: queries that are compared at once; bounds the memory, and changes no answer.
        bank_rows: rows of the bank that are collected before they are compared, likewise.

    Raises:
        ValueError: no queries, or no neighbours.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """

    def __init__(
        self,
        queries_MF: Tensor,
        *,
        k: int,
        images_M: Tensor | None = None,
        query_rows: int = QUERY_ROWS,
        bank_rows: int = BANK_ROWS,
    ) -> None:
        if len(queries_MF) == 0:
            raise ValueError("nearest neighbours need at least one query, got none")
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}")
        self._queries_MF = _unit(queries_MF)
        self._k = k
        self._images_M = images_M
        self._query_rows, self._bank_rows = query_rows, bank_rows
        self._cosines_Mk = torch.empty(len(queries_MF), 0)
        self._labels_Mk = torch.empty(len(queries_MF), 0, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, bank_NF: Tensor, labels_N: Tensor, images_N: Tensor | None = None) -> None:
        """Show some more of the bank.

        Args:
            bank_NF: [N, F] float32, any length.
            labels_N: [N] int64 class indices, >= 0.
            images_N: [N] int64, the number of each image among the queries, -1 for one that is not among
                them. None = none of these is.
        """
        if images_N is None:
            images_N = torch.full_like(labels_N, -1)
        # Small pieces are compared together: sorting out the best costs the same for one row as for many.
        self._waiting.append((bank_NF, labels_N, images_N))
        if sum(len(labels_N) for _, labels_N, _ in self._waiting) >= self._bank_rows:
            self._compare()

    def vote(self, k: int) -> Tensor:
        """The class [M] int64 of each query: the weighted votes of its k nearest, or of all there are.

        The vote of a neighbour is exp(cosine / 0.07). Equal votes go to the lowest class index. A query whose
        bank holds nothing but itself gets -1.

        Raises:
            ValueError: k is above the number that is kept, or nothing was shown.
        """
        self._compare()
        if k > self._k or self._cosines_Mk.shape[1] == 0:
            raise ValueError(
                f"k must be 1..{self._k} and the bank not empty, got {k} and {self._labels_Mk.shape}"
            )
        weights_Mk = (self._cosines_Mk[:, :k].double() / TEMPERATURE).exp()
        labels_Mk = self._labels_Mk[:, :k]
        classes = int(self._labels_Mk.max()) + 1
        winners: list[Tensor] = []
        for start in range(0, len(weights_Mk), self._query_rows):
            rows = slice(start, start + self._query_rows)
            votes_MC = torch.zeros(len(weights_Mk[rows]), classes, dtype=torch.float64)
            votes_MC.scatter_add_(1, labels_Mk[rows], weights_Mk[rows])
            most_M, winner_M = votes_MC.max(dim=1)
            winners.append(torch.where(most_M > 0, winner_M, -1))
        return torch.cat(winners)

    def top1(self, k: int, labels_M: Tensor) -> float:
        """Share of queries that get their class, percent.

        Args:
            k: neighbours that vote.
            labels_M: [M] int64 class indices; -1 for a class that the bank does not have, which is an error.
        """
        right_M = (self.vote(k) == labels_M) & (labels_M >= 0)
        return 100.0 * float(right_M.double().mean())

    def _compare(self) -> None:
        """Take what waits into the nearest of each query."""
        if not self._waiting:
            return
        bank_FN = _unit(torch.cat([bank_NF for bank_NF, _, _ in self._waiting])).T
        labels_N = torch.cat([labels_N for _, labels_N, _ in self._waiting])
        images_N = torch.cat([images_N for _, _, images_N in self._waiting])
        self._waiting.clear()
        cosines: list[Tensor] = []
        labels: list[Tensor] = []
        for start in range(0, len(self._queries_MF), self._query_rows):
            rows = slice(start, start + self._query_rows)
            found_MN = self._queries_MF[rows] @ bank_FN
            if self._images_M is not None and bool((images_N >= 0).any()):
                # A cosine of -inf weighs nothing, and stands behind all others.
                own_MN = self._images_M[rows, None] == images_N[None]
                found_MN.masked_fill_(own_MN, -math.inf)
            best, place = found_MN.topk(min(self._k, found_MN.shape[1]), dim=1)
            both = torch.cat([self._cosines_Mk[rows], best], dim=1)
            names = torch.cat([self._labels_Mk[rows], labels_N[place]], dim=1)
            kept, order = both.topk(min(self._k, both.shape[1]), dim=1)
            cosines.append(kept)
            labels.append(names.gather(1, order))
        self._cosines_Mk = torch.cat(cosines)
        self._labels_Mk = torch.cat(labels)


class PlainAndWhitened:
    """Nearest neighbours of every query in one bank twice: by features as they are, and PCA-whitened.

    The whitening is estimated on the first `WHITENED_FROM` rows of the bank, which are held until they are
    there. Arguments are those of `NearestNeighbours`.
    """

    def __init__(self, queries_MF: Tensor, *, k: int, images_M: Tensor | None = None) -> None:
        self._queries_MF = queries_MF
        self._k = k
        self._images_M = images_M
        self._plain = NearestNeighbours(queries_MF, k=k, images_M=images_M)
        self._head: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._whitening: Whitening | None = None
        self._whitened: NearestNeighbours | None = None

    def add(self, bank_NF: Tensor, labels_N: Tensor, images_N: Tensor | None = None) -> None:
        """Show some more of the bank."""
        self._plain.add(bank_NF, labels_N, images_N)
        if self._whitened is not None and self._whitening is not None:
            self._whitened.add(self._whitening(bank_NF), labels_N, images_N)
            return
        self._head.append((bank_NF, labels_N, images_N))
        if sum(len(labels_N) for _, labels_N, _ in self._head) >= WHITENED_FROM:
            self._whiten()

    def top1(self, k: int, labels_M: Tensor) -> tuple[float, float]:
        """Share of queries that get their class, percent: by plain features, and by whitened ones."""
        whitened = self._whitened or self._whiten()
        return self._plain.top1(k, labels_M), whitened.top1(k, labels_M)

    def _whiten(self) -> NearestNeighbours:
        """Estimate the whitening on what is held, and let go of it."""
        rows_NF = torch.cat([bank_NF for bank_NF, _, _ in self._head])[:WHITENED_FROM]
        whitening = pca_of_rows(rows_NF, WHITENED_WIDTH)
        del rows_NF
        whitened = NearestNeighbours(whitening(self._queries_MF), k=self._k, images_M=self._images_M)
        for bank_NF, labels_N, images_N in self._head:
            whitened.add(whitening(bank_NF), labels_N, images_N)
        self._head.clear()
        self._queries_MF = torch.empty(0)
        self._whitening, self._whitened = whitening, whitened
        return whitened


def _unit(rows_NF: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays zero."""
    lengths_N1: Tensor = rows_NF.norm(dim=1, keepdim=True).clamp_min(_TINY)
    return rows_NF / lengths_N1


# N images   K prototypes


def purity(assigned_N: Tensor, kinds_N: Tensor) -> float:
    """Share of images that are of the commonest kind of their prototype.

    Grows with the number of prototypes (one image each is pure), so it means something only beside
    `purity_by_chance` or another network with as many.

    Args:
        assigned_N: [N] int64, the prototype of each image.
        kinds_N: [N] int64, the kind of each image.

    Returns:
        In (0, 1].

    Raises:
        ValueError: no images, or not one kind for each.

    Source: Manning, Raghavan and Schuetze 2008, Introduction to Information Retrieval, section 16.3.
    """
    if len(assigned_N) == 0 or assigned_N.shape != kinds_N.shape:
        raise ValueError(
            f"purity needs one kind for each of at least one image, got {len(kinds_N)} for {len(assigned_N)}"
        )
    kinds = int(kinds_N.max()) + 1
    counts_K = torch.bincount(assigned_N * kinds + kinds_N, minlength=(int(assigned_N.max()) + 1) * kinds)
    return float(counts_K.view(-1, kinds).amax(dim=1).sum()) / len(assigned_N)


def purity_by_chance(assigned_N: Tensor, kinds_N: Tensor, *, seed: int = 0, draws: int = 20) -> float:
    """Mean purity of prototypes of the same sizes when the kinds are dealt out at random; in (0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    found = 0.0
    for _ in range(draws):
        order = torch.randperm(len(kinds_N), generator=generator)
        found += purity(assigned_N, kinds_N[order])
    return found / draws
