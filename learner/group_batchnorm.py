"""Batch norm over groups of lanes: the same function on 1, 2 or 4 ranks, on CPU and CUDA.

Statistics are shared by the samples of a group of lanes (lane modulo G), never of a rank, so they do not
depend on how lanes are dealt. A group whose lanes lie on one rank needs no communication. One that lies on
several is summed over those alone, once per layer and direction; lanes are dealt so that they are neighbours.
With one group on one rank torch's own layers stay in place.

A rank may share its first group with the ranks before it and its last one with those after it. All sums of a
layer are begun, in the order of groups, before one is waited for: the order is the same on all ranks, so they
cannot wait in a circle.

N rows of one pass (views x samples)   C channels   G groups
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from learner.collective import Deal, Group, SingleProcess, sent_together, sum_together


class _Seen(NamedTuple):
    """Statistics of one pass through one layer, summed over the groups that were there."""

    mean_C: Tensor
    var_C: Tensor
    groups: Tensor
    """[] float: how many groups they are a sum of."""


@dataclass(slots=True)
class GroupStats:
    """What all layers of one model share: which sample belongs to which group, and what they have seen.

    The learner sets `group_B` before each pass through the network, and applies them once per update.
    """

    groups: int = 1
    """G."""
    ranks: Group = field(default_factory=SingleProcess)
    own: tuple[int, ...] = ()
    """Groups of which this rank has lanes, ascending."""
    shared: dict[int, Group] = field(default_factory=dict)
    """Those of them that other ranks have lanes of too, and these ranks."""
    led: slice | None = None
    """Groups, neighbours all, whose statistics this rank sends to the others; None = all ranks know all."""
    group_B: Tensor | None = None
    """[B] int64 on the CPU: group of each sample of the running part; None = behave as torch's layer does."""
    seen: dict["GroupBatchNorm", list[_Seen]] = field(default_factory=dict)
    """Statistics of this update, pass by pass; not yet in the running ones."""
    passes: dict["GroupBatchNorm", int] = field(default_factory=dict)
    """Passes through each layer since the running part of the batch began."""
    _rows: dict[int, dict[int, Tensor | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, deal: Deal, groups: int) -> "GroupStats":
        """For lanes dealt so; makes the groups of ranks, as all ranks do at the same time."""
        ranks_of, rank = deal.ranks_of(groups), deal.ranks.rank
        own = tuple(group for group, members in enumerate(ranks_of) if rank in members)
        parts = deal.ranks.parts([members for members in ranks_of if len(members) > 1])
        shared = {group: parts[ranks_of[group]] for group in own if len(ranks_of[group]) > 1}
        everywhere = all(len(members) in {0, deal.ranks.world_size} for members in ranks_of)
        led = [group for group in own if ranks_of[group][0] == rank]
        sent = slice(led[0], led[-1] + 1) if led else slice(0, 0)
        return cls(groups=groups, ranks=deal.ranks, own=own, shared=shared, led=None if everywhere else sent)

    def summed(self, table_GX: Tensor) -> None:
        """Replace the rows of shared groups by their sums over the ranks that share them."""
        if len(self.shared) == 1:
            ((group, ranks),) = self.shared.items()
            ranks.sum_(table_GX[group])
            return
        waits = [ranks.sum_later(table_GX[group]) for group, ranks in self.shared.items()]
        for wait in waits:
            wait()

    def begin(self, group_B: Tensor | None) -> None:
        """Another part of the batch goes through the network."""
        self.group_B = group_B
        self.passes.clear()
        self._rows.clear()

    def rows_of(self, count: int, device: torch.device) -> dict[int, Tensor | None]:
        """Rows of each group in a pass of so many; views lie one after the other. None = all of them.

        Worked out on the CPU and sent over once for each size of crop: no value is read back from the device.
        """
        if count not in self._rows and self.group_B is not None:
            group_N = self.group_B.repeat(count // len(self.group_B))
            groups = sorted(set(self.group_B.tolist()))
            rows = [torch.nonzero(group_N == group).squeeze(1) for group in groups]
            found = [None] if len(groups) == 1 else sent_together(rows, device)
            self._rows[count] = dict(zip(groups, found, strict=True))
        return self._rows[count]

    def record(self, layer: "GroupBatchNorm", seen: _Seen) -> None:
        """Add what one pass of one part of the batch saw."""
        index = self.passes.get(layer, 0)
        self.passes[layer] = index + 1
        rows = self.seen.setdefault(layer, [])
        if index == len(rows):
            rows.append(seen)
        else:
            rows[index] = _Seen(*(old + new for old, new in zip(rows[index], seen, strict=True)))

    def discard(self) -> None:
        """Drop what was seen: the update does not take place."""
        self.seen.clear()
        self.begin(None)

    @torch.no_grad()
    def apply(self) -> None:
        """Move the running statistics by the average over groups, one pass after the other."""
        if self.led is not None:
            sum_together([part for rows in self.seen.values() for row in rows for part in row], self.ranks)
        for layer, rows in self.seen.items():
            for row in rows:
                layer.follow(row.mean_C / row.groups, row.var_C / row.groups)
        self.discard()


class GroupBatchNorm(_BatchNorm):
    """Batch norm of [N, C] or [N, C, h, w] whose training statistics are those of a sample's group of lanes.

    Parameters, buffers and their names are those of torch's layer. Running statistics move in
    `GroupStats.apply` only.
    """

    def __init__(self, like: _BatchNorm, stats: GroupStats) -> None:
        if like.momentum is None or not like.affine or like.running_mean is None:
            raise ValueError("batch norm by groups needs weights, running statistics and a momentum")
        super().__init__(like.num_features, eps=like.eps, momentum=like.momentum)
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        self._stats = stats

    def _check_input_dim(self, input: Tensor) -> None:  # name and type are torch's
        if input.dim() not in (2, 4):
            raise ValueError(f"expected 2 or 4 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each row with the statistics of its group; in evaluation mode with the running ones."""
        if not self.training or self._stats.group_B is None:
            return super().forward(input)
        y, mean_GC, var_GC, count_G1 = _Normalise.apply(input, self.weight, self.bias, self._stats, self.eps)
        if self.track_running_stats:
            there_G1 = (count_G1 > 0).to(mean_GC)
            if self._stats.led is not None:
                there_G1[: self._stats.led.start] = 0
                there_G1[self._stats.led.stop :] = 0
            unbiased_GC = var_GC * (count_G1 / (count_G1 - 1).clamp_min(1)).to(var_GC)
            self._stats.record(
                self, _Seen((mean_GC * there_G1).sum(0), (unbiased_GC * there_G1).sum(0), there_G1.sum())
            )
        normalised: Tensor = y
        return normalised

    def follow(self, mean_C: Tensor, var_C: Tensor) -> None:
        """Move the running statistics a step of `momentum` towards these."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            raise AssertionError("checked when it was made")
        weight = 0.0 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, weight)
        self.running_var.lerp_(var_C, weight)
        self.num_batches_tracked.add_(1)


class _Normalise(torch.autograd.Function):
    """y = (x - mean_g) / sqrt(var_g + eps) * weight + bias, with its gradient through the statistics.

    torch's kernels do the work on the rows of each group. Where a group has rows on other ranks too, its
    sums are brought together between two of them. The loss is a sum over ranks, so the gradient of shared
    statistics is the sum of every rank's: the collective of backward. Gradients of weight and bias stay
    this rank's own; they are summed with all others after backward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, stats: GroupStats, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows_of = stats.rows_of(len(x), x.device)
        parts = {group: _take(x, rows) for group, rows in rows_of.items()}
        table = torch.zeros(stats.groups, 2 * len(weight_C) + 1, dtype=torch.float64, device=x.device)
        done = {}
        with torch.autocast(x.device.type, enabled=False):
            for group, part in parts.items():
                done[group] = torch.native_batch_norm(part, weight_C, bias_C, None, None, True, 0.0, eps)
                _, mean_C, scale_C = done[group]
                mean_C, square_C = mean_C.double(), scale_C.double().pow(-2) - eps + mean_C.double().square()
                count = part.numel() // len(weight_C)
                table[group, :-1], table[group, -1] = count * torch.cat([mean_C, square_C]), count
            stats.summed(table)
            count_G1 = table[:, -1:]
            mean_GC, square_GC = (table[:, :-1] / count_G1.clamp_min(1)).chunk(2, dim=1)
            var_GC = (square_GC - mean_GC.square()).clamp_min_(0).to(weight_C.dtype)
            mean_GC = mean_GC.to(weight_C.dtype)
            for group in stats.shared.keys() & parts.keys():
                shared = (mean_GC[group], var_GC[group], False, 0.0, eps)
                done[group] = torch.native_batch_norm(parts[group], weight_C, bias_C, *shared)
        y = _put({group: results[0] for group, results in done.items()}, rows_of, x)
        own = [results[1:] for results in done.values()]  # what torch's backward wants of its forward
        ctx.save_for_backward(x, weight_C, mean_GC, var_GC, count_G1, *(t for pair in own for t in pair))
        ctx.stats, ctx.rows_of, ctx.eps = stats, rows_of, eps
        ctx.mark_non_differentiable(mean_GC, var_GC, count_G1)
        return y, mean_GC, var_GC, count_G1

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_GC, var_GC, count_G1, *own = ctx.saved_tensors
        stats = ctx.stats
        weight_grad_C, bias_grad_C = torch.zeros_like(weight_C), torch.zeros_like(weight_C)
        table_G2C = torch.zeros(stats.groups, 2 * len(weight_C), dtype=torch.float64, device=x.device)
        dx_of = {}
        with torch.autocast(x.device.type, enabled=False):
            for index, (group, rows) in enumerate(ctx.rows_of.items()):
                # As in training where the group is whole; else statistics count as constants first.
                dx_of[group], scaled_C, plain_C = torch.ops.aten.native_batch_norm_backward(
                    _take(dy, rows),
                    _take(x, rows),
                    weight_C,
                    mean_GC[group],
                    var_GC[group],
                    *own[2 * index : 2 * index + 2],
                    group not in stats.shared,
                    ctx.eps,
                    [True, True, True],
                )
                weight_grad_C += scaled_C
                bias_grad_C += plain_C
                table_G2C[group] = torch.cat([plain_C, scaled_C])
            if stats.shared:
                stats.summed(table_G2C)
                table_G2C = (table_G2C / count_G1.clamp_min(1)).to(mean_GC.dtype)
                scale_GC = torch.rsqrt(var_GC + ctx.eps)
                for group in stats.shared.keys() & ctx.rows_of.keys():
                    rows = ctx.rows_of[group]
                    plain_C, scaled_C = table_G2C[group].chunk(2)
                    centred = _at_least_float32(_take(x, rows)) - _like_maps(mean_GC[group], x)
                    slope_C = weight_C * scale_GC[group]
                    through = centred.mul_(_like_maps(scale_GC[group] * scaled_C, x))
                    through.add_(_like_maps(plain_C, x)).mul_(_like_maps(slope_C, x))
                    dx_of[group] = (dx_of[group] - through).to(x.dtype)
        return _put(dx_of, ctx.rows_of, x), weight_grad_C, bias_grad_C, None, None


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    """Some rows, in the memory order that they had, which decides how torch sums over them; None = all."""
    if rows is None:
        return x
    if x.dim() == 2 or x.is_contiguous():
        return x.index_select(0, rows)
    return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def _put(parts: dict[int, Tensor], rows_of: dict[int, Tensor | None], like: Tensor) -> Tensor:
    """The rows of all groups back in their places."""
    first = next(iter(rows_of))
    if rows_of[first] is None:
        return parts[first]
    whole = torch.empty_like(like)
    for group, part in parts.items():
        whole[rows_of[group]] = part
    return whole


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _like_maps(values_C: Tensor, x: Tensor) -> Tensor:
    """Values of channels in a shape that goes with x."""
    return values_C[:, None, None] if x.dim() == 4 else values_C


def group_batch_norm(model: nn.Module, stats: GroupStats) -> None:
    """Replace every batch norm of a model; parameters and names stay."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, GroupBatchNorm):
                setattr(parent, name, GroupBatchNorm(child, stats))


@contextmanager
def without_tracking(model: nn.Module) -> Iterator[None]:
    """Inside, training passes leave the running statistics alone: for passes that are made a second time.

    torch's layers get copies of their buffers to write to, and not none at all: recomputed activations must
    save the same tensors for backward as the first pass did.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
    for layer, buffers in zip(layers, before, strict=True):
        if isinstance(layer, GroupBatchNorm):
            layer.track_running_stats = False
        else:
            layer.running_mean, layer.running_var, layer.num_batches_tracked = (
                None if buffer is None else buffer.clone() for buffer in buffers
            )
    try:
        yield
    finally:
        for layer, buffers in zip(layers, before, strict=True):
            layer.running_mean, layer.running_var, layer.num_batches_tracked = buffers
            if isinstance(layer, GroupBatchNorm):
                layer.track_running_stats = True


@contextmanager
def averaging(model: nn.Module) -> Iterator[None]:
    """Inside, training passes replace the running statistics by the plain average over those passes."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
