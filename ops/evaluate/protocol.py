"""The kNN evaluation of a run, always beside what it must beat: baselines that learn nothing, or little."""

# N images in the bank   M queries   F width of a feature   W after whitening   S side of a view

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.evaluate.baseline_cache import BaselineCache
from ops.evaluate.baselines import BASELINES, BankViews, Baseline, Describe
from ops.evaluate.features import Label, LabelledImages, Piece
from ops.evaluate.knn import NEIGHBOURS, PlainAndWhitened
from ops.inference import load_model
from stream.lanes import add_counts

MAX_BANK = 50_000
"""Images of the bank, unless asked otherwise."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and how many there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Top-1 accuracies of some features in percent, by k."""

    plain: dict[int, float]
    whitened: dict[int, float]
    """After PCA whitening to `WHITENED_WIDTH` numbers, estimated on the bank without labels."""
    cpu_seconds: float
    """Processor seconds of this process for features, whitening and votes, when they were computed."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it, before rounding."""
        return {
            **_named(self.plain),
            "whitened": _named(self.whitened),
            "cpu_seconds": self.cpu_seconds,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Row":
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        whitened = body["whitened"]
        return cls(
            plain={k: float(body[f"k{k}"]) for k in NEIGHBOURS},
            whitened={k: float(whitened[f"k{k}"]) for k in NEIGHBOURS},
            cpu_seconds=float(body["cpu_seconds"]),
        )


def _scores(row: Row) -> dict[str, float]:
    """Each score of a row by its name; those of whitened features after the others."""
    return _named(row.plain) | {f"whitened.{name}": value for name, value in _named(row.whitened).items()}


def _named(scores: dict[int, float]) -> dict[str, float]:
    return {f"k{k}": value for k, value in scores.items()}


def _rounded(body: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, dict) else round(value, 4) for name, value in body.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnReport:
    """How often neighbours name the right class, of a network and of its baselines, under one protocol."""

    trained: Row
    baselines: dict[str, Row]
    """Those of `BASELINES` that were asked for, in that order."""
    cached: tuple[str, ...]
    """Baselines whose row was read from the cache."""
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

    @property
    def not_better_than(self) -> dict[str, tuple[str, ...]]:
        """Baselines that score at least as much as the trained network, and at which scores."""
        trained = _scores(self.trained)
        found = {
            name: tuple(score for score, value in _scores(row).items() if value >= trained[score])
            for name, row in self.baselines.items()
        }
        return {name: scores for name, scores in found.items() if scores}

    def to_json(self) -> dict[str, object]:
        """As `--json` prints it; a row that was not asked for is None."""
        rows: dict[str, object] = {"trained": _rounded(self.trained.to_json())}
        for name in BASELINES:
            rows[name] = _rounded(self.baselines[name].to_json()) if name in self.baselines else None
        others = (
            "cached", "not_better_than", "bank", "queries", "queries_in_bank", "classes", "commonest",
            "samples", "weights", "view_px", "skipped",
        )  # fmt: skip
        return rows | {name: getattr(self, name) for name in others}


def evaluate_knn(
    run_dir: Path,
    *,
    train_url: str,
    test_url: str,
    max_bank: int = MAX_BANK,
    baselines: Collection[str] = tuple(BASELINES),
    progress: Progress = lambda _what, _done, _total: None,
) -> KnnReport:
    """Weighted nearest neighbours of backbone features and of baselines.

    Bank: labelled images of `train_url`, spread over its commits when there are more than `max_bank`.
    Queries: all labelled images of `test_url`. A query that is in the bank, by the digest of its bytes, has
    no vote on itself: one stream may serve as both. Every image is seen through `centre_view` at the size of
    the run's first crops. Features are those of the backbone in evaluation mode, scaled to length 1. Raw
    pixels are standardised a channel on the bank. Raw pixels and patches are taken from the view at 32 x 32
    at most. k is 20 and 200, a vote weighs exp(cosine / 0.07). Each row is given as it is, and after PCA
    whitening to 128 numbers that is estimated on the first 10,000 images of the bank.

    Baselines are looked up in `BaselineCache` by the digest of the images, their labels and order, and the
    size of the view; the untrained network also by its weights.

    Memory: features of the queries and of 10,000 images of the bank, plus 512 MB of views at most for each
    stream. Processor seconds of a row leave out reading and decoding where views are kept, see
    `LabelledImages`; otherwise every row decodes again, and all rows alike count it.

    Raises:
        RunNotFound, CheckpointDamaged: no network to look with.
        StreamNotFound: no stream at one of the addresses.
        ValueError: max_bank below 1, an unknown baseline, no labelled image in a stream, or no class in
            common.
    """
    if max_bank < 1:
        raise ValueError(f"max_bank must be >= 1 image, got {max_bank}")
    for name in baselines:
        if name not in BASELINES:
            raise ValueError(f"no baseline is called {name!r}: there are {', '.join(BASELINES)}")
    network = load_model.load(run_dir)
    reading = _Reading(network.view_px, network.config.reader.max_pixels)
    with reading.open(train_url, max_bank) as bank, reading.open(test_url, 0) as queries:
        compare = _Comparison(bank, queries, progress)
        compare.keep_views()
        trained = compare.row("trained", lambda _bank: network.learner.features)
        cached = _CachedRows(compare, basis={"data": compare.digest, "view_px": network.view_px})
        rows = {name: cached.row(name, of(network)) for name, of in BASELINES.items() if name in baselines}
        skipped = add_counts(bank.skipped, queries.skipped)
    return KnnReport(
        trained=trained, baselines=rows, cached=tuple(cached.hits), bank=compare.bank_size,
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
        self.digest = ""
        """Of the identity and label of every query and of every image of the bank, in order."""

    @property
    def bank_size(self) -> int:
        return self.bank_counts.total()

    def commonest(self) -> float:
        """Accuracy of always naming the bank's commonest class, percent."""
        label, _ = self.bank_counts.most_common(1)[0]
        return 100.0 * self.query_labels.count(label) / len(self.query_labels)

    def keep_views(self) -> None:
        """Decode all images whose views stay in memory, so that no row pays for it."""
        for images, which in ((self._queries, "queries"), (self._bank, "bank")):
            if images.kept:
                for _ in self._pieces(images, f"reading: {which}"):
                    pass

    def row(self, what: str, prepare: Callable[[BankViews], Describe]) -> Row:
        """Compare by the features that `prepare` makes a function for."""
        began = time.process_time()
        describe = prepare(BankViews(self.bank_size, lambda part: self._passing(f"{what}: {part}")))
        seen = hashlib.sha256()
        features, digests = self._ask(what, describe, seen)
        images = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
        images_M = torch.tensor([images[digest] for digest in digests])
        nearest = PlainAndWhitened(features, k=max(NEIGHBOURS), images_M=images_M)
        del features
        self.bank_counts.clear()
        met: set[str] = set()
        for piece in self._pieces(self._bank, f"{what}: bank"):
            numbers = [self.classes.setdefault(label, len(self.classes)) for label in piece.labels]
            images_N = torch.tensor([images.get(digest, -1) for digest in piece.digests])
            nearest.add(describe(piece.views_B3SS), torch.tensor(numbers), images_N)
            met.update(images.keys() & piece.digests)
            self.bank_counts.update(piece.labels)
            seen.update(_identity("bank", piece))
        if not self.bank_counts:
            raise _no_labels(self._bank)
        self.digest = seen.hexdigest()
        self.found = {place for place, digest in enumerate(digests) if digest in met}
        top1 = {k: nearest.top1(k, self._wanted()) for k in NEIGHBOURS}
        return Row(
            plain={k: plain for k, (plain, _) in top1.items()},
            whitened={k: whitened for k, (_, whitened) in top1.items()},
            cpu_seconds=time.process_time() - began,
        )

    def _ask(self, what: str, describe: Describe, seen: "hashlib._Hash") -> tuple[Tensor, list[str]]:
        """Features and digests of the queries."""
        self.query_labels.clear()
        features: list[Tensor] = []
        digests: list[str] = []
        for piece in self._pieces(self._queries, f"{what}: queries"):
            features.append(describe(piece.views_B3SS))
            self.query_labels += piece.labels
            digests += piece.digests
            seen.update(_identity("query", piece))
        if not features:
            raise _no_labels(self._queries)
        return torch.cat(features), digests

    def _wanted(self) -> Tensor:
        """The class of each query; -1 for one that the bank does not have."""
        wanted_M = torch.tensor([self.classes.get(label, -1) for label in self.query_labels])
        if not bool((wanted_M >= 0).any()):
            raise ValueError(
                f"{self._bank.url} and {self._queries.url} have no class in common: the first has "
                f"{_some(self.classes)}, the second {_some(self.query_labels)}"
            )
        return wanted_M

    def _passing(self, what: str) -> Iterator[Tensor]:
        """Views of the bank."""
        for piece in self._pieces(self._bank, what):
            yield piece.views_B3SS

    def _pieces(self, images: LabelledImages, what: str) -> Iterator[Piece]:
        done = 0
        for piece in images:
            yield piece
            done += len(piece.labels)
            self._progress(what, done, images.expected)


class _CachedRows:
    """Rows of baselines, from the cache where it has them."""

    def __init__(self, compare: _Comparison, *, basis: dict[str, object]) -> None:
        self._cache = BaselineCache()
        self._compare = compare
        self._basis = basis
        self.hits: list[str] = []

    def row(self, name: str, baseline: Baseline) -> Row:
        basis = {"baseline": name, **self._basis, **baseline.basis}
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged entry is computed again
            row = Row.from_json(self._cache.get(**basis) or {})
            self.hits.append(name)
            return row
        row = self._compare.row(name.replace("_", " "), baseline.prepare)
        self._cache.put(row.to_json(), **basis)
        return row


def _identity(role: str, piece: Piece) -> bytes:
    named = zip(piece.digests, piece.labels, strict=True)
    return "".join(f"{role} {digest} {label!r}\n" for digest, label in named).encode()


def _no_labels(images: LabelledImages) -> ValueError:
    left = ", ".join(f"{number} {reason}" for reason, number in images.skipped.items())
    return ValueError(
        f"{images.url} has no labelled image ({left or 'it is empty'}): labels come from .cls or .json "
        "members of tars, or from folders with `swavstream ingest --label-from parent`"
    )


def _some(labels: Iterable[Label]) -> str:
    names = sorted({repr(label) for label in labels})
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
