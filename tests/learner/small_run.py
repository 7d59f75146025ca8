"""A small learner and an endless supply of batches, the same in every process."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from learner.augment import Views
from learner.collective import Deal, Group
from learner.config import (
    AugmentConfig,
    HealthConfig,
    LearnerConfig,
    ModelConfig,
    OptimConfig,
    ReseedConfig,
    SwavConfig,
)
from learner.learner import Learner
from learner.report import StepReport
from stream.lanes import owned_lanes, owners_of

LANES = 8
CHUNK = 2
BATCH = LANES * CHUNK


def small_config(
    *,
    model: dict[str, object] | None = None,
    swav: dict[str, object] | None = None,
    optim: dict[str, object] | None = None,
    augment: dict[str, object] | None = None,
    health: dict[str, object] | None = None,
    reseed: dict[str, object] | None = None,
) -> LearnerConfig:
    """Settings in which everything happens within a few steps; any may be changed."""
    small_model: dict[str, object] = {
        "backbone": "resnet8-w16",
        "projection_hidden": 24,
        "projection_dim": 12,
    }
    small_swav: dict[str, object] = {
        "prototypes": (10,),
        "queue_samples": 2 * BATCH,
        "freeze_samples": 2 * BATCH,
    }
    small_optim: dict[str, object] = {"optimizer": "lars", "learning_rate": 1.0, "warmup_samples": 3 * BATCH}
    small_health: dict[str, object] = {"usage_window_samples": 4 * BATCH, "interval_samples": 3 * BATCH}
    return LearnerConfig(
        model=ModelConfig(**(small_model | (model or {}))),  # type: ignore[arg-type]  # fields vary by test
        swav=SwavConfig(**(small_swav | (swav or {}))),  # type: ignore[arg-type]
        optim=OptimConfig(**(small_optim | (optim or {}))),  # type: ignore[arg-type]
        augment=AugmentConfig(**(augment or {})),  # type: ignore[arg-type]
        health=HealthConfig(**(small_health | (health or {}))),  # type: ignore[arg-type]
        reseed=ReseedConfig(**(reseed or {})),  # type: ignore[arg-type]
    )


def small_learner(
    config: LearnerConfig, *, precision: str = "float32", group: Group | None = None, seed: int = 0
) -> Learner:
    """A learner on the CPU whose clock counts how often it was asked."""
    return Learner(
        config,
        seed=seed,
        device=torch.device("cpu"),
        precision=precision,
        total_samples=None,
        clock=counting_clock(),
        deal=deal_of(config, group),
    )


def deal_of(config: LearnerConfig, group: Group | None) -> Deal | None:
    """The lanes of `batch`, dealt as they are read."""
    return None if group is None else Deal(group, owners_of(LANES, group.world_size, config.model.bn_groups))


def counting_clock() -> Callable[[], float]:
    ticks = count()
    return lambda: float(next(ticks))


def batch(step: int, *, ranks: int = 1, rank: int = 0, groups: int = 1) -> Views:
    """The samples of a rank in one step; what a lane holds depends on the step."""
    lane_B = torch.arange(LANES).repeat_interleave(CHUNK)
    generator = torch.Generator().manual_seed(1000 + step)
    own = torch.tensor(owned_lanes(LANES, ranks, rank, groups))
    own_B = torch.nonzero(torch.isin(lane_B, own)).squeeze(1)
    whole = Views(
        crops=(pictures(generator, 2, 16), pictures(generator, 2, 8)),
        uniforms=torch.rand(4, BATCH, 16, generator=generator),
        lane_B=lane_B,
    )
    return whole.part(own_B)


def pictures(generator: torch.Generator, views: int, side: int) -> Tensor:
    """uint8 [views, B, 3, side, side]: a colour for each sample, with noise for each view."""
    colour = torch.rand(1, BATCH, 3, 1, 1, generator=generator) * 200
    noise = torch.rand(views, BATCH, 3, side, side, generator=generator) * 55
    return (colour + noise).to(torch.uint8)


def spoiled(views: Views) -> Views:
    """The same views with one sample whose colour draw is not a number."""
    uniforms = views.uniforms.clone()
    uniforms[0, 0, :2] = torch.tensor([0.0, float("nan")])
    return Views(crops=views.crops, uniforms=uniforms, lane_B=views.lane_B)


def weights_of(learner: Learner) -> dict[str, Tensor]:
    """All tensors of its state."""
    tensors: dict[str, Tensor] = learner.state_dict()["tensors"]
    return tensors


KINDS: dict[str, LearnerConfig] = {
    "lars with queue and frozen start": small_config(),
    "adamw": small_config(optim={"optimizer": "adamw", "learning_rate": 1e-3}),
    "sgd, clipped, without queue": small_config(
        optim={"optimizer": "sgd", "learning_rate": 0.05, "clip_gradient_norm": 1.0},
        swav={"queue_samples": 0},
    ),
    "two heads, power law, hard codes": small_config(
        swav={"prototypes": (10, 6), "prior": "powerlaw", "hard_codes": True}
    ),
    "groups of batch norm": small_config(model={"bn_groups": 4}),
    "prototypes that are re-seeded": small_config(
        swav={"prototypes": (40, 30)},
        reseed={"after_samples": 2 * BATCH, "interval_samples": BATCH, "share": 0.1},
    ),
    "patch branch": small_config(
        model={
            "branch_centres": 6,
            "branch_patch_width": 3,
            "branch_scales": 2,
            "branch_width": 4,
            "branch_samples": 2 * BATCH,
            "branch_pairs": 4 * BATCH,
        }
    ),
    "moving average of the weights": small_config(model={"bn_groups": 4}, optim={"average_decay": 0.9}),
    "late queue, no head norm, rows kept in NCHW": small_config(
        swav={"queue_start_samples": 2 * BATCH},
        model={"projection_norm": False, "channels_last": False, "activation_checkpointing": True},
    ),
}
"""Settings that together touch every part; by a name for the test."""


def run(learner: Learner, first: int, last: int) -> list[StepReport]:
    return [learner.step(batch(step)) for step in range(first, last)]


def trace(reports: list[StepReport]) -> list[Any]:
    """All of some reports but the seconds, in a form that compares."""
    return [
        [
            value.tolist() if isinstance(value, Tensor) else value
            for name in StepReport.__dataclass_fields__
            if name != "seconds" and ((value := getattr(report, name)) is not None)
        ]
        for report in reports
    ]


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def coloured(step: int, samples: int = 80) -> tuple[Views, Tensor]:
    """A batch of noisy pictures of ten colours, and which colour each has."""
    generator = torch.Generator().manual_seed(step)
    palette = torch.rand(10, 3, generator=torch.Generator().manual_seed(7)) * 200
    colour_B = torch.randint(0, 10, (samples,), generator=generator)
    base = palette[colour_B].view(1, samples, 3, 1, 1)
    crops = tuple(
        (base + torch.rand(2, samples, 3, side, side, generator=generator) * 55).to(torch.uint8)
        for side in (16, 8)
    )
    return Views(crops=crops, uniforms=torch.rand(4, samples, 16, generator=generator)), colour_B
