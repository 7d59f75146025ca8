"""What changed between two snapshots of a run: prototypes, usage, and which images have another prototype.

A and B are the two snapshots, in the order in which they were given.

K prototypes   D embedding size   N images of the probe set   T side of a thumbnail   S side of a view
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.health import perplexity
from ops.errors import SnapshotError
from ops.inference import load_model
from ops.inference.images import centre_view
from ops.snapshots.probe_images import Probe
from ops.snapshots.reader import LoadedSnapshot

MOVED_COSINE = 0.9
"""A prototype whose two directions are further apart than this counts as moved."""
LISTED = 5
"""Prototypes that are listed for the largest gains and losses of usage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prototypes:
    """How the prototypes of the first head differ, index by index."""

    prototypes: int
    """K."""
    reseeded: tuple[int, ...]
    """Those that were re-seeded in between (another generation): another thing under the same index."""
    cosine_p50: float | None
    """Median cosine of a prototype in A and in B, over those that were not re-seeded; None when all were."""
    cosine_p1: float | None
    cosine_min: float | None
    moved: int
    """Of those, how many have a cosine below MOVED_COSINE."""
    nearest_elsewhere: int
    """Of those, how many have their nearest prototype of B under another index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """How the shares of the prototypes differ."""

    total_variation: float
    """Half the sum of the absolute differences, 0 .. 1: share of samples that went elsewhere, at least."""
    perplexity_a: float
    """Prototypes in use, not corrected for the length of the window."""
    perplexity_b: float
    gained: tuple[tuple[int, float, float], ...]
    """Prototype, share in A, share in B; largest gain first."""
    lost: tuple[tuple[int, float, float], ...]
    """The same, largest loss first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Churn:
    """Which images of the probe set have another prototype."""

    images: int
    """N."""
    thumbnail_px: int
    """T, what was kept of each image."""
    view_px: int
    """S, what the network looked at: enlarged when T is smaller."""
    first_samples: int
    """Samples that the run had seen when the first of them had arrived."""
    last_samples: int
    churn: float
    """Share whose arg-max of raw scores has another index, 0 .. 1."""
    churn_best_match: float
    """The same after the indices of B were renamed one to one so that few change (greedily, by overlap)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two snapshots compared."""

    version_a: int
    version_b: int
    equal: bool
    """The same weights to the bit."""
    samples: int
    """Samples from A to B; negative when A is the later one."""
    settings_changed: bool
    prototypes: Prototypes
    usage: Usage
    probe: Churn | None
    """None without a probe set."""
    probe_note: str
    """Why there is none; empty when there is."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    a: LoadedSnapshot, b: LoadedSnapshot, *, churn: Churn | None = None, note: str = ""
) -> Difference:
    """Compare two snapshots of one run.

    Args:
        a: the first, as `load_snapshot` verified it.
        b: the second.
        churn: of a probe set, see `churn_of`.
        note: why there is no churn.

    Raises:
        SnapshotError: their prototypes have different shapes: they are not of one run.
    """
    if a.tensors["prototypes"].shape != b.tensors["prototypes"].shape:
        raise SnapshotError(
            f"snapshot {a.info.version} has {tuple(a.tensors['prototypes'].shape)} prototypes, "
            f"{b.info.version} has {tuple(b.tensors['prototypes'].shape)}: they cannot be compared"
        )
    return Difference(
        version_a=a.info.version,
        version_b=b.info.version,
        equal=a.info.digest == b.info.digest,
        samples=b.info.samples - a.info.samples,
        settings_changed=a.info.config_hash != b.info.config_hash,
        prototypes=compare_prototypes(a.tensors, b.tensors),
        usage=compare_usage(a.tensors["usage"], b.tensors["usage"]),
        probe=churn,
        probe_note=note,
    )


def compare_prototypes(a: dict[str, Tensor], b: dict[str, Tensor]) -> Prototypes:
    """Compare `prototypes` [K, D] and `generation` [K], index by index."""
    reseeded_K = a["generation"] != b["generation"]
    same = torch.nonzero(~reseeded_K).squeeze(1)
    one_KD = torch.nn.functional.normalize(a["prototypes"].double(), dim=1)
    two_KD = torch.nn.functional.normalize(b["prototypes"].double(), dim=1)
    cosine = (one_KD * two_KD).sum(1)[same]
    nearest = (one_KD[same] @ two_KD.T).argmax(1)
    there = len(same) > 0
    return Prototypes(
        prototypes=len(one_KD),
        reseeded=tuple(torch.nonzero(reseeded_K).squeeze(1).tolist()),
        cosine_p50=float(cosine.quantile(0.5)) if there else None,
        cosine_p1=float(cosine.quantile(0.01)) if there else None,
        cosine_min=float(cosine.min()) if there else None,
        moved=int((cosine < MOVED_COSINE).sum()),
        nearest_elsewhere=int((nearest != same).sum()),
    )


def compare_usage(a_K: Tensor, b_K: Tensor) -> Usage:
    """Compare shares [K]; each sums to 1, or is 0 before anything was counted."""
    change_K = b_K.double() - a_K.double()
    order = change_K.argsort(stable=True).tolist()

    def listed(some: list[int]) -> tuple[tuple[int, float, float], ...]:
        return tuple((k, float(a_K[k]), float(b_K[k])) for k in some)

    return Usage(
        total_variation=float(change_K.abs().sum() / 2),
        perplexity_a=perplexity(a_K),
        perplexity_b=perplexity(b_K),
        gained=listed([k for k in order[::-1][:LISTED] if change_K[k] > 0]),
        lost=listed([k for k in order[:LISTED] if change_K[k] < 0]),
    )


def churn_of(run_dir: Path, a: LoadedSnapshot, b: LoadedSnapshot, probe: Probe) -> Churn:
    """Let both snapshots assign the images of a probe set; seconds to minutes, by the size of the network.

    Raises:
        RunMismatch: a snapshot does not fit the settings of its run.
    """
    ids = []
    size = 0
    for shot in (a, b):
        network = load_model.of_snapshot(run_dir, shot)
        size = network.view_px
        views = torch.stack([centre_view(thumb, size) for thumb in torch.from_numpy(probe.thumbs)])
        ids.append(network.learner.scores(views).argmax(1).numpy())
    changed, matched = churn(ids[0], ids[1])
    return Churn(
        images=len(probe.samples),
        thumbnail_px=int(probe.thumbs.shape[-1]),
        view_px=size,
        first_samples=int(probe.samples[0]),
        last_samples=int(probe.samples[-1]),
        churn=changed,
        churn_best_match=matched,
    )


def churn(a_N: NDArray[np.int64], b_N: NDArray[np.int64]) -> tuple[float, float]:
    """Share of images that have another prototype: by index, and after the best renaming.

    The renaming pairs the prototypes of A and B one to one, the pairs with most images in common first. That
    is greedy: it keeps at least half of what the best pairing could keep, and all of it when B is A renamed.
    It is never worse than no renaming.

    Args:
        a_N: [N] prototypes in A, N >= 1.
        b_N: [N] prototypes in B.
    """
    stays = int((a_N == b_N).sum())
    pairs, counts = np.unique(np.stack([a_N, b_N], axis=1), axis=0, return_counts=True)
    kept = 0
    used_a: set[int] = set()
    used_b: set[int] = set()
    for place in np.argsort(-counts, kind="stable"):
        one, two = int(pairs[place, 0]), int(pairs[place, 1])
        if one not in used_a and two not in used_b:
            used_a.add(one)
            used_b.add(two)
            kept += int(counts[place])
    return 1 - stays / len(a_N), 1 - max(kept, stays) / len(a_N)
