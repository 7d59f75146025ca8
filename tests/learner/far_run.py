"""Updates of a learner on the far device, and faults that must be seen; prints all waits, as JSON.

    python -m tests.learner.far_run

A process of its own, see `far_device`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.augment import Views
from learner.collective import Group, SingleProcess, sent_together
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.report import StepReport
from tests.learner.far_device import Watch, lock, set_up
from tests.learner.small_run import batch, counting_clock, deal_of, small_config

QUIET: dict[str, object] = {"interval_samples": 10**9}
"""No health report after that of the first update."""

STEPS = 4
"""The first takes what is kept, the third is the first with a queue and moving prototypes, then a replay."""


class Partner(SingleProcess):
    """The first of two ranks; the other one has as many samples, and adds nothing."""

    world_size = 2

    def sum(self, tensor: Tensor) -> Tensor:
        """A copy, as of real ranks."""
        return tensor.clone()

    def parts(self, sets: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Group]:
        """Of both ranks: this one."""
        return {members: self for members in sets if members == (0, 1)}

    def max(self, tensor: Tensor) -> Tensor:
        """A copy, as of real ranks."""
        return tensor.clone()

    def sum_(self, tensor: Tensor) -> None:
        """Of the table of counts: the other rank's, in its place."""
        if tensor.shape == (self.world_size,):
            tensor.copy_(tensor + tensor.flip(0))


class Case(NamedTuple):
    """An update that is watched."""

    config: LearnerConfig
    precision: str = "float32"
    parts: int = 1
    group: Group = SingleProcess()

    def learner(self, device: torch.device) -> Learner:
        """A new one."""
        return Learner(
            self.config,
            seed=0,
            device=device,
            precision=self.precision,
            total_samples=None,
            clock=counting_clock(),
            deal=deal_of(self.config, self.group),
        )

    def step(self, learner: Learner, number: int) -> StepReport:
        """One update."""
        views = batch(
            number, ranks=self.group.world_size, rank=self.group.rank, groups=self.config.model.bn_groups
        )
        if learner._network.device.type != "cpu":
            views = page_locked(views)
        return learner.step(views, accumulate=self.parts, fresh=number < STEPS - 1)


CASES = {
    "lars, queue": Case(small_config(health=QUIET)),
    "sgd, clipped, no queue": Case(
        small_config(
            health=QUIET,
            swav={"queue_samples": 0},
            optim={"optimizer": "sgd", "learning_rate": 0.05, "clip_gradient_norm": 1.0},
        )
    ),
    "adamw, bfloat16, groups of batch norm, two heads with a power law": Case(
        small_config(
            health=QUIET,
            model={"bn_groups": 4},
            swav={"prototypes": (10, 6), "prior": "powerlaw", "hard_codes": True},
            optim={"optimizer": "adamw", "learning_rate": 1e-3},
        ),
        precision="bfloat16",
    ),
    "in two parts, activations made again": Case(
        small_config(health=QUIET, model={"bn_groups": 4, "activation_checkpointing": True}), parts=2
    ),
    "two ranks, groups of batch norm over both": Case(small_config(health=QUIET), group=Partner()),
}


def page_locked(views: Views) -> Views:
    """As a loader for CUDA gives them."""
    crops = tuple(lock(crop) for crop in views.crops)
    return replace(views, crops=crops, uniforms=lock(views.uniforms))


def updates(case: Case, device: torch.device) -> dict[str, Any]:
    """Waits and loss of each update, and copies to the device that are not waited for."""
    waits, losses, sent = [], [], []
    with Watch() as watch:
        learner = case.learner(device)
        for number in range(STEPS):
            watch.waits.clear()
            watch.sent = 0
            losses.append(case.step(learner, number).loss)
            waits.append(list(watch.waits))
            sent.append(watch.sent)
    return {"waits": waits, "losses": losses, "sent": sent}


def with_a_look_at_a_value(device: torch.device) -> list[str]:
    """Waits of an update whose encoder looks at one value in each direction."""

    def look_back(gradient: Tensor) -> None:
        gradient.sum().item()  # planted: backward

    def look(_module: object, _given: object, made: Tensor) -> None:
        made.sum().item()  # planted: forward
        made.register_hook(look_back)  # type: ignore[no-untyped-call]  # torch gives it no types

    with Watch() as watch:
        case = CASES["lars, queue"]
        learner = case.learner(device)
        learner._model.encoder.register_forward_hook(look)
        case.step(learner, 0)
        watch.waits.clear()
        case.step(learner, 1)
    return watch.waits


def faults(device: torch.device) -> dict[str, list[str]]:
    """What is noted of one small fault each."""
    x = torch.arange(4.0).to(device)
    kinds: dict[str, Callable[[], object]] = {
        "a value": lambda: float(x.sum()),
        "a truth": lambda: bool((x > 1).any()),
        "a list": lambda: sum(x.tolist()),
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


def packed(device: torch.device) -> list[Any]:
    """Tensors of several dtypes that were sent in one copy: dtype, values, and how many copies it took."""
    given = [
        torch.tensor([3, -1, 2**40]),
        torch.zeros(0),
        torch.tensor([[0.1], [0.2]], dtype=torch.float64),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor(0.5),
    ]
    with Watch() as watch:
        there = sent_together(given, device)
        sent = watch.sent
        back = [tensor.cpu() for tensor in there]
    return [[[str(one.dtype), one.tolist()] for one in tensors] for tensors in (given, back)] + [sent]


def main() -> None:
    """Print all of it."""
    torch.set_num_threads(1)
    device = set_up()
    answer: dict[str, Any] = {
        "updates": {name: updates(case, device) for name, case in CASES.items()},
        "planted": with_a_look_at_a_value(device),
    }
    with Watch():
        answer["faults"] = faults(device)
        answer["packed"] = packed(device)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
