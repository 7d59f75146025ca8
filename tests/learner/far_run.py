"""Updates of a learner on the far device; prints for each case the waits of every update, as JSON.

    python -m tests.learner.far_run

A process of its own, see `far_device`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from learner.augment import Views
from learner.config import LearnerConfig
from learner.learner import Learner
from tests.learner.far_device import Watch, lock, set_up
from tests.learner.small_run import batch, counting_clock, small_config

QUIET = {"interval_samples": 10**9}
"""No health report after that of the first step."""

STEPS = 6
"""Of these the first takes what is kept, the third is the first one with a queue and moving prototypes, and the
last one is a replay."""

CASES: dict[str, tuple[LearnerConfig, str, int]] = {
    "lars, queue": (small_config(health=QUIET), "float32", 1),
    "sgd, clipped, no queue": (
        small_config(
            health=QUIET,
            swav={"queue_samples": 0},
            optim={"optimizer": "sgd", "learning_rate": 0.05, "clip_gradient_norm": 1.0},
        ),
        "float32",
        1,
    ),
    "adamw, bfloat16, groups of batch norm, two heads with a power law": (
        small_config(
            health=QUIET,
            model={"bn_groups": 4},
            swav={"prototypes": (10, 6), "prior": "powerlaw", "hard_codes": True},
            optim={"optimizer": "adamw", "learning_rate": 1e-3},
        ),
        "bfloat16",
        1,
    ),
    "in two parts, activations made again": (
        small_config(health=QUIET, model={"bn_groups": 4, "activation_checkpointing": True}),
        "float32",
        2,
    ),
}
"""Settings, precision, parts of a batch."""


def page_locked(views: Views) -> Views:
    """As a loader for CUDA gives them."""
    crops = tuple(lock(crop) for crop in views.crops)
    return replace(views, crops=crops, uniforms=lock(views.uniforms))


def waits(
    config: LearnerConfig, precision: str, parts: int, device: torch.device, plant: Callable[[Learner], None]
) -> tuple[list[list[str]], list[float]]:
    """Waits and loss of each update."""
    found, losses = [], []
    with Watch() as watch:
        learner = Learner(
            config,
            seed=0,
            device=device,
            precision=precision,
            total_samples=None,
            clock=counting_clock(),
        )
        plant(learner)
        for step in range(STEPS):
            watch.waits.clear()
            report = learner.step(page_locked(batch(step)), accumulate=parts, fresh=step < STEPS - 1)
            losses.append(report.loss)
            found.append(list(watch.waits))
    return found, losses


def planted(learner: Learner) -> None:
    """Let the encoder look at a value in each pass."""
    learner._model.encoder.register_forward_hook(lambda _module, _given, made: made.sum().item() and None)


def main() -> None:
    """All cases, and one with a fault."""
    torch.set_num_threads(1)
    device = set_up()
    answer = {
        name: waits(config, precision, parts, device, lambda _: None)
        for name, (config, precision, parts) in CASES.items()
    }
    answer["planted"] = waits(*CASES["lars, queue"], device, planted)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
