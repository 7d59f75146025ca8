"""A made-up run for the live page: `python -m tests.ops.live_demo` serves it until Ctrl-C, to look at."""

import argparse
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ops.live_page.exemplars import Exemplars
from ops.live_page.server import Server
from ops.live_page.state import LiveView
from ops.monitoring.metrics import Metrics
from ops.snapshots.types import PublishResult
from tests.ops import synthetic

SIDE = 48


def picture(kind: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """[3, T, T] uint8: one of endless pictures of a kind; kinds differ in colour, pattern and frequency."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    hue = 2 * np.pi * (kind * 0.618 % 1.0) + draw.normal(0, 0.15)
    colour = 0.5 + 0.42 * np.cos(hue + np.array([0.0, 2.1, 4.2]))
    turn, scale = draw.uniform(0, np.pi), 4 + 3 * (kind % 5) + draw.uniform(0, 1)
    u = x * np.cos(turn) + y * np.sin(turn)
    v = y * np.cos(turn) - x * np.sin(turn)
    shift = draw.uniform(0, 6)
    cx, cy = draw.uniform(-0.15, 0.15, 2)
    patterns = (
        np.sin(scale * 2 * u + shift),
        np.sin(scale * u + shift) * np.sin(scale * v),
        np.cos(scale * 2 * np.hypot(x - cx, y - cy) + shift),
        np.where(np.hypot(x - cx, y - cy) < 0.24 + 0.03 * (kind % 4), 1.0, -0.6),
        np.where((np.abs(u - cx) < 0.2) & (np.abs(v - cy) < 0.2), 1.0, -0.7),
    )
    value = 0.5 + 0.32 * patterns[kind % len(patterns)]
    back = 0.5 + 0.3 * np.cos(hue + 2.6 + np.array([0.0, 2.1, 4.2]))
    mixed = value[None] * colour[:, None, None] + (1 - value)[None] * back[:, None, None]
    noisy = mixed + draw.normal(0, 0.02, mixed.shape)
    pixels: NDArray[np.uint8] = np.clip(255 * noisy, 0, 255).astype(np.uint8)
    return pixels


class DemoRun:
    """A run that never learned anything, but looks as if."""

    def __init__(
        self, *, prototypes: int = 64, batch: int = 256, total: int = 50_000, thumbs: bool = True
    ) -> None:
        self.prototypes, self.batch, self.total = prototypes, batch, total
        self.draw = np.random.default_rng(0)
        exemplars = Exemplars(prototypes, thumbnail_px=SIDE) if thumbs else None
        self.live = LiveView(
            run="3f1c9a52e0b44c0f8f0e2f6a7b1d9c11",
            run_dir="/data/runs/street-photos-2026",
            prototypes=prototypes,
            facts={
                "stream": "s3://pictures/crawl-17",
                "recipe": "cifar10-onepass",
                "network": "resnet18, 512 to 128",
                "batch": f"{batch} of 64 lanes",
            },
            total_samples=total,
            exemplars=exemplars,
        )
        self.metrics = Metrics(version="0.1.0", run="3f1c9a52")
        self.server = Server(self.live, self.metrics)
        self.samples = 0
        self.weights = np.exp(self.draw.normal(0, 0.7, prototypes))
        self.over_ln_k = 1.0
        self.generation = np.zeros(prototypes, np.int64)
        directions = self.draw.normal(size=(prototypes, 64)).astype(np.float32)
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def step(
        self,
        *,
        feature_std: float = 0.9,
        twins: int = 0,
        lag: int | None = None,
        reseeded: int = 0,
        restarts: int = 0,
        agreement: float | None = None,
    ) -> None:
        """One made-up update; views come to agree while the loss falls, unless it is said how they do."""
        self.samples += self.batch
        progress = self.samples / self.total
        self.over_ln_k = 0.55 + 0.45 * np.exp(-4 * progress) + self.draw.normal(0, 0.006)
        self.weights *= np.exp(self.draw.normal(0, 0.02, self.prototypes))
        usage = self.weights / self.weights.sum()
        assigned = self.draw.choice(self.prototypes, self.batch, p=usage)
        exemplars = self.live.exemplars
        thumbs = np.stack([picture(int(kind), self.draw) for kind in assigned]) if exemplars else None
        stats = synthetic.stats(self.batch, {"truncated": 1} if self.draw.random() < 0.1 else {})
        report = synthetic.report(
            self.samples,
            torch.from_numpy(usage).float(),
            over_ln_k=float(self.over_ln_k),
            batch=self.batch,
            assigned=torch.from_numpy(assigned),
            score=torch.from_numpy(self.draw.uniform(0.2, 0.9, self.batch).astype(np.float32)),
            feature_std=feature_std,
            twins=twins,
            window=10 * self.prototypes,
            reseeded=reseeded,
        )
        report = replace(report, view_agreement=1.1 - self.over_ln_k if agreement is None else agreement)
        remaining = max(0, self.total - self.samples) if lag is None else lag
        self.metrics.observe(report, stats, step_s=0.36)
        self.metrics.lag(remaining)
        keys = [f"{self.samples}-{index}" for index in range(self.batch)]
        self.live.observe(
            report, stats, step_s=0.36, lag=remaining, restarts=restarts, keys=keys, thumbs=thumbs
        )
        self.live.usage(usage.astype(np.float32))

    def die(self, number: int) -> None:
        """A prototype that gets no samples any more."""
        self.weights[number] = 0

    def reseed(self, number: int) -> None:
        """Re-seed a prototype close to the busiest one."""
        self.weights[number] = self.weights.max()
        self.generation[number] += 1
        moved = self.directions[int(self.weights.argmax())] + 0.05 * self.directions[number]
        self.directions = self.directions.copy()
        self.directions[number] = moved / np.linalg.norm(moved)

    def publish(self, version: int) -> None:
        """A made-up snapshot."""
        self.live.prototypes.learned(self.directions, self.generation.copy(), samples=self.samples)
        result = PublishResult(
            result="ok",
            samples=self.samples,
            digest="9f2c41d07a6be8350c5f",
            version=version,
            epoch=1,
            seconds=0.2,
            blob_bytes=900_000,
            time=time.time(),
        )
        self.live.published(result)
        self.metrics.published(result)

    def _fate(self, step: int) -> None:
        """Three prototypes fade away; later one of them is re-seeded."""
        if step % 200 == 60:
            for number in (5, 11, 40):
                self.die(number)
        if step % 200 == 110:
            self.reseed(11)
            self.step(reseeded=1)

    def run(self, steps: int, *, pause_s: float = 0.0) -> None:
        """Some updates, with a checkpoint and a snapshot now and then."""
        for step in range(1, steps + 1):
            self.step()
            if self.prototypes >= 48:
                self._fate(step)
            if step % 20 == 0:
                self.live.checkpoint("ok", samples=self.samples, seconds=0.4)
                self.publish(step // 20)
            if pause_s:
                time.sleep(pause_s)


def main() -> None:
    """Serve a made-up run until Ctrl-C."""
    arguments = argparse.ArgumentParser(description=main.__doc__)
    arguments.add_argument("--prototypes", type=int, default=64)
    arguments.add_argument("--steps", type=int, default=30, help="made at once, before anybody looks")
    arguments.add_argument("--pause", type=float, default=0.3)
    chosen = arguments.parse_args()
    demo = DemoRun(prototypes=chosen.prototypes)
    sys.stdout.write(demo.server.start() + "\n")
    sys.stdout.flush()
    try:
        demo.run(chosen.steps)
        demo.run(10_000_000, pause_s=chosen.pause)
    finally:
        demo.server.close()


if __name__ == "__main__":
    main()
