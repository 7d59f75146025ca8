"""What `--recipe auto` chooses by: a look at the stream, at this machine, and a trial of how quick nets are.

    RUN/auto.json   what was chosen when the run began, and why: a run never chooses again

A trial makes a few updates from random pixels and throws them away. What it found is kept in the user's cache
folder, so that it is made once a machine.
"""

import contextlib
import gc
import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from learner.augment import Views
from learner.config import LearnerConfig, ModelConfig, OptimConfig, SwavConfig
from learner.learner import Learner
from ops.config.auto import (
    BUDGET_MINUTES,
    FEWEST_IMAGES,
    NAME,
    TITLE,
    Choice,
    Host,
    Images,
    Net,
    beforehand,
    choose,
)
from ops.config.checks import HEADROOM, Machine, uses_cuda
from ops.config.memory import memory_of
from ops.config.recipes import About, Recipe
from ops.config.schema import RunConfig
from ops.distributed.device import check_device, device_of, keep_to_share, precision_of
from ops.errors import ConfigError
from ops.evaluate.baseline_cache import cache_folder
from ops.rundir.files import newest_saved, read_json, read_run, write_json
from stream.config import CropConfig
from stream.cursor import start_cursor
from stream.errors import BadRecord, StreamNotFound
from stream.images.crops import FLOATS_PER_VIEW, UNIFORMS_PER_VIEW, draw, multi_crop
from stream.images.decode import decode_image
from stream.kafka_topic.address import is_topic, read_address
from stream.kafka_topic.client import look_at
from stream.kafka_topic.source import TopicSpec
from stream.lanes import Position
from stream.machine import cores
from stream.order import SHARD
from stream.shards.source import ShardSource, ShardSpec
from stream.source import Entry, Source, SourceSpec
from stream.storage import LocalStore

logger = logging.getLogger(__name__)

FILE = "auto.json"
SAMPLED = 24
"""Images that are decoded."""
PLACES = 4
"""Shards or partitions that they are of."""
TRIAL_S = 12.0
"""Seconds after which no further net is tried."""
ONE_S = 2.0
"""Seconds that the updates of one net should take at most; its batch is made smaller for that."""
GROWTH = 3.0
"""A net takes at most so many times as long as the one before."""
LARGEST, SMALLEST = 32, 8
"""Images of an update of the trial on a CPU."""
ON_GPU = 128
QUICK_BFLOAT16 = (8, 0)
"""Compute capability of CUDA devices from which bfloat16 is not emulated."""
LOOK_S = 1.0
"""Seconds between two looks for a stream that has too few images yet."""
CACHE_VERSION = 1

_CROPS = (
    CropConfig(count=2, size=64, scale_min=0.2, scale_max=1.0),
    CropConfig(count=4, size=32, scale_min=0.05, scale_max=0.25),
)
_VIEWS = sum(kind.count for kind in _CROPS)

Say = Callable[[str], None]


def choice_for(
    stream: str,
    *,
    given: Sequence[str] = (),
    until: str = "",
    budget_minutes: float | None = None,
    ranks: int | None = None,
    say: Say = lambda _text: None,
    cached: bool = True,
) -> Choice:
    """Look at a stream and this machine, and choose; some 20 seconds, less where nets were tried before.

    Args:
        stream: directory or URL of shards, or kafka://HOST:PORT/TOPIC.
        given: `a.b=v` that win over the choice.
        until: where a topic ends.
        budget_minutes: that a run over a sealed stream may take; None = 30.
        ranks: learners that share the run; None = one for each GPU that it would use.
        say: is told what is being done.
        cached: whether earlier trials count.

    Raises:
        ConfigError: nothing to choose from, a setting that does not fit, or a device that is not there.
        NoImagesYet: an open stream holds nothing yet.
        StreamError: the stream cannot be read.
    """
    base = beforehand(given)
    check_device(base)
    say(f"auto: looking at {SAMPLED} images of the stream")
    images = look(stream, base, until=until)
    host, device = this_host(base)
    if ranks is None:
        ranks = max(1, len(host.gpu_bytes))
    trial = Trial(host, device, precision=_precision(host, device, base, given), say=say, cached=cached)

    def fits(config: RunConfig) -> bool:
        if ranks > config.lanes:
            return True  # which is refused with a sentence of its own
        needed = memory_of(config, ranks=ranks)
        if host.gpu_bytes:
            return needed.device * HEADROOM <= min(host.gpu_bytes)
        return ranks * (needed.host + needed.device) * HEADROOM <= host.memory_bytes

    return choose(
        images,
        host,
        cost=trial,
        fits=fits,
        budget_minutes=BUDGET_MINUTES if budget_minutes is None else budget_minutes,
        ranks=ranks,
        given=given,
    )


