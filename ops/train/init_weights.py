"""The first weights of a run that does not begin with drawn ones: those of a snapshot or a checkpoint.

They are copied into the run directory before the first step, so that what a run is does not depend on what
becomes of the run that they are from:

    RUN/initial.safetensors   encoder.*, head.* and prototypes, as a snapshot names them
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from learner.learner import Learner
from learner.model import SwavModel, copy_all, encoder_tensors, head_tensors
from ops.config.schema import RunConfig
from ops.distributed.world import World
from ops.errors import ConfigError, RedisUnavailable, RunMismatch, RunNotFound
from ops.rundir import checkpoint
from ops.rundir.files import (
    EARLIER_WEIGHTS,
    FIRST_WEIGHTS,
    RunRecord,
    read_run,
    write_run,
)
from ops.rundir.tensor_file import save_tensors
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.reader import load_snapshot, snapshot_digest
from ops.snapshots.redis_client import error_text, redis_url
from ops.snapshots.store import SnapshotStore
from stream.storage import sync_path, whole_file

logger = logging.getLogger(__name__)

KIND = "weights"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weights:
    """Weights of another run, verified when they were read."""

    encoder: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    """`head.*`, `prototypes`, further heads as `prototypes.1` and so on."""
    origin: Mapping[str, Any]
    """Which run and snapshot or checkpoint they are of, JSON-ready."""


def begin(
    run_dir: Path, record: RunRecord, config: RunConfig, source: str | None, *, saved: bool
) -> RunRecord:
    """Settle the first weights of a run, before its learner is made.

    Args:
        run_dir: the run, whose lock is held.
        record: of the run, as it is to be.
        config: its settings.
        source: see `read`; None leaves it at what was settled before.
        saved: the run has a checkpoint, and goes on from that whatever `source` says.

    Returns:
        The record, with its origin; on disk too when weights were taken over.

    Raises:
        ConfigError: the weights do not fit the network, or `source` names nothing.
        SnapshotError, CheckpointDamaged, RedisUnavailable: they cannot be read.
    """
    if source is None:
        return record
    if saved:
        logger.warning("the run in %s goes on from its checkpoint: --init-from is for a new one", run_dir)
        return record
    weights = read(source)
    _check_fits(weights, config, source)
    named = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()}
    named |= weights.tensors
    path = run_dir / FIRST_WEIGHTS
    with whole_file(path) as part:
        save_tensors({name: tensor.contiguous() for name, tensor in named.items()}, part)
        sync_path(part)  # before the earlier weights give way
        if path.exists():
            path.replace(run_dir / EARLIER_WEIGHTS)
    record = replace(record, origin={"kind": KIND, **weights.origin})
    write_run(run_dir, record)
    return record


def load(run_dir: Path, record: RunRecord, learner: Learner, world: World) -> None:
    """Give a learner that has done no step the first weights of its run, where they were not drawn.

    All ranks call it; the first one reads the file.

    Raises:
        RunMismatch: the file is gone or is not what was written, or the network is another one by now.
    """
    if record.origin.get("kind") != KIND:
        return
    path = run_dir / FIRST_WEIGHTS
    named: dict[str, Tensor] = {}
    if world.is_main:
        try:
            named = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise RunMismatch(f"the first weights of the run, {path}, cannot be read: {error}") from error
    encoder, tensors = _apart(world.broadcast_tensors(named))
    if snapshot_digest(encoder, tensors) != record.origin["digest"]:
        raise RunMismatch(f"the first weights of the run, {path}, are not what was written: begin a new run")
    try:
        learner.load_weights(encoder, tensors)
    except ValueError as error:
        raise RunMismatch(f"the first weights of the run, {path}, do not fit: {error}") from error


def read(source: str) -> Weights:
    """Read weights and verify them.

    Args:
        source: RUN or RUN:WHICH, a published snapshot of a run (`head` if not named; a version, `stable`,
            `pin:NAME`); or RUN/checkpoints/ckpt-000012, a checkpoint.

    Raises:
        ConfigError: it names neither.
        SnapshotError, CheckpointDamaged, RedisUnavailable: they cannot be read.
    """
    path = Path(source)
    if (path / checkpoint.META).is_file():
        return _of_checkpoint(path)
    run_dir, _, which = source.partition(":")
    if path.is_dir():
        run_dir, which = source, ""
    try:
        record = read_run(Path(run_dir))
    except RunNotFound as error:
        raise ConfigError(
            f"--init-from {source}: {run_dir} is neither a run nor a checkpoint; give RUN, RUN:VERSION, "
            "RUN:stable, or RUN/checkpoints/ckpt-..."
        ) from error
    return _of_snapshot(Path(run_dir), record, which or "head")


def _of_snapshot(run_dir: Path, record: RunRecord, which: str) -> Weights:
    url = redis_url(record.config.get("snapshot", {}).get("url", ""))
    try:
        with open_redis(run_dir, url, changes=False) as client:
            shot = load_snapshot(SnapshotStore(client, record.uuid), EncoderFiles(run_dir), which)
    except redis.RedisError as error:
        raise RedisUnavailable(
            f"no answer from the snapshots of {run_dir}: {error_text(error)}; is it up?"
        ) from error
    kept = {name: value for name, value in shot.tensors.items() if name.startswith(("head.", "prototypes"))}
    origin = {
        "run": record.uuid,
        "run_dir": str(run_dir),
        "snapshot": shot.info.version,
        "samples": shot.info.samples,
        "digest": shot.info.digest,
    }
    return Weights(encoder=shot.encoder, tensors=kept, origin=origin)


def _of_checkpoint(path: Path) -> Weights:
    saved = checkpoint.load(path, with_replay=False)
    encoder, tensors = {}, {}
    for name, tensor in saved.state["tensors"].items():
        if name.startswith("model.encoder."):
            encoder[name.removeprefix("model.encoder.")] = tensor
        elif name.startswith("model.branch."):
            encoder[name.removeprefix("model.")] = tensor
        elif name.startswith("model.head."):
            tensors[name.removeprefix("model.")] = tensor
        elif name.startswith("model.prototypes."):
            number = int(name.removeprefix("model.prototypes."))
            tensors[f"prototypes.{number}" if number else "prototypes"] = tensor
    origin = {
        "run": saved.run,
        "run_dir": str(path.parent.parent),
        "checkpoint": path.name,
        "samples": saved.cursor.samples,
        "digest": snapshot_digest(encoder, tensors),
    }
    return Weights(encoder=encoder, tensors=tensors, origin=origin)


def _apart(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    encoder = {
        name.removeprefix("encoder."): value for name, value in named.items() if name.startswith("encoder.")
    }
    return encoder, {name: value for name, value in named.items() if not name.startswith("encoder.")}


def _check_fits(weights: Weights, config: RunConfig, source: str) -> None:
    """Compare names and shapes with the network of the settings, which is made without memory."""
    try:
        with torch.device("meta"):
            model = SwavModel(config.model, config.swav.prototypes)
        there = {name: torch.empty_like(tensor, device="meta") for name, tensor in weights.encoder.items()}
        there |= {name: torch.empty_like(tensor, device="meta") for name, tensor in weights.tensors.items()}
        copy_all(encoder_tensors(model) | head_tensors(model), there)
    except ValueError as error:
        raise ConfigError(
            f"--init-from {source}: {error}. Give the network of those weights: model.*, swav.prototypes"
        ) from error
