"""How many learners share a run, and which of them this process is."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The ranks of a run; asked for here and nowhere else."""

    ranks: int = 1
    rank: int = 0