def await_images(
    stream: str, *, given: Sequence[str] = (), until: str = "", say: Say = lambda _text: None
) -> None:
    """Block until a stream is there that has its end, or at least `FEWEST_IMAGES` images.

    Args:
        stream: directory or URL of shards, or kafka://HOST:PORT/TOPIC.
        given: `a.b=v`, of which those that it is read with count.
        until: where a topic ends.
        say: is told once that there is no stream, and once that there are too few images.

    Raises:
        ConfigError: a setting that does not fit.
        StreamError: the stream is there and cannot be read.
    """
    base, said = beforehand(given), ""
    while True:
        try:
            with _opened(stream, base, until) as source:
                few = not source.sealed() and _places(source)[0] < FEWEST_IMAGES
        except StreamNotFound:
            waiting = f"auto: waiting for a stream at {stream}"
        else:
            if not few:
                return
            waiting = f"auto: waiting for the stream to hold {FEWEST_IMAGES} images, or to be sealed"
        if waiting != said:
            say(waiting)
            said = waiting
        time.sleep(LOOK_S)


def recipe_of(choice: Choice) -> Recipe:
    """A choice as a recipe, whose settings are all written out."""
    about = About(
        title=TITLE,
        source="ours: chosen from the stream and this machine",
        images=choice.images.records if choice.images.sealed else 0,
    )
    return Recipe(name=NAME, about=about, values=choice.config.to_dict())


def write_choice(run_dir: Path, choice: Choice, stream: str) -> None:
    """Write down what was chosen for a run that begins."""
    body = {"version": 1, "stream": stream, **choice.to_json(), "config": choice.config.to_dict()}
    write_json(run_dir / FILE, body)


def kept_settings(run_dir: Path, stream: str) -> Mapping[str, Any] | None:
    """The settings of a run that was begun with a choice; None where a run is still to choose.

    A run that has no checkpoint yet, and is given another stream, chooses again.

    Raises:
        ConfigError: the run was begun with other settings than chosen ones.
    """
    body, begun = read_json(run_dir / FILE), newest_saved(run_dir) is not None
    if body is None:
        if begun:
            raise ConfigError(
                f"the run in {run_dir} did not begin with --recipe {NAME}: leave out --recipe, and it goes "
                "on with its own settings; or give --run another directory"
            )
        return None
    if begun:
        return read_run(run_dir).config
    config = body.get("config")
    return config if body.get("stream") == stream and isinstance(config, dict) else None


def look(stream: str, config: RunConfig, *, until: str = "") -> Images:
    """How many images a stream holds, and how large they are.

    Raises:
        StreamError: it cannot be read.
    """
    with _opened(stream, config, until) as source:
        partitions = 0 if isinstance(source, ShardSource) else source.lanes
        records, places = _places(source)
        with _one_thread():  # as readers decode
            sides, seconds = _decoded(source, _spread(places), config.reader.max_pixels)
        return Images(
            records=records,
            sealed=source.sealed(),
            shards=0 if partitions else len(places),
            partitions=partitions,
            short_side_px=round(median(sides)) if sides else 0,
            sampled=len(sides),
            decode_s=seconds,
        )


