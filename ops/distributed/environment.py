"""What a launcher (torchrun, `learn --nproc`) sets for this process, and the machines of a run."""

import os
import re
import signal
from dataclasses import dataclass

# What every launcher sets.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# With these a scheduler warns a job before it ends it.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """This process among several ranks."""

    world_size: int
    rank: int
    local_rank: int
    """Number on this host: which GPU is its own."""
    restarts: int
    """Times that the launcher has started the ranks again."""
    launcher_keeps_store: bool
    """The store in which ranks meet outlives them; else the first rank holds it."""


def quiet_torch() -> None:
    """Before torch is imported: its warnings with a stack of C++ say what the ranks tell in a line."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def launched() -> Launched | None:
    """Which of several ranks this process is; None when it is alone, launched or not."""
    if any(name not in os.environ for name in VARIABLES) or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    rank = int(os.environ["RANK"])
    return Launched(
        world_size=int(os.environ["WORLD_SIZE"]),
        rank=rank,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        launcher_keeps_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """The machines of a run; on each of them the same command is given."""

    least: int
    """Machines that have to be there before anything begins."""
    most: int
    """Machines that can take part."""
    endpoint: str
    """HOST:PORT of one of them, where all meet; its launcher listens there."""

    @property
    def host(self) -> str:
        """The one where all meet."""
        return self.endpoint.rpartition(":")[0]


def nodes_of(nnodes: str, endpoint: str) -> Nodes | None:
    """The machines that a command line names; None when it is about this one only.

    Args:
        nnodes: N, or LEAST:MOST when they may come and go; "" = this machine only.
        endpoint: HOST:PORT, or "".

    Raises:
        ValueError: one without the other, or not of this form; the message says what to give.
    """
    if not nnodes and not endpoint:
        return None
    if not nnodes or not endpoint:
        raise ValueError("--nnodes and --rdzv-endpoint go together: how many machines, and where they meet")
    counts = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", nnodes, re.ASCII)
    least, most = (int(counts[1]), int(counts[2] or counts[1])) if counts else (1, 0)
    if least > most:
        raise ValueError(
            f"--nnodes {nnodes}: give a number of machines, or the least and the most, as in 1:8"
        )
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"--rdzv-endpoint {endpoint}: give HOST:PORT of one of the machines")
    return Nodes(least=least, most=most, endpoint=endpoint)
