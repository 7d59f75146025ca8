"""A snapshot as plain files that need neither Redis nor the run.

DEST/snapshot.json             what is known of it, digests among it
DEST/prototypes.safetensors    `prototypes` [K, D], `head.*`, `usage` [K], `generation` [K]: as stored
DEST/encoder.safetensors       weights and buffers of the encoder
"""

import json
import shutil
from pathlib import Path

import safetensors.torch

from ops.encoders import EncoderFiles
from ops.errors import SnapshotError
from ops.rundir.files import read_json
from ops.snapshot_info import SnapshotInfo
from ops.snapshot_reader import load_snapshot
from ops.snapshots import SnapshotStore


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
        (aside / "prototypes.safetensors").write_bytes(store.blob(info))
        (aside / "encoder.safetensors").write_bytes(safetensors.torch.save(shot.encoder))
        (aside / "snapshot.json").write_text(json.dumps(info.to_json(), indent=1) + "\n", encoding="utf-8")
        aside.rename(dest)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return info, False
