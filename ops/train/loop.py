"""A run: the loop, and what is done between two steps.

What a crash leaves behind is a checkpoint, whose cursor says which record of each lane comes next; so the
same run opened again goes on from there and ends with the same weights, on any number of ranks. Every rank
runs this same code; the first one also saves into the run directory, and reports to the listeners of the run.
"""

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from learner.augment import Views
from learner.learner import Learner
from learner.report import NonFinite, StepReport
from ops.distributed.device import device_of
from ops.distributed.world import World
from ops.errors import CheckpointFailed, NotFinite, RankFailed, Starved
from ops.rundir.checkpoint import Checkpoint
from ops.rundir.summary import FINISHED, STOPPED, RunSummary, summarise
from ops.snapshots.types import SnapshotTaken
from ops.train.data import open_loader
from ops.train.events import (
    LeftOut,
    Notice,
    Rewound,
    StepDone,
    StepListener,
    StepRefused,
    StepTimings,
    Stopping,
)
from ops.train.nonfinite import NonFiniteLog, left_out
from ops.train.resume import ResumePoint, checkpoint_for_all, restore
from ops.train.saving import RunSaver
from ops.train.signals import StopRequest
from ops.train.start_comparison import against_start
from ops.train.sync import LAG_S, Patience, Steps, StopVote
from stream.cursor import Cursor, joined
from stream.errors import TooManyBadRecords
from stream.kafka_topic.dead_letters import KafkaProgress
from stream.lanes import BadRecordRef, LaneStats
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.source import SourceSpec

logger = logging.getLogger(__name__)


