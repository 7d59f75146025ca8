"""Encoder weights as files named by their digest: too large for Redis, and equal for all who need them."""

import logging
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from learner.checkpoint_state import digest as digest_of
from ops.errors import SnapshotDamaged, SnapshotNotFound
from stream.storage import PART, write_whole

logger = logging.getLogger(__name__)

UNFINISHED_S = 3600.0
"""Age after which an unfinished file belongs to no process any more, seconds."""


class EncoderFiles:
    """The files RUN/encoders/<digest>.safetensors.

    Methods block on the disk. One writer (the learner), any number of readers.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "encoders"

    def path(self, digest: str) -> Path:
        """Where the encoder of this digest is, or would be."""
        if not digest.isalnum():
            raise SnapshotDamaged(f"an encoder digest is hexadecimal, got {digest!r}")
        return self.folder / f"{digest}.safetensors"

    def save(self, digest: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write the encoder, whole or not at all; does nothing when it is there.

        Args:
            digest: `Snapshot.encoder_digest`.
            tensors: weights and buffers on the CPU.

        Raises:
            OSError: the disk does not take it; nothing is left behind. (A kill leaves a `.part`, which is
                swept later.)
        """
        path = self.path(digest)
        payload = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        if path.exists() and path.stat().st_size == len(payload):
            os.utime(path)  # wanted again: a process that prunes now must not take it for an old one
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, payload, path.with_suffix(f".{os.getpid()}{PART}"))
        return path

    def load(self, digest: str) -> dict[str, Tensor]:
        """Read an encoder and check that it is the one.

        Raises:
            SnapshotNotFound: there is no such file.
            SnapshotDamaged: the file is not what its name says.
        """
        path = self.path(digest)
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        except FileNotFoundError as error:
            raise SnapshotNotFound(f"there is no encoder {path}") from error
        except (safetensors.SafetensorError, OSError) as error:
            raise SnapshotDamaged(f"encoder {path} cannot be read: {error}") from error
        if digest_of(tensors) != digest:
            raise SnapshotDamaged(f"encoder {path} is not what its name says: remove it")
        return tensors

    def prune(self, keep: Collection[str], newest: int = 2) -> list[Path]:
        """Remove encoders that no snapshot names, but never the `newest` ones; returns what was removed."""
        if not self.folder.is_dir():
            return []
        for part in self.folder.glob("*.part"):
            if time.time() - part.stat().st_mtime > UNFINISHED_S:
                part.unlink(missing_ok=True)
        by_age = sorted(
            self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        removed = [path for path in by_age[newest:] if path.stem not in keep]
        for path in removed:
            path.unlink(missing_ok=True)
        return removed
