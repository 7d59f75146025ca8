"""`learn`: take the run directory, find where the run stands, learn, save, sum up."""

import contextlib
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch

from ops import initial
from ops.checkpoint import Checkpoint, load_newest
from ops.config import RunConfig
from ops.errors import EXIT_FAILED, ConfigError, OpsError, RankFailed, RunMismatch
from ops.exit_codes import exit_code_of
from ops.followers import Followers
from ops.keeper import Keeper
from ops.launched import Launched, launched
from ops.lock import RunLock
from ops.opening import (
    Opened,
    accepting,
    bind,
    checkpoint_for_all,
    fetch_opened,
    open_run,
    post_opened,
    post_refusal,
    with_changes,
    write_changes,
)
from ops.outcome import FINISHED, STOPPED, Progress, Summary, read_summary, summarise
from ops.process_group import join
from ops.progress import ProgressLine
from ops.ranks import World
from ops.registration import leave
from ops.run import Run, device_of
from ops.rundir import RunRecord, read_lines, room_in
from ops.signals import StopRequest
from ops.source_spec import follower_of, pinned, reading_mode, sealed_steps, source_spec
from stream.errors import StreamError, StreamNotFound
from stream.lanes import Cursor, Source, SourceSpec
from stream.loader import start_cursor
from stream.shard_source import ShardSource

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
        init_from: the first weights of a new run, see `ops.initial.read`; None draws them.
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
            asked = _Asked(
                stream=stream,
                run_dir=run_dir,
                config=config,
                wait=wait,
                init_from=init_from,
                accept_bad_until=accept_bad_until,
                until=until,
            )
            began = _begin(stack, asked, stop=stop, out=out, world=world)
        else:
            stack.enter_context(stop)
            # Asked to stop meanwhile, it goes on to the first vote, where all hear of it.
            began = fetch_opened(world, run_dir), None
        opened, keeper = began
        if isinstance(opened, Summary):
            return opened
        opened = replace(opened, saved=checkpoint_for_all(world, opened.saved))
        spec = source_spec(opened.record.stream, opened.config, cursor=opened.cursor)
        carrier = follower_of(opened.record.stream, opened.config, opened.record)
        if carrier is not None:
            stack.callback(carrier.close)
        run = Run(opened, spec=spec, stop=stop, world=world, keeper=keeper, carrier=carrier)
        if keeper is not None:
            with room_in(run_dir):
                write_changes(opened)
            (run_dir / "summary.json").unlink(missing_ok=True)
            keeper.followers.start_publishing(run.progress)
        del opened, began  # else the checkpoint's tensors would stay in memory as long as the run
        _train(run, keeper)
        return run.end()


Began = tuple[Opened | Summary, Keeper | None]
"""A run that is ready to learn and who keeps it; or how it ended, when there is nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What `learn` was given that says which run this is."""

    stream: str
    run_dir: Path
    config: RunConfig
    wait: bool
    init_from: str | None
    accept_bad_until: str
    until: str


def _begin(
    stack: contextlib.ExitStack, asked: _Asked, *, stop: StopRequest, out: TextIO | None, world: World
) -> Began:
    """Open the run as the first rank does, and tell the others."""
    try:
        if world.ranks > asked.config.lanes:
            raise ConfigError(
                f"{world.ranks} ranks, but a run of {asked.config.lanes} lanes has at most as many: start "
                "fewer, or begin a run with more lanes"
            )
        with room_in(asked.run_dir):
            began = _open_run(stack, asked, stop=stop, out=out)
    except (StreamError, OpsError, OSError, ValueError) as error:
        post_refusal(world, error, exit_code_of(error) or EXIT_FAILED)
        raise
    post_opened(world, began[0])
    return began


def _open_run(stack: contextlib.ExitStack, asked: _Asked, *, stop: StopRequest, out: TextIO | None) -> Began:
    """Take the run directory, find where the run stands and that its stream is there."""
    stream, run_dir, config = asked.stream, asked.run_dir, asked.config
    run_dir.mkdir(parents=True, exist_ok=True)
    # Before signals become requests: taking the lock may wait for the heartbeat of another host.
    stack.enter_context(RunLock(run_dir))
    stack.enter_context(stop)
    record, changed = open_run(run_dir, stream=stream, config=config)
    ended = _finished(run_dir, record, stream, config)
    if ended is not None:
        leave(stream, record.uuid)  # in case the stream could not be told when the run ended
        return ended, None
    check_device(config, launched())
    damaged: list[str] = []
    saved = load_newest(run_dir, set_aside=True, on_damaged=damaged.append)
    _check(saved, record, run_dir)
    record = initial.begin(run_dir, record, config, asked.init_from, saved=saved is not None)
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
    return opened, Keeper(opened, followers=followers, line=line)


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


def check_device(config: RunConfig, place: Launched | None = None) -> None:
    """Refuse a device that this machine, or this rank, does not have.

    Raises:
        ConfigError: says which there are.
    """
    if place is not None and config.device.startswith("cuda:"):
        raise ConfigError(
            f"device {config.device} with {place.ranks} ranks: all would take the same GPU; give "
            "--set device=cuda"
        )
    device = device_of(config, place.local_rank if place else 0)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        whose = f"rank {place.rank} wants {device}, but this host" if place else f"{device}: this machine"
        raise ConfigError(
            f"device {config.device} is not there ({whose} has {torch.cuda.device_count()} CUDA devices); "
            "start as many ranks as there are GPUs, or give --set device=cpu"
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
    """Samples of the whole run when the stream has its end; see `sealed_steps`."""
    if source is None:
        return None
    start = saved.cursor if saved is not None else _start(source, config)
    steps = sealed_steps(source, start, reading_mode(config, pinned(spec, start)), config)
    return None if steps is None else steps * config.batch * config.passes


def _start(source: Source, config: RunConfig) -> Cursor:
    """The cursor of a run that begins now."""
    begin = source.begin if isinstance(source, ShardSource) else 0
    return start_cursor(source, seed=config.seed, chunk=config.chunk, window=config.window, begin=begin)


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
