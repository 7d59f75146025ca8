"""Real processes joined by gloo, kept for many tests because starting one costs seconds."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from learner.collective import Group, ProcessGroup

SIZE = 4
WAIT_S = 120.0
"""A test that waits longer has a deadlock."""


class Crew:
    """Four processes; the first two, three or all of them can be made to run a function together.

    A function gets a `Group` first. What it returns must be plain values or numpy arrays.
    """

    def __init__(self, folder: Path) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", "torchvision", "tests.learner.small_run"])
        self._members = []
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_member, args=(rank, folder / "store", theirs), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))
        for _, pipe in self._members:
            self._answer(pipe)

    def run(self, function: Callable[..., Any], world: int, **arguments: Any) -> list[Any]:
        """What the function returned on each of the ranks."""
        members = [pipe for _, pipe in self._members[:world]]
        for pipe in members:
            pipe.send((function, world, arguments))
        return [self._answer(pipe) for pipe in members]

    def close(self) -> None:
        """End the processes."""
        for _, pipe in self._members:
            pipe.send(None)
        for process, _ in self._members:
            process.join(20)

    def _answer(self, pipe: Connection) -> Any:
        if not pipe.poll(WAIT_S):
            raise TimeoutError(f"a rank has not answered for {WAIT_S} s")
        failed, answer = pipe.recv()
        if failed:
            raise AssertionError(answer)
        return answer


class Neighbours(ProcessGroup):
    """Some of the crew, whose groups of neighbours are there already."""

    def __init__(self, made: Mapping[tuple[int, ...], object], members: tuple[int, ...]) -> None:
        group = made[members]
        assert isinstance(group, dist.ProcessGroup), "only members of a group are asked"
        super().__init__(group)
        self._made = made

    def parts(self, sets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Group]:
        """As `ProcessGroup.parts`."""
        whole = tuple(range(self.world_size))
        own = [members for members in sets if self.rank in members]
        return {members: self if members == whole else Neighbours(self._made, members) for members in own}


def _member(rank: int, store: Path, pipe: Connection) -> None:
    """Body of one process."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE)
    # In every process, in this order: all neighbours that may work together, or share a group of batch norm.
    spans = [range(first, last) for first in range(SIZE) for last in range(first + 2, SIZE + 1)]
    made = {tuple(span): dist.new_group(list(span)) for span in spans}
    pipe.send((False, rank))
    while (task := pipe.recv()) is not None:
        function, world, arguments = task
        group: Group = Neighbours(made, tuple(range(world)))
        try:
            answer = (False, function(group, **arguments))
        except Exception:  # noqa: BLE001  # carried to the test, whose failure it is
            answer = (True, traceback.format_exc())
        pipe.send(answer)
    dist.destroy_process_group()
