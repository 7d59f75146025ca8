"""`learn`: find where the run goes on, learn, save, sum up.

The first rank takes the run directory, opens the stream, and sends the others what it found.
"""

import contextlib
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ops.config.auto import Choice
from ops.config.checks import refusals
from ops.config.schema import RunConfig
from ops.distributed.device import check_device, device_of, keep_to_share
from ops.distributed.environment import launched
from ops.distributed.world import World, join
from ops.errors import (
    EXIT_FAILED,
    ConfigError,
    OpsError,
    RankFailed,
    RedisUnavailable,
    RunMismatch,
    exit_code_of,
)
from ops.rundir.checkpoint import Checkpoint, load_newest
from ops.rundir.files import RunRecord, room_in
from ops.rundir.lock import RunClaim
from ops.rundir.summary import FINISHED, STOPPED, Progress, RunSummary, read_summary, summarise
from ops.snapshots.redis_client import connect, redis_url
from ops.train import init_weights
from ops.train.auto_trial import write_choice
from ops.train.data import check_address, dead_letters_of, pinned, reading_mode, sealed_samples, source_spec
from ops.train.events import CheckpointResult, Started, Waiting
from ops.train.listeners import PUBLISH_S, ReportedRun
from ops.train.loop import Run
from ops.train.reporting import NoReporter, RunReporter
from ops.train.resume import (
    ResumePoint,
    accepting,
    as_begun,
    bind,
    checkpoint_for_all,
    open_run,
    receive_resume_point,
    send_refusal,
    send_resume_point,
    with_changes,
    write_changes,
)
from ops.train.saving import RunSaver
from ops.train.signals import StopRequest
from ops.train.stream_registration import leave
from ops.train.sync import LAG_S
from stream.cursor import Cursor, start_cursor
from stream.errors import StreamError, StreamNotFound
from stream.shards.source import ShardSource
from stream.source import Source, SourceSpec

# Seconds between two looks for a stream that does not exist yet.
LOOK_S = 0.5


def learn(  # noqa: PLR0913  what the command line may say of a run
    stream: str,
    run_dir: Path,
    config: RunConfig,
    *,
    until: str = "",
    wait: bool = False,
    init_from: str | None = None,
    accept_bad_until: str = "",
    choice: Choice | None = None,
    stop: StopRequest | None = None,
    out: TextIO | None = None,
    lag_s: float = LAG_S,
    publish_s: float = PUBLISH_S,
) -> RunSummary:
    """Learn from a stream until it ends or a stop is requested; a run that exists goes on where it was.

    A finished run does nothing and gives the same summary.

    Args:
        stream: directory or URL of the stream.
        run_dir: the run directory; made when missing.
        config: all settings.
        until: where a Kafka topic ends for a run that begins: now, an offset, a time; empty = it stays open.
        wait: wait for a stream that does not exist yet.
        init_from: the first weights of a new run, see `ops.train.init_weights.read`; None draws them.
        accept_bad_until: go past a spent budget of unusable records: see `ops.train.resume.accepting`.
        choice: how the settings were chosen, where they were; it is written down when the run begins.
        stop: requests the end of the run; None takes Ctrl-C and SIGTERM over.
        out: where progress is written; None is stderr.
        lag_s: seconds between two counts of how far the run is behind.
        publish_s: longest wait for the last snapshot to be published, seconds.

    Returns:
        How it ended; also in `summary.json`.

    Raises:
        RunLocked: another learner works in the directory.
        RunMismatch: the directory holds a run of other settings, of another stream, or of another version.
        StreamNotFound: no stream there, and `wait` is not set.
        CheckpointDamaged: no checkpoint of the run can be trusted.
        CheckpointFailed: the last checkpoint could not be written.
        PortInUse: the HTTP port is taken.
        NoRoom: the disk of the run directory is full at the start or at the end.
        RankLost: another rank died; what was learned since the last checkpoint is lost.
        RankFailed: another rank cannot go on, and raised why.
        NotFinite, StreamError, OSError: the run cannot go on; what was learned is saved.
    """
    stop = stop if stop is not None else StopRequest()
    request = LearnRequest(
        stream=stream,
        run_dir=run_dir,
        config=config,
        until=until,
        wait=wait,
        init_from=init_from,
        accept_bad_until=accept_bad_until,
        choice=choice,
        publish_s=publish_s,
    )
    keep_to_share()
    with contextlib.ExitStack() as stack:
        world = _join(config, stop)
        stack.callback(world.close)
        main = MainRank(stack, out if out is not None else sys.stderr) if world.is_main else None
        point = _resume_point(request, main, stack=stack, stop=stop, world=world)
        if isinstance(point, RunSummary):
            return point
        run = _made(point, main, stack=stack, stop=stop, world=world, lag_s=lag_s)
        del point  # else the checkpoint's tensors would stay in memory as long as the run
        _train(run, main.reporter if main is not None else None)
        return run.end()


