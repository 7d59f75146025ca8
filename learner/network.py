"""The network of one rank at work: colour, autocast, memory format, batch norm by groups, evaluation.

n views   A assigned views   B samples of this rank   D embedding size   F features of the encoder   K
prototypes
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from learner import group_batchnorm
from learner.augment import Views, normalise_, photometric
from learner.collective import Deal, sent
from learner.config import LearnerConfig, ModelConfig
from learner.model import SwavModel, cosines, on_the_sphere

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Of weights, by precision; bfloat16 is that of activations, under autocast."""

EVALUATION_BATCH = 256
"""Images that go through the network together in evaluation; bounds its memory."""


def memory_order(config: ModelConfig, device: torch.device, precision: str) -> torch.memory_format:
    """NHWC if the settings want it, but never in float32 on a CPU.

    There torch sums batch norm's statistics in float32 over NHWC, and in float64 over NCHW. Relative error of
    the gradient against float64, and processor time of forward and backward on one core of an Intel Xeon
    (torch 2.14):

        |                                            | NCHW            | NHWC            |
        | ------------------------------------------ | --------------- | --------------- |
        | one batch norm, 64 x 16 x 112 x 112        | 6.7e-8          | 1.8e-4          |
        | resnet8-w32, 64 of 112 px, float32         | 6.5e-4, 0.76 s  | 4.9e-3, 0.72 s  |
        | resnet8-w32, 512 of 32 px, float32         | 2.6e-4, 0.62 s  | 5.4e-3, 0.54 s  |
        | resnet18, 32 of 112 px, float32            | 7.1e-4, 0.95 s  | 7.6e-3, 0.88 s  |
        | resnet18, 64 of 64 px, float32             | 4.2e-3, 0.71 s  | 6.5e-3, 0.77 s  |
        | resnet8-w32, 512 of 32 px, bfloat16        | 1.6e-1, 0.46 s  | 1.5e-1, 0.32 s  |
        | resnet18, 32 of 112 px, bfloat16           | 4.2e-1, 0.48 s  | 4.2e-1, 0.37 s  |
        | resnet8-w32, 512 of 32 px, float64         | 0,      2.40 s  | 4.0e-15, 2.07 s |

    In bfloat16 rounding outweighs the sums, and in float64 both are exact enough: NHWC is the faster one. On
    CUDA bfloat16 wants NHWC, which is what its tensor cores read; not measured here.

    Args:
        config: of the model.
        device: where it runs.
        precision: float32, bfloat16 or float64.
    """
    if not config.channels_last or (device.type == "cpu" and precision == "float32"):
        return torch.contiguous_format
    return torch.channels_last


