"""Writing a file of tensors, with the rights that the umask gives to every other file of a run."""

import stat
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a file; not synced.

    The library writes a private file and renames it; whoever may read the run's other files may read it too.

    Args:
        tensors: contiguous, by name.
        path: replaced when it is there.
        metadata: text that is kept with them.

    Raises:
        OSError, safetensors.SafetensorError: it cannot be written.
    """
    path.touch()  # the system applies the umask, or what the folder prescribes
    mode = stat.S_IMODE(path.stat().st_mode)
    safetensors.torch.save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)
