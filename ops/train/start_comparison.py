"""At the end of a run: its network beside itself before the first step, on the run's own probe images."""

import logging
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.backbone import BACKBONES
from learner.learner import Learner
from ops.distributed.device import device_of, precision_of
from ops.distributed.world import World
from ops.errors import SnapshotDamaged, SnapshotNotFound
from ops.evaluate.against_start import FEWEST, compare, two_views
from ops.snapshots import probe_images
from ops.train import init_weights
from ops.train.resume import ResumePoint

logger = logging.getLogger(__name__)

LARGEST = 200_000_000
"""Weights of an encoder above which no second one is made beside it."""


def against_start(point: ResumePoint, trained: Learner, world: World) -> dict[str, Any] | None:
    """Compare the network of a run that has ended with its start; takes some seconds, on the first rank only.

    Args:
        point: the run.
        trained: its network.
        world: the ranks.

    Returns:
        See `ops.evaluate.against_start.AgainstStart`, as plain values. None with too few probe images,
        where the network is too large for two, or where its start is not at hand: that of an annealed copy,
        and of a run that began with weights of another on several ranks. None with a warning where anything
        went wrong, as with first weights that can no longer be read.
    """
    try:
        return _compared(point, trained, world)
    except Exception as error:  # noqa: BLE001  the run has learned all that it was to: it ends well without
        logger.warning("the network is not compared with its start: %s", error or type(error).__name__)
        return None


def _compared(point: ResumePoint, trained: Learner, world: World) -> dict[str, Any] | None:
    config, origin = point.config, point.record.origin.get("kind", "")
    weights = origin == init_weights.KIND
    if (origin and not weights) or (weights and world.world_size > 1):
        return None
    if BACKBONES[config.model.backbone].parameters > LARGEST:
        return None
    try:
        thumbs = _different(probe_images.read(point.run_dir))
    except (SnapshotNotFound, SnapshotDamaged):
        return None
    if len(thumbs) < FEWEST:
        return None
    views_V3SS = two_views(thumbs, config)
    device = device_of(config, world.local_rank)
    # Of this rank alone: what it computes waits for no other.
    start = Learner(
        config.learner,
        seed=config.seed,
        device=device,
        precision=precision_of(config, device),
        total_samples=config.length(point.record.total_samples),
        clock=time.monotonic,
    )
    if weights:
        init_weights.load(point.run_dir, point.record, start, world)
    else:
        # Batch norm begins with statistics that no layer produces.
        start.estimate_statistics([views_V3SS])
    return compare(trained, start, views_V3SS).to_json()


def _different(probe: probe_images.Probe) -> NDArray[np.uint8]:
    """Its images, each once: further passes bring those of the first again."""
    first = {key: number for number, key in reversed(list(enumerate(probe.keys)))}
    return probe.thumbs[[number for number, key in enumerate(probe.keys) if not key or first[key] == number]]
