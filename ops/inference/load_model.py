"""The network of a run, read back for looking at images: trained, or as it was before its first step."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from learner.learner import Learner
from ops.config.schema import RunConfig
from ops.distributed.device import device_of, keep_to_share
from ops.errors import RunMismatch, RunNotFound
from ops.rundir import checkpoint, files
from ops.snapshots.reader import LoadedSnapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """A network and where it comes from."""

    learner: Learner
    config: RunConfig
    """As the run has it; only `device` may be another, when this machine does not have that of the run."""
    total_samples: int | None
    """Length of its run, where that is known."""
    samples: int
    """Images that it had learned from."""
    weights: str
    """Where the weights were read: a checkpoint directory."""

    @property
    def view_px(self) -> int:
        """Side of the views that it looks at: that of the first kind of crops, pixels."""
        return self.config.crops[0].size


def load(run_dir: Path) -> Network:
    """Read the newest whole checkpoint of a run; the run may be going on.

    The network is put where the run had it, or where this machine can have it: looking at images needs no
    device in particular.

    Raises:
        RunNotFound: no run there, or it has no checkpoint yet.
        CheckpointDamaged: none of its checkpoints can be trusted.
        RunMismatch: the checkpoint does not fit the run's settings.
        ConfigError: run.json holds settings that this program does not know.
    """
    record = files.read_run(run_dir)
    config = _for_this_machine(RunConfig.from_dict(record.config))
    newest = checkpoint.load_newest(run_dir, with_replay=False)
    if newest is None:
        raise RunNotFound(
            f"the run in {run_dir} has no checkpoint yet: wait for the first, or end it with Ctrl-C"
        )
    learner = _new_learner(config, record.total_samples)
    try:
        learner.load_state_dict(newest.state)
    except ValueError as error:
        raise RunMismatch(
            f"checkpoint {newest.path} does not fit the settings of its run: {error}"
        ) from error
    return Network(
        learner=learner,
        config=config,
        total_samples=record.total_samples,
        samples=newest.cursor.samples,
        weights=str(newest.path),
    )


def of_snapshot(run_dir: Path, shot: LoadedSnapshot) -> Network:
    """The network of a published snapshot of a run, for looking at images.

    Raises:
        RunNotFound: no run there.
        RunMismatch: the snapshot does not fit the run's settings.
        ConfigError: run.json holds settings that this program does not know.
    """
    record = files.read_run(run_dir)
    config = _for_this_machine(RunConfig.from_dict(record.config))
    learner = _new_learner(config, record.total_samples)
    try:
        learner.load_weights(shot.encoder, shot.tensors)
    except ValueError as error:
        raise RunMismatch(
            f"snapshot {shot.info.version} does not fit the settings of its run: {error}"
        ) from error
    return Network(
        learner=learner,
        config=config,
        total_samples=record.total_samples,
        samples=shot.info.samples,
        weights=f"snapshot {shot.info.version}",
    )


def untrained(network: Network) -> Learner:
    """The network as it was before its first step: the same seed gives the same weights.

    Batch norm has the statistics 0 and 1, which no layer produces: call `estimate_statistics` before use.
    """
    return _new_learner(network.config, network.total_samples)


def _new_learner(config: RunConfig, total_samples: int | None) -> Learner:
    keep_to_share()
    return Learner(
        config.learner,
        seed=config.seed,
        device=device_of(config),
        precision=config.precision,
        total_samples=config.length(total_samples),
        clock=time.monotonic,
    )


def _for_this_machine(config: RunConfig) -> RunConfig:
    device = device_of(config)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        wanted, config = config.device, replace(config, device="auto")
        logger.warning(
            "the run was on %s, which this machine does not have: using %s", wanted, device_of(config)
        )
    return config
