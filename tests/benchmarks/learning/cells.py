"""One cell of the learning benchmark: accuracy against processor seconds, for a line and a seed."""

# B images of a piece   S side of a view   F width of a feature   M queries

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import Tensor

from ops.config import recipes
from ops.config.load import build
from ops.config.schema import RunConfig
from ops.evaluate import protocol
from ops.evaluate.features import LabelledImages
from ops.evaluate.knn import NEIGHBOURS, PlainAndWhitened
from ops.inference import load_model
from stream.images.decode import decode_image
from stream.lanes import Position
from stream.order import SHARD
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from tests.benchmarks.learning import plain_swav
from tests.benchmarks.learning.data import Streams
from tests.ops.drawn_runs import begun_run

LOOP, OURS = "loop", "ours"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What was reached after some processor time; accuracies are top-1 in percent."""

    samples: int
    """Images used; the plain loop counts an image again in each epoch."""
    updates: int
    cpu_seconds: float
    """Of learning; evaluations are left out."""
    k20: float
    k200: float
    whitened_k20: float
    whitened_k200: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is run."""

    data: str
    order: str
    recipe: str
    """Name, with changed settings behind plus signs: smoke+replay.updates=4."""
    seed: int

    @property
    def config(self) -> RunConfig:
        name, *changes = self.recipe.split("+")
        return build(recipes.load(name).values, (*changes, f"seed={self.seed}"))

    def name(self, line: str) -> str:
        return f"{self.data}.{self.order}.{line}.{self.recipe}.{self.seed}"


class Judge:
    """The protocol of `evaluate knn` over views in memory, for features from anywhere."""

    def __init__(self, streams: Streams, view_px: int) -> None:
        def read(url: str) -> tuple[Tensor, list[object]]:
            with contextlib.closing(LabelledImages(url, size=view_px, limit=0, max_pixels=10**8)) as images:
                pieces = list(images)
            labels: list[object] = [label for piece in pieces for label in piece.labels]
            return torch.cat([piece.views_B3SS for piece in pieces]), labels

        (self._bank, known), (self._queries, asked) = read(streams.bank), read(streams.queries)
        classes = {label: number for number, label in enumerate(dict.fromkeys(known))}
        self._labels = torch.tensor([classes[label] for label in known])
        self._wanted = torch.tensor([classes.get(label, -1) for label in asked])

    def accuracies(self, describe: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The accuracies of a `Point`."""
        queries = torch.cat([describe(views) for views in torch.split(self._queries, 512)])
        search = PlainAndWhitened(queries, k=max(NEIGHBOURS))
        for views, labels in zip(torch.split(self._bank, 512), torch.split(self._labels, 512), strict=True):
            search.add(describe(views), labels)
        found = {}
        for k in NEIGHBOURS:
            found[f"k{k}"], found[f"whitened_k{k}"] = search.top1(k, self._wanted)
        return found


def learned(cell: Cell, streams: Streams, judge: Judge, *, points: int, folder: Path) -> Iterator[Point]:
    """`swavstream learn`, looked at where it saved; its processor seconds are those of all its processes."""
    run = folder / "learned"
    shutil.rmtree(run, ignore_errors=True)
    name, *changes = cell.recipe.split("+")
    records = Manifest.open(streams.learned).records
    settings = [
        f"seed={cell.seed}", f"checkpoint.every_samples={-(-records // points)}",
        f"checkpoint.keep={points + 2}", "snapshot.every_samples=0", "server.port=0",
    ]  # fmt: skip
    if cell.order != "uniform":
        settings.append("window=1")  # else the window, and not the learner, would undo the order
    command = [sys.executable, "-m", "ops.cli", "learn", streams.learned, "--run", str(run), "--recipe", name]
    command += [word for setting in (*settings, *changes) for word in ("--set", setting)]
    spent = _watched(command, run)
    for path, seconds in spent.items():
        alone = folder / "looked-at"
        shutil.rmtree(alone, ignore_errors=True)
        (alone / "checkpoints").mkdir(parents=True)
        shutil.copy(run / "run.json", alone)
        shutil.copytree(path, alone / "checkpoints" / path.name)
        network = load_model.load(alone)
        yield Point(
            samples=network.samples,
            updates=network.learner.updates,
            cpu_seconds=seconds,
            **judge.accuracies(network.learner.features),
        )
        shutil.rmtree(alone)
    shutil.rmtree(run)


def _watched(command: list[str], run: Path) -> dict[Path, float]:
    """Checkpoints of a run that learns, each with the processor seconds that were spent when it was there."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run.parent.mkdir(parents=True, exist_ok=True)
    log = run.with_name(f"{run.name}.log")
    found: dict[Path, float] = {}
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while child.poll() is None:
                for path in (run / "checkpoints").glob("ckpt-*"):
                    found.setdefault(path, _seconds_of(child.pid))
                time.sleep(0.02)
        finally:
            child.kill()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{log.read_text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for path in (run / "checkpoints").glob("ckpt-*"):
        found.setdefault(path, total)
    log.unlink()
    return {path: min(found[path], total) for path in sorted(found) if path.exists()}


def _seconds_of(pid: int) -> float:
    """User and system seconds of a process, of those that it has waited for, and of those that it has."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(pid)
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def looped(cell: Cell, streams: Streams, judge: Judge, *, points: int) -> Iterator[Point]:
    """The paper's loop over the images in memory; decoding them once is counted."""
    began = time.process_time()
    images = list(_decoded(streams.learned))
    decoding = time.process_time() - began
    shuffle = cell.order == "uniform"
    config = cell.config
    mean, std = (torch.tensor(value)[:, None, None] for value in (config.augment.mean, config.augment.std))
    looks = plain_swav.learn(images, config, seed=cell.seed, shuffle=shuffle, points=points)
    for samples, updates, seconds, net in looks:

        @torch.no_grad()
        def describe(views_B3SS: Tensor, net: plain_swav.PlainNet = net) -> Tensor:
            features: Tensor = net.encoder((views_B3SS.float() / 255 - mean) / std)
            return features

        net.eval()
        found = judge.accuracies(describe)
        net.train()
        yield Point(samples=samples, updates=updates, cpu_seconds=decoding + seconds, **found)


def _decoded(url: str) -> Iterator[Image.Image]:
    """Images of a stream in its order."""
    source = ShardSpec(url=url, lanes=1, window=1, seed=0, order=SHARD).open()
    for entry, _ in source.read(Position(lane=0), 0):
        if entry.record is not None:
            pixels = decode_image(entry.record.payload, max_pixels=10**8)
            yield Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    source.close()


def baselines(cell: Cell, streams: Streams, *, folder: Path) -> dict[str, dict[str, object]]:
    """Rows of `evaluate knn` that learn nothing or little; kept in a cache of the benchmark's own."""
    run = folder / "untrained"
    shutil.rmtree(run, ignore_errors=True)
    begun_run(
        run,
        dataclasses.replace(cell.config, optim=dataclasses.replace(cell.config.optim, schedule="constant")),
    )
    with _cache_in(folder):
        report = protocol.evaluate_knn(run, train_url=streams.bank, test_url=streams.queries)
    shutil.rmtree(run)
    return {name: row.to_json() for name, row in report.baselines.items()}


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def saved(path: Path, compute: Callable[[], object]) -> object:
    """What a file holds; computed and written whole when it is not there."""
    if not path.exists():
        body = json.dumps(compute(), indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(body)
        part.rename(path)
    return json.loads(path.read_text())
