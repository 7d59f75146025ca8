"""The tail of a pass: what its chunks leave is trained too, the same whatever reads it and whatever dies."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.config import ReaderConfig, ReplayConfig
from stream.cursor import Cursor, joined, start_cursor
from stream.errors import TooManyBadRecords
from stream.images import crops
from stream.images.decode import decode_image
from stream.lanes import owned_lanes
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.prefetch import AVAILABLE
from stream.loader.tail import dealt, quotas, trainable
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from stream.source import SourceSpec
from tests.stream.fake_source import FakeSpec, picture
from tests.stream.loader.driving import batches_of, together, with_replays
from tests.stream.loader.test_loader import CHUNK, CONFIG, KINDS, begin, load, records, same, until_error
from tests.stream.loader.test_loader_elastic import samples, scrambled
from tests.stream.loader.test_loader_shards import append

SPEC = FakeSpec(lanes=6, records=140, bad_every=7)
BATCH = SPEC.lanes * CHUNK
UNEVEN = FakeSpec(lanes=6, records=200, broken=tuple(range(0, 120, 6)))
"""Lane 0 has 14 good records of 34, the others have 33 or 34."""


def open_loader(spec: SourceSpec, cursor: Cursor, **more: Any) -> Loader:
    given: dict[str, Any] = {"workers": 0, "config": CONFIG, "tail": True, **more}
    return Loader(spec, cursor=cursor, crops=KINDS, **given)


def trained(spec: SourceSpec, cursor: Cursor, **more: Any) -> tuple[list[Batch], Cursor]:
    with open_loader(spec, cursor, **more) as loader:
        return batches_of(loader), loader.cursor


def read(cursor: Cursor) -> int:
    return cursor.samples + sum(cursor.skipped.values()) + cursor.left_over


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=9), chunk=st.integers(1, 8))
def test_quotas_fill_the_batch_as_evenly_as_the_lanes_allow(counts: list[int], chunk: int) -> None:
    unread, batch = dict(enumerate(counts)), len(counts) * chunk
    found = quotas(unread, batch=batch)
    assert sum(found.values()) == min(batch, sum(counts))
    assert all(0 < found[lane] <= unread[lane] for lane in found)
    short = [found[lane] for lane in found if found[lane] < unread[lane]]
    assert not short or min(short) >= max(found.values()) - 1


@given(counts=st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(lambda some: sum(some) >= 5))
def test_samples_are_dealt_to_all_lanes_in_turn(counts: list[int]) -> None:
    found = [(lane, 7 * lane + n, 0, n) for lane, count in enumerate(counts) for n in range(count)]
    table = dealt(random.sample(found, len(found)), 5)
    assert sorted(sample for _, sample in table) == found
    assert [lane for lane, _ in table] == sorted(lane for lane, _ in table)
    by_lane = Counter(lane for lane, _ in table)
    assert set(by_lane) == set(range(5))
    assert max(by_lane.values()) - min(by_lane.values()) <= 1
    if len(set(counts)) == 1:
        assert all(lane == sample[0] for lane, sample in table)


@pytest.mark.parametrize(("left", "used"), [(0, 0), (5, 0), (6, 6), (18, 18), (23, 18), (24, 24)])
def test_what_a_tail_trains_of_good_records_is_known_beforehand(left: int, used: int) -> None:
    spec = FakeSpec(lanes=6, records=36 + left)
    assert trainable(left, lanes=6, batch=BATCH) == used
    _, end = trained(spec, begin(spec))
    assert (end.samples, end.left_over) == (36 + used, left - used)


def test_every_good_record_is_trained_once_in_each_pass() -> None:
    batches, end = trained(SPEC, begin(SPEC), passes=3)
    good = {number for number in range(SPEC.records) if not SPEC.bad(number)}
    for number in range(3):
        used = [r for b in batches if b.cursor.pass_number == number for r in records(b)]
        assert len(used) == len(good)
        assert set(used) == good
    assert end.left_over == 0
    assert read(end) == 3 * SPEC.records
    names = [name for b in batches for name in zip(b.lane_B.tolist(), b.seq_B.tolist(), strict=True)]
    assert len(set(names)) == len(names) == end.samples


def test_the_batches_before_the_tail_are_those_of_a_run_without() -> None:
    plain = load(SPEC)
    batches, _ = trained(SPEC, begin(SPEC))
    assert all(map(same, plain, batches))
    (tail,) = batches[len(plain) :]
    assert SPEC.lanes <= len(tail.keys) < BATCH
    assert tail.stats.used == len(tail.keys)
    assert tail.stats.read == tail.stats.used + sum(tail.stats.skipped.values())


def test_a_tail_gives_each_lane_a_sample_and_none_more_than_a_chunk() -> None:
    batches, end = trained(UNEVEN, begin(UNEVEN))
    short = [batch for batch in batches if batch.dealt_B.tolist() != batch.lane_B.tolist()]
    assert len(short) >= 3
    assert all(len(batch.keys) == BATCH for batch in short[:-1])
    for batch in short:
        counts = Counter(batch.dealt_B.tolist())
        assert set(counts) == set(range(6))
        assert max(counts.values()) <= CHUNK
    assert read(end) == 200
    assert end.left_over < 6


def test_a_sample_of_a_tail_has_the_views_and_the_thumbnail_of_its_name() -> None:
    tail = trained(SPEC, begin(SPEC))[0][-1]
    assert tail.thumbs is not None
    for column, number in enumerate(records(tail)):
        lane, seq = int(tail.lane_B[column]), int(tail.seq_B[column])
        floats = crops.draw(5, lane, seq, 0, 3 * crops.FLOATS_PER_VIEW).reshape(3, -1)
        image = decode_image(picture(number), max_pixels=10**6)
        for kind, views in zip(tail.crops, crops.multi_crop(image, KINDS, floats), strict=True):
            assert torch.equal(kind[:, column], views)
        assert np.array_equal(tail.uniforms[:, column].numpy(), crops.uniforms(floats))
        assert torch.equal(tail.thumbs[column], crops.thumbnail(image, 4))


@pytest.mark.parametrize("spec", [SPEC, UNEVEN])
def test_a_run_with_tails_resumes_from_every_batch(spec: FakeSpec) -> None:
    whole, end = trained(spec, begin(spec), passes=2)
    for number, batch in enumerate(whole):
        rest, its_end = trained(spec, Cursor.from_json(batch.cursor.to_json()), passes=2)
        assert len(rest) == len(whole) - number - 1
        assert all(map(same, rest, whole[number + 1 :]))
        assert its_end == end


def test_too_few_good_records_for_all_lanes_are_left_over() -> None:
    spec = FakeSpec(lanes=6, records=36 + 8, broken=(38, 40, 42))
    batches, end = trained(spec, begin(spec), passes=2)
    assert len(batches) == 4
    assert (end.samples, dict(end.skipped), end.left_over) == (72, {"not_an_image": 2 * 3}, 2 * 5)


def test_a_stream_smaller_than_a_batch_is_one_tail_a_pass() -> None:
    spec = FakeSpec(lanes=6, records=17)
    batches, end = trained(spec, begin(spec), passes=2)
    assert [len(batch.keys) for batch in batches] == [17, 17]
    assert (end.samples, end.left_over) == (34, 0)


def test_a_tail_can_spend_the_budget_of_bad_records() -> None:
    spec = FakeSpec(lanes=6, records=84, block=4, first_bad=78)
    config = ReaderConfig(thumbnail_px=0, max_bad_fraction=0.1, bad_window=20)
    with open_loader(spec, begin(spec), config=config) as loader:
        got, _ = until_error(loader, TooManyBadRecords)
    assert got[-1].cursor.samples == 72


def dealt_samples(batches: Sequence[Batch]) -> tuple[Any, ...]:
    """All samples of one step over some ranks, and which lanes they were dealt to."""
    lanes = [
        (int(lane), key) for batch in batches for lane, key in zip(batch.dealt_B, batch.keys, strict=True)
    ]
    return samples(batches), sorted(lanes)


@settings(max_examples=8)
@given(
    spec=st.sampled_from([SPEC, UNEVEN]),
    segments=st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=5
    ),
    chaos=st.integers(0, 2**32),
)
@example(spec=UNEVEN, segments=[(6, 0, 9)], chaos=0)  # lane 0, and its rank, has no record of the tail
def test_tails_do_not_depend_on_ranks_readers_or_crashes(
    spec: FakeSpec, segments: list[tuple[int, int, int]], chaos: int
) -> None:
    """Each segment is a run of (ranks, readers, steps) that ends in a crash."""
    whole, end = trained(spec, begin(spec), passes=2)
    cursor, got = begin(spec), []
    pool = scrambled(random.Random(chaos))
    for ranks, workers, steps in [*segments, (1, 0, 10**6)]:
        loaders = [
            open_loader(spec, cursor, workers=workers, ranks=ranks, rank=rank, passes=2, pool=pool)
            for rank in range(ranks)
        ]
        for step in together(loaders, steps):
            for rank, (batch,) in enumerate(step):
                assert len(batch.keys) > 0
                assert set(batch.dealt_B.tolist()) <= set(owned_lanes(cursor.lanes, ranks, rank))
            got.append(dealt_samples([batch for (batch,) in step]))
        cursor = joined([loader.cursor for loader in loaders])
    assert got == [dealt_samples([batch]) for batch in whole]
    assert cursor == end


def test_reader_processes_give_the_same_tails_also_when_records_kill_them() -> None:
    last = SPEC.records - 2
    spec = replace(SPEC, deadly=(last,))
    whole, end = trained(replace(SPEC, broken=(last,)), begin(SPEC))
    batches, its_end = trained(spec, begin(SPEC), workers=2)
    assert list(map(records, batches)) == list(map(records, whole))
    assert its_end.deadly == ((last // 100, last % 100),)
    assert (its_end.samples, its_end.left_over) == (end.samples, end.left_over)


def test_a_tail_is_not_replayed_and_the_window_is_empty_behind_it() -> None:
    replay = ReplayConfig(updates=3, window_samples=4 * BATCH)

    def steps(cursor: Cursor, workers: int = 0) -> list[list[Batch]]:
        with open_loader(SPEC, cursor, replay=replay, passes=3, workers=workers) as loader:
            return with_replays(loader)

    whole = steps(begin(SPEC))
    tails = [number for number, step in enumerate(whole) if len(step) == 1]
    assert len(tails) == 3
    for number in tails:
        assert len(whole[number][0].keys) < BATCH
        assert whole[number][0].cursor.replay is None
    assert all(len(step) == 3 for number, step in enumerate(whole) if number not in tails)
    for number, step in enumerate(whole):
        rest = steps(Cursor.from_json(step[0].cursor.to_json()), workers=2 if number == tails[0] else 0)
        assert len(rest) == len(whole) - number - 1
        for one, other in zip(rest, whole[number + 1 :], strict=True):
            assert same(one[0], other[0])
            assert [records(again) for again in one[1:]] == [records(again) for again in other[1:]]


def test_available_mode_trains_what_is_left_too() -> None:
    batches, end = trained(UNEVEN, begin(UNEVEN), workers=2, mode=AVAILABLE)
    used = [number for batch in batches for number in records(batch)]
    assert len(used) == len(set(used)) == end.samples
    assert read(end) == 200
    assert end.left_over < 6


def test_the_tail_of_shards_is_trained_and_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "stream"
    manifest = Manifest.open(str(folder), create=True)
    good = append(manifest, [17, 1, 40, 23, 9])
    manifest.seal()
    spec = ShardSpec(url=str(folder), lanes=4, window=2, seed=3)
    source = spec.open()
    start = start_cursor(source, seed=3, chunk=3, window=2)
    source.close()
    whole, end = trained(spec, start, passes=2)
    assert sorted(key for batch in whole for key in batch.keys) == sorted(2 * good)
    assert (end.left_over, read(end)) == (0, 180)
    for number, batch in enumerate(whole):
        rest, its_end = trained(spec, Cursor.from_json(batch.cursor.to_json()), passes=2)
        assert all(map(same, rest, whole[number + 1 :]))
        assert its_end == end