@contextlib.contextmanager
def _opened(stream: str, config: RunConfig, until: str) -> Iterator[Source]:
    if is_topic(stream):
        lanes = look_at(read_address(stream), config.kafka).partitions
        spec: SourceSpec = TopicSpec(
            url=stream, lanes=lanes, window=1, seed=0, kafka=config.kafka, until=until
        )
    else:
        spec = ShardSpec(url=stream, lanes=1, window=1, seed=0, order=SHARD)
    with contextlib.closing(spec.open()) as source:
        yield source


def _places(source: Source) -> tuple[int, list[Position]]:
    """Records of a stream, and where each of its shards or partitions that holds some begins."""
    if isinstance(source, ShardSource):
        counts = source.manifest.counts()[source.begin :].tolist()
        numbers = [number for number, count in enumerate(counts, source.begin) if count]
        return source.records(source.begin), [Position(lane=0, unit=number) for number in numbers]
    positions = start_cursor(source, seed=0, chunk=1, window=1).positions
    found = {position: source.availability(position, 0).available for position in positions}
    return sum(found.values()), [position for position, count in found.items() if count]


def _spread(places: Sequence[Position]) -> Sequence[Position]:
    """A few of them, from the first to the last."""
    return places[:: max(1, -(-len(places) // PLACES))]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decoded(source: Source, places: Sequence[Position], max_pixels: int) -> tuple[list[int], float]:
    """Short sides of some images, and the processor seconds that one of them takes."""
    floats = draw(0, 0, 0, 0, _VIEWS * FLOATS_PER_VIEW).reshape(_VIEWS, FLOATS_PER_VIEW)
    sides: list[int] = []
    seconds: list[float] = []
    for entry in _some(source, places):
        if entry.record is None:
            continue
        began = time.process_time()
        try:
            image_3HW = decode_image(entry.record.payload, max_pixels=max_pixels)
        except BadRecord:
            continue
        multi_crop(image_3HW, _CROPS, floats)
        seconds.append(time.process_time() - began)
        sides.append(min(image_3HW.shape[1:]))
    return sides, median(seconds) if seconds else 0.0  # the first one also loads libraries


def _some(source: Source, places: Sequence[Position]) -> Iterator[Entry]:
    """A few entries of each place."""
    for place in places:
        for entry, _ in islice(source.read(place, 0), SAMPLED // len(places)):
            yield entry


def this_host(config: RunConfig) -> tuple[Host, torch.device]:
    """This machine, and where the network of a run would be.

    Args:
        config: of which device and precision count.
    """
    machine, device = Machine.this(), device_of(config)
    gpus = machine.device_bytes if uses_cuda(config, machine) else ()
    wanted = RunConfig(device=config.device, precision="bfloat16")
    name = torch.cuda.get_device_name(device) if gpus else _processor()
    quick = precision_of(wanted, device) == "bfloat16"
    if device.type == "cuda":
        quick = torch.cuda.get_device_capability(device) >= QUICK_BFLOAT16
    host = Host(cores=cores(), memory_bytes=machine.host_bytes, bfloat16=quick, gpu_bytes=gpus, name=name)
    return host, device


def _precision(host: Host, device: torch.device, base: RunConfig, given: Sequence[str]) -> str:
    """That a run would compute in."""
    if any(one.partition("=")[0].strip() == "precision" for one in given):
        return precision_of(base, device)
    return "bfloat16" if host.bfloat16 else "float32"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


class Trial:
    """Measures nets: seconds of an update for each of its images, as `ops.config.auto.choose` asks for them.

    Processor seconds on a CPU, those of the clock on a GPU. Nothing of torch's random state is changed.

    Args:
        host: this machine.
        device: where nets are put.
        precision: that a run would compute in.
        say: is told what is tried.
        cached: whether earlier trials count.
    """

    def __init__(
        self, host: Host, device: torch.device, *, precision: str, say: Say, cached: bool = True
    ) -> None:
        self._host, self._device, self._precision, self._say = host, device, precision, say
        self._store = LocalStore(cache_folder()) if cached else None
        self._began: float | None = None
        self._last_s = 0.0

    def __call__(self, net: Net) -> float | None:
        """Seconds for each image; None where the time for trials is over, or the net fits into no memory."""
        keep_to_share()
        found = self._kept(net)
        if found is None:
            now = time.monotonic()
            self._began = now if self._began is None else self._began
            if now - self._began > TRIAL_S:
                self._say(f"auto: {net.backbone} is not tried, as trials have taken {TRIAL_S:.0f} s")
                return None
            self._say(f"auto: trying {net.backbone} with views of {net.large_px} and {net.small_px} pixels")
            found = self._measure(net)
            if found is None:
                self._say(f"auto: {net.backbone} needs more memory than there is")
                return None
            self._keep(net, found)
        self._last_s = found
        return found

    def _measure(self, net: Net) -> float | None:
        """Seconds for each image; None where the memory of the GPU is not enough. It is free afterwards."""
        try:
            return self._timed(net)
        except torch.OutOfMemoryError as error:
            logger.info("%s: %s", net.backbone, error)
            return None
        finally:
            if self._device.type == "cuda":  # whose memory the run is to have, in this process or another
                gc.collect()
                torch.cuda.empty_cache()

    def _timed(self, net: Net) -> float:
        cpu = self._device.type == "cpu"
        size = ON_GPU
        if cpu:
            expected = 3 * GROWTH * self._last_s
            size = LARGEST if expected == 0 else max(SMALLEST, min(LARGEST, int(ONE_S / expected)))
        learner = Learner(
            LearnerConfig(
                model=ModelConfig(backbone=net.backbone, projection_hidden=512, projection_dim=128),
                swav=SwavConfig(prototypes=(256,)),
                optim=OptimConfig(optimizer="adamw", learning_rate=1e-4),
            ),
            seed=0,
            device=self._device,
            precision=self._precision,
            total_samples=None,
            clock=time.monotonic,
        )
        views, clock = _random_views(net, size), time.process_time if cpu else time.monotonic
        learner.step(views)  # the first one asks for memory, and chooses kernels
        began = clock()
        for _ in range(2):
            learner.step(views)  # its report waits for the device
        return (clock() - began) / (2 * size)

    def _name(self, net: Net) -> str:
        basis = [
            CACHE_VERSION, self._host.name, self._host.cores, torch.get_num_threads(), self._device.type,
            self._precision, torch.__version__, net.backbone, net.large_px, net.small_px,
        ]  # fmt: skip
        return f"speeds/{hashlib.sha256(json.dumps(basis).encode()).hexdigest()}.json"

    def _kept(self, net: Net) -> float | None:
        if self._store is None:
            return None
        try:
            body = json.loads(self._store.read(self._name(net)))
        except (OSError, ValueError):
            return None
        seconds = body.get("seconds_per_image") if isinstance(body, dict) else None
        return seconds if isinstance(seconds, float) and seconds > 0 else None

    def _keep(self, net: Net, seconds: float) -> None:
        if self._store is None:
            return
        try:
            self._store.replace(self._name(net), json.dumps({"seconds_per_image": seconds}).encode())
        except OSError as error:
            logger.warning("how quick a net is could not be kept in %s: %s", self._store.url, error)


def _random_views(net: Net, size: int) -> Views:
    generator = torch.Generator().manual_seed(0)
    crops = [
        torch.randint(0, 256, (count, size, 3, side, side), generator=generator, dtype=torch.uint8)
        for count, side in ((2, net.large_px), (4, net.small_px))
    ]
    uniforms = torch.rand(6, size, UNIFORMS_PER_VIEW, generator=generator)
    return Views(crops=tuple(crops), uniforms=uniforms)
