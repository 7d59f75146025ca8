"""The ranks that share a run: torch.distributed, as a launcher (torchrun, `learn --nproc`) has set it up.

What the learner sums is the learner's own affair (`learner.collective`). Here is what the loop around it
needs: a row of integers from every rank before each update, plain values now and then, and the first rank's
checkpoint for all. One rank alone is the identity, and imports no torch.distributed.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from learner.collective import Group, ProcessGroup, SingleProcess
from ops.distributed.environment import Launched, launched
from ops.errors import LauncherGone, RankLost

Rows = list[list[int]]
"""One row of integers from each rank, in order of ranks."""


class World:
    """One rank alone; `ops.distributed.world.JoinedWorld` is several.

    Every rank calls the same methods in the same order, from one thread. Each waits for all ranks.
    """

    world_size = 1
    rank = 0
    local_rank = 0
    """Number of this process on its host: which GPU is its own."""
    group: Group = SingleProcess()
    """For the learner."""

    @property
    def is_main(self) -> bool:
        """Whether this rank keeps the run directory and speaks for all."""
        return self.rank == 0

    def all_gather_ints(self, row: Sequence[int]) -> Callable[[], Rows]:
        """Hand in a row; calling what comes back waits for the rows of all ranks.

        In between the caller may go on with other work, also with other collectives.

        Raises:
            RankLost: another rank is gone, or has not answered within the time limit.
        """
        rows = [list(row)]
        return lambda: rows

    def all_gather_objects(self, value: Any) -> list[Any]:
        """A JSON value from each rank, in order of ranks."""
        return [value]

    def broadcast_object(self, value: Any) -> Any:
        """The JSON value that the first rank handed in."""
        return value

    def broadcast_tensors(
        self, tensors: Mapping[str, torch.Tensor], *, wanted: Callable[[str], bool] = lambda _name: True
    ) -> dict[str, torch.Tensor]:
        """The tensors of the first rank; what others hand in is not looked at.

        Args:
            tensors: of the first rank.
            wanted: whether this rank keeps the tensor of a name; the first one keeps all.
        """
        return dict(tensors)

    def gather_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of all ranks by their names, on the first one; nothing on the others.

        Args:
            tensors: on the CPU; where two ranks have one of the same name, they are equal.
        """
        return dict(tensors)

    def store_set(self, name: str, value: Any) -> None:
        """Leave a JSON value where the others can fetch it; does not wait for them."""

    def store_wait(self, name: str) -> Any:
        """What the first rank posts, however long that takes."""
        raise RuntimeError("one rank alone has nothing to fetch")

    def main_barrier(self, name: str) -> None:
        """Return once the first rank has come here too, however long that takes; it does not wait itself.

        Launchers give the others little time once one has ended, so no rank leaves before what the first one
        writes is written.
        """

    def close(self) -> None:
        """Leave the others. May be called twice."""


logger = logging.getLogger(__name__)

# Seconds that ranks which lost another give each other to say that they are still there.
ROLL_CALL_S = 3.0
POLL_S = 0.2


def join(*, device: torch.device, timeout_s: float, orphaned: Callable[[], None] = lambda: None) -> World:
    """The world that a launcher put this process into; alone where none did.

    Args:
        device: what the learner computes on: NCCL joins ranks on CUDA, gloo all others.
        timeout_s: seconds after which a rank that does not answer counts as lost.
        orphaned: called, from a thread, when the launcher is gone.

    Raises:
        RankLost: the other ranks did not come.
    """
    if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
        # Before NCCL chooses one, and before page-locked memory opens the first one as well.
        torch.cuda.set_device(device)
    place = launched()
    if place is None:
        return World()
    return JoinedWorld(place, device=device, timeout_s=timeout_s, orphaned=orphaned)


