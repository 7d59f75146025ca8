"""Writing checkpoints: in the background, one directory each, visible by one rename, some of them kept."""

import contextlib
import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ops.errors import CheckpointFailed
from ops.rundir.checkpoint import (  # fmt: skip
    CURSOR,
    DAMAGED,
    META,
    META_VERSION,
    REPLAY,
    TENSORS,
    VALUES,
    file_digest,
    meta_digest,
    name_of,
    number_of,
    numbers,
)
from ops.rundir.tensor_file import save_tensors
from stream.cursor import Cursor
from stream.storage import sync_path

logger = logging.getLogger(__name__)

# Of checkpoints set aside as damaged so many stay, for finding out what happened.
DAMAGED_KEPT = 2


class CheckpointWriter:
    """Writes the checkpoints of one run in the background, at most one at a time.

    `save` takes the tensors over and writes them in a thread of its own: no caller may change them afterwards
    (`Learner.state_dict` gives copies). When the save before is still being written it waits for that first;
    `free` says beforehand whether it would. Only the holder of the run's lock may have one; call it from one
    thread. A save that fails (a full disk, a read-only mount) is a warning and counted: the run goes on, and
    the next save tries again. `flush` waits for the last save and raises when that one failed.
    """

    def __init__(
        self,
        run_dir: Path,
        run: str,
        *,
        keep: int,
        on_result: Callable[[str, float], None] = lambda _result, _seconds: None,
        at: Callable[[str], object] = lambda _point: None,
    ) -> None:
        """Sweep what dead processes left behind.

        Args:
            run_dir: the run directory, which must exist.
            run: uuid of the run.
            keep: newest checkpoints that stay; >= 1.
            on_result: given "ok" or "error" and the seconds of each save, from the background.
            at: called with the name of each point of the protocol as it is passed; tests kill there.
        """
        self.folder = run_dir / "checkpoints"
        self.folder.mkdir(exist_ok=True)
        self.failures = 0
        """Saves that could not be written."""
        self.last: Path | None = None
        """The newest checkpoint that this writer wrote."""
        self._run = run
        self._keep = keep
        self._on_result = on_result
        self._at = at
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._sweep()
        self._next = max([0, *numbers(self.folder), *self._damaged()]) + 1

    def save(
        self,
        state: Mapping[str, Any],
        cursor: Cursor,
        progress: Mapping[str, Any],
        replay: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save a state, which is the writer's from here on; see the class for what is waited on.

        Args:
            state: of the learner.
            cursor: of the whole run, of the same moment, as all that follows.
            progress: what the run counts besides.
            replay: members of all lanes, on the CPU; None = a run without a memory for replay.
        """
        self._join()
        tensors: dict[str, Tensor] = {
            name: tensor.detach().to("cpu").contiguous() for name, tensor in state["tensors"].items()
        }
        files = {TENSORS: tensors} if replay is None else {TENSORS: tensors, REPLAY: dict(replay)}
        values = json.dumps({name: value for name, value in state.items() if name != "tensors"})
        body = {
            "version": META_VERSION,
            "number": self._next,
            "run": self._run,
            "created": time.time(),
            "progress": dict(progress),
        }
        self._next += 1
        # Until it has ended well: a thread may also end in a way that is not foreseen.
        self._error = RuntimeError("writing it ended early, the log says how")
        self._thread = threading.Thread(
            target=self._write, args=(files, values, cursor.to_json(), body), name="checkpoint"
        )
        self._thread.start()

    def free(self, patience_s: float) -> bool:
        """Whether a save would begin at once; waits so long at most for the one in flight to end."""
        if self._thread is not None:
            self._thread.join(patience_s)
            return not self._thread.is_alive()
        return True

    def flush(self) -> Path | None:
        """Wait for the save in flight.

        Returns:
            The newest checkpoint; None when nothing was saved.

        Raises:
            CheckpointFailed: the last save could not be written.
        """
        self._join()
        if self._error is not None:
            raise CheckpointFailed(
                f"the last checkpoint could not be written to {self.folder}: {self._error}. "
                "Make room and run the same command again: it goes on from the checkpoint before"
            ) from self._error
        return self.last

    def failed(self) -> bool:
        """Whether the last save could not be written; waits for the one in flight."""
        self._join()
        return self._error is not None

    def settle(self) -> None:
        """Wait for the save in flight, however it ends."""
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self, tensors: dict[str, dict[str, Tensor]], values: str, cursor: str, meta: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        aside = self.folder / f".tmp-{uuid.uuid4().hex}"
        final = self.folder / name_of(meta["number"])
        visible = False
        try:
            aside.mkdir()
            self._at("begun")
            for name, some in tensors.items():
                save_tensors(some, aside / name)
            self._at("tensors written")
            (aside / VALUES).write_text(values, encoding="utf-8")
            (aside / CURSOR).write_text(cursor, encoding="utf-8")
            meta["files"] = {name: _synced(aside / name) for name in (*tensors, VALUES, CURSOR)}
            meta["sha256"] = meta_digest(meta)
            (aside / META).write_text(json.dumps(meta), encoding="utf-8")
            _synced(aside / META)
            sync_path(aside)
            self._at("synced")
            aside.rename(final)
            self._at("renamed")
            sync_path(self.folder)
            self._at("visible")
            visible = True
        except (OSError, safetensors.SafetensorError) as error:
            self._error = error
            logger.warning("checkpoint %s could not be written: %s; the run goes on", final.name, error)
            return
        finally:
            if not visible:
                shutil.rmtree(aside, ignore_errors=True)
                self.failures += 1
                self._on_result("error", time.monotonic() - began)
        self._error = None
        self.last = final
        self._on_result("ok", time.monotonic() - began)
        try:
            self._prune()
        except OSError as error:
            logger.warning("old checkpoints could not be removed: %s; the next save tries again", error)

    def _prune(self) -> None:
        for number in numbers(self.folder)[: -self._keep]:
            # Renamed first, so that what is half deleted no longer has a checkpoint's name.
            gone = self.folder / f".tmp-{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                (self.folder / name_of(number)).rename(gone)
                self._at("pruning")
            shutil.rmtree(gone, ignore_errors=True)
        self._at("pruned")

    def _sweep(self) -> None:
        stray = [path for path in self.folder.iterdir() if path.name.startswith(".tmp-")]
        for path in stray:
            shutil.rmtree(path, ignore_errors=True)
        if stray:
            logger.info("swept %d unfinished checkpoints of a process that died", len(stray))
        damaged = self._damaged()
        for number in damaged[:-DAMAGED_KEPT]:
            shutil.rmtree(self.folder / name_of(number, DAMAGED), ignore_errors=True)

    def _damaged(self) -> list[int]:
        found = [number_of(path.name, DAMAGED) for path in self.folder.iterdir()]
        return sorted(number for number in found if number is not None)


def _synced(path: Path) -> dict[str, Any]:
    """Bring a file to the disk; its size and digest for meta.json."""
    sync_path(path)
    digest, size = file_digest(path)
    return {"sha256": digest, "bytes": size}
