"""Learner, cursor and counts of one moment: as a run begins, or as one of its checkpoints has them."""

import time
from dataclasses import dataclass
from pathlib import Path

from learner.collective import Deal
from learner.learner import Learner
from ops import initial
from ops.distributed.device import device_of
from ops.distributed.world import World
from ops.errors import ConfigError, RunMismatch
from ops.opening import Opened
from ops.rundir.checkpoint import Checkpoint
from ops.rundir.summary import Progress
from stream.cursor import Cursor
from stream.lanes import owners_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Restored:
    """Where a run goes on."""

    learner: Learner
    cursor: Cursor
    progress: Progress
    path: Path | None
    """Of the checkpoint; None at the beginning."""


def restore(opened: Opened, saved: Checkpoint | None, world: World) -> Restored:
    """Make the learner as it was saved, or new. All ranks call it.

    Args:
        opened: the run; the checkpoint that it was opened with is not looked at.
        saved: to go on from; None begins.
        world: the ranks.

    Raises:
        ConfigError: settings that the learner cannot have.
        RunMismatch: the state of the checkpoint does not fit the settings, or this program.
    """
    config = opened.config
    try:
        learner = Learner(
            config.learner,
            seed=config.seed,
            device=device_of(config, world.local_rank),
            precision=config.precision,
            total_samples=config.length(opened.record.total_samples),
            clock=time.perf_counter,
            deal=Deal(world.group, owners_of(config.lanes, world.ranks, config.model.bn_groups)),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if saved is None:
        initial.load(opened.run_dir, opened.record, learner, world)
        return Restored(learner=learner, cursor=opened.start, progress=Progress(), path=None)
    try:
        learner.load_state_dict(saved.state)
        progress = Progress(**saved.progress)
    except (ValueError, TypeError) as error:
        raise RunMismatch(
            f"checkpoint {saved.path} does not fit: {error}. Give the settings of the run as it was"
        ) from error
    return Restored(learner=learner, cursor=saved.cursor, progress=progress, path=saved.path)