class StepRunner:
    """Does the updates of each step, until the run ends or goes back; one thread.

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
        self.timings = StepTimings()
        """Of the latest step that was done."""
        self.replays = 0
        """Updates of the step from replayed samples that are done."""
        self.within = False
        """Some updates of the step are done, and others are not."""
        self._steps, self._learner, self._not_finite = steps, learner, not_finite
        self._accumulate = accumulate
        self._ended = time.monotonic()
        self._load_s = 0.0

    def batches(self) -> Iterator[Batch]:
        """The arriving batches."""
        self._ended = began = time.monotonic()
        for batch in self._steps:
            self._load_s = time.monotonic() - began
            self.batch = self.arriving = batch
            self.stats, self.replays = batch.stats, 0
            # A replay that is not finite leaves a step half done: here it is known where that may happen.
            risky = self._steps.loader.replays_left > 0 and self._not_finite.knows(batch)
            self._before = self._learner.state_dict() if risky else None
            yield batch
            began = time.monotonic()

    def learn(self, batch: Batch) -> StepReport:
        """Do the updates of the step: that of the arriving batch, and those of its replays.

        Returns:
            The report of the arriving batch, with the updates and seconds of the whole.

        Raises:
            NonFinite: an update was refused; `undo` takes back those before it.
        """
        report = self._learner.step(_views(batch), accumulate=self._accumulate)
        self._steps.loader.learned(report.assigned_N)
        for again in self._replays():
            replay = self._learner.step(_views(again), accumulate=self._accumulate, fresh=False)
            self._steps.loader.learned(replay.assigned_N)
            report = _followed_by(report, replay)
        self.within = False
        now = time.monotonic()
        self.timings = StepTimings(step_s=now - self._ended, load_s=self._load_s)
        self._ended = now
        return report

    def _replays(self) -> Iterator[Batch]:
        """Batches for the further updates of the step."""
        self.within = True
        began = time.monotonic()
        for again in self._steps.replays():
            self._load_s += time.monotonic() - began
            self.batch, self.stats = again, self.stats + again.stats
            self.replays += 1
            yield again
            began = time.monotonic()

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


class Run:
    """One session of a run: learner, cursor and members of a memory for replay, of the same moment.

    One thread uses it, and all ranks call the same methods. After any exception the last checkpoint is what
    the run goes on from.
    """

    def __init__(
        self,
        point: ResumePoint,
        *,
        spec: SourceSpec,
        stop: StopRequest,
        world: World,
        saver: RunSaver | None,
        reporter: StepListener,
        dead_letters: KafkaProgress | None = None,
        lag_s: float = LAG_S,
    ) -> None:
        """Make the learner as it was saved, or new.

        Args:
            point: the run, and where it goes on.
            spec: opens the stream.
            stop: asks the run to end.
            world: the ranks.
            saver: writes into the run directory; None on all ranks but the first.
            reporter: notified of what happens; on all ranks but the first it does nothing.
            dead_letters: of this rank's lanes of a topic; None for shards.
            lag_s: seconds between two counts of the lag.

        Raises:
            ConfigError: settings that the learner cannot have.
            RunMismatch: the state of the checkpoint does not fit the settings, or this program.
        """
        self.run_dir, self.config = point.run_dir, point.config
        self.stop = stop
        # Without its checkpoint, whose tensors would stay in memory as long as the run.
        self._point = replace(point, saved=None)
        self._spec, self._world = spec, world
        self._saver, self._reporter, self._dead_letters = saver, reporter, dead_letters
        self._lag_s = lag_s
        self._not_finite = NonFiniteLog(self.run_dir, world=world)
        self._began = time.monotonic()
        self._step: StepRunner | None = None
        self._restore(point.saved)
        self._seconds_before = self.progress.seconds
        self._steps: Steps | None = None

    def train(self) -> None:
        """Learn until the stream ends or a stop is requested."""
        while not self._at_end():
            try:
                self._train()
            except NonFinite as error:
                self._go_back(error)
            except TooManyBadRecords as error:
                if self._dead_letters is not None:  # those that stopped the run will be looked for
                    self._dead_letters.used((), error.bad)
                raise
            else:
                return

    def _train(self) -> None:
        with self._open_loader() as loader:
            self._members = loader.members
            steps = self._steps = self._in_step(loader)
            step = self._step = StepRunner(
                steps, self.learner, not_finite=self._not_finite, accumulate=self.config.accumulate
            )
            for batch in step.batches():
                report = step.learn(batch)
                self._advance(batch, report)
                self._report(report, step, steps)
                if self._due(self.config.checkpoint.every_samples) and self._free_to_save():
                    self.save()
                if self._due(self.config.snapshot.every_samples):
                    self.publish()
                if self._at_end():
                    break
            if loader.finished:
                self.cursor = loader.cursor
        self._apply_stop(steps.stop)

    def save(self) -> None:
        """Save learner and cursor; the writing goes on in the background."""
        began = time.monotonic()
        state, cursor = self.learner.state_dict(send_only=self._saver is None), self._whole_cursor()
        replay = None if self._members is None else self._world.gather_tensors(self._members.tensors())
        if self._saver is not None:
            self._saver.save(state, cursor, self.progress, replay=replay, seconds=self.seconds(), began=began)
        self._saved = self.cursor

    def publish(self) -> None:
        """Publish the prototypes of this moment, in the background."""
        if self._saver is not None:
            shot, samples, updates = self.learner.snapshot(), self.learner.samples, self.learner.updates
            self._reporter.notify(SnapshotTaken(shot, samples, updates))

    def met_by_all(self, error: Exception) -> bool:
        """Whether all ranks met an error between the same two steps, so that they can still save together."""
        if self._world.world_size == 1:
            return True
        agreed = isinstance(error, RankFailed | Starved | NotFinite | TooManyBadRecords)
        return agreed or self.is_own(error)

    def is_own(self, error: Exception) -> bool:
        """Whether an error is what kept this rank from going on, of which the others know."""
        return self._steps is not None and error is self._steps.error

    def rescue(self) -> None:
        """Save what was learned before an error that ends the run; a failure to is only logged.

        All ranks met the error between the same two steps.
        """
        try:
            if self._step is not None and self._step.within:
                logger.warning("the step is not complete: the run goes on from its last checkpoint")
            elif self._unsaved():
                self.save()
            if self._saver is not None:
                self._saver.flush()
        except CheckpointFailed as error:
            logger.warning("%s", error)
        self._world.main_barrier("saved")

    def end(self) -> RunSummary:
        """Save, publish, sum up: in this order, so that nothing is announced that could be lost.

        Raises:
            CheckpointFailed: the last checkpoint could not be written.
        """
        saver = self._saver
        self._reporter.notify(Stopping())
        if self._unsaved():
            self.save()
        path = (saver.flush() if saver is not None else None) or self._restored_from
        if self.learner.updates:
            self.publish()
        shot = saver.finish_publishing() if saver is not None else None
        ended = self.cursor.pass_number >= self.config.passes or self._at_end()
        summary = summarise(
            status=FINISHED if ended else STOPPED,
            run_dir=self.run_dir,
            cursor=self.cursor,
            progress=self.progress,
            seconds=self.seconds(),
            config=self.config,
            checkpoint=path,
            snapshot={"version": shot.version, "digest": shot.digest} if shot else None,
        )
        if ended and saver is not None and self.learner.updates:
            found = against_start(self._point, self.learner, self._world)
            summary = replace(summary, against_start=found)
        if saver is not None:
            by_user = self.stop.requested() and self.stop.signal != signal.SIGTERM
            saver.write_summary(summary, stopped_by_user=by_user)
        self._world.main_barrier("ended")
        return summary

    def seconds(self) -> float:
        """Seconds spent on the run, over restarts."""
        return self._seconds_before + time.monotonic() - self._began

    def _unsaved(self) -> bool:
        """Whether what was learned is in no checkpoint; waits for the save in flight."""
        unsaved = self.cursor != self._saved or (self._saver is not None and self._saver.failed())
        return bool(self._world.broadcast_object(unsaved))

    def _save_now(self) -> None:
        """A rank was asked to save: what is in no checkpoint yet is put into one, and the run goes on."""
        if self._unsaved():
            self.save()
        text = f"saved at {self.cursor.samples:,} samples, as a signal asked"
        self._reporter.notify(Notice("checkpoint", text, terminal=True))

    def _free_to_save(self) -> bool:
        """Whether the save before is written, as the first rank knows; else the next one that is due does."""
        free = self._saver is None or self._saver.is_free(self.cursor.samples)
        return bool(self._world.broadcast_object(free))

    def _whole_cursor(self) -> Cursor:
        """The cursor with the positions of all ranks."""
        if self._world.world_size == 1:
            return self.cursor
        cursors = [Cursor.from_json(text) for text in self._world.all_gather_objects(self.cursor.to_json())]
        return joined(cursors, self.config.model.bn_groups)

    def _apply_stop(self, vote: StopVote) -> None:
        """Another rank was asked to stop: end in the same way."""
        if vote is not StopVote.NO and self.stop.signal is None:
            self.stop.ask(signal.SIGTERM if vote is StopVote.TERMINATE else None)

    def _stop_vote(self) -> StopVote:
        if not self.stop.requested():
            return StopVote.NO
        return StopVote.TERMINATE if self.stop.signal == signal.SIGTERM else StopVote.ASKED

    def _restore(self, saved: Checkpoint | None) -> None:
        restored = restore(self._point, saved, self._world)
        self.learner, self.cursor, self.progress = restored.learner, restored.cursor, restored.progress
        self._members, self._restored_from = restored.members, restored.path
        self._step = None
        self._samples_before = self.cursor.samples
        # A run that has just begun is worth no checkpoint of its own.
        self._saved = self.cursor

    def _open_loader(self) -> Loader:
        device = device_of(self.config, self._world.local_rank)
        return open_loader(
            self._spec,
            self.config,
            self.cursor,
            members=self._members,
            world=self._world,
            pin_memory=device.type == "cuda",
        )

    def _in_step(self, loader: Loader) -> Steps:
        ranks = self.config.ranks
        return Steps(
            loader,
            self._world,
            stop=self._stop_vote,
            on_wait=lambda waiting: self._reporter.notify(replace(waiting, samples=self.cursor.samples)),
            patience=Patience(warn_s=ranks.starve_warn_s, fail_s=ranks.starve_fail_s),
            warn=lambda text: self._reporter.notify(Notice("waiting", text, terminal=True)),
            save_asked=self.stop.take_save,
            on_save=self._save_now,
            on_unusable=self._unusable,
            lag_s=self._lag_s,
        )

    def _advance(self, batch: Batch, report: StepReport) -> None:
        """Only now are these samples used."""
        assert self._steps is not None
        self._members = self._steps.loader.members
        self._samples_before, self.cursor = self.cursor.samples, batch.cursor
        self.progress.note(
            loss=report.loss,
            loss_over_ln_k=report.loss_over_ln_k,
            usage_perplexity=report.usage_perplexity,
            updates=report.updates,
        )

    def _report(self, report: StepReport, step: StepRunner, steps: Steps) -> None:
        self._report_used(step.arriving)
        if self._saver is None:
            return
        letters = self._dead_letters
        self._reporter.notify(
            StepDone(
                report=report,
                batch=step.arriving,
                stats=step.stats,
                timings=replace(step.timings, save_s=self._saver.take_held_up_s()),
                replays=step.replays,
                replay_prototypes=None if self._members is None else self._members.prototypes_in_use(),
                run_s=self.seconds(),
                lag=steps.lag,
                lanes=steps.lanes,
                reader_restarts=steps.restarts,
                dead_letters=(letters.sent, letters.dropped) if letters is not None else (0, 0),
                usage_K=self.learner.usage().numpy() if report.health is not None else None,
            )
        )

    def _at_end(self) -> bool:
        """Whether the run has the samples that `end_samples` asks for; a function of samples alone."""
        return 0 < self.config.end_samples <= self.cursor.samples

    def _due(self, every: int) -> bool:
        """Whether the last step passed a multiple of so many samples; a function of samples alone."""
        return every > 0 and self.cursor.samples // every > self._samples_before // every

    def _report_used(self, batch: Batch) -> None:
        """How far this rank's lanes of a topic have come with an arriving batch, and its dead letters."""
        if self._dead_letters is not None and self._steps is not None:
            lanes = self._steps.loader.lanes  # those of the batch may be others, in a tail
            self._dead_letters.used([p for p in batch.cursor.positions if p.lane in lanes], batch.bad)

    def _unusable(self, stats: LaneStats, places: Sequence[BadRecordRef]) -> None:
        """A pass has ended, and so many records of its last, unfilled step could not be used."""
        assert self._steps is not None
        if self._dead_letters is not None:
            self._dead_letters.used((), places)
        self._reporter.notify(LeftOut(stats, self._steps.loader.cursor))

    def _go_back(self, error: NonFinite) -> None:
        """An update was refused, and its step with it: once more from the checkpoint, then the policy.

        Raises:
            NotFinite: the same step again, and `on_nonfinite` says stop; or too many skipped in a row.
        """
        step = self._step
        assert step is not None  # the error is of its step
        batch = step.batch
        first = self._not_finite.note(error, batch)
        self._reporter.notify(StepRefused(str(error)))
        if first:
            newest = self._saver.newest() if self._saver is not None else None
            saved = checkpoint_for_all(self._world, newest, self.config)
            where = saved.path.name if saved else "the start"
            logger.warning("step %d: %s; once more from %s", batch.cursor.steps, error, where)
            self._restore(saved)
            self._reporter.notify(Rewound(self.cursor))
            return
        step.undo()
        if self.config.on_nonfinite == "stop":
            raise self._not_finite.stop(error, batch) from error
        self.cursor = self._not_finite.skip(error, batch, self.cursor)
        if batch is not step.arriving and self._members is not None:
            # One of its images may be the cause. It would be drawn again and again.
            self._members = self._members.emptied()
        self._report_used(step.arriving)
        self._reporter.notify(LeftOut(left_out(step.stats), self.cursor))
