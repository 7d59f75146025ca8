"""What is done when loss or gradient is not finite: once more from the checkpoint, then the policy."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import safetensors

from learner.report import NonFinite
from ops.distributed.world import World
from ops.errors import NotFinite
from ops.rundir.files import append_line, read_lines
from ops.rundir.tensor_file import save_tensors
from stream.cursor import Cursor
from stream.lanes import LaneStats, add_counts
from stream.loader.batch import Batch

logger = logging.getLogger(__name__)

REASON = "non_finite"
# More skipped batches in a row are not bad batches but bad weights or a learning rate that is too high.
MOST_IN_A_ROW = 10


class NonFiniteLog:
    """Remembers, over restarts, which steps were not finite; one learner, one thread.

    A step is named by its pass and number, so the same step is known again after the run went back, on any
    rank. A disk that takes no more is a warning; the steps are then remembered for this session only.
    """

    def __init__(self, run_dir: Path, *, world: World) -> None:
        self._path = run_dir / "nonfinite.jsonl"
        self._world = world
        known = [line.get("place") for line in read_lines(self._path)] if world.is_main else []
        self._places = set(world.broadcast_object(known))
        self._folder = run_dir / "nonfinite"
        self._in_a_row = 0
        self._last_steps = -1

    def note(self, error: NonFinite, batch: Batch) -> bool:
        """Write down that the step of a batch was not finite; whether that is its first time."""
        place = _place(batch.cursor)
        first = place not in self._places
        self._places.add(place)
        line = {
            "place": place,
            "steps": batch.cursor.steps,
            "samples": batch.cursor.samples,
            "what": error.what,
            "value": str(error.value),
            "time": time.time(),
        }
        if not self._world.is_main:
            return first
        try:
            append_line(self._path, line)
        except OSError as failure:
            logger.warning("%s cannot be written: %s; the run goes on", self._path, failure)
        return first

    def knows(self, batch: Batch) -> bool:
        """Whether the step of a batch was not finite before."""
        return bool(self._places) and _place(batch.cursor) in self._places

    def stop(self, error: NonFinite, batch: Batch) -> NotFinite:
        """The error that ends the run, naming the batch by its lane positions."""
        return NotFinite(
            f"{error.what} of step {batch.cursor.steps} is {error.value}, also after going back to the last "
            f"checkpoint; the batch is lanes {_positions(batch)}. Lower optim.learning_rate or raise "
            "swav.epsilon, or give --set on_nonfinite=skip to leave such batches out"
        )

    def skip(self, error: NonFinite, batch: Batch, before: Cursor) -> Cursor:
        """Leave the batch out: keep it on disk, count its samples as skipped.

        Returns:
            The cursor after the batch, with none of its samples used, and none of the latest ones to be
            replayed: it may have been a replay that was not finite. A memory for replay is no part of the
            cursor: the loop empties it where it was.

        Raises:
            NotFinite: too many batches in a row.
        """
        self._in_a_row = self._in_a_row + 1 if batch.cursor.steps == self._last_steps + 1 else 1
        self._last_steps = batch.cursor.steps
        if self._in_a_row > MOST_IN_A_ROW:
            raise NotFinite(
                f"{MOST_IN_A_ROW} batches in a row gave a {error.what} that is not finite: this is not the "
                "data; lower optim.learning_rate and go back to an earlier checkpoint"
            ) from error
        kept = self._keep(error, batch)
        logger.warning(
            "step %d left out: %s is %s; batch in %s", self._last_steps, error.what, error.value, kept
        )
        dropped = batch.cursor.samples - before.samples
        skipped = add_counts(batch.cursor.skipped, {REASON: dropped})
        return replace(batch.cursor, samples=before.samples, skipped=skipped, replay=None)

    def _keep(self, error: NonFinite, batch: Batch) -> Path | None:
        part = "" if self._world.world_size == 1 else f"-rank-{self._world.rank}"
        path = self._folder / f"step-{batch.cursor.steps:09d}{part}.safetensors"
        tensors = {f"crops.{number}": crops.contiguous() for number, crops in enumerate(batch.crops)}
        tensors |= {
            "uniforms": batch.uniforms,
            "lane": batch.lane_B,
            "seq": batch.seq_B,
            "refs": batch.refs_B2,
        }
        named = {name: tensor.clone() for name, tensor in tensors.items()}
        about = {"keys": json.dumps(batch.keys), "what": error.what, "value": str(error.value)}
        try:
            # A rank that does not see the run directory keeps nothing, and says so.
            self._folder.mkdir(exist_ok=True)
            save_tensors(named, path, metadata=about)
        except (OSError, safetensors.SafetensorError) as failure:
            logger.warning("the batch that was left out could not be kept: %s", failure)
            return None
        return path


def left_out(stats: LaneStats) -> LaneStats:
    """The account of a batch that was left out: the records that it would have used are skipped ones."""
    return replace(stats, used=0, skipped=add_counts(stats.skipped, {REASON: stats.used}))


def _place(cursor: Cursor) -> str:
    return f"{cursor.pass_number}:{cursor.steps}"


def _positions(batch: Batch) -> str:
    first: dict[int, list[int]] = {}
    for lane, (unit, index) in zip(batch.lane_B.tolist(), batch.refs_B2.tolist(), strict=True):
        first.setdefault(lane, [unit, index])
    shown = [f"{lane} from {unit}/{index}" for lane, (unit, index) in list(first.items())[:8]]
    return ", ".join(shown) + (f" and {len(first) - 8} more" if len(first) > 8 else "")
