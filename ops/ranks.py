"""How many learners share a run, which of them this process is, and how they tell each other things.

What the learner sums is the learner's own affair (`learner.collective`). Here is what the loop around it
needs: a row of integers from every rank before each update, plain values now and then, and the first rank's
checkpoint for all. One rank alone is the identity, and imports no torch.distributed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from learner.collective import Alone, Group

Rows = list[list[int]]
"""One row of integers from each rank, in order of ranks."""


class World:
    """One rank alone; `ops.process_group.JoinedWorld` is several.

    Every rank calls the same methods in the same order, from one thread. Each waits for all ranks.
    """

    ranks = 1
    rank = 0
    local_rank = 0
    """Number of this process on its host: which GPU is its own."""
    group: Group = Alone()
    """For the learner."""

    @property
    def lead(self) -> bool:
        """Whether this rank keeps the run directory and speaks for all."""
        return self.rank == 0

    def rows(self, row: Sequence[int]) -> Callable[[], Rows]:
        """Hand in a row; calling what comes back waits for everybody's.

        In between the caller may go on with other work, also with other collectives.

        Raises:
            RankLost: another rank is gone, or has not answered within the time limit.
        """
        rows = [list(row)]
        return lambda: rows

    def gather(self, value: Any) -> list[Any]:
        """A JSON value from each rank, in order of ranks."""
        return [value]

    def from_lead(self, value: Any) -> Any:
        """The JSON value that the first rank handed in."""
        return value

    def tensors_from_lead(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the first rank; what others hand in is not looked at."""
        return dict(tensors)

    def post(self, name: str, value: Any) -> None:
        """Leave a JSON value where the others can fetch it; does not wait for them."""

    def fetch(self, name: str) -> Any:
        """What the first rank posts, however long that takes."""
        raise RuntimeError("one rank alone has nothing to fetch")

    def await_lead(self, name: str) -> None:
        """Return once the first rank has come here too, however long that takes; it does not wait itself.

        Launchers give the others little time once one has ended, so nobody leaves before what the first rank
        writes is written.
        """

    def close(self) -> None:
        """Leave the others. May be called twice."""
