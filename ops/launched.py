"""What a launcher (torchrun, `learn --nproc`) says of this process: which of how many ranks it is."""

import os
from dataclasses import dataclass

# What every launcher sets.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """This process among several ranks."""

    ranks: int
    rank: int
    local_rank: int
    """Number on this host: which GPU is its own."""
    life: int
    """Times that the launcher has started the ranks anew."""
    launcher_keeps_store: bool
    """The store in which ranks meet outlives them; else the first rank holds it."""


def launched() -> Launched | None:
    """Which of several ranks this process is; None when it is alone, launched or not."""
    if any(name not in os.environ for name in VARIABLES) or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    rank = int(os.environ["RANK"])
    return Launched(
        ranks=int(os.environ["WORLD_SIZE"]),
        rank=rank,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        life=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        launcher_keeps_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
