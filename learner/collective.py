"""The ranks that learn together, as the algorithm sees them: a sum, a maximum, and copies to their devices.

Every function of the learner takes a `Group` and never asks whether torch.distributed is there; one rank is
the identity. Arguments are not changed (except by `sum_`), and every rank calls the same collectives in the
same order.

A copy to CUDA out of ordinary memory goes through a staging buffer of the driver, and the host may have to
wait for all that the device still does. Out of page-locked memory it is put in the stream like any kernel.
What is computed on the CPU for an update goes this way; on the CPU nothing is copied.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Group(Protocol):
    """Ranks that hold one global batch between them.

    Called from one thread at a time; each call but `sum_later` waits for all. Takes tensors on the device
    and, for what the host alone needs, on the CPU.
    """

    rank: int
    world_size: int

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, the same bits on each; the argument stays as it is (alone: it is returned)."""
        ...

    def max(self, tensor: Tensor) -> Tensor:
        """Element-wise maximum over ranks; the argument stays as it is (alone: it is returned)."""
        ...

    def sum_(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over ranks."""
        ...

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        """Begin what `sum_` does, and go on; calling what comes back waits until it is done.

        Until then the tensor is not to be touched.
        """
        ...

    def parts(self, sets: Sequence[tuple[int, ...]]) -> "dict[tuple[int, ...], Group]":
        """Groups of some of the ranks each: those that this rank is in, by their members.

        Every rank asks for the same ones in the same order, also for those that it is not in. Made at the
        first call, and kept.
        """
        ...


class SingleProcess:
    """One rank: every sum is already there."""

    rank = 0
    world_size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The argument."""
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The argument."""
        return tensor

    def sum_(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        """Nothing to wait for."""
        return lambda: None

    def parts(self, sets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Group]:
        """Itself."""
        return {members: self for members in sets if members == (0,)}


class ProcessGroup:
    """The ranks of a torch.distributed process group: gloo for tensors on the CPU, NCCL for CUDA.

    On CUDA the host waits for none of them: like kernels they are put in the stream.

    Args:
        process_group: None for the default group, which the caller has initialised.
        timeout: of groups that are made of some of the ranks; None = torch's default.
    """

    def __init__(
        self, process_group: dist.ProcessGroup | None = None, *, timeout: timedelta | None = None
    ) -> None:
        self._process_group = process_group
        self._timeout = timeout
        self._parts: dict[tuple[int, ...], ProcessGroup | None] = {}
        self.rank = dist.get_rank(process_group)
        self.world_size = dist.get_world_size(process_group)

    def of(self, process_group: dist.ProcessGroup) -> "ProcessGroup":
        """The same kind of object over another process group."""
        return ProcessGroup(process_group, timeout=self._timeout)

    def parts(self, sets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Group]:
        """Process groups of their own, made once; all ranks together need none.

        torch names a group by how many there were before, so every rank has to count all of them, also
        those that it is not in; else its members wait for each other under different names.
        """
        ranks = dist.get_process_group_ranks(self._process_group or dist.group.WORLD)
        for members in sets:
            if members != tuple(range(self.world_size)) and members not in self._parts:
                made = dist.new_group([ranks[member] for member in members], timeout=self._timeout)
                # A rank that is not in it gets a mark instead of a group.
                inside = isinstance(made, dist.ProcessGroup) and self.rank in members
                self._parts[members] = self.of(made) if inside else None  # type: ignore[arg-type]
        found = {members: self._parts.get(members, self) for members in sets}
        return {members: group for members, group in found.items() if group is not None}

    def sum(self, tensor: Tensor) -> Tensor:
        """A new tensor."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self._process_group)
        return total

    def max(self, tensor: Tensor) -> Tensor:
        """A new tensor."""
        largest = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._process_group)
        return largest

    def sum_(self, tensor: Tensor) -> None:
        """In place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self._process_group)

    def sum_later(self, tensor: Tensor) -> Callable[[], None]:
        """In place; on CUDA it is the stream that waits, not the host."""
        work = dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self._process_group, async_op=True)
        assert work is not None, "only members of the group call it"

        def wait() -> None:
            work.wait()

        return wait


class Deal:
    """Which rank has which lane: batch norm and the queue rely on it.

    Args:
        ranks: that share the lanes.
        owners: rank of each lane, lanes from 0 on; None where one rank has all.

    Raises:
        ValueError: several ranks without it, or a rank that has no lane.
    """

    def __init__(self, ranks: Group, owners: Sequence[int] | None = None) -> None:
        self.ranks = ranks
        if ranks.world_size > 1 and (owners is None or set(owners) != set(range(ranks.world_size))):
            raise ValueError(
                f"{ranks.world_size} ranks need to be told the owner of each lane, and each has one"
            )
        self._owner_V = torch.tensor([] if owners is None else owners, dtype=torch.int64)

    def mine(self, lane_B: Tensor) -> Tensor:
        """[B] bool: which of some lanes (int64 on the CPU) are this rank's."""
        if self.ranks.world_size == 1:
            return torch.ones(len(lane_B), dtype=torch.bool)
        known_B = (lane_B >= 0) & (lane_B < len(self._owner_V))
        return known_B & (self._owner_V[lane_B.clamp(0, len(self._owner_V) - 1)] == self.ranks.rank)

    def ranks_of(self, groups: int) -> list[tuple[int, ...]]:
        """For each group of lanes (lane modulo groups) the ranks that have some of it, ascending."""
        if self.ranks.world_size == 1:
            return [(0,)] * groups
        owners = self._owner_V.tolist()
        return [tuple(sorted(set(owners[group::groups]))) for group in range(groups)]