class JoinedWorld(World):
    """One of several ranks. What they exchange outside the learner goes over gloo, on any device."""

    def __init__(
        self, place: Launched, *, device: torch.device, timeout_s: float, orphaned: Callable[[], None]
    ) -> None:
        self.world_size, self.rank, self.local_rank = place.world_size, place.rank, place.local_rank
        self.timeout_s, self._kept_by_launcher = timeout_s, place.launcher_keeps_store
        timeout = timedelta(seconds=timeout_s)
        # What the host alone needs is agreed over gloo there too: no rank waits for a GPU because of it.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store, _, _ = next(rendezvous("env://", timeout=timeout))
            # A launcher may keep the store over restarts: what an earlier session left there is not ours.
            self._store = PrefixStore(f"swavstream/{place.restarts}", store)
            dist.init_process_group(
                backend,
                store=PrefixStore(f"group/{place.restarts}", store),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timeout,
            )
            # A group of its own: a row may be under way while the learner sums gradients.
            control = dist.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            raise RankLost(f"{self.world_size} ranks could not be joined: {error}") from error
        assert isinstance(control, dist.ProcessGroup), "every rank is a member"
        self._control = control
        self.group = _WatchedGroup(self)
        self._left, self._orphaned = threading.Event(), orphaned
        self._waiting = 0
        threading.Thread(target=self._answer_roll_calls, name="roll-call", daemon=True).start()

    def all_gather_ints(self, row: Sequence[int]) -> Callable[[], Rows]:
        """One all-gather, issued now and waited for later."""
        mine = torch.tensor(row, dtype=torch.int64)
        table = [torch.empty_like(mine) for _ in range(self.world_size)]
        with self.watched():
            work = dist.all_gather(table, mine, group=self._control, async_op=True)
        assert work is not None

        def rows() -> Rows:
            with self.watched():
                work.wait()
            return [one.tolist() for one in table]

        return rows

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Two collectives: the sizes, then the values."""
        body = json.dumps(value).encode()
        sizes = [size for (size,) in self.all_gather_ints([len(body)])()]
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        mine[: len(body)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        table = [torch.empty_like(mine) for _ in range(self.world_size)]
        with self.watched():
            dist.all_gather(table, mine, group=self._control)
        return [json.loads(one[:size].numpy().tobytes()) for one, size in zip(table, sizes, strict=True)]

    def broadcast_object(self, value: Any) -> Any:
        """An all-gather, of which only the first row is kept."""
        return self.all_gather_objects(value if self.is_main else None)[0]

    def broadcast_tensors(
        self, tensors: Mapping[str, torch.Tensor], *, wanted: Callable[[str], bool] = lambda _name: True
    ) -> dict[str, torch.Tensor]:
        """Shapes, then a broadcast for each tensor; the other ranks need not see the run directory."""
        received = {}
        for name, spec in self.broadcast_object(_specs(tensors)).items():
            one = tensors[name].contiguous() if self.is_main else _empty(spec)
            if one.numel():
                with self.watched():
                    dist.broadcast(one.reshape(-1).view(torch.uint8), group=self._control, group_src=0)
            if self.is_main or wanted(name):
                received[name] = one
        return received

    def gather_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Shapes, then one message for each tensor, rank after rank."""
        found = dict(tensors)
        for rank, specs in enumerate(self.all_gather_objects(_specs(tensors))):
            if rank == 0 or self.rank not in {0, rank}:
                continue
            for name, spec in specs.items():
                one = _empty(spec) if self.is_main else tensors[name].contiguous()
                if one.numel():
                    whole = one.reshape(-1).view(torch.uint8)
                    with self.watched():
                        if self.is_main:
                            dist.recv(whole, group=self._control, group_src=rank)
                        else:
                            dist.send(whole, group=self._control, group_dst=0)
                found[name] = one
        return found if self.is_main else {}

    def store_set(self, name: str, value: Any) -> None:
        """In the store that the launcher, or the first rank, keeps."""
        with self.watched():
            self._store.set(name, json.dumps(value))

    def store_wait(self, name: str) -> Any:
        """Looks in the store a few times a second."""
        while True:
            with self.watched():
                if self._store.check([name]):
                    return json.loads(self._store.get(name))
            time.sleep(POLL_S)

    def main_barrier(self, name: str) -> None:
        """Where the launcher is gone, which would end the others, no rank waits."""
        with contextlib.suppress(LauncherGone):
            self._main_barrier(name)

    def _main_barrier(self, name: str) -> None:
        if not self.is_main:
            self.store_wait(name)
            self.store_set(f"{name}/{self.rank}", True)
            return
        self.store_set(name, True)
        if self._kept_by_launcher:
            return
        seen = [f"{name}/{rank}" for rank in range(1, self.world_size)]
        deadline = time.monotonic() + ROLL_CALL_S
        with self.watched():  # this process holds the store: others may still have to look
            while time.monotonic() < deadline and not self._store.check(seen):
                time.sleep(POLL_S / 4)

    def close(self) -> None:
        """Leave the process group."""
        self._left.set()
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turn what torch.distributed raises when a rank is gone into an error that names it."""
        self._waiting += 1
        try:
            yield
        except RuntimeError as error:
            raise self._lost(error) from error
        finally:
            self._waiting -= 1

    def _lost(self, error: RuntimeError) -> RankLost:
        missing = self._missing()
        if missing is None:
            return LauncherGone(
                f"the launcher of the {self.world_size} ranks is gone, in whose memory they met: run the "
                "same command again, it goes on from the last checkpoint"
            )
        if not missing:
            why = " ".join(str(error).split())[:300]
            return RankLost(
                f"the ranks lost each other, although all wait for the others: {why}. Look at the network "
                "between them, and run the same command again"
            )
        names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {self.world_size}"
        return RankLost(
            f"{names} died, or did not answer for {self.timeout_s:g} s (ranks.timeout_s). What was "
            "learned since the last checkpoint is lost: run the same command again, with as many ranks as "
            "you like"
        )

    def _missing(self) -> list[int] | None:
        """Who does not answer a roll call in the store; None when the store is gone, and its launcher."""
        missing = list(range(self.world_size))
        try:
            self._store.set("roll", "called")
            deadline = time.monotonic() + ROLL_CALL_S
            while missing and time.monotonic() < deadline:
                missing = [rank for rank in missing if not self._store.check([f"here/{rank}"])]
                time.sleep(POLL_S / 4)
        except RuntimeError:
            return None if self._kept_by_launcher else [0]  # who held the store is gone
        if self.is_main and not self._kept_by_launcher:
            time.sleep(ROLL_CALL_S)  # this process holds the store: others may still be calling
        return missing

    def _answer_roll_calls(self) -> None:
        """In a thread: a rank that waits for others in a collective is there all the same, and answers.

        One that hangs elsewhere, in a read or in a kernel, does not, and is the one that is missed.
        """
        try:
            while not self._left.wait(ROLL_CALL_S / 4):
                if self._store.check(["roll"]) and self._waiting:
                    self._store.set(f"here/{self.rank}", "1")
        except RuntimeError:  # the store is gone, and the process that held it
            if self._kept_by_launcher and not self._left.is_set():
                if self.is_main:
                    logger.warning("the launcher of the %d ranks is gone: they save and end", self.world_size)
                self._orphaned()


def _specs(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Type and shape of tensors, as JSON values."""
    return {name: [str(one.dtype).partition(".")[2], list(one.shape)] for name, one in tensors.items()}