def _resume_point(
    request: "LearnRequest",
    main: "MainRank | None",
    *,
    stack: contextlib.ExitStack,
    stop: StopRequest,
    world: World,
) -> ResumePoint | RunSummary:
    """Where all ranks go on; or how the run ended, when there is nothing to do."""
    if main is not None:
        found = main.open_for_all(request, stop=stop, world=world)
    else:
        stack.enter_context(stop)
        # Where a stop is requested meanwhile, it goes on to the first vote, where all hear of it.
        found = receive_resume_point(world, request.run_dir)
    if isinstance(found, RunSummary):
        return found
    return replace(found, saved=checkpoint_for_all(world, found.saved, found.config))


def _made(
    point: ResumePoint,
    main: "MainRank | None",
    *,
    stack: contextlib.ExitStack,
    stop: StopRequest,
    world: World,
    lag_s: float,
) -> Run:
    """The run with its learner made; on the first rank what listens is started."""
    stop.warned_by(usr1=point.config.signals.usr1, usr2=point.config.signals.usr2)
    letters = dead_letters_of(point.record.stream, point.config, point.record)
    if letters is not None:
        stack.callback(letters.close)
    run = Run(
        point,
        spec=source_spec(point.record.stream, point.config, cursor=point.cursor),
        stop=stop,
        world=world,
        saver=main.saver if main is not None else None,
        reporter=main.reporter if main is not None else NoReporter(),
        dead_letters=letters,
        lag_s=lag_s,
    )
    if main is not None:
        main.start(point, run.progress)
    return run


def _join(config: RunConfig, stop: StopRequest) -> World:
    """The world of the ranks; a launcher that goes away is a SIGTERM."""
    place = launched()
    if place is not None:  # before ranks are joined on devices that are not there
        check_device(config, place)
    return join(
        device=device_of(config, place.local_rank if place else 0),
        timeout_s=config.ranks.timeout_s,
        orphaned=lambda: stop.ask(signal.SIGTERM),
    )


def _train(run: Run, reporter: RunReporter | None) -> None:
    """Learn to the end; what was learned before an error is saved, where all ranks met it together."""
    try:
        run.train()
    except (StreamError, OpsError, OSError) as error:
        if reporter is not None:
            with contextlib.suppress(OSError):  # of the terminal: it must not keep the rescue from being done
                reporter.line.end()
                if isinstance(error, RankFailed):
                    reporter.line.note(f"Error: {error}")
        if run.met_by_all(error):
            run.rescue()
            if reporter is None and not run.is_own(error):
                raise RankFailed(str(error), exit_code_of(error) or EXIT_FAILED) from error
        raise
    if reporter is not None:
        reporter.line.end()


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnRequest:
    """What `learn` was given that says which run this is."""

    stream: str
    run_dir: Path
    config: RunConfig
    wait: bool
    init_from: str | None
    accept_bad_until: str
    until: str
    choice: Choice | None
    publish_s: float