def gather_rows(group: Group, rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks, one rank after the other.

    Written as a sum of zero-padded tables, so that `Group` needs one operation less and unequal counts are
    fine.

    Args:
        group: the ranks.
        rows: [counts[rank], ...] of any dtype that can be summed.
        counts: rows of every rank.

    Returns:
        [sum of counts, ...], the same on every rank.
    """
    if group.world_size == 1:
        return rows
    first = sum(counts[: group.rank])
    table = rows.new_zeros((sum(counts), *rows.shape[1:]))
    table[first : first + counts[group.rank]] = rows
    group.sum_(table)
    return table


def counts_of_ranks(group: Group, count: int) -> tuple[int, ...]:
    """How many samples every rank brings; agreed on the CPU, so that no rank waits for a GPU."""
    if group.world_size == 1:
        return (count,)
    table = torch.zeros(group.world_size, dtype=torch.int64)
    table[group.rank] = count
    group.sum_(table)
    return tuple(table.tolist())


def sum_together(tensors: Sequence[Tensor], group: Group) -> None:
    """Replace tensors of one dtype by their sums over ranks, in one collective."""
    if group.world_size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    group.sum_(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


ALIGNMENT = 16
"""Bytes at whose multiples the parts of a packed buffer begin: those of the largest dtype."""


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the host goes on at once.

    Args:
        tensor: in ordinary or page-locked memory, not to be changed before the device has got it unless it
            is copied here (ordinary memory is); or on the device already.
        device: where it is needed.
    """
    if device.type in {"cpu", tensor.device.type}:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Several small tensors of any dtypes on the device, in one copy; the host goes on at once.

    Args:
        tensors: on the CPU.
        device: where they are needed.
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    edges = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
    packed = torch.empty(edges[-1], dtype=torch.uint8, pin_memory=True)
    for tensor, first, size in zip(tensors, edges, sizes, strict=False):
        packed[first : first + size].view(tensor.dtype).copy_(tensor.reshape(-1))
    far = packed.to(device, non_blocking=True)
    return [
        far[first : first + size].view(tensor.dtype).view(tensor.shape)
        for tensor, first, size in zip(tensors, edges, sizes, strict=False)
    ]
