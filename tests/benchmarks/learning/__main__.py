"""What is learned for the processor time: recipes x data x orders x seeds, as a table and as plots.

`make bench-learn` runs all of it, which takes hours; `BENCH_LEARN` chooses a part of it:

    make bench-learn BENCH_LEARN="--data drawn --recipes smoke --seeds 0 --images 2000"

Five lines: raw pixels, the untrained network, k-means of patches, the paper's loop in plain torch, and ours.
Every cell is a file in OUT/cells, so the same command goes on where it was stopped. OUT/table.md and a plot
for each data, order and recipe are written after every cell.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.learning.cells import LOOP, OURS, Cell, Judge, baselines, learned, looped, saved
from tests.benchmarks.learning.data import DATA, ORDERS, Streams, streams
from tests.benchmarks.learning.plot import Curve, panels

COLOURS = {
    "raw pixels": "#888888",
    "untrained": "#c49a00",
    "k-means, 400": "#2a7f3f",
    "k-means, 1600": "#7fbf7b",
    "the paper's loop": "#b03a2e",
    "ours": "#1f4e9c",
}
BASELINES = {
    "raw_pixels": "raw pixels",
    "untrained": "untrained",
    "kmeans_400": "k-means, 400",
    "kmeans_1600": "k-means, 1600",
}
CURVES = {LOOP: "the paper's loop", OURS: "ours"}
SCORES = (("k20", "plain, k 20"), ("whitened_k20", "whitened, k 20"))


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""

    def some(known: Iterable[str]) -> Callable[[str], list[str]]:
        def read(text: str) -> list[str]:
            names = text.split(",")
            if unknown := [name for name in names if name not in known]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
            return names

        return read

    parser = argparse.ArgumentParser(prog="make bench-learn", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("bench-learn"), help="where results are kept")
    parser.add_argument("--data", type=some(DATA), default=list(DATA), help=f"of {', '.join(DATA)}")
    parser.add_argument(
        "--orders", type=some(ORDERS), default=["uniform", "sorted"], help=f"of {', '.join(ORDERS)}"
    )
    parser.add_argument(
        "--recipes",
        type=lambda text: text.split(","),
        default=["cifar10-onepass", "cifar10-onepass+replay.updates=16"],
        help="names, each with changed settings behind plus signs: smoke+replay.updates=4",
    )
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2]
    )
    parser.add_argument("--lines", type=some(CURVES), default=list(CURVES), help=f"of {', '.join(CURVES)}")
    parser.add_argument("--points", type=int, default=8, help="looks at each run")
    parser.add_argument("--images", type=int, default=0, help="training images of each data at most; 0 = all")
    parser.add_argument(
        "--on",
        choices=("held-out", "test"),
        default="held-out",
        help="what is asked: a tenth of the training images, for choosing settings, or the test images",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Compute what is missing, and write table and plots."""
    chosen = options(arguments)
    out: Path = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    _same_settings(
        out / "settings.json", {name: getattr(chosen, name) for name in ("on", "images", "points")}
    )
    source = Path(os.environ["SWAVSTREAM_TEST_DATA"]) if os.environ.get("SWAVSTREAM_TEST_DATA") else None
    cells = [
        Cell(data=data, order=order, recipe=recipe, seed=seed)
        for seed, recipe, data, order in itertools.product(
            chosen.seeds, chosen.recipes, chosen.data, chosen.orders
        )
    ]
    for cell in cells:
        paths = {line: out / "cells" / f"{cell.name(line)}.json" for line in ("baselines", *chosen.lines)}
        missing = [line for line, path in paths.items() if not path.exists()]
        if not missing:
            continue
        place = streams(
            cell.data, cell.order, on=chosen.on, images=chosen.images, source=source, folder=out / "streams"
        )
        judge = Judge(place, cell.config.crops[0].size)
        for line in missing:
            began = time.monotonic()
            saved(paths[line], partial(compute, line, cell, place, judge, chosen.points, out / "runs"))
            print(f"{time.monotonic() - began:8.1f} s  {cell.name(line)}", flush=True)
            write(out)
    write(out)
    print(f"{out}/table.md, and plots beside it")


def compute(line: str, cell: Cell, place: Streams, judge: Judge, points: int, folder: Path) -> object:
    """What the file of a cell holds."""
    if line == LOOP:
        return [dataclasses.asdict(point) for point in looped(cell, place, judge, points=points)]
    if line == OURS:
        return [
            dataclasses.asdict(point) for point in learned(cell, place, judge, points=points, folder=folder)
        ]
    return baselines(cell, place, folder=folder)


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix results of different settings."""
    before = saved(path, lambda: settings)
    if before != settings:
        sys.exit(f"{path.parent} holds results of {before}, not of {settings}: take another --out")


Results = dict[tuple[str, str, str], dict[str, dict[int, Any]]]
"""By data, order and recipe; then by line and seed."""


def read(out: Path) -> Results:
    """All cells that are there."""
    found: Results = {}
    for path in sorted((out / "cells").glob("*.json")):
        data, order, line, rest = path.name.removesuffix(".json").split(".", 3)
        recipe, _, seed = rest.rpartition(".")
        found.setdefault((data, order, recipe), {}).setdefault(line, {})[int(seed)] = json.loads(
            path.read_text()
        )
    return found


def write(out: Path) -> None:
    """Table and plots of all cells that are there."""
    rows = [
        "| data | order | recipe | line | seeds | plain, k 20 (200) | whitened, k 20 (200) | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (data, order, recipe), lines in read(out).items():
        flat = {
            label: [_flat(body[name]) for body in lines.get("baselines", {}).values()]
            for name, label in BASELINES.items()
        }
        grown = {label: [body[-1] for body in lines.get(line, {}).values()] for line, label in CURVES.items()}
        for label, ends in {**flat, **grown}.items():
            if ends:
                mean = {name: statistics.mean(end[name] for end in ends) for name in ends[0]}
                rows.append(
                    f"| {data} | {order} | {recipe} | {label} | {len(ends)} | {mean['k20']:.1f} "
                    f"({mean['k200']:.1f}) | {mean['whitened_k20']:.1f} ({mean['whitened_k200']:.1f}) "
                    f"| {mean['cpu_seconds']:.0f} |"
                )
        plots = [(title, list(_curves(lines, score))) for score, title in SCORES]
        (out / f"{data}.{order}.{recipe}.svg").write_text(panels(f"{data}, {order}, {recipe}", plots))
    (out / "table.md").write_text("\n".join([*rows, ""]))


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """A row of `evaluate knn` with the names of a `Point`."""
    whitened = {f"whitened_{name}": value for name, value in row["whitened"].items()}
    return {"k20": row["k20"], "k200": row["k200"], **whitened, "cpu_seconds": row["cpu_seconds"]}


def _curves(lines: dict[str, dict[int, Any]], score: str) -> Iterable[Curve]:
    for name, label in BASELINES.items():
        rows = [_flat(body[name]) for body in lines.get("baselines", {}).values()]
        if rows:
            point = tuple(statistics.mean(row[axis] for row in rows) for axis in ("cpu_seconds", score))
            yield Curve(label=label, colour=COLOURS[label], points=((point[0], point[1]),), flat=True)
    for line, label in CURVES.items():
        for body in lines.get(line, {}).values():
            points = tuple((point["cpu_seconds"], point[score]) for point in body)
            yield Curve(label=label, colour=COLOURS[label], points=points)


if __name__ == "__main__":
    main(sys.argv[1:])