class MainRank:
    """What only the first rank does before a run learns: it holds the run directory and opens the stream."""

    def __init__(self, stack: contextlib.ExitStack, out: TextIO) -> None:
        """Prepare.

        Args:
            stack: gets all that is to be closed at the end.
            out: where progress is written.
        """
        self._stack, self._out = stack, out
        self._claim: RunClaim
        self.reporter: RunReporter
        """Set once the run directory is held and a run is to be reported."""
        self.saver: RunSaver
        """Set once the run is ready to learn."""

    def open_for_all(
        self, request: LearnRequest, *, stop: StopRequest, world: World
    ) -> ResumePoint | RunSummary:
        """Open the run, and tell the other ranks.

        Returns:
            Where the run goes on; or how it ended, when there is nothing to do.

        Raises:
            RunLocked, RunMismatch, StreamNotFound, CheckpointDamaged, PortInUse, NoRoom, ConfigError: see
                `learn`.
        """
        try:
            refused = next(refusals(request.config, world.world_size), None)
            if refused is not None:
                raise ConfigError(refused)
            with room_in(request.run_dir):
                found = self._open(request, stop)
        except (StreamError, OpsError, OSError, ValueError) as error:
            send_refusal(world, error, exit_code_of(error) or EXIT_FAILED)
            raise
        send_resume_point(world, found)
        return found

    def _open(self, request: LearnRequest, stop: StopRequest) -> ResumePoint | RunSummary:
        """Take the run directory, find where the run stands, and open its stream."""
        run_dir = request.run_dir
        check_address(request.stream)
        # Before signals become requests: taking the lock may wait for the heartbeat of another host.
        self._claim = self._stack.enter_context(RunClaim(run_dir))
        self._stack.enter_context(stop)
        record, changed = open_run(run_dir, stream=request.stream, config=request.config)
        if request.choice is not None:
            write_choice(run_dir, request.choice, request.stream)
        config = as_begun(record, request.config)
        ended = _finished(run_dir, record, request.stream, config)
        if ended is not None:
            return ended
        check_device(config, launched())
        _check_redis(config)
        saved, damaged = _newest_checkpoint(run_dir, record)
        record = init_weights.begin(run_dir, record, config, request.init_from, saved=saved is not None)
        spec = source_spec(
            request.stream, config, until=request.until, cursor=saved.cursor if saved else None
        )
        source = self._open_source(spec, wait=request.wait)
        total = record.total_samples or (_run_samples(source, spec, config, saved) if source else None)
        run = ReportedRun(
            run_dir=run_dir,
            record=record,
            config=config,
            cursor=saved.cursor if saved else None,
            total_samples=config.length(total),
            publish_s=request.publish_s,
        )
        self._report(run, damaged)
        source = source or self._await_source(request.stream, spec, stop)
        if source is None:
            return _never_began(run_dir, saved, config)
        start = _start(source, config)
        total = _run_samples(source, spec, config, saved)
        record = bind(run_dir, record, stream=request.stream, source=start.source, total_samples=total)
        point = ResumePoint(run_dir=run_dir, record=record, config=config, start=start, saved=saved)
        point = _changed(point, request, source, changed)
        source.close()
        self.saver = RunSaver(run_dir, point.record, config, self.reporter)
        return point

    def start(self, point: ResumePoint, progress: Progress) -> None:
        """The learner is made: write down what is changed from here on, and start what listens.

        Args:
            point: where the run goes on.
            progress: with the fence that the publisher goes on from.
        """
        self._claim.begun()
        with room_in(point.run_dir):
            write_changes(point)
        (point.run_dir / "summary.json").unlink(missing_ok=True)
        self.reporter.notify(Started(progress, point.cursor.samples))

    def _report(self, run: ReportedRun, damaged: list[str]) -> None:
        """Begin to report: the live page is there from here on, also while the stream is waited for."""
        self.reporter = self._stack.enter_context(RunReporter(run, self._out))
        for name in damaged:
            self.reporter.notify(CheckpointResult("damaged", detail=name))
        url = self.reporter.page.url
        if url:
            self.reporter.line.note(f"live page {url}  metrics {url}metrics")

    def _open_source(self, spec: SourceSpec, *, wait: bool) -> Source | None:
        """The stream; None when it does not exist and may still come."""
        try:
            source = spec.open()
        except StreamNotFound:
            if wait:
                return None
            raise
        self._stack.callback(source.close)
        return source

    def _await_source(self, url: str, spec: SourceSpec, stop: StopRequest) -> Source | None:
        """Wait until the stream is there; None when a stop is requested first."""
        while not stop.wait(LOOK_S):
            self.reporter.notify(Waiting(records=True, reason=f"waiting for a stream at {url}"))
            source = self._open_source(spec, wait=True)
            if source is not None:
                return source
        self.reporter.line.end()
        return None


