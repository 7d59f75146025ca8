"""Starting several ranks on this machine: torch's elastic launcher, with exit codes that mean something.

Where a run has many machines, each has such a launcher, and they find each other.
"""

import contextlib
import functools
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api as launcher
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ops.distributed.environment import WARNINGS, Nodes
from ops.errors import EXIT_AGAIN, EXIT_FAILED, EXIT_SIGTERM, RankLost
from stream.machine import cores

# Seconds that ranks have to save after a signal, before they are killed.
SHUTDOWN_S = 300
# Seconds that a launcher whose ranks have ended well waits for the others: torch waits 300, deaf to signals,
# also for one that left by Ctrl-C.
MEET_S = 10
# torch's launcher logs for those who debug it; what matters to a user is logged here.
LAUNCHER = "torch.distributed"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def launch(arguments: Sequence[str], *, nproc: int, nodes: Nodes | None = None) -> int:
    """Run `swavstream ARGUMENTS` as so many ranks of one run on this machine, to their end.

    Signals are passed on to the ranks, which save, and end where the signal says so. The first rank that
    fails ends all, on every machine, and nothing is started again: torch's launcher would also restart what
    fails again. When a machine joins those that learn already, their ranks save and all begin again together.

    Args:
        arguments: of the command that each rank is.
        nproc: ranks on this machine.
        nodes: the machines of the run; None = this one.

    Returns:
        The exit code of the command: 143 after SIGTERM to the launcher or to any rank, 0 after Ctrl-C, else
        that of the rank of this machine that failed first.

    Raises:
        RankLost: the machines did not find each other.
    """
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith(LAUNCHER):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    here = nodes is None or nodes.host in LOOPBACK
    if here:  # all ranks: no look-up of this host's name, which need not succeed
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if nodes is not None and nodes.least < nodes.most:
        # Else the first launcher publishes where ranks meet only once, and a machine that joins later never
        # hears of it (torch 2.14).
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
    config = LaunchConfig(
        min_nodes=nodes.least if nodes else 1,
        max_nodes=nodes.most if nodes else 1,
        nproc_per_node=nproc,
        run_id="swavstream" if nodes else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=nodes.endpoint if nodes else "127.0.0.1:0",
        local_addr="127.0.0.1" if here else None,
        max_restarts=0,
        monitor_interval=0.2,
        # No files: what ranks write goes to the terminal, and a launcher that is killed leaves none behind.
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        signals_to_handle="SIGTERM,SIGINT,SIGHUP",
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_S)),
    )
    # The configuration has no field for it.
    agent = functools.partial(_Agent, exit_barrier_timeout=MEET_S)
    setattr(launcher, "LocalElasticAgent", agent)  # noqa: B010  the type is another one
    if nodes is not None:
        more = f" to {nodes.most}" if nodes.most > nodes.least else ""
        click.echo(f"{nodes.least}{more} machines meet at {nodes.endpoint}", err=True)
    # -P: not what happens to lie in the working directory, but the program that is running.
    command = [sys.executable, "-P", "-m", "ops.cli", *arguments]
    try:
        elastic_launch(config, entrypoint=command[0])(*command[1:])
    except SignalException as error:
        return 0 if error.sigval == signal.SIGINT else EXIT_SIGTERM
    except ChildFailedError as error:
        return _told(error)
    except (RendezvousError, DistError) as error:
        why = str(error.__cause__ or error).partition("\n")[0].rstrip(".")  # the rest is for who debugs torch
        raise RankLost(
            f"the machines did not meet at {config.rdzv_endpoint}, or lost each other: {why}. Give the same "
            f"command on at least {config.min_nodes} of them; the one of this name listens on this port"
        ) from error
    return 0


def _told(error: ChildFailedError) -> int:
    """Say which rank failed, unless it has said so itself; the exit code of the whole."""
    failures = sorted(error.failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    codes = [failure.exitcode for _, failure in failures]
    # The launcher's own SIGTERM may meet a rank that is just leaving.
    if EXIT_SIGTERM in codes and all(code in {EXIT_SIGTERM, 0, -signal.SIGTERM} for code in codes):
        return EXIT_SIGTERM
    killed = [(rank, failure) for rank, failure in failures if failure.exitcode < 0]
    for rank, failure in killed[:1]:
        click.echo(
            f"Error: rank {rank} (process {failure.pid}) was killed by {_signal(failure)}; the others have "
            "ended",
            err=True,
        )
    own = [code for code in codes if code > 0 and code != EXIT_SIGTERM]
    if EXIT_AGAIN in own:
        return EXIT_AGAIN
    return EXIT_FAILED if killed or not own else own[0]


class _Agent(LocalElasticAgent):
    """Hands the signals on with which a scheduler warns a job; those that end it are torch's to hand on."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        for number in WARNINGS:
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        ranks = self._pcontext.pids().values() if self._pcontext is not None else ()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _signal(failure: ProcessFailure) -> str:
    try:
        return signal.Signals(-failure.exitcode).name
    except ValueError:
        return f"signal {-failure.exitcode}"
