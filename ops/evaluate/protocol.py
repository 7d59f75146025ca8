"""The kNN evaluation of a run, always beside raw pixels and the untrained network as baselines."""

# N images in the bank   M queries   F width of a feature   S side of a view

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ops.evaluate.features import ChannelMoments, Label, LabelledImages, Piece, raw_view
from ops.evaluate.knn import NEIGHBOURS, NearestNeighbours
from ops.inference import load_model
from stream.lanes import add_counts

MAX_BANK = 50_000
"""Images of the bank, unless asked otherwise."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnReport:
    """Top-1 accuracies in percent, by k, under one protocol."""

    trained: dict[int, float]
    raw_pixels: dict[int, float]
    untrained: dict[int, float]
    """The run's own initial weights, with batch-norm statistics estimated on the bank."""
    bank: int
    """Labelled images that vote."""
    queries: int
    """Labelled images that are asked."""
    queries_in_bank: int
    """Queries whose very bytes are in the bank too; each was left out of its own vote."""
    classes: int
    """Classes in the bank."""
    commonest: float
    """Accuracy of always naming the commonest class of the bank, percent: the line that chance draws."""
    samples: int
    """Images that the network had learned from."""
    weights: str
    view_px: int
    skipped: dict[str, int]
    """Records of both streams that were left out, by reason."""

    def to_json(self) -> dict[str, object]:
        """As `--json` prints it."""
        rows = {
            name: {f"k{k}": round(value, 4) for k, value in getattr(self, name).items()}
            for name in ("trained", "raw_pixels", "untrained")
        }
        others = (
            "bank", "queries", "queries_in_bank", "classes", "commonest", "samples", "weights", "view_px",
            "skipped",
        )  # fmt: skip
        return rows | {name: getattr(self, name) for name in others}