def _finished(run_dir: Path, record: RunRecord, stream: str, config: RunConfig) -> RunSummary | None:
    """The summary of a run that has nothing left to do, and needs nothing of its stream."""
    ended = read_summary(run_dir)
    if ended is None or ended.status != FINISHED or ended.passes < config.passes:
        return None
    if record.config.get("end_samples", 0) != config.end_samples or stream != record.stream:
        return None
    leave(stream, record.uuid, run_dir)  # in case the stream could not be reached when the run ended
    return ended


def _newest_checkpoint(run_dir: Path, record: RunRecord) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, and names of newer ones that were damaged."""
    damaged: list[str] = []
    saved = load_newest(run_dir, set_aside=True, on_damaged=damaged.append)
    if saved is not None and saved.run != record.uuid:
        raise RunMismatch(
            f"the checkpoints in {run_dir} are of run {saved.run}, run.json says {record.uuid}: "
            "put back the run.json that belongs to them, or give --run another directory"
        )
    return saved, damaged


def _check_redis(config: RunConfig) -> None:
    """Refuse an address that is none; no server is asked, since one that is away refuses nothing."""
    url = redis_url(config.snapshot.url)
    if url:
        try:
            connect(url).close()
        except RedisUnavailable as error:  # it will not become one by waiting
            raise ConfigError(str(error)) from error


def _changed(
    point: ResumePoint, request: LearnRequest, source: Source, changed: dict[str, tuple[Any, Any]]
) -> ResumePoint:
    """With what is requested otherwise from here on; nothing is written yet."""
    point, changed = accepting(point, request.accept_bad_until, source=source, changed=changed)
    return with_changes(point, stream=request.stream, changed=changed)


def _run_samples(source: Source, spec: SourceSpec, config: RunConfig, saved: Checkpoint | None) -> int | None:
    """Samples of the whole run when the stream has its end."""
    start = saved.cursor if saved is not None else _start(source, config)
    samples = sealed_samples(source, start, reading_mode(config, pinned(spec, start)), config)
    return None if samples is None else samples * config.passes


def _start(source: Source, config: RunConfig) -> Cursor:
    """The cursor of a run that begins now."""
    start = partial(start_cursor, source, seed=config.seed, chunk=config.chunk, window=config.window)
    if isinstance(source, ShardSource):
        return start(begin=source.begin, order=config.order)
    return start()


def _never_began(run_dir: Path, saved: Checkpoint | None, config: RunConfig) -> RunSummary:
    """The summary of a run that was stopped while it waited for its stream."""
    nothing = Cursor(
        source={}, seed=config.seed, lanes=0, chunk=config.chunk, window=config.window, positions=()
    )
    progress = Progress(**saved.progress) if saved else Progress()
    return summarise(
        status=STOPPED,
        run_dir=run_dir,
        cursor=saved.cursor if saved else nothing,
        progress=progress,
        seconds=progress.seconds,
        config=config,
        checkpoint=saved.path if saved else None,
        snapshot=None,
    )
