"""How much memory one rank of a run takes, worked out from its settings without taking it.

n views   A assigned views   B samples of this rank   L samples of this rank in the queue   K prototypes
D embedding size
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.regnet import RegNet

from learner.model import SwavModel
from ops.config.schema import RunConfig
from stream.config import PROTOTYPES
from stream.loader.shared_memory import FrameLayout

TRACED = 2
"""Samples that the network is traced with: batch norm wants more than one, and all sizes grow in step."""

OPTIMIZER_COPIES = {"lars": 1, "sgd": 1, "adamw": 2}
"""Tensors of the size of the weights that each optimiser keeps."""

SCORE_COPIES = 4
"""Tables of the size of the scores that are alive together while codes are made: scores, shifted, logits,
codes."""

BRANCH_COPIES = 9
"""Tables [F, F] in float64 that are alive together while the map of a patch branch is solved for."""

LOSS_COPIES = 3
"""Tables [n, B, K] that are alive together in the loss: scores, their logarithmic softmax, its gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank, by what they are for; what lies on the device, and what beside it on the host."""

    weights: int
    """Weights, statistics, their moving average, sums of a patch branch; with bfloat16 the weights cast."""
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass, of the part that goes through at once."""
    images: int
    """Crops as they enter the network."""
    scores: int
    """Scores, codes and loss."""
    solving: int
    """While the map of a patch branch is solved for, in place of activations, images and scores."""
    queue: int
    batches: int
    """On the host: decoded batches, the one in work and those read ahead."""
    members: int
    """On the host: encoded images of a memory for replay, of the replays of a step, and of arrivals."""
    checkpoint_images: int
    """On disk, of each checkpoint: the encoded images of all lanes; not part of any sum."""
    saving: int
    """On the host: copies of all state while a checkpoint or snapshot is written."""

    @property
    def device(self) -> int:
        """All that lies where the network is."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + max(self.activations + self.images + self.scores, self.solving)
            + self.queue
        )

    @property
    def host(self) -> int:
        """All that always lies on the host."""
        return self.batches + self.members + self.saving


def memory_of(config: RunConfig, *, ranks: int = 1, image_bytes: int = 0) -> Memory:
    """Estimate for the rank that has most lanes.

    Activations are counted tensor by tensor on a network without memory; the sum takes everything to be
    there at once, which is nearly so when the backward pass begins. Not counted: the program itself, the
    workspace of kernels, and what an allocator keeps.

    Args:
        config: all settings.
        ranks: learners that share the lanes.
        image_bytes: of an encoded image, the mean; 0 = not known: three for each pixel of the largest crop.

    Raises:
        ValueError: an unknown backbone, or more ranks than lanes.
    """
    if not 1 <= ranks <= config.lanes:
        raise ValueError(f"{ranks} ranks need at least as many lanes, got {config.lanes}")
    lanes = math.ceil(config.lanes / ranks)
    samples = lanes * config.chunk
    part = math.ceil(samples / config.accumulate)
    unit = 8 if config.precision == "float64" else 4
    with torch.device("meta"):
        model = SwavModel(config.model, config.swav.prototypes)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    statistics = sum(buffer.numel() for buffer in model.buffers())
    casts = 2 * numbers if config.precision == "bfloat16" else 0
    state = OPTIMIZER_COPIES[config.optim.optimizer] * numbers * unit
    swav, dim = config.swav, config.model.projection_dim
    queued = swav.queue_samples // config.batch * config.batch // ranks
    views = sum(kind.count for kind in config.crops)
    kinds = sum(swav.prototypes)
    scores = SCORE_COPIES * swav.assign_views * (samples + queued) * kinds
    scores += LOSS_COPIES * views * part * kinds
    pixels = sum(kind.count * 3 * kind.size**2 for kind in config.crops)
    layout = FrameLayout(crops=config.crops, thumbnail_px=config.reader.thumbnail_px, columns=samples)
    frames = (config.reader.prefetch if config.workers else 1) + config.replay.updates
    queue = swav.assign_views * queued * dim * unit
    weights = (numbers + statistics) * unit * (2 if config.optim.average_decay else 1)
    wide = 0 if model.branch is None else len(model.branch.mean_F)
    image_bytes = image_bytes or 3 * max(kind.size for kind in config.crops) ** 2
    held = config.replay.window_samples * image_bytes if config.replay.policy == PROTOTYPES else 0
    # Of a step its replays, and the arrivals of that step and of those read ahead, whose images came along.
    ahead = config.reader.prefetch if config.workers else 0
    beside = (config.replay.updates + ahead) * samples * image_bytes if held else 0
    return Memory(
        weights=weights + casts + 2 * wide**2 * unit,
        gradients=numbers * unit,
        optimizer=state,
        activations=activations(config) * part // TRACED,
        images=pixels * part * unit,
        scores=scores * unit,
        solving=BRANCH_COPIES * wide**2 * 8,
        queue=queue,
        batches=frames * layout.num_bytes(),
        members=held * lanes // config.lanes + beside,
        checkpoint_images=held,
        saving=weights + state + queue * ranks + wide**2 * unit + held,
    )


def activations(config: RunConfig) -> int:
    """Bytes that the forward pass of TRACED samples keeps for the backward pass, without the weights.

    With activation checkpointing: the inputs of all stages, and the inside of the largest one.
    """
    plain = replace(config.model, activation_checkpointing=False)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[config.precision]
    with torch.device("meta"):
        model = SwavModel(plain, config.swav.prototypes).to(dtype)
        crops = [
            torch.empty(kind.count * TRACED, 3, kind.size, kind.size, dtype=dtype) for kind in config.crops
        ]
    trace = _Trace(model)
    with trace.watching():
        model.embed(crops)
    if not config.model.activation_checkpointing:
        return sum(trace.kept.values())
    inside = {stage: size for stage, size in trace.kept.items() if stage}
    return trace.kept[""] + trace.inputs + max(inside.values(), default=0)


class _Trace:
    """Bytes of the tensors that autograd saves, by the stage of the encoder in which they came to be."""

    def __init__(self, model: SwavModel) -> None:
        self.kept: dict[str, int] = defaultdict(int)
        """By stage; "" is outside of all."""
        self.inputs = 0
        """Bytes that enter stages."""
        self._stage = ""
        self._model = model
        # Weights are there anyway. Storages are kept alive, or their address could be given to another.
        self._seen = {p.untyped_storage()._cdata: p for p in (*model.parameters(), *model.buffers())}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, whatever is saved for a backward pass is counted, once for each piece of memory."""
        encoder = self._model.encoder
        trunk = encoder.trunk_output if isinstance(encoder, RegNet) else encoder
        with ExitStack() as hooks:
            for name, module in trunk.named_children():
                if isinstance(module, nn.Sequential):
                    hooks.callback(module.register_forward_pre_hook(self._enter(name)).remove)
                    hooks.callback(module.register_forward_hook(self._leave).remove)
            hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor))
            yield

    def _enter(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def enter(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self._stage = name
            self.inputs += sum(tensor.numel() * tensor.element_size() for tensor in given)

        return enter

    def _leave(self, _module: nn.Module, _given: object, _made: object) -> None:
        self._stage = ""

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self.kept[self._stage] += storage.nbytes()
        return tensor
