"""Labelled data of the learning benchmark, in the orders in which it is learned from."""

import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stream.record import Record, sha256_of
from tests.labelled_tars import labelled_images
from tests.ops.drawn_runs import drawn, write_stream

DATA = ("cifar10", "mini10-84", "drawn")
DRAWN = 20_000
DRAWN_PX = 40
HELD_OUT = 10
"""One of so many training images is held out."""
SHARD = 1000
_FIRST_DRAWN_QUERY = 1_000_000


@dataclass(frozen=True, slots=True)
class Streams:
    """Folders of streams."""

    learned: str
    """What is learned from, in its order."""
    bank: str
    """The same images in the uniform order."""
    queries: str


def streams(data: str, order: str, *, on: str, images: int, source: Path | None, folder: Path) -> Streams:
    """Streams of some data, written when they are not there.

    Args:
        data: one of `DATA`.
        order: one of `ORDERS`.
        on: `held-out` asks a part of the training images, `test` the test images.
        images: at most so many training images, and a fifth as many queries; 0 = all.
        source: folder of real images; None where `data` is drawn.
        folder: where the streams lie.
    """
    names = {name: folder / f"{data}-{name}" for name in ("queries", "uniform", order)}
    if not all(place.exists() for place in names.values()):
        training, asked = _records(data, on, images, source)
        labels = [record.label or 0 for record in training]
        wanted = {"queries": asked} | {
            name: [training[place] for place in ORDERS[name](labels, random.Random(f"{data}-{name}"))]
            for name in names
            if name != "queries"
        }
        for name, place in names.items():
            _write(place, wanted[name])
    return Streams(*(str(names[name]) for name in (order, "uniform", "queries")))


def _write(place: Path, records: Sequence[Record]) -> None:
    if not place.exists():
        part = place.with_name(f"{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        write_stream(part, records, shard=SHARD)
        part.rename(place)


def _records(data: str, on: str, images: int, source: Path | None) -> tuple[list[Record], list[Record]]:
    """Training images and queries, without order."""
    if data == "drawn":
        count = images or DRAWN
        training = [drawn(number, size=DRAWN_PX) for number in range(count)]
        asked = [drawn(_FIRST_DRAWN_QUERY + number, size=DRAWN_PX) for number in range(count // 5)]
    else:
        if source is None:
            raise ValueError(f"{data} needs real images: set SWAVSTREAM_TEST_DATA")
        training, asked = (
            _mixed(list(_labelled(sorted((source / data).glob(f"{data}-{split}-*.tar*")))))
            for split in ("train", "test")
        )
        if images:
            training, asked = training[:images], asked[: images // 5]
    if on == "test":
        return training, asked
    return [record for place, record in enumerate(training) if place % HELD_OUT], training[::HELD_OUT]


def _mixed(records: list[Record]) -> list[Record]:
    random.Random(0).shuffle(records)
    return records


def _labelled(tars: Sequence[Path]) -> Iterator[Record]:
    """Labelled images of WebDataset tars."""
    for label, payload in labelled_images(tars):
        yield replace(drawn(0), payload=payload, sha256=sha256_of(payload), label=label, label_name=None)


def _by_class(labels: Sequence[int], draw: random.Random) -> list[list[int]]:
    """Places of each class, shuffled."""
    found: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        found[label].append(place)
    for places in found.values():
        draw.shuffle(places)
    return [found[label] for label in sorted(found)]


def _uniform(labels: Sequence[int], draw: random.Random) -> list[int]:
    places = list(range(len(labels)))
    draw.shuffle(places)
    return places


def _sorted(labels: Sequence[int], draw: random.Random) -> list[int]:
    return [place for places in _by_class(labels, draw) for place in places]


def _recurring(labels: Sequence[int], draw: random.Random) -> list[int]:
    """The classes one after the other, five times over."""
    rounds = 5
    classes = _by_class(labels, draw)
    return [place for turn in range(rounds) for places in classes for place in places[turn::rounds]]


def _sliding(labels: Sequence[int], draw: random.Random) -> list[int]:
    """One class fades into the next: normal around its turn, with a deviation of one turn."""
    classes = _by_class(labels, draw)
    times = [(draw.gauss(turn, 1.0), place) for turn, places in enumerate(classes) for place in places]
    return [place for _, place in sorted(times)]


def _bursty(labels: Sequence[int], draw: random.Random) -> list[int]:
    """Uniform, in runs of 3 to 50 images of one class."""
    left = _by_class(labels, draw)
    order: list[int] = []
    while left := [places for places in left if places]:
        (places,) = draw.choices(left, [len(places) for places in left])
        run = draw.randint(3, 50)
        order += places[-run:]
        del places[-run:]
    return order


def _longtail(labels: Sequence[int], draw: random.Random) -> list[int]:
    """From class to class fewer images, a hundredth of the first in the last."""
    classes = _by_class(labels, draw)
    steps = max(1, len(classes) - 1)
    kept = [
        places[: max(1, round(len(places) * 100 ** (-turn / steps)))] for turn, places in enumerate(classes)
    ]
    order = [place for places in kept for place in places]
    draw.shuffle(order)
    return order


ORDERS: dict[str, Callable[[Sequence[int], random.Random], list[int]]] = {
    "uniform": _uniform,
    "sorted": _sorted,
    "recurring": _recurring,
    "sliding": _sliding,
    "bursty": _bursty,
    "longtail": _longtail,
}
"""From the labels to the places in the order of the stream."""
