"""`learn`: find where the run stands, learn, save, sum up.

How the first rank begins: it takes the run directory, finds where the run stands, and opens its stream.
"""

import contextlib
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TextIO

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
from ops.rundir.files import RunRecord, read_lines, room_in
from ops.rundir.lock import RunClaim
from ops.rundir.stream_registration import leave
from ops.rundir.summary import FINISHED, STOPPED, Progress, Summary, read_summary, summarise
from ops.snapshots.redis_client import connect, redis_url
from ops.train import init_weights
from ops.train.data import check_address, follower_of, pinned, reading_mode, sealed_samples, source_spec
from ops.train.loop import Run
from ops.train.progress import ProgressLine
from ops.train.reporting import Followers, Keeper
from ops.train.resume import (
    Opened,
    accepting,
    as_begun,
    bind,
    checkpoint_for_all,
    fetch_opened,
    open_run,
    post_opened,
    post_refusal,
    with_changes,
)
from ops.train.signals import StopRequest
from stream.cursor import Cursor, start_cursor
from stream.errors import StreamError, StreamNotFound
from stream.shards.source import ShardSource
from stream.source import Source, SourceSpec

# Seconds between two looks for a stream that does not exist yet.
LOOK_S = 0.5


Began = tuple[Opened | Summary, Keeper | None]
"""A run that is ready to learn and who keeps it; or how it ended, when there is nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What `learn` was given that says which run this is."""

    stream: str
    run_dir: Path
    config: RunConfig
    wait: bool
    init_from: str | None
    accept_bad_until: str
    until: str


def begin(
    stack: contextlib.ExitStack, asked: Asked, *, stop: StopRequest, out: TextIO | None, world: World
) -> Began:
    """Open the run as the first rank does, and tell the others.

    Args:
        stack: gets all that is to be closed at the end.
        asked: which run, as it is asked for.
        stop: ends the waiting for a stream that does not exist yet.
        out: where progress is written; None is stderr.
        world: the ranks.

    Raises:
        RunLocked, RunMismatch, StreamNotFound, CheckpointDamaged, PortInUse, NoRoom, ConfigError: see
            `ops.train.start`.
    """
    try:
        refused = next(refusals(asked.config, world.ranks), None)
        if refused is not None:
            raise ConfigError(refused)
        with room_in(asked.run_dir):
            began = _open_run(stack, asked, stop=stop, out=out)
    except (StreamError, OpsError, OSError, ValueError) as error:
        post_refusal(world, error, exit_code_of(error) or EXIT_FAILED)
        raise
    post_opened(world, began[0])
    return began


def _open_run(stack: contextlib.ExitStack, asked: Asked, *, stop: StopRequest, out: TextIO | None) -> Began:
    """Take the run directory, find where the run stands and that its stream is there."""
    stream, run_dir, config = asked.stream, asked.run_dir, asked.config
    check_address(stream)
    # Before signals become requests: taking the lock may wait for the heartbeat of another host.
    claim = stack.enter_context(RunClaim(run_dir))
    stack.enter_context(stop)
    record, changed = open_run(run_dir, stream=stream, config=config)
    config = as_begun(record, config)
    ended = _finished(run_dir, record, stream, config)
    if ended is not None:
        leave(stream, record.uuid, run_dir)  # in case the stream could not be told when the run ended
        return ended, None
    check_device(config, launched())
    _check_redis(config)
    damaged: list[str] = []
    saved = load_newest(run_dir, set_aside=True, on_damaged=damaged.append)
    _check(saved, record, run_dir)
    record = init_weights.begin(run_dir, record, config, asked.init_from, saved=saved is not None)
    spec = source_spec(stream, config, until=asked.until, cursor=saved.cursor if saved else None)
    source = _open(spec, wait=asked.wait)
    if source is not None:
        stack.callback(source.close)
    total = config.length(record.total_samples or _length(source, spec, config, saved))
    followers = stack.enter_context(_followers(run_dir, record, config, saved=saved, total=total))
    for name in damaged:
        followers.checkpointed("damaged", detail=name)
    line = ProgressLine(out if out is not None else sys.stderr, total=total)
    if followers.url:
        line.note(f"live page {followers.url}  metrics {followers.url}metrics")
    if source is None:
        source = _await(stream, spec, stop, followers, line)
        if source is None:
            return _never_began(run_dir, saved, config), None
        stack.callback(source.close)
    start = _start(source, config)
    total = _length(source, spec, config, saved)
    record = bind(run_dir, record, stream=stream, source=start.source, total_samples=total)
    opened = Opened(run_dir=run_dir, record=record, config=config, start=start, saved=saved)
    opened, changed = accepting(opened, asked.accept_bad_until, source=source, changed=changed)
    source.close()
    opened = with_changes(opened, stream=stream, changed=changed)
    return opened, Keeper(opened, claim=claim, followers=followers, line=line)


def _followers(
    run_dir: Path, record: RunRecord, config: RunConfig, *, saved: Checkpoint | None, total: int | None
) -> Followers:
    """Who follows the run, shown what it had come to when it was saved."""
    done = saved.cursor.samples if saved else 0
    past = read_lines(run_dir / "history.jsonl")
    return Followers(
        run_dir,
        record,
        config,
        samples=done,
        skipped=saved.cursor.skipped if saved else {},
        history=[entry for entry in past if entry.get("samples", 0) <= done],
        total_samples=total,
    )


def _finished(run_dir: Path, record: RunRecord, stream: str, config: RunConfig) -> Summary | None:
    """The summary of a run that has nothing left to do."""
    ended = read_summary(run_dir)
    if ended is None or ended.status != FINISHED or ended.passes < config.passes:
        return None
    if record.config.get("end_samples", 0) != config.end_samples:
        return None
    return ended if stream == record.stream else None


