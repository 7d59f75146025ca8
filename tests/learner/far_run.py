"""Updates of a learner on the far device, and faults that must be seen; prints all waits, as JSON.

    python -m tests.learner.far_run

A process of its own, see `far_device`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learner.augment import Views
from learner.config import LearnerConfig
from learner.learner import Learner
from tests.learner.far_device import Watch, lock, set_up
from tests.learner.small_run import batch, counting_clock, small_config

QUIET: dict[str, object] = {"interval_samples": 10**9}
"""No health report after that of the first update."""

STEPS = 4
"""The first takes what is kept, the third is the first with a queue and moving prototypes, then a replay."""

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


def updates(
    config: LearnerConfig, precision: str, parts: int, device: torch.device, steps: int = STEPS
) -> dict[str, Any]:
    """Waits and loss of each update, and copies to the device that nobody waits for."""
    waits, losses, sent = [], [], []
    with Watch() as watch:
        learner = learner_on(device, config, precision)
        for step in range(steps):
            watch.waits.clear()
            watch.sent = 0
            report = learner.step(page_locked(batch(step)), accumulate=parts, fresh=step < STEPS - 1)
            losses.append(report.loss)
            waits.append(list(watch.waits))
            sent.append(watch.sent)
    return {"waits": waits, "losses": losses, "sent": sent}


def learner_on(device: torch.device, config: LearnerConfig, precision: str) -> Learner:
    """A new learner."""
    return Learner(
        config,
        seed=0,
        device=device,
        precision=precision,
        total_samples=None,
        clock=counting_clock(),
    )


def with_a_look_at_a_value(device: torch.device) -> list[str]:
    """Waits of an update whose encoder looks at one value in each direction."""

    def look_back(gradient: Tensor) -> None:
        gradient.sum().item()  # planted: backward

    def look(_module: object, _given: object, made: Tensor) -> None:
        made.sum().item()  # planted: forward
        made.register_hook(look_back)  # type: ignore[no-untyped-call]  # torch gives it no types

    with Watch() as watch:
        learner = learner_on(device, small_config(health=QUIET), "float32")
        learner._model.encoder.register_forward_hook(look)
        learner.step(page_locked(batch(0)))
        watch.waits.clear()
        learner.step(page_locked(batch(1)))
    return watch.waits


def faults(device: torch.device) -> dict[str, list[str]]:
    """What is noted of one small fault each."""
    x = torch.arange(4.0).to(device)
    kinds: dict[str, Callable[[], object]] = {
        "a value": lambda: float(x.sum()),
        "a truth": lambda: bool((x > 1).any()),
        "a list": lambda: x.cpu().tolist(),
        "a size": lambda: torch.nonzero(x > 1),
        "a mask": lambda: x[x > 1],
        "a mask that is written through": lambda: x.__setitem__(x > 1, x[:2].clone()),
        "an index on the CPU": lambda: x[torch.tensor([0, 1])],
        "a tensor from a list": lambda: torch.tensor([1.0, 2.0], device=device),
        "a blocking copy": lambda: torch.ones(3).to(device),
        "a copy into a tensor": lambda: x.copy_(torch.ones(4)),
        "a copy out of ordinary memory": lambda: torch.ones(3).to(device, non_blocking=True),
        "counts": lambda: torch.bincount(x.long(), minlength=4),
        # No fault: must not be noted.
        "numbers": lambda: (x * 2.5 + torch.zeros(4, device=device)).clamp_(0, 1),
        "a mask that is filled": lambda: x.__setitem__(x > 1, 0.0),
        "an index on the device": lambda: x[torch.zeros(2, dtype=torch.int64, device=device)],
        "a copy out of page-locked memory": lambda: torch.ones(3).pin_memory().to(device, non_blocking=True),
    }
    found = {}
    for name, fault in kinds.items():
        with Watch() as watch:
            fault()
        found[name] = watch.waits
    with Watch():
        try:
            x + torch.ones(4)
        except RuntimeError as error:
            found["operands on both"] = [str(error)]
    return found


def main() -> None:
    """Print all of it."""
    torch.set_num_threads(1)
    device = set_up()
    answer: dict[str, Any] = {
        "updates": {name: updates(*case, device) for name, case in CASES.items()},
        "planted": with_a_look_at_a_value(device),
    }
    with Watch():
        answer["faults"] = faults(device)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
