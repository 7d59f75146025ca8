"""Sweeps away what writers that died left unfinished."""

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stream.shards.manifest import Manifest
from stream.storage import PART, LocalStore, Store, try_lock

OLD_S = 3600.0
"""A younger unfinished file is left alone, whoever wrote it: seconds."""
TEMPORARY = "swavstream-"
"""Begins the names of shards that wait for their upload in the machine's temporary folder."""
_CLOCK_SLACK_S = 86_400.0
"""By how much clocks of machines that share a file system may differ."""
_FOLDERS = ("shards", "index", "commits", "segments", "readers", "taken", ".")

_log = logging.getLogger(__name__)


def temporary_folder() -> Path:
    """Where shards wait that will be uploaded."""
    return Path(tempfile.gettempdir())


def sweep_orphans(manifest: Manifest, *, older_than_s: float = OLD_S) -> int:
    """Remove unfinished files of dead writers, and tars that were finished but never committed.

    A live writer holds a lock on its unfinished tar, so only what no process holds is touched. Object stores
    keep no unfinished files; for them it is the files on this machine that were to be uploaded.

    Returns:
        Files removed.
    """
    store = manifest.store
    removed = 0
    oldest = time.time() - older_than_s
    for part in _parts(store):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # another writer sweeps too, or owns it
            if part.stat().st_mtime <= oldest and _nobody_holds(part):
                removed += _remove(manifest, part)
    if removed:
        _log.info("removed %s files that dead writers left for %s", removed, store.url)
    return removed


def _parts(store: Store) -> Iterator[Path]:
    if not isinstance(store, LocalStore):
        yield from temporary_folder().glob(f"{TEMPORARY}*{PART}")
        return
    for folder in _FOLDERS:
        place = store.path(folder)
        if place.is_dir():
            yield from place.glob(f"*{PART}")


def _nobody_holds(part: Path) -> bool:
    with part.open("rb") as file:
        return try_lock(file) is True


def _remove(manifest: Manifest, part: Path) -> int:
    """Remove a part; with it the tar and index of the same shard, unless they were committed."""
    files = [part]
    store = manifest.store
    shard_id, tar, rest = part.name.partition(".tar")
    if isinstance(store, LocalStore) and part.parent.name == "shards" and tar and rest == PART:
        uri = f"shards/{shard_id}.tar"
        if store.exists(uri) and not _committed(manifest, uri, since=part.stat().st_mtime - _CLOCK_SLACK_S):
            files += [store.path(uri), store.path(f"index/{shard_id}.idx")]
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def _committed(manifest: Manifest, uri: str, *, since: float) -> bool:
    for number in range(len(manifest) - 1, -1, -1):
        commit = manifest.entry(number)
        if commit.uri == uri:
            return True
        if commit.created < since:
            return False
    return False
