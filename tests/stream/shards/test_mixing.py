"""What a batch holds of a class-sorted source: 1,281 shards of 1,000 records, class after class."""

import numpy as np
import pytest

from stream.lanes import Position
from stream.shards.commits import NewCommit
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from tests.stream.make_shards import forget_memory, memory_url

SHARDS, RECORDS, CLASSES = 1281, 1000, 1000
LANES, BATCH = 64, 4096
CHUNK = BATCH // LANES


@pytest.fixture(scope="module")
def sorted_stream() -> str:
    """A manifest only: no record is read here."""
    url = memory_url()
    manifest = Manifest.open(url, create=True)
    for number in range(SHARDS):
        manifest.commit(NewCommit(n=RECORDS, uri=f"shards/{number:x}.tar", index_uri=f"index/{number:x}.idx"))
    manifest.seal()
    return url


def classes_of_batches(url: str, *, window: int, order: str, steps: range) -> list[int]:
    """Classes in each of some global batches of the first pass."""
    source = ShardSpec(url=url, lanes=LANES, window=window, seed=7, order=order).open()
    found: list[set[int]] = [set() for _ in range(steps.stop)]
    for lane in range(LANES):
        places = source.places(Position(lane=lane), 0)
        for step in range(steps.stop):
            for (number, record, _, _), _ in (next(places) for _ in range(CHUNK)):
                found[step].add((number * RECORDS + record) * CLASSES // (SHARDS * RECORDS))
    source.close()
    return [len(found[step]) for step in steps]


def test_a_window_of_all_commits_mixes_a_class_sorted_source_like_a_uniform_one(sorted_stream: str) -> None:
    classes = classes_of_batches(sorted_stream, window=0, order="window", steps=range(30))
    uniform = CLASSES * (1 - (1 - 1 / CLASSES) ** BATCH)
    assert uniform == pytest.approx(983.4, abs=0.1)
    assert min(classes) >= 970
    assert np.mean(classes) == pytest.approx(uniform, abs=2)  # 3.9 of one batch by chance


def test_smaller_windows_and_shard_order_mix_less(sorted_stream: str) -> None:
    """100, 96 and 274 classes when this was written."""
    steps = range(5)
    of_window = np.mean(classes_of_batches(sorted_stream, window=128, order="window", steps=steps))
    of_shards = np.mean(classes_of_batches(sorted_stream, window=128, order="shard", steps=steps))
    all_shards = np.mean(classes_of_batches(sorted_stream, window=0, order="shard", steps=steps))
    assert 99 <= of_window <= 102  # 128 shards hold 100 classes
    assert 93 <= of_shards <= 100
    assert 265 <= all_shards <= 285
    forget_memory()
