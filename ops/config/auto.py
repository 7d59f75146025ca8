"""`--recipe auto`: settings that follow from the images of a stream, this machine, and measured speed.

`choose` is a function of facts alone; whoever calls it has looked at the stream and the machine, and measures
nets as they are asked for. Every choice has a line that says why. Nothing heavy is imported.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ops.config import binding
from ops.config.load import build
from ops.config.schema import RunConfig
from ops.errors import ConfigError, NoImagesYet

NAME = "auto"
TITLE = (
    "Chosen from the images of a stream and this machine: net, crops, batch, prototypes, updates, schedule"
)
BUDGET_MINUTES = 30.0
"""Default; of processor time on a CPU, of the clock on GPUs."""
WANTED_UPDATES = 400
"""Updates that are to fit into the budget: hundreds of updates of a small net sort images better than tens of
a large one in the same time (ops/docs/results.md)."""
FEWEST_IMAGES = 64
BATCHES = 8
"""That a sealed stream should hold, at least."""
MOST_PROTOTYPES = 1024
MOST_VISITS = 100
"""Updates that one image takes part in at most, in a small sealed stream."""
MOST_REPLAYS = 16
"""Updates for each batch that arrives, at most: the largest number that was measured."""
SMALL_PX = 64
"""A large net with views of 32 pixels is for images that are too small for larger views than this."""
READ_AGAIN = 20_000
"""A sealed stream of at most so many images is read in several passes; of a larger one the latest are
replayed."""
REPLAYED = 8_192
"""Images that are replayed, at most."""
OPEN_UPDATES = 4
"""Updates for each batch of a stream of shards that grows, on a CPU."""
BRANCH_IMAGES = 200_000
"""A sealed stream of fewer images gets a patch branch on a GPU too."""
SHUFFLED = 100_000
"""All commits of a sealed stream of at most so many images are shuffled together."""
IMAGES_PER_PROTOTYPE = 12
SAVED_SAMPLES, SAVED_UPDATES = 10_240, 40
"""Between two checkpoints are so many samples and so many batches, or an eighth of a shorter run."""
BRANCH_COST = 1.15
"""Time of a run with a patch branch against the same run without, about."""
SMALLEST_OF_TWO_SCALES = 16
"""Pixels of a crop at whose half a patch branch can still look."""
MARGIN = 0.85
"""Images whose short side is this share of a crop's side are still large enough for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What a look at a stream found."""

    records: int
    """Committed so far; all, where the stream is sealed."""
    sealed: bool
    """The stream has its end."""
    shards: int = 1
    partitions: int = 0
    """Of a Kafka topic; 0 = a stream of shards."""
    short_side_px: int
    """Median of the short sides of the images that were decoded, pixels."""
    sampled: int
    """Images that were decoded."""
    decode_s: float = 0.0
    """Processor seconds to decode one and cut its crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What a run may use here."""

    cores: int
    memory_bytes: int
    bfloat16: bool
    """bfloat16 is quicker than float32 where the network will be."""
    gpu_bytes: tuple[int, ...] = ()
    """Memory of each CUDA device; empty = the network will be on the CPU."""
    name: str = ""
    """Of the processor or the GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """An encoder, and the views that it is trained on."""

    backbone: str
    large_px: int
    """Side of the two crops that are assigned."""
    small_px: int
    """Side of the four small crops."""


NETS = tuple(
    Net(backbone=backbone, large_px=large, small_px=small)
    for backbone, large, small in (
        ("resnet8-w16", 32, 16),
        ("resnet8-w32", 32, 16),
        ("resnet8-w32", 48, 24),
        ("resnet8-w64", 32, 16),
        ("resnet8-w32", 64, 32),
        ("resnet14-w32", 64, 32),
        ("resnet8-w64", 64, 32),
        ("resnet18-cifar", 32, 16),
        ("resnet18", 96, 48),
        ("resnet18", 128, 64),
        ("resnet18", 160, 64),
        ("resnet50", 160, 96),
        ("resnet50", 224, 96),
    )
)
"""From the cheapest to the dearest, for an update of the same batch."""

_BEFOREHAND = ("device", "precision", "kafka", "ranks", "server", "reader.max_pixels")

Cost = Callable[[Net], float | None]
"""Seconds of an update for each of its images; None = not known, which counts as too dear."""
Fits = Callable[[RunConfig], bool]
"""Whether a run fits into memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One choice."""

    setting: str
    """Dotted names of what was chosen."""
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.setting} = {self.value}: {self.why}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What was chosen, and why."""

    config: RunConfig
    """With what was given on the command line."""
    reasons: tuple[Reason, ...]
    images: Images
    host: Host
    budget_minutes: float

    def lines(self) -> list[str]:
        """For people: what was looked at, then a line for each choice."""
        found, host = self.images, self.host
        end = "sealed" if found.sealed else "growing"
        where = f"{found.partitions} partitions" if found.partitions else f"{found.shards:,} shards"
        many = f"{found.records:,} images" if found.sealed else f"{found.records:,} images so far"
        place = f"{len(host.gpu_bytes)} x {host.name}" if host.gpu_bytes else f"{host.cores} cores"
        return [
            f"images: {many} in {where}, {end}; short side {found.short_side_px} pixels "
            f"(median of {found.sampled})",
            f"machine: {place}, {host.memory_bytes / 2**30:.1f} GiB of memory",
            *map(str, self.reasons),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the settings."""
        return {
            "chosen": [asdict(reason) for reason in self.reasons],
            "images": asdict(self.images),
            "machine": {**asdict(self.host), "gpu_bytes": list(self.host.gpu_bytes)},
            "budget_minutes": self.budget_minutes,
        }


def beforehand(given: Iterable[str]) -> RunConfig:
    """What is given of the settings that stream and machine are looked at with, over the defaults.

    Raises:
        ConfigError: a setting that is none, or does not fit.
    """
    return build({}, [one for one in given if _counts_beforehand(one)])


def _counts_beforehand(assignment: str) -> bool:
    name = ".".join(part.strip() for part in assignment.partition("=")[0].split("."))
    return name in _BEFOREHAND or name.partition(".")[0] in _BEFOREHAND


def choose(
    images: Images,
    host: Host,
    *,
    cost: Cost,
    fits: Fits = lambda _config: True,
    budget_minutes: float = BUDGET_MINUTES,
    ranks: int = 1,
    given: Iterable[str] = (),
) -> Choice:
    """Choose all settings of a run.

    Args:
        images: of the stream.
        host: where the run will be.
        cost: is asked for nets from the cheapest on, until one is too dear.
        fits: is asked for the dearest net that the time allows, then for cheaper ones.
        budget_minutes: that a run over a sealed stream may take; > 0.
        ranks: learners that share the run.
        given: `a.b=v` that win over the choice; batch, lanes, net, passes and updates are also chosen by.

    Raises:
        ConfigError: nothing to choose from, too few images for a batch, or a setting that does not fit.
        NoImagesYet: an open stream holds nothing yet.
    """
    if not (math.isfinite(budget_minutes) and budget_minutes > 0):
        raise ConfigError(f"the budget must be > 0 minutes, got {budget_minutes}")
    _check_count(images)
    return _Chooser(images, host, cost, fits, budget_minutes, ranks, tuple(given)).choice()


def _check_count(images: Images) -> None:
    if images.records == 0 and not images.sealed:
        raise NoImagesYet(
            "the stream holds no images: auto has nothing to choose from yet; bring some with `swavstream "
            "ingest`, give `learn` --wait, or a recipe by name"
        )
    if images.records and images.sampled == 0:
        raise ConfigError(
            "none of the first records can be decoded: auto has nothing to choose from; `swavstream stream "
            "verify` tells what is wrong with them"
        )
    if images.sealed and images.records < FEWEST_IMAGES:
        raise ConfigError(
            f"the stream is sealed with {images.records} images, and auto needs at least {FEWEST_IMAGES} for "
            "batches: bring more images, or choose yourself, as --recipe smoke --set lanes=4 --set batch=16"
        )


class _Chooser:
    """The choices in their order: each may use those before."""

    def __init__(
        self,
        images: Images,
        host: Host,
        cost: Cost,
        fits: Fits,
        budget_minutes: float,
        ranks: int,
        given: tuple[str, ...],
    ) -> None:
        self._images, self._host, self._cost, self._fits = images, host, cost, fits
        self._minutes, self._ranks, self._given = budget_minutes, ranks, given
        self._values: dict[str, Any] = {}
        for assignment in given:
            binding.assign(self._values, assignment)
        self._chosen: dict[str, Any] = {}
        self._reasons: list[Reason] = []
        self._speeds: dict[Net, float] = {}
        self._unfit: Net | None = None
        """The cheapest net that the time allows, and memory does not."""

    def choice(self) -> Choice:
        self._precision()
        self._batch()
        self._window()
        self._kinds()
        self._measure()
        for net in reversed(list(self._speeds) or [self._nets()[0]]):
            config, reasons = self._with(net)
            if self._fits(config) or net == self._nets()[0]:
                break
            self._unfit = net
        return Choice(
            config=config,
            reasons=tuple(self._as_given(reason, config) for reason in (*self._reasons, *reasons)),
            images=self._images,
            host=self._host,
            budget_minutes=self._minutes,
        )

    def _number(self, name: str) -> int | None:
        """A number that was given; None where it was not."""
        value = _at(self._values, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"config key `{name}` must be a whole number >= 1, got {value!r}")
        return value

    def _precision(self) -> None:
        host = self._host
        place = "GPU" if host.gpu_bytes else "processor"
        quick = "bfloat16 is quick here" if host.bfloat16 else f"this {place} has no quick bfloat16"
        self._chosen["precision"] = "bfloat16" if host.bfloat16 else "float32"
        self._note("precision", self._chosen["precision"], quick)
        each = max(1, host.cores // self._ranks)
        workers = min(10, each - 1 or 1) if host.gpu_bytes else min(2, max(1, each // 4))
        self._chosen |= {"workers": workers}
        self._note("workers", workers, f"{host.cores} cores for learning and decoding")

    def _batch(self) -> None:
        images = self._images
        most = 256 * (self._ranks if self._host.gpu_bytes else 1)
        size, why = most, "the stream grows"
        if images.sealed:
            fitting = [size for size in (most, 256, 128, 64) if images.records >= BATCHES * size]
            size, why = max(fitting, default=32), f"at least {BATCHES} batches of {images.records:,} images"
        lanes = images.partitions or (64 if size >= 256 else 16)
        while not images.partitions and lanes < self._ranks:
            lanes *= 2
        lanes = self._number("lanes") or lanes
        given = self._number("batch")
        if given is not None and given % lanes and self._number("lanes") is None and not images.partitions:
            lanes = math.gcd(given, lanes)
        self._size = given or max(1, round(size / lanes)) * lanes
        if images.sealed and images.records < self._size + lanes:
            raise ConfigError(
                f"the stream is sealed with {images.records} images, too few for batches of {self._size} "
                f"over {lanes} lanes, which need {self._size + lanes}: bring more images, or lower batch and "
                "lanes with --set"
            )
        self._chosen |= {"batch": self._size, "lanes": lanes}
        self._note("batch", self._size, why)
        each = f"{self._size // lanes} images of each in a step"
        self._note("lanes", lanes, "one for each partition" if images.partitions else each)

    def _kinds(self) -> None:
        images, most, why = self._images, min(self._size, MOST_PROTOTYPES), "no more than a batch has images"
        if images.sealed:
            most = min(most, images.records // IMAGES_PER_PROTOTYPE)
            why += f", and {IMAGES_PER_PROTOTYPE} images or more for each"
        self._prototypes = 1 << max(3, most.bit_length() - 1)
        self._note("swav.prototypes", f"[{self._prototypes}]", why)

    def _window(self) -> None:
        images = self._images
        if images.partitions:
            window, why = 16, "records of a block that are shuffled together"
        elif not images.sealed:
            window, why = 1, "a stream that grows is read with the least delay"
        elif images.records <= SHUFFLED:
            window, why = 0, "all shards are shuffled together"
        else:
            window, why = max(8, math.ceil(images.shards / 8)), "an eighth of the shards is shuffled together"
        self._chosen["window"] = window
        self._note("window", window, why)

    def _nets(self) -> list[Net]:
        """From the cheapest on: those whose crops the images are large enough for."""
        side = self._images.short_side_px / MARGIN
        known = [net for net in NETS if net.large_px <= max(side, NETS[0].large_px)]
        if known[-1].large_px > SMALL_PX:
            known = [net for net in known if net.backbone != "resnet18-cifar"]
        named = _at(self._values, "model.backbone")
        if named is None:
            return known
        own = [net for net in known if net.backbone == named]
        sizes = dict.fromkeys((net.large_px, net.small_px) for net in known)
        return own or [Net(backbone=named, large_px=large, small_px=small) for large, small in sorted(sizes)]

    @property
    def _per_visit_s(self) -> float:
        """Seconds that an image may take in one update."""
        updates = WANTED_UPDATES
        if self._images.sealed:
            updates = max(updates, self._images.records // self._size)
        return 60 * self._minutes / (updates * self._size)

    def _measure(self) -> None:
        """Measure nets from the cheapest on, until one is too dear."""
        gpus = self._ranks if self._host.gpu_bytes else 0
        for net in self._nets():
            seconds = self._cost(net)
            if seconds is None:
                break
            seconds *= BRANCH_COST if self._branch else 1.0
            if gpus:  # beside which other cores decode
                seconds = max(seconds / gpus, self._images.decode_s / self._host.cores)
            else:
                seconds += self._images.decode_s
            if seconds > self._per_visit_s and self._speeds:
                break
            self._speeds[net] = seconds

    @property
    def _branch(self) -> bool:
        return not self._host.gpu_bytes or (self._images.sealed and self._images.records < BRANCH_IMAGES)

    def _with(self, net: Net) -> tuple[RunConfig, list[Reason]]:
        """All settings with one net."""
        before, self._reasons = self._reasons, []
        values: dict[str, Any] = {**self._chosen}
        self._of_net(net, values)
        samples = self._of_length(net, values)
        self._of_learning(net, values, samples)
        self._of_branch(net, values, samples)
        added, self._reasons = self._reasons, before
        return build(values, self._given), added

    def _of_net(self, net: Net, values: dict[str, Any]) -> None:
        width = 2048 if net.backbone == "resnet50" else 512
        values["model"] = {"backbone": net.backbone, "projection_hidden": width, "projection_dim": 128}
        values["crops"] = [
            {"count": 2, "size": net.large_px, "scale_min": 0.2, "scale_max": 1.0},
            {"count": 4, "size": net.small_px, "scale_min": 0.05, "scale_max": 0.25},
        ]
        thumbnail = min(64, max(32, net.large_px))
        values["reader"] = {"thumbnail_px": thumbnail}
        self._note("model.backbone", net.backbone, self._of_speed(net))
        self._note(
            "crops",
            f"2 x {net.large_px} + 4 x {net.small_px} pixels",
            f"images have {self._images.short_side_px} pixels on their short side, and the time "
            f"{'and memory allow' if self._unfit else 'allows'} it",
        )
        self._note("reader.thumbnail_px", thumbnail, "no larger than a view")

    def _of_speed(self, net: Net) -> str:
        seconds = self._speeds.get(net)
        if seconds is None:
            return "the cheapest; its speed is not known"
        clock = "minute" if self._host.gpu_bytes else "processor minute"
        found = f"{60 / (seconds * self._size):,.1f} updates a {clock} were measured"
        if seconds > self._per_visit_s:
            return f"{found}, fewer than wanted, and it is the cheapest"
        if self._unfit is not None:
            dearer = f"{self._unfit.backbone} with views of {self._unfit.large_px} pixels"
            return f"{found}; {dearer} is quick enough, but does not fit into memory"
        return f"{found}; the largest of which {WANTED_UPDATES} updates fit into {self._minutes:g} minutes"

    def _of_length(self, net: Net, values: dict[str, Any]) -> int | None:
        """Passes and updates for each batch; the samples of the run, None where it has no end."""
        images = self._images
        if not images.sealed:
            self._grows(values)
            return None
        steps = images.records // self._size
        seconds = self._speeds.get(net, math.inf)
        updates = 60 * self._minutes / (seconds * self._size)
        visits = max(1, min(MOST_VISITS, int(updates // steps)))
        again = images.records <= READ_AGAIN and not images.partitions
        passes, replays = self._number("passes"), self._number("replay.updates")
        if replays is None:
            replays = 1 if again and passes is None else max(1, min(MOST_REPLAYS, visits // (passes or 1)))
        if passes is None:
            passes = max(1, visits // replays) if again else 1
        values["passes"] = passes
        self._note(
            "passes",
            passes,
            "few images, each in turn with new crops" if passes > 1 else "each image arrives once",
        )
        values["replay"] = self._replayed(replays, min(REPLAYED, images.records))
        total = passes * steps * replays
        took = total * seconds * self._size / 60
        clock = "minutes" if self._host.gpu_bytes else "processor minutes"
        long = f"about {took:,.1f} {clock}" if math.isfinite(took) else "a time that is not known"
        self._note("replay.updates", replays, f"{total:,} updates in all, {long}{self._beyond(took)}")
        return passes * steps * self._size

    def _beyond(self, took: float) -> str:
        if took <= 1.05 * self._minutes:
            return f" of {self._minutes:g}"
        return f", more than the {self._minutes:g} asked for: --set end_samples=N ends earlier"

    def _grows(self, values: dict[str, Any]) -> None:
        images = self._images
        slow = not (self._host.gpu_bytes or images.partitions)
        replays = self._number("replay.updates") or (OPEN_UPDATES if slow else 1)
        values["replay"] = self._replayed(replays, REPLAYED)
        why = "how fast images will arrive is not known" if slow else "each image arrives once"
        self._note("replay.updates", replays, why)

    def _replayed(self, replays: int, most: int) -> dict[str, int]:
        """Of whole batches, and of one at least."""
        window = most // self._size * self._size or self._size
        return {"updates": replays, "window_samples": window if replays > 1 else 0}

    def _of_learning(self, net: Net, values: dict[str, Any], samples: int | None) -> None:
        size = self._size
        some = 10 * size if samples is None else max(size, min(10 * size, samples // 10))
        values["swav"] = {"prototypes": [self._prototypes], "epsilon": 0.03, "freeze_samples": some}
        schedule = "constant" if samples is None else "cosine"
        if net.backbone == "resnet50":
            rate, optimizer, decay = 0.6 * size / 256, "lars", 1e-6
        else:
            rate, optimizer, decay = 2e-3 * math.sqrt(size / 256), "adamw", 1e-2
        rate = float(f"{rate:.2g}")
        values["optim"] = {
            "optimizer": optimizer,
            "learning_rate": rate,
            "weight_decay": decay,
            "schedule": schedule,
            "warmup_samples": some,
        }
        end = "the stream has no known end" if samples is None else "falls to 0 at the end of the run"
        self._note("optim.schedule", schedule, end)
        self._note("optim.learning_rate", f"{rate:g} ({optimizer})", f"for batches of {size}")
        self._note(
            "optim.warmup_samples, swav.freeze_samples",
            some,
            "ten batches" if samples is None or some == 10 * size else "a tenth of the run",
        )
        blurred = net.large_px > 32
        values["augment"] = {
            "jitter": 0.4,
            "blur_probability": 0.5 if blurred else 0.0,
            "blur_sigma_max": 1.0,
        }
        every = max(SAVED_SAMPLES, SAVED_UPDATES * size)
        every = every if samples is None else max(size, min(every, samples // 8))
        values |= {
            "checkpoint": {"every_samples": every},
            "snapshot": {"every_samples": every},
            "health": {"interval_samples": max(size, every // 4)},
            "server": {"port": 0},
        }

    def _of_branch(self, net: Net, values: dict[str, Any], samples: int | None) -> None:
        if not self._branch:
            self._note("model.branch_centres", 0, "many images on a GPU: no patch branch")
            return
        known = self._images.records if samples is None else samples
        centres = 400 if known >= 10_000 or samples is None else 160
        given = _at(self._values, "model.branch_centres")
        mapped = min(64, given if isinstance(given, int) else centres)  # what does not fit is refused by name
        small = values["crops"][0]["size"] < SMALLEST_OF_TWO_SCALES
        after = 1_024 if samples is None else min(1_024, max(self._size, samples // 4))
        pairs = 10_240 if samples is None else max(self._size, min(10_240, samples - after))
        values["model"] |= {
            "branch_centres": centres,
            "branch_patch_width": mapped,
            "branch_scales": 1 if small else 2,
            "branch_samples": after,
            "branch_pairs": pairs,
            "branch_px": 32,
        }
        why = "few images" if self._host.gpu_bytes else "on a CPU"
        self._note(
            "model.branch_centres",
            centres,
            f"{why}, patches tell images apart long before a network does; views are shrunk to 32 pixels",
        )

    def _note(self, setting: str, value: object, why: str) -> None:
        self._reasons.append(Reason(setting=setting, value=str(value), why=why))

    def _as_given(self, reason: Reason, config: RunConfig) -> Reason:
        """A choice that something given has won over."""
        names = reason.setting.split(", ")
        if all(_at(self._values, name) is None for name in names):
            return reason
        values = [_at(config.to_dict(), name) for name in names]
        if names == ["crops"]:
            shown = " + ".join(f"{kind.count} x {kind.size}" for kind in config.crops) + " pixels"
        else:
            shown = ", ".join(map(str, values))
        return Reason(setting=reason.setting, value=shown, why="as given")


def _at(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; None where there is none."""
    place: Any = values
    for part in name.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place
