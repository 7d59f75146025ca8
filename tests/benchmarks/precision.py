"""What the precision changes: losses of the same steps in float64, float32 and bfloat16, on a fixed seed.

`make bench` runs it; about half a minute on one core.
"""

import sys
import time
from dataclasses import dataclass

import torch

from learner.augment import Views
from learner.config import AugmentConfig, LearnerConfig, ModelConfig, OptimConfig, SwavConfig
from learner.learner import Learner

BATCH = 128
SIDES = ((2, 32), (2, 16))
PRECISIONS = ("float64", "float32", "bfloat16")
CONFIG = LearnerConfig(
    model=ModelConfig(backbone="resnet8-w16", projection_hidden=128, projection_dim=64),
    swav=SwavConfig(prototypes=(64,), epsilon=0.03),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-3, weight_decay=1e-4),
    augment=AugmentConfig(jitter=0.4, blur_probability=0.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One precision."""

    losses: list[float]
    """Nats, of each step."""
    first_entropy: float
    """Mean entropy of the codes of the first step, nats."""
    seconds: float


def batch(step: int) -> Views:
    """Stripes in twenty colours and angles, with noise; the same in every precision."""
    draw = torch.Generator().manual_seed(step)
    kind_B = torch.randint(0, 20, (BATCH,), generator=draw)
    palette = torch.rand(20, 3, generator=torch.Generator().manual_seed(99))
    crops = []
    for views, side in SIDES:
        line = torch.arange(side, dtype=torch.float32) / side
        angle_B = kind_B * (torch.pi / 20)
        phase = torch.rand(views, BATCH, 1, 1, generator=draw) * 6.28
        along = line[:, None] * angle_B.cos()[:, None, None] + line * angle_B.sin()[:, None, None]
        stripes = 0.5 + 0.5 * torch.sin(20 * along + phase)
        images = stripes[:, :, None] * palette[kind_B][None, :, :, None, None] * 200
        noise = torch.rand(views, BATCH, 3, side, side, generator=draw) * 55
        crops.append((images + noise).to(torch.uint8))
    num = sum(views for views, _ in SIDES)
    return Views(crops=tuple(crops), uniforms=torch.rand(num, BATCH, 16, generator=draw))


def trace(precision: str, steps: int) -> Trace:
    """Learn so many steps."""
    learner = Learner(
        CONFIG,
        seed=0,
        device=torch.device("cpu"),
        precision=precision,
        total_samples=None,
        clock=time.monotonic,
    )
    began = time.monotonic()
    reports = [learner.step(batch(step)) for step in range(steps)]
    return Trace(
        losses=[report.loss for report in reports],
        first_entropy=reports[0].code_entropy_nats,
        seconds=time.monotonic() - began,
    )


def main(steps: int = 40) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    traces = {precision: trace(precision, steps) for precision in PRECISIONS}
    exact = traces["float64"]
    print(f"loss of the same {steps} steps (batch {BATCH}, K {CONFIG.swav.prototypes[0]}, seed 0)")
    print(f"{'step':>5}  {'float64':>9}  {'float32 - float64':>18}  {'bfloat16 - float64':>18}")
    for step in sorted({0, 1, 2, 4, 9, 19, 29, 39, 49, steps - 1}):
        if step < steps:
            gaps = [traces[name].losses[step] - exact.losses[step] for name in PRECISIONS[1:]]
            print(f"{step + 1:>5}  {exact.losses[step]:>9.5f}  {gaps[0]:>18.2e}  {gaps[1]:>18.2e}")
    for name, found in traces.items():
        last = sum(found.losses[-10:]) / len(found.losses[-10:])
        entropy = f"entropy of the first codes {found.first_entropy:.6f} nats"
        print(f"{name:<9}  mean of the last ten losses {last:.4f}  {entropy}  {found.seconds:.1f} s")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
