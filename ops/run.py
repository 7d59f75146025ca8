"""A run: the loop, and what is done between two steps.

What a crash leaves behind is a checkpoint, whose cursor says which record of each lane comes next; so the
same run opened again goes on from there and ends with the same weights.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from learner.augment import Views
from learner.learner import Learner
from learner.report import NonFinite, StepReport
from ops.checkpoint import Checkpoint, load_newest
from ops.checkpoint_writer import CheckpointWriter
from ops.config import RunConfig
from ops.errors import CheckpointFailed, ConfigError, RunMismatch
from ops.followers import Followers, Pace
from ops.history import History, entry_of
from ops.nonfinite import NonFiniteLog, left_out
from ops.opening import Opened
from ops.outcome import FINISHED, STOPPED, Progress, Summary, summarise
from ops.progress import ProgressLine
from ops.ranks import World
from ops.rundir import write_json
from ops.signals import StopRequest
from ops.source_spec import reading_mode
from stream.lanes import SourceSpec
from stream.loader import Batch, Loader
from stream.replay_loader import ReplayLoader

logger = logging.getLogger(__name__)

# Seconds between two counts of the lag, which looks at every lane.
LAG_S = 0.5


class Run:
    """One life of a run: learner and cursor of the same moment, and all that is told of them.

    One thread uses it. After any exception the last checkpoint is what the run goes on from.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        spec: SourceSpec,
        followers: Followers,
        stop: StopRequest,
        line: ProgressLine,
        world: World,
    ) -> None:
        """Make the learner as it was saved, or new.

        Args:
            opened: the run, and where it goes on.
            spec: opens the stream.
            followers: who is told.
            stop: who asks the run to end.
            line: the progress line.
            world: which of how many ranks this is.

        Raises:
            ConfigError: settings that the learner cannot have.
            RunMismatch: the state of the checkpoint does not fit the settings, or this program.
        """
        self.run_dir, self.record, self.config = opened.run_dir, opened.record, opened.config
        self.followers, self.stop, self.line = followers, stop, line
        self._spec, self._start, self._world = spec, opened.start, world
        self._writer = CheckpointWriter(
            self.run_dir,
            self.record.uuid,
            keep=self.config.checkpoint.keep,
            on_result=followers.checkpointed,
        )
        self._not_finite = NonFiniteLog(self.run_dir)
        self._began = time.monotonic()
        self._restore(opened.saved)
        self._seconds_before = self.progress.seconds
        self._lag, self._next_lag = 0, 0.0
        self._load_s = self._save_s = 0.0

    def train(self) -> None:
        """Learn until the stream ends or somebody asks to stop."""
        while not self.stop.asked():
            try:
                self._train()
            except NonFinite as error:
                self._go_back(error)
            else:
                return

    def _train(self) -> None:
        with self._open_loader() as loader:
            for batch in self._timed(loader):
                report = self.learner.step(views_of(batch), accumulate=self.config.accumulate)
                for again in self._replays(loader):
                    replay = self.learner.step(
                        views_of(again), accumulate=self.config.accumulate, fresh=False
                    )
                    report = followed_by(report, replay)
                self._advance(batch, report)
                self._observe(batch, report, loader)
                if self._due(self.config.checkpoint.every_samples):
                    self.save()
                if self._due(self.config.snapshot.every_samples):
                    self.publish()
            if loader.finished:
                self.cursor = loader.cursor

    def save(self) -> None:
        """Save learner and cursor; the writing goes on in the background."""
        began = time.monotonic()
        epoch, version = self.followers.fence
        self.progress.snapshot_epoch = max(epoch, self.progress.snapshot_epoch)
        self.progress.snapshot_version = max(version, self.progress.snapshot_version)
        self._writer.save(self.learner.state_dict(), self.cursor, self.progress.saved(seconds=self.seconds()))
        self._saved = self.cursor
        self._save_s += time.monotonic() - began

    def publish(self) -> None:
        """Hand the prototypes of this moment to whoever uses them."""
        self.followers.publish(
            self.learner.snapshot(), samples=self.learner.samples, updates=self.learner.updates
        )

    def rescue(self) -> None:
        """Save what was learned before an error that ends the run; a failure to is only logged."""
        try:
            if self._within_step:
                logger.warning("the step is not complete: the run goes on from its last checkpoint")
            elif self._unsaved():
                self.save()
            self._writer.flush()
        except CheckpointFailed as error:
            logger.warning("%s", error)

    def end(self) -> Summary:
        """Save, publish, sum up: in this order, so that nothing is announced that could be lost.

        Raises:
            CheckpointFailed: the last checkpoint could not be written.
        """
        self.followers.stopping()
        if self._unsaved():
            self.save()
        path = self._writer.flush() or self._restored_from
        if self.learner.updates:
            self.publish()
        shot = self.followers.finish()
        summary = summarise(
            status=FINISHED if self.cursor.pass_number >= self.config.passes else STOPPED,
            run_dir=self.run_dir,
            cursor=self.cursor,
            progress=self.progress,
            seconds=self.seconds(),
            config=self.config,
            checkpoint=path,
            snapshot={"version": shot.version, "digest": shot.digest} if shot else None,
        )
        write_json(self.run_dir / "summary.json", summary.to_json())
        return summary

    def seconds(self) -> float:
        """Seconds spent on the run, over restarts."""
        return self._seconds_before + time.monotonic() - self._began

    def _unsaved(self) -> bool:
        """Whether what was learned is in no checkpoint; waits for the save in flight."""
        return self.cursor != self._saved or self._writer.failed()

    def _restore(self, saved: Checkpoint | None) -> None:
        config = self.config
        try:
            self.learner = Learner(
                config.learner,
                seed=config.seed,
                device=device_of(config),
                precision=config.precision,
                total_samples=self.record.total_samples,
                clock=time.perf_counter,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.cursor, self.progress, self._restored_from = self._start, Progress(), None
        if saved is not None:
            try:
                self.learner.load_state_dict(saved.state)
                self.progress = Progress(**saved.progress)
            except (ValueError, TypeError) as error:
                raise RunMismatch(
                    f"checkpoint {saved.path} does not fit: {error}. Give the settings of the run as it was"
                ) from error
            self.cursor, self._restored_from = saved.cursor, saved.path
        self._samples_before = self.cursor.samples
        self._within_step = False
        # A run that has just begun is worth no checkpoint of its own.
        self._saved = self.cursor
        self._history = History(self.run_dir / "history.jsonl", samples=self.cursor.samples)

    def _open_loader(self) -> ReplayLoader:
        config = self.config
        self._loader = ReplayLoader(
            self._spec,
            replay=config.replay,
            cursor=self.cursor,
            crops=config.crops,
            config=config.reader,
            workers=config.workers,
            ranks=self._world.ranks,
            rank=self._world.rank,
            passes=config.passes,
            pin_memory=device_of(config).type == "cuda",
            should_stop=self._turn,
            mode=reading_mode(config, self._spec),
        )
        return self._loader

    def _turn(self) -> bool:
        """Asked by the loader whenever it waits: a sign of life, and whether to stop."""
        waiting = self._loader.waiting
        self.followers.waiting(waiting)
        if waiting:
            self._look_at_lag(self._loader)
        if waiting and self.line.due(self.cursor.samples):
            self.line.say(f"{self.cursor.samples:,} samples  waiting for records")
        return self.stop.asked()

    def _look_at_lag(self, loader: Loader) -> None:
        now = time.monotonic()
        if now >= self._next_lag:
            self._lag, self._next_lag = loader.lag(), now + LAG_S
            self.followers.lag(self._lag)
            self.followers.lanes(loader.lane_lags())

    def _timed(self, loader: Loader) -> Iterator[Batch]:
        """The loader's batches, noting what waiting for each took."""
        self._step_ended = asked = time.monotonic()
        for batch in loader:
            self._load_s = time.monotonic() - asked
            self._tried, self._spent = batch, batch.stats
            # A replay that is not finite leaves a step half done: here it is known where that may happen.
            risky = self.config.replay.updates > 1 and self._not_finite.knows(batch)
            self._before = self.learner.state_dict() if risky else None
            yield batch
            asked = time.monotonic()

    def _replays(self, loader: ReplayLoader) -> Iterator[Batch]:
        """Batches for the further updates of the step, noting what they cost."""
        self._within_step = True
        asked = time.monotonic()
        for again in loader.replays():
            self._load_s += time.monotonic() - asked
            self._tried, self._spent = again, self._spent + again.stats
            yield again
            asked = time.monotonic()

    def _advance(self, batch: Batch, report: StepReport) -> None:
        """Only now are these samples used."""
        self._within_step = False
        self._samples_before, self.cursor = self.cursor.samples, batch.cursor
        self.progress.note(
            loss=report.loss,
            loss_over_ln_k=report.loss_over_ln_k,
            usage_perplexity=report.usage_perplexity,
            updates=report.updates,
        )

    def _observe(self, batch: Batch, report: StepReport, loader: Loader) -> None:
        now = time.monotonic()
        step_s, self._step_ended = now - self._step_ended, now
        save_s, self._save_s = self._save_s, 0.0
        self._look_at_lag(loader)
        pace = Pace(
            step_s=step_s,
            load_s=self._load_s,
            save_s=save_s,
            replays=self.config.replay.updates - 1,
            lag=self._lag,
            restarts=loader.worker_restarts,
        )
        self.followers.observe(report, replace(batch, stats=self._spent), pace)
        if report.health is not None:
            self.followers.usage(self.learner.usage().numpy())
        due = self.line.due(report.samples)
        if self._history.due(report.samples):
            rate, seconds = self.line.rate(report.samples), self.seconds()
            self._history.add(
                entry_of(report, steps=self.cursor.steps, seconds=seconds, rate=rate, lag=self._lag)
            )
        if due:
            self.line.show(
                samples=report.samples,
                loss=report.loss,
                over_ln_k=report.loss_over_ln_k,
                usage=report.usage_perplexity,
                k=self.config.swav.prototypes[0],
                lag=self._lag,
            )

    def _due(self, every: int) -> bool:
        """Whether the last step passed a multiple of so many samples; a function of samples alone."""
        return every > 0 and self.cursor.samples // every > self._samples_before // every

    def _go_back(self, error: NonFinite) -> None:
        """An update was refused, and its step with it: once more from the checkpoint, then the policy.

        Raises:
            NotFinite: the same step again, and `on_nonfinite` says stop; or too many skipped in a row.
        """
        batch = self._tried
        first = self._not_finite.note(error, batch)
        self.followers.non_finite(str(error))
        if first:
            self._writer.settle()
            saved = load_newest(self.run_dir, set_aside=True)
            where = saved.path.name if saved else "the start"
            logger.warning("step %d: %s; once more from %s", batch.cursor.steps, error, where)
            self._restore(saved)
            self.followers.skipped(self.cursor.skipped)
            return
        if self._before is not None:
            self.learner.load_state_dict(self._before)
            self._within_step = False
        if self.config.on_nonfinite == "stop":
            raise self._not_finite.stop(error, batch) from error
        self.cursor = self._not_finite.skip(error, batch, self.cursor)
        self.followers.left_out(left_out(self._spent), skipped=self.cursor.skipped)


def followed_by(report: StepReport, replay: StepReport) -> StepReport:
    """The report of an arriving batch, with the updates and seconds of a replay after it added."""
    seconds = {
        phase: report.seconds.get(phase, 0.0) + replay.seconds.get(phase, 0.0)
        for phase in (*report.seconds, *replay.seconds)
    }
    return replace(report, updates=replay.updates, seconds=seconds)


def views_of(batch: Batch) -> Views:
    """What the learner sees of a batch."""
    return Views(crops=batch.crops, uniforms=batch.uniforms, lane_B=batch.lane_B)


def device_of(config: RunConfig) -> torch.device:
    """The device of a run; `auto` is the first GPU when there is one."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)