def _empty(spec: Sequence[Any]) -> torch.Tensor:
    dtype, shape = spec
    return torch.empty(shape, dtype=getattr(torch, dtype))


class _WatchedGroup(ProcessGroup):
    """The learner's group, whose errors say which rank was lost."""

    def __init__(self, world: JoinedWorld, process_group: dist.ProcessGroup | None = None) -> None:
        self._world = world
        super().__init__(process_group, timeout=timedelta(seconds=world.timeout_s))
        self._watched = world.watched

    def of(self, process_group: dist.ProcessGroup) -> ProcessGroup:
        """As `ProcessGroup.of`."""
        return _WatchedGroup(self._world, process_group)

    def parts(self, sets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Group]:
        """As `ProcessGroup.parts`."""
        with self._world.watched():
            return super().parts(sets)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `ProcessGroup.sum`."""
        with self._watched():
            return super().sum(tensor)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `ProcessGroup.max`."""
        with self._watched():
            return super().max(tensor)

    def sum_(self, tensor: torch.Tensor) -> None:
        """As `ProcessGroup.sum_`."""
        with self._watched():
            super().sum_(tensor)

    def sum_later(self, tensor: torch.Tensor) -> Callable[[], None]:
        """As `ProcessGroup.sum_later`; a rank that is lost may show at either end."""
        with self._watched():
            wait = super().sum_later(tensor)

        def watched_wait() -> None:
            with self._watched():
                wait()

        return watched_wait
