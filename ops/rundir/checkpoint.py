"""Checkpoints, as they lie in a run directory and are read back: every file with its checksum.

A checkpoint is learner state and cursor of the same moment, so neither can be newer than the other:

    checkpoints/ckpt-000012/
        learner.safetensors   every tensor of the learner
        state.json            its plain values, with the version of their layout
        cursor.json           the next unread record of every lane
        replay.safetensors    with replay.policy = prototypes: the encoded images that replays are drawn from
        meta.json             number, run, progress, SHA-256 and size of each file, and of itself
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ops.errors import CheckpointDamaged, RunMismatch
from stream.cursor import Cursor

logger = logging.getLogger(__name__)

META_VERSION = 1
PREFIX, DAMAGED = "ckpt-", "damaged-"
TENSORS, VALUES, CURSOR, META = "learner.safetensors", "state.json", "cursor.json", "meta.json"
REPLAY = "replay.safetensors"
# A file that is not there is damage; any other error of the system may be gone the next time.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One that was read back, and is what was written."""

    path: Path
    number: int
    run: str
    """uuid of the run."""
    state: dict[str, Any] = field(repr=False)
    """What `Learner.load_state_dict` takes."""
    cursor: Cursor = field(repr=False)
    progress: Mapping[str, Any] = field(repr=False)
    """What the run counts beside learner and cursor."""
    replay: Mapping[str, Tensor] | None = field(default=None, repr=False)
    """Members of a memory for replay, as `stream.loader.prototype_memory.Members` takes them."""


def load_newest(
    run_dir: Path,
    *,
    set_aside: bool = False,
    on_damaged: Callable[[str], None] = lambda _name: None,
    with_replay: bool = True,
) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; a damaged one is named in a warning and passed over.

    Args:
        run_dir: the run directory.
        set_aside: rename damaged ones, so that they are not looked at again; for the lock's holder only.
        on_damaged: given the name of each one that is refused.
        with_replay: as of `load`.

    Returns:
        None when the run has none yet.

    Raises:
        CheckpointDamaged: there are some, and none of them is whole.
        RunMismatch: the newest was written by another version of this program; an older one is not used
            instead, for it would cost what was learned since.
        OSError: it cannot be read now, which proves nothing against it; nothing is set aside.
    """
    folder = run_dir / "checkpoints"
    refused: dict[Path, str] = {}
    for number in sorted(numbers(folder), reverse=True):
        path = folder / name_of(number)
        try:
            found = load(path, with_replay=with_replay)
        except CheckpointDamaged as error:
            # Only the lock's holder prunes. For others what is gone was pruned: a newer one has come, or an
            # older one is as good; a link that leads nowhere is still there.
            if not (set_aside or path.exists() or path.is_symlink()):
                continue
            refused[path] = str(error)
            continue
        for damaged, why in refused.items():
            logger.warning("%s; %s is used", why, found.path.name)
            on_damaged(damaged.name)
            if set_aside:
                _set_aside(damaged)
        return found
    if refused:
        raise CheckpointDamaged(
            f"no checkpoint of {run_dir} can be trusted: {'; '.join(refused.values())}. "
            "Restore one from a backup, or start again in another run directory"
        )
    return None


def load(path: Path, *, with_replay: bool = True) -> Checkpoint:
    """Read one checkpoint and check every byte that is read.

    Args:
        path: its directory.
        with_replay: also the images for replay, which may be most of it; who only looks at the network needs
            none, and gets None.

    Raises:
        CheckpointDamaged: a file is missing, or is not what was written.
        RunMismatch: it was written by another version of this program.
        OSError: it cannot be read now.
    """
    meta = read_meta(path)
    files = {name: entry for name, entry in meta["files"].items() if with_replay or name != REPLAY}
    for name, entry in files.items():
        try:
            digest, size = file_digest(path / name)
        except MISSING as error:
            raise CheckpointDamaged(f"checkpoint {path.name} is damaged: {name}: {error.strerror}") from error
        if [digest, size] != [entry["sha256"], entry["bytes"]]:
            raise CheckpointDamaged(f"checkpoint {path.name} is damaged: {name} is not what was written")
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    return Checkpoint(
        path=path,
        number=meta["number"],
        run=meta["run"],
        state={**values, "tensors": safetensors.torch.load_file(path / TENSORS)},
        cursor=Cursor.from_json((path / CURSOR).read_text(encoding="utf-8")),
        progress=meta["progress"],
        replay=safetensors.torch.load_file(path / REPLAY) if REPLAY in files else None,
    )


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint, checked against the digest that it holds of itself.

    Raises:
        CheckpointDamaged: missing, cut short, or changed.
        RunMismatch: of another version.
        OSError: it cannot be read now.
    """
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        stated = meta.pop("sha256")
    except (*MISSING, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(f"checkpoint {path.name} is damaged: {META} cannot be read") from error
    if stated != meta_digest(meta):
        raise CheckpointDamaged(f"checkpoint {path.name} is damaged: {META} is not what was written")
    if meta["version"] != META_VERSION:
        raise RunMismatch(
            f"checkpoint {path.name} has version {meta['version']!r}; this program reads {META_VERSION}: "
            "use the program that wrote it"
        )
    body: dict[str, Any] = meta
    return body


def numbers(folder: Path) -> list[int]:
    """Numbers of the checkpoints in a folder, by name alone; empty when there is no folder."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [number_of(name, PREFIX) for name in names]
    return sorted(number for number in found if number is not None)


def name_of(number: int, prefix: str = PREFIX) -> str:
    """Directory name of a checkpoint, or of one that was set aside."""
    return f"{prefix}{number:06d}"


def number_of(name: str, prefix: str) -> int | None:
    """The number in a name that `name_of` gave; None for any other name."""
    tail = name.removeprefix(prefix)
    if not (tail.isascii() and tail.isdecimal()):
        return None
    return int(tail) if name_of(int(tail), prefix) == name else None


def _set_aside(path: Path) -> None:
    with contextlib.suppress(OSError):  # a read-only mount: it is refused again the next time
        path.rename(path.with_name(f"{DAMAGED}{path.name.removeprefix(PREFIX)}"))


def file_digest(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return digest, handle.tell()


def meta_digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a meta.json without its own digest."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
