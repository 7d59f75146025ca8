"""history.jsonl: figures of a run over time, thinner the longer it runs, cut back when the run goes back."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.rundir.files import read_lines
from stream.storage import write_whole

logger = logging.getLogger(__name__)

# An entry follows the one before once samples have grown by this share, so that a run a thousand times as
# long has no more than a few times as many entries.
GROWTH = 1 / 1000


EDGE = 20
"""Most entries at either end of a history that figures are averaged over: one batch alone is noise."""


def edge(entries: int) -> int:
    """How many entries at either end of a history of so many stand for its start, and for now; >= 1."""
    return min(EDGE, max(1, entries // 4))


def at_ends(run_dir: Path) -> dict[str, float | None]:
    """Loss and agreement of a run at its start and now: means over `edge` entries; None = not known.

    Returns:
        `loss_over_ln_k` and `view_agreement` of the latest entries, and the same with `start_` before them.
    """
    entries = list(read_lines(run_dir / "history.jsonl"))
    count = edge(len(entries))
    found: dict[str, float | None] = {}
    for prefix, some in (("start_", entries[:count]), ("", entries[-count:])):
        for name in ("loss_over_ln_k", "view_agreement"):
            values = [entry[name] for entry in some if name in entry]
            found[prefix + name] = sum(values) / len(values) if values else None
    return found


class History:
    """Appends entries to a file; each has `samples`, which only grows within the file.

    A disk that takes no more is a warning, once; the run goes on and later entries are tried again.
    """

    def __init__(self, path: Path, *, samples: int) -> None:
        """Go on after `samples`: later entries, of a session that ended before it was saved, are dropped.

        Args:
            path: the file; made when missing.
            samples: where the run goes on from; 0 drops everything.
        """
        self.path = path
        kept = [entry for entry in read_lines(path) if entry.get("samples", samples + 1) <= samples]
        self._last = kept[-1]["samples"] if kept else 0
        self._warned = False
        self._kept: list[dict[str, Any]] | None = kept
        try:
            self._cut()
        except OSError as error:
            self._warn(error)

    def due(self, samples: int) -> bool:
        """Whether an entry at so many samples would be written."""
        return samples > self._last and samples - self._last >= self._last * GROWTH

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write one entry."""
        try:
            self._cut()
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(entry) + "\n")
        except OSError as error:
            self._warn(error)
            return
        self._last = entry["samples"]
        self._warned = False

    def _cut(self) -> None:
        """Drop what is beyond the place the run goes on from; the file is the old or the new one."""
        if self._kept is None:
            return
        write_whole(self.path, "".join(json.dumps(entry) + "\n" for entry in self._kept).encode())
        self._kept = None

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning("%s cannot be written: %s; the run goes on", self.path, error)
        self._warned = True