def evaluate_knn(
    run_dir: Path,
    *,
    train_url: str,
    test_url: str,
    max_bank: int = MAX_BANK,
    progress: Progress = lambda _what, _done, _total: None,
) -> KnnReport:
    """Weighted nearest neighbours of backbone features, of raw pixels and of the untrained network.

    Bank: labelled images of `train_url`, spread over its commits when there are more than `max_bank`.
    Queries: all labelled images of `test_url`. A query that is in the bank, by the digest of its bytes, has
    no vote on itself: one stream may serve as both. Every image is seen through `centre_view` at the size of
    the run's first crops. Features are those of the backbone in evaluation mode, scaled to length 1. Raw
    pixels are standardised a channel on the bank, at 32 x 32 at most. k is 20 and 200, a vote weighs
    exp(cosine / 0.07).

    Memory: features of the queries, plus 512 MB of views at most for each stream; those of the bank are never
    held.

    Raises:
        RunNotFound, CheckpointDamaged: no network to look with.
        StreamNotFound: no stream at one of the addresses.
        ValueError: max_bank below 1, no labelled image in a stream, or no class in common.
    """
    if max_bank < 1:
        raise ValueError(f"max_bank must be >= 1 image, got {max_bank}")
    network = load_model.load(run_dir)
    reading = _Reading(network.view_px, network.config.reader.max_pixels)
    with reading.open(train_url, max_bank) as bank, reading.open(test_url, 0) as queries:
        compare = _Comparison(bank, queries, progress)
        moments = ChannelMoments()
        for views_B3SS in compare.passing(bank, "raw pixels: mean and deviation"):
            moments.add(raw_view(views_B3SS))
        raw = compare.top1("raw pixels", lambda views_B3SS: moments.standardised(raw_view(views_B3SS)))
        trained = compare.top1("trained", network.learner.features)
        initial = load_model.untrained(network)
        initial.estimate_statistics(compare.passing(bank, "untrained: batch norm"))
        untrained = compare.top1("untrained", initial.features)
        skipped = add_counts(bank.skipped, queries.skipped)
    return KnnReport(
        trained=trained, raw_pixels=raw, untrained=untrained, bank=compare.bank_size,
        queries=len(compare.query_labels), queries_in_bank=len(compare.found), classes=len(compare.classes),
        commonest=compare.commonest(),
        samples=network.samples, weights=network.weights, view_px=network.view_px, skipped=skipped,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Reading:
    size: int
    max_pixels: int

    def open(self, url: str, limit: int) -> "closing[LabelledImages]":
        return closing(LabelledImages(url, size=self.size, limit=limit, max_pixels=self.max_pixels))


class _Comparison:
    """One bank and one set of queries, compared through any function from views to features."""

    def __init__(self, bank: LabelledImages, queries: LabelledImages, progress: Progress) -> None:
        self._bank = bank
        self._queries = queries
        self._progress = progress
        self.classes: dict[Label, int] = {}
        """Labels of the bank, numbered in the order in which they are met."""
        self.bank_counts: Counter[Label] = Counter()
        self.query_labels: list[Label] = []
        self.found: set[int] = set()
        """Queries, by their place, that were met in the bank."""

    @property
    def bank_size(self) -> int:
        return self.bank_counts.total()

    def commonest(self) -> float:
        """Accuracy of always naming the bank's commonest class, percent."""
        label, _ = self.bank_counts.most_common(1)[0]
        return 100.0 * self.query_labels.count(label) / len(self.query_labels)

    def passing(self, images: LabelledImages, what: str) -> Iterator[Tensor]:
        """Views of one pass."""
        for piece in self._pieces(images, what):
            yield piece.views_B3SS

    def top1(self, what: str, describe: Callable[[Tensor], Tensor]) -> dict[int, float]:
        """Top-1 accuracy in percent by k."""
        self.query_labels.clear()
        features: list[Tensor] = []
        digests: list[str] = []
        for piece in self._pieces(self._queries, f"{what}: queries"):
            features.append(describe(piece.views_B3SS))
            self.query_labels += piece.labels
            digests += piece.digests
        if not features:
            raise _no_labels(self._queries)
        images = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
        images_M = torch.tensor([images[digest] for digest in digests])
        nearest = NearestNeighbours(torch.cat(features), k=max(NEIGHBOURS), images_M=images_M)
        features.clear()
        self.bank_counts.clear()
        met: set[str] = set()
        for piece in self._pieces(self._bank, f"{what}: bank"):
            numbers = [self.classes.setdefault(label, len(self.classes)) for label in piece.labels]
            images_N = torch.tensor([images.get(digest, -1) for digest in piece.digests])
            nearest.add(describe(piece.views_B3SS), torch.tensor(numbers), images_N)
            met.update(images.keys() & piece.digests)
            self.bank_counts.update(piece.labels)
        if not self.bank_counts:
            raise _no_labels(self._bank)
        self.found = {place for place, digest in enumerate(digests) if digest in met}
        wanted_M = torch.tensor([self.classes.get(label, -1) for label in self.query_labels])
        if not bool((wanted_M >= 0).any()):
            raise ValueError(
                f"{self._bank.url} and {self._queries.url} have no class in common: the first has "
                f"{_some(self.classes)}, the second {_some(self.query_labels)}"
            )
        return {k: nearest.top1(k, wanted_M) for k in NEIGHBOURS}

    def _pieces(self, images: LabelledImages, what: str) -> Iterator[Piece]:
        done = 0
        for piece in images:
            yield piece
            done += len(piece.labels)
            self._progress(what, done, images.expected)


def _no_labels(images: LabelledImages) -> ValueError:
    left = ", ".join(f"{number} {reason}" for reason, number in images.skipped.items())
    return ValueError(
        f"{images.url} has no labelled image ({left or 'it is empty'}): labels come from .cls or .json "
        "members of tars, or from folders with `swavstream ingest --label-from parent`"
    )


def _some(labels: Iterable[Label]) -> str:
    names = sorted({repr(label) for label in labels})
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
