"""Runs that are small enough to be repeated many times: a drawn stream, a tiny net, ways to interrupt."""

import hashlib
import io
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ops.config import recipes
from ops.config.load import build
from ops.config.schema import RunConfig
from ops.demo.feed import encoded
from ops.rundir.checkpoint import load_newest
from ops.rundir.files import read_lines, read_run
from ops.rundir.summary import STOPPED, RunSummary
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.store import SnapshotStore
from ops.train.signals import StopRequest
from ops.train.start import learn
from stream.config import ShardConfig
from stream.record import Record
from stream.shards.manifest import Manifest
from stream.shards.writer import ShardWriter

RECORDS = 331
SETTINGS = (
    "lanes=8", "batch=32", "workers=0", "server.port=-1", "swav.prototypes=16", "swav.queue_samples=64",
    "model.backbone=resnet8-w16", "model.projection_hidden=32", "model.projection_dim=16",
    "checkpoint.every_samples=96", "snapshot.every_samples=0", "health.interval_samples=64",
    "reader.thumbnail_px=16", "reader.poll_s=0.05", "window=2", "device=cpu", "crops.0.size=16",
    "crops.1.size=8",
)  # fmt: skip
STEPS = RECORDS // 8 // 4


def config_of(*more: str) -> RunConfig:
    return build(recipes.load("smoke").values, (*SETTINGS, *more))


def write_stream(
    folder: Path,
    records: int = RECORDS,
    *,
    seal: bool = True,
    bad_from: int = 10**9,
    bad_every: int = 10**9,
) -> str:
    manifest = Manifest.open(str(folder), create=True)
    with ShardWriter(manifest, source_id="drawn", config=ShardConfig(max_records=60)) as writer:
        for number in range(records):
            good = number < bad_from and number % bad_every != bad_every - 1
            payload = encoded(5, number, 24)[0] if good else b"\xff\xd8\xff no image" * 9
            digest = hashlib.sha256(payload).hexdigest()
            writer.write(Record(payload=payload, sha256=digest, media_type="image/jpeg"), number)
    if seal:
        manifest.refresh()
        manifest.seal()
    return str(folder)


class StopAfter(StopRequest):
    """Asks the run to end once its history has so many steps; `kill` ends the process there and then."""

    def __init__(self, run_dir: Path, steps: int, *, kill: bool = False) -> None:
        super().__init__()
        self._run_dir, self._steps, self._kill = run_dir, steps, kill

    def requested(self) -> bool:
        there = sum(1 for _ in read_lines(self._run_dir / "history.jsonl")) >= self._steps
        if there and self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return there or super().requested()


class PublishedThenKill(StopAfter):
    """Waits at its step until the snapshot of that step stands in Redis, then ends the process."""

    def requested(self) -> bool:
        if super().requested():
            with open_redis(self._run_dir) as client:
                store = SnapshotStore(client, read_run(self._run_dir).uuid)
                while max((info.samples for info in store.versions()), default=0) < 32 * self._steps:
                    time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def run(stream: str, run_dir: Path, config: RunConfig, **more: Any) -> RunSummary:
    return learn(stream, run_dir, config, out=io.StringIO(), **more)


def run_stopped_after_every_step(stream: str, run_dir: Path, config: RunConfig, steps: int) -> RunSummary:
    """A run of so many steps in as many sessions; the summary of the last."""
    for step in range(1, steps):
        part = run(stream, run_dir, config, stop=StopAfter(run_dir, step))
        assert (part.status, part.steps) == (STOPPED, step)
    return run(stream, run_dir, config)


def kill_after(stream: str, run_dir: Path, config: RunConfig, steps: Iterable[int]) -> None:
    """Sessions of a run that are killed after so many of its steps each."""
    for step in steps:
        stop = StopAfter(run_dir, step, kill=True)
        assert killed(lambda stop=stop: run(stream, run_dir, config, stop=stop))  # type: ignore[misc]


def bits(run_dir: Path) -> tuple[dict[str, str], Any, Any]:
    """Everything that a run ends with: every tensor, every value, the cursor."""
    found = load_newest(run_dir)
    assert found is not None
    hashed = {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in found.state["tensors"].items()
        if tensor.numel()
    }
    return hashed, found.state["values"], found.cursor


def killed(work: Callable[[], Any]) -> bool:
    """Do the work in a forked child; whether SIGKILL ended it."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