def _check(saved: Checkpoint | None, record: RunRecord, run_dir: Path) -> None:
    if saved is not None and saved.run != record.uuid:
        raise RunMismatch(
            f"the checkpoints in {run_dir} are of run {saved.run}, run.json says {record.uuid}: "
            "put back the run.json that belongs to them, or give --run another directory"
        )


def _check_redis(config: RunConfig) -> None:
    """Refuse an address that is none; nobody is asked, since a server that is away refuses nothing."""
    url = redis_url(config.snapshot.url)
    if url:
        try:
            connect(url).close()
        except RedisUnavailable as error:  # it will not become one by waiting
            raise ConfigError(str(error)) from error


def _open(spec: SourceSpec, *, wait: bool) -> Source | None:
    try:
        return spec.open()
    except StreamNotFound:
        if wait:
            return None
        raise


def _await(
    url: str, spec: SourceSpec, stop: StopRequest, followers: Followers, line: ProgressLine
) -> Source | None:
    """Wait until the stream is there; None when somebody asked to stop first."""
    while not stop.wait(LOOK_S):
        followers.waiting(True, f"no stream at {url} yet")
        if line.due(0):
            line.say(f"waiting for a stream at {url}")
        source = _open(spec, wait=True)
        if source is not None:
            return source
    line.end()
    return None


def _length(
    source: Source | None, spec: SourceSpec, config: RunConfig, saved: Checkpoint | None
) -> int | None:
    """Samples of the whole run when the stream has its end; see `sealed_samples`."""
    if source is None:
        return None
    start = saved.cursor if saved is not None else _start(source, config)
    samples = sealed_samples(source, start, reading_mode(config, pinned(spec, start)), config)
    return None if samples is None else samples * config.passes


def _start(source: Source, config: RunConfig) -> Cursor:
    """The cursor of a run that begins now."""
    start = partial(start_cursor, source, seed=config.seed, chunk=config.chunk, window=config.window)
    if isinstance(source, ShardSource):
        return start(begin=source.begin, order=config.order)
    return start()


def _never_began(run_dir: Path, saved: Checkpoint | None, config: RunConfig) -> Summary:
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


def learn(  # noqa: PLR0913  what the command line may say of a run
    stream: str,
    run_dir: Path,
    config: RunConfig,
    *,
    until: str = "",
    wait: bool = False,
    init_from: str | None = None,
    accept_bad_until: str = "",
    stop: StopRequest | None = None,
    out: TextIO | None = None,
) -> Summary:
    """Learn from a stream until it ends or somebody asks to stop; a run that exists goes on where it was.

    A finished run does nothing and gives the same summary.

    Args:
        stream: directory or URL of the stream.
        run_dir: the run directory; made when missing.
        config: all settings.
        until: where a Kafka topic ends for a run that begins: now, an offset, a time; empty = it stays open.
        wait: wait for a stream that does not exist yet.
        init_from: the first weights of a new run, see `ops.train.init_weights.read`; None draws them.
        accept_bad_until: go past a spent budget of unusable records: see `opening.accepting`.
        stop: asks the run to end; None takes Ctrl-C and SIGTERM over.
        out: where progress is written; None is stderr.

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
    keep_to_share()
    with contextlib.ExitStack() as stack:
        place = launched()
        if place is not None:  # before ranks are joined on devices that are not there
            check_device(config, place)
        world = join(
            device=device_of(config, place.local_rank if place else 0),
            timeout_s=config.ranks.timeout_s,
            orphaned=lambda: stop.ask(signal.SIGTERM),
        )
        stack.callback(world.close)
        if world.lead:
            asked = Asked(
                stream=stream,
                run_dir=run_dir,
                config=config,
                wait=wait,
                init_from=init_from,
                accept_bad_until=accept_bad_until,
                until=until,
            )
            began = begin(stack, asked, stop=stop, out=out, world=world)
        else:
            stack.enter_context(stop)
            # Asked to stop meanwhile, it goes on to the first vote, where all hear of it.
            began = fetch_opened(world, run_dir), None
        opened, keeper = began
        if isinstance(opened, Summary):
            return opened
        stop.warned_by(usr1=opened.config.signals.usr1, usr2=opened.config.signals.usr2)
        opened = replace(opened, saved=checkpoint_for_all(world, opened.saved))
        spec = source_spec(opened.record.stream, opened.config, cursor=opened.cursor)
        carrier = follower_of(opened.record.stream, opened.config, opened.record)
        if carrier is not None:
            stack.callback(carrier.close)
        run = Run(opened, spec=spec, stop=stop, world=world, keeper=keeper, carrier=carrier)
        if keeper is not None:
            keeper.started(opened, run.progress)
        del opened, began  # else the checkpoint's tensors would stay in memory as long as the run
        _train(run, keeper)
        return run.end()


def _train(run: Run, keeper: Keeper | None) -> None:
    """Learn to the end; what was learned before an error is saved, where all ranks met it together."""
    try:
        run.train()
    except (StreamError, OpsError, OSError) as error:
        if keeper is not None:
            with contextlib.suppress(OSError):  # of the terminal: it must not keep the rescue from being done
                keeper.line.end()
                if isinstance(error, RankFailed):
                    keeper.line.note(f"Error: {error}")
        if run.met_by_all(error):
            run.rescue()
            if keeper is None and not run.is_own(error):
                raise RankFailed(str(error), exit_code_of(error) or EXIT_FAILED) from error
        raise
    if keeper is not None:
        keeper.line.end()
