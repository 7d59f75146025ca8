"""Files that a run keeps for people: typical images, usage over time, and the probe set for comparing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ops.config import RunConfig
from ops.exemplars import Exemplars
from ops.live_usage import UsageHistory
from ops.probe import ProbeSet

logger = logging.getLogger(__name__)


class KeptFiles:
    """Writes them beside the checkpoints; a disk that takes none is a warning.

    One thread, but `after_checkpoint`, which the thread that writes checkpoints may call at any time.

    Args:
        run_dir: the run directory; typical images that lie there are read.
        config: of the run.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self.exemplars: Exemplars | None = None
        """Typical images; None when records come without thumbnails."""
        self._pictures = run_dir / "exemplars.safetensors"
        self._usage_file = run_dir / "usage-history.safetensors"
        self._probe = ProbeSet(run_dir)
        self._usage: UsageHistory | None = None
        thumbnail = config.reader.thumbnail_px
        if thumbnail >= 8:
            self.exemplars = Exemplars(config.swav.prototypes[0], thumbnail_px=thumbnail)
            self.exemplars.load(self._pictures)

    def keep_usage(self, history: UsageHistory, *, samples: int) -> None:
        """Keep this from here on; it gets what lies there, up to where the run goes on."""
        history.load(self._usage_file, samples=samples)
        self._usage = history

    def observe(
        self, thumbs: np.ndarray[Any, np.dtype[np.uint8]] | None, keys: Sequence[str], *, samples: int
    ) -> None:
        """A step was done: its images may become part of the probe set."""
        self._try("the probe set", lambda: self._probe.observe(thumbs, keys, samples=samples))

    def before_checkpoint(self) -> None:
        """Write what must not be behind a checkpoint."""
        self._try("the probe set", self._probe.save)

    def after_checkpoint(self) -> None:
        """Write what the live page shows."""
        self._try("what the live page shows", self._save)

    def _save(self) -> None:
        if self._usage is not None:
            self._usage.save(self._usage_file)
        if self.exemplars is not None:
            self.exemplars.save(self._pictures)

    def _try(self, what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            logger.warning("%s could not be kept: %s", what, error)
