"""A run: the loop, and what is done between two steps.

What a crash leaves behind is a checkpoint, whose cursor says which record of each lane comes next; so the
same run opened again goes on from there and ends with the same weights, on any number of ranks. Every rank
runs this same code; the first one also keeps the run directory, and tells those who follow the run.

The step that is being done: its updates, what its batch and its replays cost, and how it is undone.
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
from ops.rundir.summary import FINISHED, STOPPED, Summary, summarise
from ops.train.data import open_loader
from ops.train.nonfinite import NonFiniteLog, left_out
from ops.train.reporting import Keeper, Pace
from ops.train.resume import Opened, checkpoint_for_all, restore
from ops.train.signals import StopRequest
from ops.train.sync import Patience, Steps, Stop, Waiting
from stream.cursor import Cursor, joined
from stream.errors import TooManyBadRecords
from stream.kafka_topic.dead_letters import TopicFollower
from stream.lanes import BadPlace, LaneStats
from stream.loader.batch import Batch
from stream.loader.replay import ReplayLoader
from stream.source import SourceSpec


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


logger = logging.getLogger(__name__)


class Run:
    """One life of a run: learner and cursor of the same moment, and all that is told of them.

    One thread uses it, and all ranks call the same methods. After any exception the last checkpoint is what
    the run goes on from.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        spec: SourceSpec,
        stop: StopRequest,
        world: World,
        keeper: Keeper | None,
        carrier: TopicFollower | None = None,
    ) -> None:
        """Make the learner as it was saved, or new.

        Args:
            opened: the run, and where it goes on.
            spec: opens the stream.
            stop: who asks the run to end.
            world: the ranks.
            keeper: of the run directory; None on all ranks but the first.
            carrier: of this rank's lanes of a topic; None for shards.

        Raises:
            ConfigError: settings that the learner cannot have.
            RunMismatch: the state of the checkpoint does not fit the settings, or this program.
        """
        self.run_dir, self.config = opened.run_dir, opened.config
        self.stop = stop
        # Without its checkpoint, whose tensors would stay in memory as long as the run.
        self._opened = replace(opened, saved=None)
        self._spec, self._world, self._keeper = spec, world, keeper
        self._carrier = carrier
        self._not_finite = NonFiniteLog(self.run_dir, world=world)
        self._began = time.monotonic()
        self._hand: StepAtHand | None = None
        self._restore(opened.saved)
        self._seconds_before = self.progress.seconds
        self._steps: Steps | None = None

    def train(self) -> None:
        """Learn until the stream ends or somebody asks to stop."""
        while not self._at_end():
            try:
                self._train()
            except NonFinite as error:
                self._go_back(error)
            except TooManyBadRecords as error:
                if self._carrier is not None:  # those that stopped the run are what somebody will look for
                    self._carrier.used((), error.bad)
                raise
            else:
                return

    def _train(self) -> None:
        with self._open_loader() as loader:
            steps = self._steps = self._in_step(loader)
            hand = self._hand = StepAtHand(
                steps, self.learner, not_finite=self._not_finite, accumulate=self.config.accumulate
            )
            for batch in hand.batches():
                report = hand.learn(batch)
                self._advance(batch, report)
                self._observe(batch, report, steps, hand)
                if self._due(self.config.checkpoint.every_samples) and self._free_to_save():
                    self.save()
                if self._due(self.config.snapshot.every_samples):
                    self.publish()
                if self._at_end():
                    break
            if loader.finished:
                self.cursor = loader.cursor
        self._heed(steps.stop)

    def save(self) -> None:
        """Save learner and cursor; the writing goes on in the background."""
        began = time.monotonic()
        if self._keeper is not None:
            state, cursor = self.learner.state_dict(), self._whole_cursor()
            self._keeper.save(state, cursor, self.progress, seconds=self.seconds(), began=began)
        else:
            self.learner.hand_over_state()
            self._whole_cursor()
        self._saved = self.cursor

    def publish(self) -> None:
        """Hand the prototypes of this moment to whoever uses them."""
        if self._keeper is not None:
            samples, updates = self.learner.samples, self.learner.updates
            self._keeper.publish(self.learner.snapshot(), samples=samples, updates=updates)

    def met_by_all(self, error: Exception) -> bool:
        """Whether all ranks met an error between the same two steps, so that they can still save together."""
        if self._world.ranks == 1:
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
            if self._hand is not None and self._hand.within:
                logger.warning("the step is not complete: the run goes on from its last checkpoint")
            elif self._unsaved():
                self.save()
            if self._keeper is not None:
                self._keeper.flush()
        except CheckpointFailed as error:
            logger.warning("%s", error)
        self._world.await_lead("saved")

    def end(self) -> Summary:
        """Save, publish, sum up: in this order, so that nothing is announced that could be lost.

        Raises:
            CheckpointFailed: the last checkpoint could not be written.
        """
        keeper = self._keeper
        if keeper is not None:
            keeper.followers.stopping()
        if self._unsaved():
            self.save()
        path = (keeper.flush() if keeper is not None else None) or self._restored_from
        if self.learner.updates:
            self.publish()
        shot = keeper.finish() if keeper is not None else None
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
        if keeper is not None:
            keeper.sum_up(summary, by_hand=self.stop.asked() and self.stop.signal != signal.SIGTERM)
        self._world.await_lead("ended")
        return summary

    def seconds(self) -> float:
        """Seconds spent on the run, over restarts."""
        return self._seconds_before + time.monotonic() - self._began

    def _unsaved(self) -> bool:
        """Whether what was learned is in no checkpoint; waits for the save in flight."""
        unsaved = self.cursor != self._saved or (self._keeper is not None and self._keeper.save_failed())
        return bool(self._world.from_lead(unsaved))

    def _save_now(self) -> None:
        """A rank was asked to save: what is in no checkpoint yet is put into one, and the run goes on."""
        if self._unsaved():
            self.save()
        if self._keeper is not None:
            self._keeper.saved_on_request(self.cursor.samples)

    def _free_to_save(self) -> bool:
        """Whether the save before is written, as the first rank knows; else the next one that is due does."""
        samples = self.cursor.samples
        return bool(self._world.from_lead(self._keeper is None or self._keeper.free_to_save(samples)))

    def _whole_cursor(self) -> Cursor:
        """The cursor with the positions of all ranks."""
        if self._world.ranks == 1:
            return self.cursor
        cursors = [Cursor.from_json(text) for text in self._world.gather(self.cursor.to_json())]
        return joined(cursors, self.config.model.bn_groups)

    def _heed(self, stop: Stop) -> None:
        """Another rank was asked to stop: end in the same way."""
        if stop is not Stop.NO and self.stop.signal is None:
            self.stop.ask(signal.SIGTERM if stop is Stop.TERMINATE else None)

    def _asked(self) -> Stop:
        if not self.stop.asked():
            return Stop.NO
        return Stop.TERMINATE if self.stop.signal == signal.SIGTERM else Stop.ASKED

    def _restore(self, saved: Checkpoint | None) -> None:
        restored = restore(self._opened, saved, self._world)
        self.learner, self.cursor, self.progress = restored.learner, restored.cursor, restored.progress
        self._restored_from = restored.path
        self._hand = None
        self._samples_before = self.cursor.samples
        # A run that has just begun is worth no checkpoint of its own.
        self._saved = self.cursor
        if self._keeper is not None:
            self._keeper.begin(self.cursor.samples)

    def _open_loader(self) -> ReplayLoader:
        device = device_of(self.config, self._world.local_rank)
        return open_loader(
            self._spec, self.config, self.cursor, world=self._world, pin_memory=device.type == "cuda"
        )

    def _in_step(self, loader: ReplayLoader) -> Steps:
        ranks, keeper = self.config.ranks, self._keeper
        return Steps(
            loader,
            self._world,
            stop=self._asked,
            on_wait=self._wait,
            patience=Patience(warn_s=ranks.starve_warn_s, fail_s=ranks.starve_fail_s),
            warn=keeper.warn if keeper is not None else lambda _text: None,
            save_asked=self.stop.take_save,
            on_save=self._save_now,
            on_unusable=self._unusable,
        )

    def _wait(self, waiting: Waiting) -> None:
        if self._keeper is not None:
            self._keeper.waiting(waiting, samples=self.cursor.samples)

    def _advance(self, batch: Batch, report: StepReport) -> None:
        """Only now are these samples used."""
        self._samples_before, self.cursor = self.cursor.samples, batch.cursor
        self.progress.note(
            loss=report.loss,
            loss_over_ln_k=report.loss_over_ln_k,
            usage_perplexity=report.usage_perplexity,
            updates=report.updates,
        )

    def _observe(self, batch: Batch, report: StepReport, steps: Steps, hand: StepAtHand) -> None:
        self._tell_carrier(batch)
        if self._keeper is None:
            return
        pace = Pace(
            step_s=hand.step_s,
            load_s=hand.load_s,
            replays=hand.replays,
            lag=steps.lag,
            restarts=steps.restarts,
            lanes=steps.lanes,
            dead_letters=(self._carrier.sent, self._carrier.dropped) if self._carrier else (0, 0),
        )
        self._keeper.observe(
            report,
            replace(batch, stats=hand.stats),
            pace,
            steps=self.cursor.steps,
            seconds=self.seconds(),
            usage_K=self.learner.usage().numpy() if report.health is not None else None,
        )

    def _at_end(self) -> bool:
        """Whether the run has the samples that `end_samples` asks for; a function of samples alone."""
        return 0 < self.config.end_samples <= self.cursor.samples

    def _due(self, every: int) -> bool:
        """Whether the last step passed a multiple of so many samples; a function of samples alone."""
        return every > 0 and self.cursor.samples // every > self._samples_before // every

    def _tell_carrier(self, batch: Batch) -> None:
        """How far this rank's lanes have come with an arriving batch, and what could not be used for it."""
        if self._carrier is not None and self._steps is not None:
            lanes = self._steps.loader.lanes  # those of the batch may be others, in a tail
            self._carrier.used([p for p in batch.cursor.positions if p.lane in lanes], batch.bad)

    def _unusable(self, stats: LaneStats, places: Sequence[BadPlace]) -> None:
        """A pass has ended, and so many records of its last, unfilled step could not be used."""
        assert self._steps is not None
        if self._carrier is not None:
            self._carrier.used((), places)
        if self._keeper is not None:
            self._keeper.followers.left_out(stats, skipped=self._steps.loader.cursor.skipped)

    def _go_back(self, error: NonFinite) -> None:
        """An update was refused, and its step with it: once more from the checkpoint, then the policy.

        Raises:
            NotFinite: the same step again, and `on_nonfinite` says stop; or too many skipped in a row.
        """
        hand, keeper = self._hand, self._keeper
        assert hand is not None  # the error is of its step
        batch = hand.batch
        first = self._not_finite.note(error, batch)
        if keeper is not None:
            keeper.followers.non_finite(str(error))
        if first:
            saved = checkpoint_for_all(self._world, keeper.go_back() if keeper is not None else None)
            where = saved.path.name if saved else "the start"
            logger.warning("step %d: %s; once more from %s", batch.cursor.steps, error, where)
            self._restore(saved)
            if keeper is not None:
                keeper.followers.skipped(self.cursor.skipped)
            return
        hand.undo()
        if self.config.on_nonfinite == "stop":
            raise self._not_finite.stop(error, batch) from error
        self.cursor = self._not_finite.skip(error, batch, self.cursor)
        self._tell_carrier(hand.arriving)
        if keeper is not None:
            keeper.followers.left_out(left_out(hand.stats), skipped=self.cursor.skipped)