class PhaseTimer:
    """Seconds by phase, from a clock that is passed in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._last = clock()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `phase`."""
        now = self._clock()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class Network:
    """SwavModel with all that decides how images go through it.

    Args:
        config: all settings.
        seed: of the first weights; the global generators are left as they were.
        device: where it runs.
        precision: float32, bfloat16 or float64.
        deal: the ranks, and which of them has which lane.

    Raises:
        ValueError: unknown precision or backbone.
    """

    def __init__(
        self, config: LearnerConfig, *, seed: int, device: torch.device, precision: str, deal: Deal
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
        self.dtype = DTYPES[precision]
        self.device = device
        self._config = config
        self._deal = deal
        self._bfloat16 = precision == "bfloat16"
        self._memory_format = memory_order(config.model, device, precision)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.model = SwavModel(config.model, config.swav.prototypes)
        self.model.to(device=device, dtype=self.dtype)
        self.model.to(memory_format=self._memory_format)
        self._stats = group_batchnorm.GroupStats.of(deal, max(1, config.model.bn_groups))
        self._by_groups = self._stats.groups > 1 or deal.ranks.world_size > 1
        if self._by_groups:
            group_batchnorm.group_batch_norm(self.model, self._stats)

    def parts(self, lane_B: Tensor, accumulate: int) -> list[Tensor]:
        """Which samples go through together: whole groups of batch norm, in `accumulate` parts.

        Raises:
            ValueError: groups cannot be dealt evenly to ranks and parts.
        """
        if accumulate == 1:
            return [torch.arange(len(lane_B))]
        groups, world = self._stats.groups, self._deal.ranks.world_size
        if accumulate < 1 or groups % (world * accumulate) != 0 or self._stats.shared:
            raise ValueError(
                f"accumulate = {accumulate} on {world} ranks needs model.bn_groups to be a multiple of "
                f"{world * max(1, accumulate)}, got {groups}: batch norm must see whole groups"
            )
        own = torch.tensor(self._stats.own).view(accumulate, -1)
        parts = [torch.nonzero(torch.isin(lane_B % groups, some)).squeeze(1) for some in own]
        if any(len(part) == 0 for part in parts):
            raise ValueError(f"accumulate = {accumulate} leaves a part without samples: use fewer bn_groups")
        return parts

    def embed(self, views: Views, lane_B: Tensor, timer: PhaseTimer) -> Tensor:
        """Features of all views: colour, encoder, head.

        Args:
            views: crops of some samples.
            lane_B: [B] their lanes.
            timer: phases augment and forward are added.

        Returns:
            [n, B, D] of unit norm, float32 (float64 in that precision).
        """
        kinds = []
        uniforms = torch.split(views.uniforms.cpu(), [len(crops) for crops in views.crops])
        for crops, drawn in zip(views.crops, uniforms, strict=True):
            images = photometric(crops, drawn, self._config.augment, device=self.device, dtype=self.dtype)
            kinds.append(images.contiguous(memory_format=self._memory_format))
        timer.lap("augment")
        if self._by_groups:
            self._stats.begin(lane_B.cpu() % self._stats.groups)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            z = self.model.embed(kinds)
        timer.lap("forward")
        return z.view(len(views.uniforms), len(lane_B), -1)

    @torch.no_grad()
    def embed_first(
        self, views: Views, lane_B: Tensor, parts: Sequence[Tensor], *, assigned: int, timer: PhaseTimer
    ) -> Tensor:
        """Features of the assigned views of the whole batch, part by part; nothing is kept for backward.

        All views go through, because batch norm of the head is over all of them. The pass is made again with
        gradients, so it leaves the running statistics alone.

        Returns:
            [A, B, D].
        """
        dim = self._config.model.projection_dim
        z_ABD = torch.empty(assigned, len(lane_B), dim, dtype=self.dtype, device=self.device)
        with group_batchnorm.without_tracking(self.model):
            for part in parts:
                z_APD = self.embed(views.part(part), lane_B[part], timer)[:assigned]
                z_ABD[:, sent(part, self.device)] = z_APD
        return z_ABD

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Undo what forward passes did to the running statistics when the update fails."""
        moved = (self.model.encoder, self.model.head)
        buffers = [] if self._by_groups else [buffer for part in moved for buffer in part.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        except BaseException:
            self._stats.discard()
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            raise

    def commit_statistics(self) -> None:
        """The update has been made: running statistics follow. A collective when there are ranks."""
        if self._by_groups:
            self._stats.apply()

    @torch.no_grad()
    def features(self, images: Tensor | Sequence[Tensor], model: SwavModel | None = None) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, F] on the CPU: pooled encoder output, evaluation mode.

        Args:
            images: at least one.
            model: a `copy`; None = the live one.
        """
        with self._evaluating(model) as used:
            rows = []
            for batch in self._batches(images):
                pixels = None if used.branch is None else self._pixels(batch)
                rows.append(used.features(batch, pixels).float().cpu())
            return torch.cat(rows)

    @torch.no_grad()
    def scores(self, images: Tensor | Sequence[Tensor], model: SwavModel | None = None) -> Tensor:
        """uint8 [N, 3, H, W] -> float32 [N, K] on the CPU; raw cosines of the first head, evaluation mode.

        Args:
            images: at least one.
            model: a `copy`; None = the live one.
        """
        with self._evaluating(model) as used:
            rows = []
            for batch in self._batches(images):
                z_ND = on_the_sphere(used.head(used.encoder(batch)))
                rows.append(cosines(z_ND, used.prototypes[0]).float().cpu())
            return torch.cat(rows)

    def copy(self) -> SwavModel:
        """A copy of the model as it is now, in evaluation mode and without gradients."""
        with torch.random.fork_rng(devices=[]):
            twin = SwavModel(self._config.model, self._config.swav.prototypes)
        twin.to(device=self.device, dtype=self.dtype)
        twin.load_state_dict(self.model.state_dict())
        twin.to(memory_format=self._memory_format)
        return twin.eval().requires_grad_(False)

    @torch.no_grad()
    def embeddings(self, images: Tensor, model: SwavModel | None = None) -> Tensor:
        """uint8 [N, 3, H, W] -> [N, D] of unit norm on the device, evaluation mode.

        Args:
            images: at least one.
            model: a `copy`; None = the live one.
        """
        with self._evaluating(model) as used:
            return torch.cat(
                [on_the_sphere(used.head(used.encoder(batch))) for batch in self._batches(images)]
            )

    @torch.no_grad()
    def estimate_statistics(
        self, images: Iterable[Tensor | Sequence[Tensor]], model: SwavModel | None = None
    ) -> None:
        """Replace the running statistics by their average over these batches of uint8 images.

        Args:
            images: at least one.
            model: whose statistics: a `copy`; None = the live one.
        """
        self._stats.begin(None)
        used = self.model if model is None else model
        used.train()
        with group_batchnorm.averaging(used):
            for some in images:
                # Even pieces: every batch weighs the same in the average, and one image has no deviation.
                pieces = -(-len(some) // EVALUATION_BATCH)
                edges = [len(some) * piece // max(1, pieces) for piece in range(pieces + 1)]
                for first, last in pairwise(edges):
                    for batch in self._batches(some[first:last]):
                        if len(batch) > 1:
                            used.head(used.encoder(batch))

    @contextmanager
    def _evaluating(self, model: SwavModel | None) -> Iterator[SwavModel]:
        used = self.model if model is None else model
        was_training = used.training
        used.eval()
        try:
            yield used
        finally:
            used.train(was_training)

    def _pixels(self, normalised_B3HW: Tensor) -> Tensor:
        """Images of `_batches` as they were, 0 .. 255: whole numbers, so that nothing is lost on the way."""
        mean, std = self._config.augment.mean, self._config.augment.std
        mean_3, std_3 = (normalised_B3HW.new_tensor(values)[:, None, None] for values in (mean, std))
        return (normalised_B3HW * std_3).add_(mean_3).mul_(255).round_()

    def _batches(self, images: Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
        """Whole images, normalised, a bounded number at a time."""
        for start in range(0, len(images), EVALUATION_BATCH):
            some = images[start : start + EVALUATION_BATCH]
            batch = some if isinstance(some, Tensor) else torch.stack(list(some))
            if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] != 3:
                raise ValueError(f"images must be uint8 [N, 3, H, W], got {batch.dtype} {tuple(batch.shape)}")
            # As bytes: a copy that also converts would send four times as much.
            scaled = batch.to(self.device).to(self.dtype).div_(255)
            yield normalise_(scaled, self._config.augment).contiguous(memory_format=self._memory_format)
