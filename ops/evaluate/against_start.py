"""What a run learned beyond its own start, without labels: how well views of one image find each other.

Two views of each image of the probe set are cut and coloured as the run's own first crops are. A view that is
nearer to the other view of its image than to any view of another image has found it.

N images   V = 2 N views, the first of each image and then the second of each   S side of a view in pixels
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.augment import photometric
from learner.health import corrected_agreement
from learner.learner import Learner
from ops.config.schema import RunConfig
from stream.images.crops import FLOATS_PER_VIEW, draw, multi_crop, uniforms

IMAGES = 256
"""N at most: of a probe set, spread evenly."""
FEWEST = 32
"""With fewer images the figures say little."""
RISE = 0.02
"""Growth of `views_found` from which a run has learned: five of 256 images. Near 1 half of what is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewFigures:
    """How well views of one image find each other; 1 = all do."""

    views_found: float
    """Share of views whose nearest feature is that of the other view of their image; chance is 1 / V."""
    view_agreement: float
    """Share of images whose two views have the same prototype, corrected for chance; 0 = chance, 1 = all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgainstStart:
    """A trained network beside itself before its first step."""

    images: int
    """N."""
    trained: ViewFigures
    start: ViewFigures

    @property
    def better(self) -> bool:
        """Whether the features tell images apart better than they did at the start."""
        start = self.start.views_found
        return self.trained.views_found >= start + min(RISE, (1 - start) / 2)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "better": self.better}


def compare(trained: Learner, start: Learner, views_V3SS: Tensor) -> AgainstStart:
    """Compare a network with its start; no collective, the same bits for the same weights and views.

    Args:
        trained: the network of the run.
        start: the same before its first step; its batch-norm statistics are those that it is to be used with.
        views_V3SS: of images of the run's probe set, see `two_views`.
    """
    return AgainstStart(
        images=len(views_V3SS) // 2,
        trained=view_figures(trained, views_V3SS),
        start=view_figures(start, views_V3SS),
    )


def two_views(thumbs: NDArray[np.uint8], config: RunConfig) -> Tensor:
    """uint8 [2 N, 3, S, S]: two views of each image, as the run's first kind of crops with its colours."""
    kind = replace(config.crops[0], count=2)
    some = thumbs[:: -(-len(thumbs) // IMAGES)]
    # Lane -1 is none of a stream: these views are no others of the run.
    floats = np.stack(
        [
            draw(config.seed, (1 << 64) - 1, number, 0, 2 * FLOATS_PER_VIEW).reshape(2, FLOATS_PER_VIEW)
            for number in range(len(some))
        ]
    )
    cut = [
        multi_crop(torch.from_numpy(np.array(image_3TT)), [kind], floats_2)[0]
        for image_3TT, floats_2 in zip(some, floats, strict=True)
    ]
    crops_2N3SS = torch.stack(cut, dim=1)
    uniforms_2N = torch.from_numpy(uniforms(floats).swapaxes(0, 1).copy())
    colours = replace(config.augment, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    device = torch.device("cpu")
    seen_V3SS = photometric(crops_2N3SS, uniforms_2N, colours, device=device, dtype=torch.float32)
    return seen_V3SS.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def view_figures(learner: Learner, views_V3SS: Tensor) -> ViewFigures:
    """The figures of one network.

    Args:
        learner: whose features, with those of a patch branch, and prototypes are looked at.
        views_V3SS: see `two_views`.
    """
    half = len(views_V3SS) // 2
    features_VF = torch.nn.functional.normalize(learner.features(views_V3SS), dim=1)
    cosines_VV = features_VF @ features_VF.T
    cosines_VV.fill_diagonal_(-torch.inf)
    nearest_V = cosines_VV.argmax(dim=1)
    other_V = torch.arange(2 * half).roll(half)
    assigned_V = learner.scores(views_V3SS).argmax(dim=1)
    share_K = torch.bincount(assigned_V).double() / len(assigned_V)
    same = float((assigned_V[:half] == assigned_V[half:]).double().mean())
    return ViewFigures(
        views_found=float((nearest_V == other_V).double().mean()),
        view_agreement=corrected_agreement(same, share_K),
    )
