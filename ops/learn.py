"""`learn`: find where the run stands, learn, save, sum up."""

import contextlib
import signal
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from ops.beginning import Asked, begin
from ops.config.schema import RunConfig
from ops.distributed.device import check_device, device_of, keep_to_share
from ops.distributed.environment import launched
from ops.distributed.world import join
from ops.errors import EXIT_FAILED, OpsError, RankFailed, exit_code_of
from ops.keeper import Keeper
from ops.opening import checkpoint_for_all, fetch_opened
from ops.run import Run
from ops.rundir.summary import Summary
from ops.signals import StopRequest
from ops.source_spec import follower_of, source_spec
from stream.errors import StreamError


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
