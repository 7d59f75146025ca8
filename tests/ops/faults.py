"""Faults to plant in a real run, one each: what is done to it, what must be said of it."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from learner.augment import Views
from learner.learner import Learner
from learner.report import StepReport
from ops.demo.drawings.pictures import KINDS
from ops.demo.feed import encoded
from ops.rundir.files import read_run
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.store import SnapshotStore
from ops.snapshots.writer import SnapshotWriter
from ops.train.signals import StopRequest
from stream.config import ShardConfig
from stream.record import Record
from stream.shards.manifest import Manifest
from stream.shards.writer import ShardWriter
from tests.learner.small_run import spoiled

HEALTHY_AFTER = 30
"""Updates until a run of these settings is well; a fault is planted then."""
SETTINGS = (
    "crops.0.scale_min=0.5", "crops.1.size=16", "crops.1.scale_min=0.4", "crops.1.scale_max=0.7",
    "augment.jitter=0.3", "augment.grayscale_probability=0", "augment.blur_probability=0",
    "swav.queue_samples=0", "optim.learning_rate=1e-3", "health.usage_window_samples=640",
    "health.interval_samples=32", "reader.thumbnail_px=0", "snapshot.every_samples=6400",
    "checkpoint.every_samples=640", "passes=1000",
)  # fmt: skip
"""Views that are easy enough for a tiny net to be well within a second or two; every step is judged."""
STEP_S = 0.02
"""A step takes at least so long, on any machine: else a stream would end before Prometheus has seen it."""

ALIKE = ("night", "bricks", "gradient")
BATCH = 32

Plant = Callable[["Planted", Views], Views]
Feed = Callable[[Path], None]
"""Writes the stream."""


class Planted(Learner):
    """A learner to which something is done before each step, once it is well."""

    plant: Plant
    run_dir: Path
    stop: StopRequest
    after: int
    times = 0
    """Steps with the fault so far, over all learners of the run."""

    def step(self, views: Views, **more: Any) -> StepReport:
        time.sleep(STEP_S)
        if self.updates >= type(self).after:
            views = type(self).plant(self, views)
            type(self).times += 1
        return super().step(views, **more)


def last_layer(learner: Planted) -> torch.nn.Linear:
    layer = learner._model.head[-1]
    assert isinstance(layer, torch.nn.Linear)
    return layer


def nothing(_learner: Planted, views: Views) -> Views:
    return views


@torch.no_grad()
def collapse(learner: Planted, views: Views) -> Views:
    """Every image gets the same feature."""
    last = last_layer(learner)
    last.weight.zero_()
    last.bias.fill_(1.0)
    return views


@torch.no_grad()
def twins(learner: Planted, views: Views) -> Views:
    """Every second prototype is a copy of the one before it."""
    prototypes_KD = learner._model.prototypes[0]
    prototypes_KD[1::2] = prototypes_KD[::2]
    return views


@torch.no_grad()
def dying(learner: Planted, views: Views) -> Views:
    """Half of the prototypes stand where no feature comes: it uses half of the dimensions only."""
    last, prototypes_KD = last_layer(learner), learner._model.prototypes[0]
    num, dim = prototypes_KD.shape
    last.weight[dim // 2 :] = 0
    last.bias[dim // 2 :] = 0
    away = torch.randn(num // 2, dim - dim // 2, generator=torch.Generator().manual_seed(0))
    prototypes_KD[: num // 2, : dim // 2] = 0
    prototypes_KD[: num // 2, dim // 2 :] = away
    prototypes_KD[num // 2 :, dim // 2 :] = 0
    learner._model.normalise_prototypes()
    return views


def hang(learner: Planted, views: Views) -> Views:
    """A step that does not come to its end, as with a device or a rank that does not answer."""
    while not type(learner).stop.requested():
        time.sleep(0.05)
    return views


def not_a_number(learner: Planted, views: Views) -> Views:
    """One batch with a sample whose colour is no number; it is met again after going back."""
    return spoiled(views) if type(learner).times < 2 else views


def second_learner(learner: Planted, views: Views) -> Views:
    """Another learner takes the right to publish, as one on another host would."""
    if type(learner).times == 0:
        with open_redis(learner.run_dir) as client:
            store = SnapshotStore(client, read_run(learner.run_dir).uuid)
            SnapshotWriter(store).acquire("another", started_ms=2**45, who="elsewhere:1")
    return views


def write(
    folder: Path,
    numbers: list[int],
    *,
    bad_every: int = 0,
    seal: bool = True,
    per_shard: int = 60,
) -> None:
    """A stream of drawn pictures in this order; every so many is none."""
    pictures = {number: encoded(5, number, 24)[0] for number in set(numbers)}
    manifest = Manifest.open(str(folder), create=True)
    with ShardWriter(manifest, source_id="drawn", config=ShardConfig(max_records=per_shard)) as writer:
        for place, number in enumerate(numbers):
            payload = pictures[number]
            if bad_every and place % bad_every == bad_every - 1:
                payload = b"\xff\xd8\xff no image" * 9
            digest = hashlib.sha256(payload).hexdigest()
            writer.write(Record(payload=payload, sha256=digest, media_type="image/jpeg"), place)
    if seal:
        manifest.refresh()
        manifest.seal()


def _by_kind(count: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for number in range(count):
        found[encoded(5, number, 24)[1]].append(number)
    return found


def mixed(folder: Path) -> None:
    write(folder, list(range(600)))


def corrupt(folder: Path) -> None:
    """Every fourth record is none, from the first on.

    The rules look at a second and the doctor at minutes: where good records came first, the doctor would see
    too few bad ones yet when steps are slow.
    """
    write(folder, list(range(600)), bad_every=4)


def in_order(folder: Path) -> None:
    """Three kinds of pictures that look alike within and not between, one after the other, in whole batches.

    So the similarity of every single batch is far above the limit, from 0.3 to 0.8, however few steps an
    average is over. Where a batch holds two kinds, or a kind of many looks, it is near 0.
    """
    by_kind = _by_kind(900)
    of_a_shard = 2 * BATCH
    numbers = [number for kind in ALIKE for number in (by_kind[kind] * of_a_shard)[:of_a_shard]]
    write(folder, numbers, per_shard=of_a_shard)


def moving(folder: Path) -> None:
    """All kinds of pictures, and then only three."""
    by_kind = _by_kind(300)
    later = sorted(number for kind in KINDS[:3] for number in by_kind[kind])
    write(folder, [*(list(range(300)) * 4), *(later * 200)[:8400]], per_shard=240)


def incomplete(folder: Path) -> None:
    """Nearly two windows of seven commits, and no end."""
    write(folder, list(range(780)), seal=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    name: str
    alert: str
    finding: str
    """Of the doctor."""
    setting: str
    """That the doctor says to change."""
    with_it: frozenset[str] = frozenset()
    """Alerts that may fire too, because they are true as well."""
    plant: Plant = nothing
    after: int = HEALTHY_AFTER
    """Updates after which it is planted."""
    feed: Feed = mixed
    settings: tuple[str, ...] = ()

    @property
    def expected(self) -> frozenset[str]:
        """Alerts that may fire."""
        return self.with_it | {self.alert}


def _also(*names: str) -> frozenset[str]:
    return frozenset(f"Swavstream{name}" for name in names)


FAULTS = (
    Fault(
        name="collapsed-encoder", alert="SwavstreamFeatureCollapse", finding="collapse",
        setting="optim.learning_rate", plant=collapse,
        with_it=_also("NotLearning", "UsageCollapse", "PrototypesDying", "PrototypeTwins"),
    ),
    Fault(
        name="hung-start", alert="SwavstreamLearnerStalled", finding="stalled", setting="", plant=hang,
        after=0,
    ),
    Fault(
        name="corrupt-input", alert="SwavstreamBadRecords", finding="bad-records",
        setting="reader.max_bad_fraction", feed=corrupt, settings=("reader.max_bad_fraction=0.9",),
    ),
    Fault(
        name="redis-away", alert="SwavstreamSnapshotsFailing", finding="redis", setting="snapshot.url",
        settings=("snapshot.url=redis://127.0.0.1:1/0", "snapshot.every_samples=64"),
        with_it=_also("SnapshotStale"),
    ),
    Fault(
        name="starved-lane", alert="SwavstreamStarved", finding="starved", setting="window", feed=incomplete,
        settings=("window=7", "passes=1"),
    ),
    Fault(
        name="nan", alert="SwavstreamNotFinite", finding="not-finite", setting="optim.learning_rate",
        plant=not_a_number, settings=("on_nonfinite=skip",),
    ),
    Fault(
        name="two-learners", alert="SwavstreamTwoLearners", finding="two-learners", setting="",
        plant=second_learner, settings=("snapshot.every_samples=64",), with_it=_also("SnapshotStale"),
    ),
    Fault(
        name="learning-rate", alert="SwavstreamNotLearning", finding="learning-rate",
        setting="optim.learning_rate", settings=("optim.learning_rate=10",),
        with_it=_also("FeatureCollapse", "PrototypeTwins", "PrototypesDying", "CodesUnbalanced", "NotFinite"),
    ),
    Fault(
        name="prototypes-dying", alert="SwavstreamPrototypesDying", finding="dead-prototypes",
        setting="swav.epsilon", plant=dying, with_it=_also("CodesUnbalanced", "NotLearning"),
    ),
    Fault(
        name="twins", alert="SwavstreamPrototypeTwins", finding="twins", setting="swav.freeze_samples",
        plant=twins, with_it=_also("PrototypesDying"),  # of two that are equal the first takes all
    ),
    Fault(
        name="sorted-stream", alert="SwavstreamStreamSorted", finding="sorted", setting="window",
        feed=in_order, settings=("window=1",),
        with_it=_also("StreamDrift", "PrototypesDying", "UsageCollapse"),
    ),
    Fault(
        name="drift", alert="SwavstreamStreamDrift", finding="drift", setting="health.reference_samples",
        feed=moving, settings=("passes=1",), with_it=_also("PrototypesDying", "StreamSorted"),
    ),
)  # fmt: skip
FAST = {"collapsed-encoder", "redis-away", "starved-lane"}
"""Faults that every run of the tests plants; the others are slow."""
