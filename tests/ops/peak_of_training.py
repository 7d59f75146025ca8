"""Trains a little in this process and prints what its memory grew by: run as a program by a test."""

import json
import sys
import time
from pathlib import Path

import torch

from learner.augment import Views
from learner.learner import Learner
from ops.config.schema import RunConfig


def main() -> None:
    config = RunConfig.from_dict(json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    step(config, samples=8)  # loads libraries and compiles kernels
    before = resident("VmRSS")
    step(config, samples=config.batch)
    sys.stdout.write(f"{resident('VmHWM') - before}\n")


def step(config: RunConfig, *, samples: int) -> None:
    learner = Learner(
        config.learner,
        seed=0,
        device=torch.device("cpu"),
        precision=config.precision,
        total_samples=None,
        clock=time.monotonic,
    )
    draw = torch.Generator().manual_seed(0)
    views = sum(kind.count for kind in config.crops)
    crops = tuple(
        torch.randint(
            0, 256, (kind.count, samples, 3, kind.size, kind.size), dtype=torch.uint8, generator=draw
        )
        for kind in config.crops
    )
    batch = Views(crops=crops, uniforms=torch.rand(views, samples, 16, generator=draw))
    for _ in range(2):
        learner.step(batch)


def resident(field: str) -> int:
    """Bytes that Linux counts for this process: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(field)


if __name__ == "__main__":
    main()
