"""A snapshot with all that is needed to use it, every digest checked, from Redis or from plain files.

A snapshot as plain files needs neither Redis nor the run:

DEST/snapshot.json             what is known of it, digests among it
DEST/prototypes.safetensors    `prototypes` [K, D], `head.*`, `usage` [K], `generation` [K]: as stored
DEST/encoder.safetensors       weights and buffers of the encoder
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from learner.checkpoint_state import digest as digest_of
from ops.errors import SnapshotDamaged, SnapshotError
from ops.rundir.files import read_json
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import SnapshotInfo
from stream.storage import sync_path, write_synced


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadedSnapshot:
    """A snapshot that was verified."""

    info: SnapshotInfo
    tensors: dict[str, Tensor]
    """`prototypes` [K, D] of unit norm, `head.*`, `usage` [K], `generation` [K]."""
    encoder: dict[str, Tensor]
    """Weights and buffers of the encoder."""


def load_tensors(store: SnapshotStore, info: SnapshotInfo) -> dict[str, Tensor]:
    """Prototypes, head and usage of a snapshot, checked against the blob's digest and the stated K and D.

    Raises:
        SnapshotDamaged: they are gone, or not what the snapshot says.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(store.blob(info))
        shape = tuple(tensors["prototypes"].shape)
    except (safetensors.SafetensorError, KeyError) as error:
        raise SnapshotDamaged(f"the blob of snapshot {info.version} holds no prototypes: {error}") from error
    if shape != (info.prototypes, info.dim):
        raise SnapshotDamaged(
            f"snapshot {info.version} says {info.prototypes} x {info.dim} prototypes, its blob holds {shape}"
        )
    return tensors


def load_snapshot(store: SnapshotStore, encoders: EncoderFiles, which: str | int = "head") -> LoadedSnapshot:
    """Read one snapshot and verify it: the blob's digest, K and D, the encoder's digest, the digest of all.

    Args:
        store: the run's snapshots.
        encoders: the run's encoders.
        which: a version, `head`, `stable` or `pin:NAME`.

    Raises:
        SnapshotNotFound: no such snapshot, or its encoder file is not there.
        SnapshotDamaged: something is not what its digest says.
    """
    info = store.show(which)
    tensors = load_tensors(store, info)
    encoder = encoders.load(info.encoder_digest)
    if snapshot_digest(encoder, tensors) != info.digest:
        raise SnapshotDamaged(f"the content of snapshot {info.version} is not what its digest says")
    return LoadedSnapshot(info=info, tensors=tensors, encoder=encoder)


def snapshot_digest(encoder: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """The digest of a whole snapshot: encoder with its buffers, head, prototypes; not usage, which moves."""
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    weights |= {name: tensor for name, tensor in tensors.items() if name.startswith(("head.", "prototypes"))}
    return digest_of(weights)


def fetch(
    store: SnapshotStore, encoders: EncoderFiles, which: str | int, dest: Path
) -> tuple[SnapshotInfo, bool]:
    """Write a snapshot to a new directory, whole or not at all, after every digest was checked.

    Args:
        store: the run's snapshots.
        encoders: the run's encoders.
        which: a version, `head`, `stable` or `pin:NAME`.
        dest: the directory; one that holds this very snapshot is left as it is.

    Returns:
        What was written, and whether it was there already.

    Raises:
        SnapshotNotFound, SnapshotDamaged: it cannot be read.
        SnapshotError: something else is at `dest`.
        OSError: the disk does not take it; nothing is left behind.
    """
    info = store.show(which)
    if dest.exists():
        there = read_json(dest / "snapshot.json") or {}
        if (there.get("digest"), there.get("blob_sha256")) == (info.digest, info.blob_sha256):
            return info, True
        raise SnapshotError(
            f"{dest} is there and is not snapshot {info.version}: give another directory, or remove it"
        )
    shot = load_snapshot(store, encoders, info.version)
    aside = dest.with_name(f".{dest.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write_synced(aside / "prototypes.safetensors", store.blob(info))
        write_synced(aside / "encoder.safetensors", safetensors.torch.save(shot.encoder))
        write_synced(aside / "snapshot.json", f"{json.dumps(info.to_json(), indent=1)}\n".encode())
        sync_path(aside)
        aside.rename(dest)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_path(dest.parent)
    return info, False
