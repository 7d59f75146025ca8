"""The probe set of a run: its first good samples as thumbnails, by which snapshots are told apart later.

    RUN/probe.safetensors   thumbs [N, 3, T, T] uint8, samples [N] int64, keys

They are the whole images squeezed to `reader.thumbnail_px`, as they travel with each batch: enough to see
whether assignments change, coarser than what the run learns from when its crops are larger than T. With
several ranks they are those that the first rank sees.

N images of the probe   B samples of a batch   T side of a thumbnail
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ops.errors import SnapshotDamaged, SnapshotNotFound
from stream.storage import write_whole

FILE = "probe.safetensors"
IMAGES = 2048
"""N, images of a full probe set: 14 MB of 48 pixels."""
SMALLEST_PX = 8
"""Thumbnails with a shorter side show nothing."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Probe:
    """A probe set."""

    thumbs: NDArray[np.uint8]
    """[N, 3, T, T] RGB."""
    samples: NDArray[np.int64]
    """[N] samples that the run had seen after the step in which each arrived; never falls."""
    keys: tuple[str, ...]
    """N hex SHA-256 of the stored images; "" where the stream does not state it."""


def read(run_dir: Path) -> Probe:
    """The probe set of a run, as far as it is filled.

    Raises:
        SnapshotNotFound: the run has none (yet).
        SnapshotDamaged: the file is not what was written.
    """
    path = run_dir / FILE
    try:
        arrays = load_arrays(path.read_bytes())
        thumbs, samples = arrays["thumbs"], arrays["samples"]
        keys = tuple(arrays["keys"].tobytes().decode().split("\n")) if len(thumbs) else ()
    except FileNotFoundError as error:
        raise SnapshotNotFound(
            f"there is no {path} yet: it is written with the first checkpoint, or once {IMAGES:,} samples "
            f"have arrived; with reader.thumbnail_px below {SMALLEST_PX} there is none"
        ) from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SnapshotDamaged(f"{path} cannot be read: {error}") from error
    if thumbs.ndim != 4 or not len(thumbs) == len(samples) == len(keys):
        raise SnapshotDamaged(f"{path} is not a probe set: remove it")
    return Probe(thumbs=thumbs, samples=samples, keys=keys)


class ProbeSet:
    """Collects the probe set of a run while samples arrive; bounded, and the same after a crash and a resume.

    A run that goes back, or resumes from before, drops what arrived later than that and takes it again. What
    the file holds is never behind a checkpoint as long as `save` is called before each; where it was lost all
    the same, collecting goes on from there, and `Probe.samples` says so. One thread.

    Args:
        run_dir: the run directory.
        images: N.
    """

    def __init__(self, run_dir: Path, *, images: int = IMAGES) -> None:
        self._path = run_dir / FILE
        self._images = images
        self._thumbs: list[NDArray[np.uint8]] = []
        self._samples: list[int] = []
        self._keys: list[str] = []
        self._unsaved = False
        try:
            kept = read(run_dir)
        except (SnapshotNotFound, SnapshotDamaged):
            return
        self._thumbs = list(kept.thumbs[:images])
        self._samples = kept.samples[:images].tolist()
        self._keys = list(kept.keys[:images])

    def __len__(self) -> int:
        return len(self._samples)

    def observe(self, thumbs: NDArray[np.uint8] | None, keys: Sequence[str], *, samples: int) -> None:
        """Take what is still missing out of one batch; writes the file when that fills the set.

        Args:
            thumbs: [B, 3, T, T] uint8; None when the stream sends none.
            keys: B hex digests.
            samples: seen by the run, this batch included.

        Raises:
            OSError: the set is full and the disk does not take it; it is tried again with the next `save`.
        """
        if self._samples and samples <= self._samples[-1]:  # the run went back
            kept = sum(stamp < samples for stamp in self._samples)
            self._cut(kept)
        missing = self._images - len(self._samples)
        if missing <= 0 or thumbs is None or min(thumbs.shape[-2:]) < SMALLEST_PX:
            return
        if self._thumbs and self._thumbs[0].shape != thumbs.shape[1:]:
            self._cut(0)  # the setting was changed on the way: sizes cannot be mixed
            missing = self._images
        taken = thumbs[:missing]
        self._thumbs += list(taken)
        self._samples += [samples] * len(taken)
        self._keys += list(keys[: len(taken)]) + [""] * max(0, len(taken) - len(keys))
        self._unsaved = True
        if len(self._samples) >= self._images:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all, when there is something new; call it before each checkpoint.

        Raises:
            OSError: the disk does not take it.
        """
        if not self._unsaved or not self._samples:
            return
        arrays: dict[str, NDArray[Any]] = {
            "thumbs": np.stack(self._thumbs),
            "samples": np.array(self._samples, np.int64),
            "keys": np.frombuffer("\n".join(self._keys).encode(), np.uint8),
        }
        write_whole(self._path, save_arrays(arrays))
        self._unsaved = False

    def _cut(self, kept: int) -> None:
        self._unsaved = self._unsaved or kept < len(self._samples)
        del self._thumbs[kept:], self._samples[kept:], self._keys[kept:]
