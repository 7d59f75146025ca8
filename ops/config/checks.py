"""Whether settings go together, and whether they fit a machine and a stream: a sentence for each fault.

`refusals` gives what no run can have, `advice` what is allowed but probably not meant, `warnings` what will
not do here. Nothing is opened or taken: the caller hands in what is judged. Nothing heavy is imported.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ops.config.schema import RunConfig
from stream.config import PROTOTYPES
from stream.lanes import owners_of
from stream.machine import memory

if TYPE_CHECKING:
    from ops.config.memory import Memory

SHARP, ROUNDS_WHEN_SHARP = 0.03, 10
"""Below this epsilon Sinkhorn converges slowly; the published run nearest to it (0.03) made 10 rounds."""


def advice(config: RunConfig) -> list[str]:
    """One sentence for each setting that is allowed but probably not meant."""
    found = []
    largest = max(config.swav.prototypes)
    pool = config.batch + config.swav.queue_samples // config.batch * config.batch
    if pool < largest:
        enough = enough_queue(largest, config.batch)
        found.append(
            f"batch + queue is {pool}, fewer than the {largest} prototypes: a balanced code cannot reach "
            f"all of them in one step; lower swav.prototypes (in short runs), or raise swav.queue_samples to "
            f"{enough} or more"
        )
    epsilon, rounds = config.swav.epsilon, config.swav.sinkhorn_iterations
    if epsilon < SHARP and rounds < ROUNDS_WHEN_SHARP:
        found.append(
            f"swav.epsilon = {epsilon} with {rounds} iterations stops far from balanced codes: raise "
            f"swav.sinkhorn_iterations to {ROUNDS_WHEN_SHARP}"
        )
    annealed = config.optim.anneal_samples > 0
    if config.optim.schedule == "constant" and config.optim.final_learning_rate and not annealed:
        found.append("optim.final_learning_rate is ignored: the schedule is constant")
    if 0 < config.reseed.after_samples < 10 * largest:
        found.append(
            f"reseed.after_samples = {config.reseed.after_samples} is less than ten samples for each of the "
            f"{largest} prototypes: even traffic leaves some unused for so long; set it to {10 * largest}"
        )
    if config.replay.policy == PROTOTYPES and config.replay.window_samples < largest:
        found.append(
            f"replay.window_samples = {config.replay.window_samples:,} is fewer than {largest} prototypes: "
            "the memory cannot have an image of each; raise it"
        )
    if config.checkpoint.keep == 1:
        found.append("checkpoint.keep is 1: when the only checkpoint is damaged the run starts over")
    return found


def enough_queue(prototypes: int, batch: int) -> int:
    """Samples of a queue that brings batch + queue to K: whole batches, as it holds no others."""
    return max(0, -(-(prototypes - batch) // batch) * batch)


def refusals(config: RunConfig, ranks: int) -> Iterator[str]:
    """A sentence for each; `learn` does not start with any of them."""
    if ranks > config.lanes:
        yield (
            f"{ranks} ranks are more than {config.lanes} lanes: every rank needs one; raise lanes, or use "
            f"{config.lanes} ranks"
        )
    if 0 < config.swav.queue_samples < config.batch:
        yield (
            f"swav.queue_samples = {config.swav.queue_samples} does not hold one batch of {config.batch}: "
            "set it to 0 or to several batches"
        )
    first, least_px = config.crops[0], config.model.branch_least_px
    if config.model.branch_centres and (first.count < 2 or first.size < least_px):
        yield (
            f"model.branch_centres needs two crops of the first kind, of at least {least_px} "
            f"pixels; got {first.count} of {first.size}: change crops.0, or set model.branch_centres=0"
        )
    groups = max(1, config.model.bn_groups)
    if config.accumulate > 1 and groups % (ranks * config.accumulate):
        yield (
            f"accumulate = {config.accumulate} on {ranks} rank{'s' * (ranks > 1)} needs model.bn_groups to "
            f"be a multiple of {ranks * config.accumulate}, got {groups}: batch norm must see whole groups"
        )
    elif config.accumulate > 1 and ranks > 1 and config.lanes % groups:
        yield (
            f"accumulate = {config.accumulate} on {ranks} ranks needs lanes to be a multiple of "
            f"model.bn_groups = {groups}, got {config.lanes}: batch norm must see whole groups"
        )


HEADROOM = 1.6
"""Peaks that were measured on a CPU were up to so many times the estimate (1.40 to 1.61 over five runs of the
network of cifar10-onepass, float32 and bfloat16): convolutions there reorder what they are given."""

FEW_A_GROUP = 16
"""Samples of a group of batch norm below which its statistics are mostly noise."""

MIXED_SHARE = 0.1
"""Share of a stream that a shuffle window should hold where its source may be sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a run may use here."""

    host_bytes: int
    """Memory of the host that a program may use."""
    device_bytes: tuple[int, ...] = ()
    """Memory of each CUDA device; empty without one."""

    @classmethod
    def this(cls) -> "Machine":
        """The machine that this program runs on."""
        import torch  # noqa: PLC0415  heavy, and `advice` is wanted without it

        devices = [
            torch.cuda.get_device_properties(number).total_memory
            for number in range(torch.cuda.device_count())
        ]
        return cls(host_bytes=memory(), device_bytes=tuple(devices))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """What a stream holds."""

    records: int
    shards: int
    sealed: bool
    image_bytes: int = 0
    """Of an encoded image, the mean; 0 = not known."""


def uses_cuda(config: RunConfig, machine: Machine) -> bool:
    """Whether the network will be on a CUDA device."""
    return config.device.startswith("cuda") or (config.device == "auto" and bool(machine.device_bytes))


def warnings(
    config: RunConfig,
    *,
    base: RunConfig,
    machine: Machine,
    ranks: int,
    memory: "Memory | None",
    stream: Stream | None,
) -> list[str]:
    """What does not fit, a sentence each; the order is that in which one would mend it.

    Args:
        config: the settings to judge.
        base: the recipe's own, which the learning rate was chosen for.
        machine: where the run would be.
        ranks: learners that would share it.
        memory: of one rank; None when that is not known, as with more ranks than lanes.
        stream: what would be read; None = not known yet.
    """
    found = [*refusals(config, ranks), *_of_ranks(config, ranks), *advice(config)]
    found += [*_of_rate(config, base), *_of_groups(config, ranks), *_of_crops(config)]
    if memory is not None:
        found += _of_memory(config, machine, memory, ranks)
    if stream is not None:
        found += [*_of_stream(config, stream), *_of_order(config, stream)]
    return found


def _of_ranks(config: RunConfig, ranks: int) -> Iterator[str]:
    if ranks < config.lanes and config.lanes % ranks:
        more = math.ceil(config.lanes / ranks)
        yield (
            f"{config.lanes} lanes cannot be dealt evenly to {ranks} ranks: those with {more} lanes are "
            f"waited for in every step by those with {more - 1}"
        )


def _of_rate(config: RunConfig, base: RunConfig) -> Iterator[str]:
    optim = config.optim
    if config.batch == base.batch or optim.learning_rate != base.optim.learning_rate:
        return
    if optim.optimizer != base.optim.optimizer:
        return
    ratio = config.batch / base.batch
    rule, rate = ("with the batch", optim.learning_rate * ratio)
    if optim.optimizer == "adamw":
        rule, rate = ("with its square root", optim.learning_rate * math.sqrt(ratio))
    yield (
        f"optim.learning_rate = {optim.learning_rate:g} was chosen for batches of {base.batch}: for "
        f"{config.batch} it would be {rate:.2g}, if it goes {rule} as is usual for {optim.optimizer}"
    )


def _of_groups(config: RunConfig, ranks: int) -> Iterator[str]:
    groups = max(1, config.model.bn_groups)
    if groups > config.lanes:
        yield f"model.bn_groups = {groups} is more than the {config.lanes} lanes: some groups stay empty"
    elif config.batch / groups < FEW_A_GROUP:
        yield (
            f"model.bn_groups = {groups} leaves {config.batch // groups} samples to a group of batch norm: "
            f"its statistics are mostly noise; use {max(1, config.batch // FEW_A_GROUP)} groups or fewer"
        )
    if groups % ranks and ranks <= config.lanes:
        owners = owners_of(config.lanes, ranks, groups)
        most = max(len(set(owners[group::groups])) for group in range(groups))
        yield (
            f"model.bn_groups = {groups} is no multiple of {ranks} ranks: each layer of batch norm sends its "
            f"statistics in every pass, between {most} neighbouring ranks, which is slow where those are on "
            "several machines"
        )


def _of_crops(config: RunConfig) -> Iterator[str]:
    from learner.backbone import BACKBONES  # noqa: PLC0415  heavy, and `advice` is wanted without it

    stride = BACKBONES[config.model.backbone].stride
    for number, kind in enumerate(config.crops):
        if kind.size < stride:
            yield (
                f"crops.{number}.size = {kind.size} is less than the stride of {config.model.backbone}, "
                f"{stride} pixels: its last maps are one pixel that sees mostly padding; use larger crops, "
                "or an encoder for small images"
            )


def _of_memory(config: RunConfig, machine: Machine, memory: "Memory", ranks: int) -> Iterator[str]:
    cuda = uses_cuda(config, machine)
    here = ranks if not cuda else min(ranks, max(1, len(machine.device_bytes)))
    host = here * (memory.host if cuda else memory.host + memory.device)
    help_ = "lower batch, or raise accumulate (with model.bn_groups)"
    if not config.model.activation_checkpointing:
        help_ += ", or set model.activation_checkpointing"
    if cuda and machine.device_bytes and memory.device * HEADROOM > min(machine.device_bytes):
        yield (
            f"a rank takes about {gib(memory.device)}, "
            f"the device has {gib(min(machine.device_bytes))}: {help_}"
        )
    if host * HEADROOM > machine.host_bytes:
        yield f"the run takes about {gib(host)} of the {gib(machine.host_bytes)} here: {help_}"


def _of_stream(config: RunConfig, stream: Stream) -> Iterator[str]:
    if not stream.sealed:
        if config.optim.schedule == "cosine" and not (config.optim.schedule_samples or config.end_samples):
            yield (
                "the stream is open, so a cosine does not know its end: set optim.schedule_samples, or "
                "optim.schedule=constant"
            )
        if config.passes > 1:
            yield f"the stream is open: the first of {config.passes} passes ends only when it is sealed"
        return
    from ops.config.run_length import run_samples  # noqa: PLC0415  heavy, and `advice` is wanted without it

    samples = run_samples(config, stream.records)
    if samples == 0:
        yield (
            f"the stream has {stream.records:,} records, fewer than one batch of {config.batch}: nothing "
            "could be learned; lower batch and lanes"
        )
        return
    for name, length, what in (
        ("optim.warmup_samples", config.optim.warmup_samples, "the learning rate never reaches its peak"),
        ("swav.freeze_samples", config.swav.freeze_samples, "prototypes never move"),
        ("swav.queue_start_samples", config.swav.queue_start_samples, "the queue never begins to fill"),
    ):
        if length >= samples:
            yield f"{name} = {length:,}, but the run has {samples:,} samples: {what}"
        elif length > samples / 2:
            yield f"{name} = {length:,} is most of the {samples:,} samples of the run: lower it"
    if config.replay.window_samples > samples:
        yield (
            f"replay.window_samples = {config.replay.window_samples:,}, but the run has {samples:,} samples: "
            "the window is never full, so early samples are replayed to the end; lower it"
        )
    schedule = config.optim.schedule_samples
    if config.optim.schedule == "cosine" and schedule and not 0.9 <= schedule / samples <= 1.1:
        yield (
            f"optim.schedule_samples = {schedule:,}, but the run has {samples:,} samples: set it to 0, and "
            "the cosine ends with the run"
        )


def _of_order(config: RunConfig, stream: Stream) -> Iterator[str]:
    if not stream.sealed:
        if config.window == 0:
            yield (
                "window = 0 shuffles all commits of a sealed stream together, and this one is still open: "
                "seal it, or set window to a number of commits"
            )
        if config.window > max(1, stream.shards):
            yield (
                f"window = {config.window}, but the stream has {stream.shards} shards so far: nothing is "
                "read until there are as many, or it is sealed"
            )
        return
    held = min(1.0, config.window / max(1, stream.shards)) if config.window else 1.0
    if held < MIXED_SHARE and stream.records >= config.batch:
        yield (
            f"a shuffle window holds {config.window} of {stream.shards:,} shards, {100 * held:.1f} % of the "
            "records: where the source is sorted, batches are of few classes; raise window, or shuffle first"
        )


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
