"""The step that is being done: its updates, what its batch and its replays cost, and how it is undone."""

import time
from collections.abc import Iterator
from dataclasses import replace

from learner.augment import Views
from learner.learner import Learner
from learner.report import StepReport
from ops.nonfinite import NonFiniteLog
from ops.steps import Steps
from stream.batch import Batch
from stream.lanes import LaneStats


class StepAtHand:
    """Follows the loop from batch to batch, until the run ends or goes back; one thread.

    Args:
        steps: gives the batches, and the replays of each.
        learner: of the run.
        not_finite: knows the steps that may have to be undone.
        accumulate: pieces that an update is computed in.
    """

    def __init__(self, steps: Steps, learner: Learner, *, not_finite: NonFiniteLog, accumulate: int) -> None:
        self.batch: Batch
        """What is tried now: the arriving batch, or one of its replays."""
        self.arriving: Batch
        """The arriving batch of the step."""
        self.stats = LaneStats()
        """Account of the whole step so far."""
        self.load_s = 0.0
        """Seconds of the step that were spent waiting for the batch and its replays."""
        self.step_s = 0.0
        """Seconds from the end of the step before to the end of this one."""
        self.replays = 0
        """Updates of the step from replayed samples that are done."""
        self.within = False
        """Some updates of the step are done, and others are not."""
        self._steps, self._learner, self._not_finite = steps, learner, not_finite
        self._accumulate = accumulate
        self._ended = time.monotonic()

    def batches(self) -> Iterator[Batch]:
        """The arriving batches."""
        self._ended = asked = time.monotonic()
        for batch in self._steps:
            self.load_s = time.monotonic() - asked
            self.batch = self.arriving = batch
            self.stats, self.replays = batch.stats, 0
            # A replay that is not finite leaves a step half done: here it is known where that may happen.
            risky = self._steps.loader.replays_left > 0 and self._not_finite.knows(batch)
            self._before = self._learner.state_dict() if risky else None
            yield batch
            asked = time.monotonic()

    def learn(self, batch: Batch) -> StepReport:
        """Do the updates of the step: that of the arriving batch, and those of its replays.

        Returns:
            The report of the arriving batch, with the updates and seconds of the whole.

        Raises:
            NonFinite: an update was refused; `undo` takes back those before it.
        """
        report = self._learner.step(_views(batch), accumulate=self._accumulate)
        for again in self._replays():
            replay = self._learner.step(_views(again), accumulate=self._accumulate, fresh=False)
            report = _followed_by(report, replay)
        self.within = False
        now = time.monotonic()
        self.step_s, self._ended = now - self._ended, now
        return report

    def _replays(self) -> Iterator[Batch]:
        """Batches for the further updates of the step."""
        self.within = True
        asked = time.monotonic()
        for again in self._steps.replays():
            self.load_s += time.monotonic() - asked
            self.batch, self.stats = again, self.stats + again.stats
            self.replays += 1
            yield again
            asked = time.monotonic()

    def undo(self) -> None:
        """Take back the updates of the step that were done, where it may have come to that."""
        if self._before is not None:
            self._learner.load_state_dict(self._before)
            self.within = False


def _followed_by(report: StepReport, replay: StepReport) -> StepReport:
    seconds = {
        phase: report.seconds.get(phase, 0.0) + replay.seconds.get(phase, 0.0)
        for phase in (*report.seconds, *replay.seconds)
    }
    return replace(report, updates=replay.updates, seconds=seconds)


def _views(batch: Batch) -> Views:
    """What the learner sees of a batch."""
    return Views(crops=batch.crops, uniforms=batch.uniforms, lane_B=batch.dealt_B)
