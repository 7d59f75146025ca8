"""Gradients summed over ranks while backward is still at work.

A bucket of gradients is summed as soon as all of them are final, beside the computation of those before it
in the network. On NCCL only the last bucket is waited for; with gloo the sums run in threads of their own.

The ranks' order of collectives is one and the same. They all run one program on graphs of one shape, whatever
their numbers of samples; autograd walks a graph in an order that follows from the graph alone, in one thread
a device; and buckets are begun in their fixed order, never in that in which they fill up. So these sums and
the collectives of batch norm's own backward can share the learner's process group, as those of
DistributedDataParallel and SyncBatchNorm do. A group of their own would not be safer: two NCCL communicators
whose kernels a GPU may run in either order can wait for each other.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learner.collective import Group

BUCKET_BYTES = 25 * 1024 * 1024
"""Gradients are summed in pieces of about this size: large enough for the network between the ranks, small
enough that the first one starts early. One bucket is what it takes in memory: gradients move into theirs."""


@dataclass(slots=True, eq=False)
class _Bucket:
    """Gradients that are summed together."""

    parameters: list[nn.Parameter]
    missing: int
    """Gradients that are not final yet."""
    wait: Callable[[], None] = lambda: None
    """Returns once the sum is there."""


class GradientSums:
    """Replaces the gradients of one backward pass by their sums over ranks.

    Not DistributedDataParallel: no buffer is ever broadcast, gradients may be missing while prototypes are
    frozen, nothing is averaged, and backward passes before the last one of an update are let alone.

    Args:
        parameters: in the order of the forward pass, all of one dtype; hooks on them are set for good.
        group: the ranks. One alone: nothing is done.
        bucket_bytes: size of a piece; one gradient at least.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], group: Group, *, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        # Backward comes to the last of the network first.
        self._parameters = list(parameters)[::-1]
        self._group = group
        self._bucket_bytes = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._begun = 0
        if group.world_size > 1:
            for parameter in self._parameters:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._final)  # type: ignore[no-untyped-call]

    @contextmanager
    def summed(self, *, without: Sequence[nn.Parameter] = ()) -> Iterator[None]:
        """Around the last backward pass of an update; behind it every gradient is the sum over ranks.

        On every rank alike. What has no gradient has none afterwards. After an exception gradients are
        undefined, and nothing is waited for.

        Args:
            without: parameters that will get no gradient, so that no bucket is held up by them until the end.
                Others that get none delay theirs, and nothing else.
        """
        if self._group.world_size == 1:
            yield
            return
        self._open(without)
        try:
            yield
            for bucket in self._buckets[self._begun :]:
                self._begin(bucket)
            for bucket in self._buckets:
                bucket.wait()
        finally:
            self._buckets, self._bucket_of, self._begun = [], {}, 0

    def _open(self, without: Sequence[nn.Parameter]) -> None:
        """Deal the parameters to buckets; those without a gradient come last."""
        late = set(without)
        size = self._bucket_bytes
        for parameter in self._parameters:
            if parameter in late or not parameter.requires_grad:
                continue
            if size >= self._bucket_bytes:
                self._buckets.append(_Bucket(parameters=[], missing=0))
                size = 0
            bucket = self._buckets[-1]
            bucket.parameters.append(parameter)
            bucket.missing += 1
            self._bucket_of[parameter] = bucket
            size += parameter.numel() * parameter.element_size()
        # Should one get a gradient all the same, it is summed at the end: its bucket never fills up.
        self._buckets.append(_Bucket(parameters=list(without), missing=1))

    def _final(self, parameter: nn.Parameter) -> None:
        """The hook: called in the thread of backward when a gradient is complete."""
        bucket = self._bucket_of.get(parameter)
        if bucket is None:
            return
        bucket.missing -= 1
        while self._buckets[self._begun].missing == 0:
            self._begin(self._buckets[self._begun])

    @torch.no_grad()
    def _begin(self, bucket: _Bucket) -> None:
        """Let the ranks sum a bucket; the next one's turn comes."""
        self._begun += 1
        there = [parameter for parameter in bucket.parameters if parameter.grad is not None]
        if not there:
            return
        flat = torch.cat([_numbers(parameter) for parameter in there])
        for parameter, part in zip(there, torch.split(flat, [p.numel() for p in there]), strict=True):
            parameter.grad = _shaped(part, parameter)
        bucket.wait = self._group.sum_later(flat)


def _in_nhwc(parameter: nn.Parameter) -> bool:
    """Which order its gradient has; by the parameter, so that it is the same on every rank."""
    return parameter.dim() == 4 and not parameter.is_contiguous()


def _numbers(parameter: nn.Parameter) -> Tensor:
    """A gradient as one row, in the order in which it lies in memory: nothing is copied."""
    assert parameter.grad is not None, "the caller has looked"
    gradient = parameter.grad.permute(0, 2, 3, 1) if _in_nhwc(parameter) else parameter.grad
    return gradient.reshape(-1)


def _shaped(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """The inverse of `_numbers`: a part of a bucket as a gradient."""
    if not _in_nhwc(parameter):
        return part.view(parameter.shape)
    out, channels, height, width = parameter.shape
    return part.view(out, height, width, channels).permute(0, 3, 1, 2)
