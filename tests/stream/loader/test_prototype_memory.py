"""Replay by prototypes: what stays in memory, and that it is the same after any resume and on any ranks."""

import functools
import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ops.distributed.world import World
from stream.config import PROTOTYPES, ReplayConfig
from stream.cursor import Cursor, joined
from stream.errors import StreamDamaged
from stream.images import crops
from stream.images.decode import decode_image
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.prototype_memory import Members, staying
from stream.loader.replay import choose
from stream.loader.shared_memory import SharedBytes
from stream.processes import Processes
from tests.stream.fake_source import FakeSpec, picture
from tests.stream.loader.driving import Exchange, KeptPools, ThreadWorld, steps_of
from tests.stream.loader.test_loader import CHUNK, CONFIG, KINDS, SPEC, begin, load, records
from tests.stream.loader.test_replay import RottenSpec, columns, content, equal, names, sample_of

BATCH = SPEC.lanes * CHUNK
STEPS = 2
REPLAY = ReplayConfig(updates=3, window_samples=STEPS * BATCH, policy=PROTOTYPES)
Step = list[Batch]
Assign = Callable[[Batch, int], list[int]]
"""Prototypes of the samples of a batch, at the update of this number within its step."""


def hashed(batch: Batch, update: int) -> list[int]:
    """As good as random, but a function of the sample and of when it is looked at."""
    return [
        (7 * lane + seq * seq + 3 * update + batch.cursor.steps) % 5
        for lane, seq in zip(batch.lane_B.tolist(), batch.seq_B.tolist(), strict=True)
    ]


def by_age(batch: Batch, update: int) -> list[int]:
    """Of a stream that is sorted by class: four steps of each, and a few prototypes of each class."""
    return [3 * (seq // (4 * CHUNK)) + seq % 3 for seq in batch.seq_B.tolist()]


def open_loader(cursor: Cursor, spec: FakeSpec = SPEC, **more: Any) -> Loader:
    given_: dict[str, Any] = {"replay": REPLAY, "workers": 0, "passes": 1, **more}
    return Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, **given_)


def driven(
    loader: Loader, assign: Assign = hashed, *, most: int = 10**6, world: World | None = None
) -> tuple[list[Step], list[Members]]:
    """Steps of a loader that is told prototypes as a learner would; what is held after each of them."""
    steps = steps_of(loader, world)
    found, held = [], []

    def tell(batch: Batch, update: int) -> Batch:
        own = assign(batch, update)
        ranks = [own] if world is None else world.all_gather_objects(own)
        loader.learned(torch.tensor([prototype for one in ranks for prototype in one]))
        return batch

    for batch in islice(steps, most):
        step = [tell(batch, 0)]
        step += [tell(again, number) for number, again in enumerate(steps.replays(), 1)]
        found.append(step)
        assert loader.members is not None
        held.append(loader.members)
    return found, held


def through_a_file(members: Members, lanes: Sequence[int]) -> Members:
    return Members.of_tensors(members.tensors(), lanes)


def oracle_staying(prototypes: list[list[int]], leaving: int) -> list[list[bool]]:
    """The rule, said with objects: no tables, no ties hidden in an arg-max."""
    lanes = [list(enumerate(lane)) for lane in prototypes]
    for _ in range(leaving):
        for lane in lanes:
            everywhere = Counter(prototype for one in lanes for _, prototype in one)
            fullest = max(everywhere[prototype] for _, prototype in lane)
            lane.remove(min(member for member in lane if everywhere[member[1]] == fullest))
    return [
        [place in {kept for kept, _ in lane} for place in range(len(row))]
        for lane, row in zip(lanes, prototypes, strict=True)
    ]


TABLES = st.tuples(st.integers(1, 5), st.integers(1, 9)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 6), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@settings(max_examples=150)
@given(TABLES, st.data())
def test_what_stays_is_what_the_rule_says(prototypes: list[list[int]], data: st.DataObject) -> None:
    leaving = data.draw(st.integers(0, len(prototypes[0])))
    table = np.array(prototypes, np.int32)
    assert staying(table, leaving).tolist() == oracle_staying(prototypes, leaving)
    assert table.tolist() == prototypes, "the argument is left alone"


def test_lanes_that_are_alike_do_not_all_give_up_the_same_prototype() -> None:
    stay = staying(np.array([[0, 0, 0, 1, 1]] * 4, np.int32), 2)
    assert stay.sum() == 12
    left = Counter([0, 0, 0, 1, 1][place] for row in stay for place in np.nonzero(row)[0])
    assert left == {0: 6, 1: 6}


def test_members_and_replays_are_those_of_the_rule() -> None:
    """Against lists of names: arrivals, choice, prototypes at arrival and at each replay, who leaves."""
    steps, held = driven(open_loader(begin(SPEC)))
    lanes: list[list[list[int]]] = [[] for _ in range(SPEC.lanes)]  # [number, prototype], the oldest first
    for number, (step, members) in enumerate(zip(steps, held, strict=True)):
        for (lane, seq), prototype in zip(names(step[0]), hashed(step[0], 0), strict=True):
            lanes[lane].append([seq, prototype])
        there = len(lanes[0])
        for update, again in enumerate(step[1:], 1):
            picks = choose(seed=5, step=number, update=update, lanes=6, chunk=CHUNK, held=there).tolist()
            picked = [lanes[lane][pick] for lane in range(SPEC.lanes) for pick in picks[lane]]
            assert [seq for _, seq in names(again)] == [seq for seq, _ in picked]
            for member, prototype in zip(picked, hashed(again, update), strict=True):
                member[1] = prototype
        stay = oracle_staying([[p for _, p in lane] for lane in lanes], max(0, there - STEPS * CHUNK))
        lanes = [
            [member for member, stays in zip(lane, row, strict=True) if stays]
            for lane, row in zip(lanes, stay, strict=True)
        ]
        assert members.prototype_VH.tolist() == [[p for _, p in lane] for lane in lanes]
        assert members.samples_LH3[:, :, 0].tolist() == [[seq for seq, _ in lane] for lane in lanes]
    assert len(steps) > 5


def test_a_replay_brings_what_arrived_under_these_names_in_new_views() -> None:
    uniforms, arrived = set[bytes](), dict[tuple[int, int], tuple[int, str]]()
    for number, (batch, *replays) in enumerate(driven(open_loader(begin(SPEC)))[0]):
        arrived |= dict(zip(names(batch), zip(records(batch), batch.keys, strict=True), strict=True))
        for update, again in enumerate(replays, 1):
            again_is = list(zip(records(again), again.keys, strict=True))
            assert [arrived[name] for name in names(again)] == again_is
            assert again.lane_B.tolist() == batch.lane_B.tolist()
            assert len(set(names(again))) == BATCH
            lane, seq = names(again)[7]
            draw = crops.draw(5, lane, seq, number * REPLAY.updates + update, 3 * crops.FLOATS_PER_VIEW)
            floats = draw.reshape(3, -1)
            image = decode_image(picture(records(again)[7]), max_pixels=10**6)
            for kind, views in zip(again.crops, crops.multi_crop(image, KINDS, floats), strict=True):
                assert torch.equal(kind[:, 7], views)
            assert np.array_equal(again.uniforms[:, 7].numpy(), crops.uniforms(floats))
            uniforms |= {row.numpy().tobytes() for row in again.uniforms.transpose(0, 1)}
    assert len(uniforms) == BATCH * (REPLAY.updates - 1) * (number + 1)


def test_of_a_sorted_stream_the_memory_keeps_all_classes_evenly() -> None:
    spec = FakeSpec(lanes=6, records=6 * CHUNK * 16)
    replay = replace(REPLAY, window_samples=4 * BATCH)
    steps, held = driven(open_loader(begin(spec), spec, replay=replay), by_age)
    assert len(steps) == 16
    classes = Counter((held[-1].prototype_VH // 3).reshape(-1).tolist())
    assert set(classes) == {0, 1, 2, 3}, "a window of four steps would hold the last class alone"
    assert max(classes.values()) - min(classes.values()) <= 1
    assert held[-1].prototypes_in_use() == 12


def test_batches_are_those_without_replay_and_no_record_is_counted_or_read_again() -> None:
    for plain, (batch, *replays) in zip(load(SPEC), driven(open_loader(begin(SPEC)))[0], strict=True):
        assert content(batch) == content(plain)
        for again in replays:
            stats = again.stats
            assert (stats.read, stats.used, dict(stats.skipped), stats.bytes) == (0, 0, {}, 0)


def test_records_that_are_gone_from_the_stream_are_replayed() -> None:
    spec = RottenSpec(lanes=6, records=130)
    assert driven(open_loader(begin(spec), spec))[0]


@pytest.mark.parametrize(("window_steps", "passes"), [(2, 2), (5, 2)])
def test_a_run_resumes_after_every_step_with_its_members(window_steps: int, passes: int) -> None:
    """With bad records, over the ends of passes, and with a memory that is not full at first."""
    more: dict[str, Any] = {
        "replay": replace(REPLAY, window_samples=window_steps * BATCH),
        "passes": passes,
    }
    whole, held = driven(open_loader(begin(SPEC), **more))
    assert len({step[0].cursor.pass_number for step in whole}) == passes
    for number, (step, members) in enumerate(zip(whole, held, strict=True)):
        cursor = Cursor.from_json(step[0].cursor.to_json())
        assert cursor.replay is None
        kept = through_a_file(members, range(SPEC.lanes))
        tail, _ = driven(open_loader(cursor, members=kept, **more))
        assert equal(tail, whole[number + 1 :])


def test_a_step_that_is_not_finished_leaves_the_members_as_they_were() -> None:
    loader = open_loader(begin(SPEC))
    _, held = driven(loader, most=3)
    steps = steps_of(loader)
    batch = next(iter(steps))
    loader.learned(torch.tensor(hashed(batch, 0)))
    next(steps.replays())
    assert loader.members is held[-1]


def test_a_tail_is_not_replayed_and_the_members_stay() -> None:
    spec = FakeSpec(lanes=6, records=BATCH * 3 + 13)
    loader = open_loader(begin(spec), spec, tail=True, passes=2)
    steps, held = driven(loader)
    lengths = [(len(step), len(step[0].keys)) for step in steps]
    assert lengths.count((1, 13)) == 2
    tail = lengths.index((1, 13))
    assert held[tail] is held[tail - 1]
    assert len(steps) > tail + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_reader_processes_give_what_one_process_gives(workers: int) -> None:
    whole, held = driven(open_loader(begin(SPEC), passes=2))
    with open_loader(begin(SPEC), passes=2, workers=workers) as loader:
        assert equal(driven(loader)[0], whole)
    with open_loader(whole[4][0].cursor, passes=2, workers=workers, members=held[4]) as loader:
        assert equal(driven(loader)[0], whole[5:])


def test_killed_readers_are_replaced_and_no_replay_is_lost_or_changed() -> None:
    whole, _ = driven(open_loader(begin(SPEC)))
    readers = KeptPools()

    def kill_one(batch: Batch, update: int) -> list[int]:
        for pool in readers.pools:
            if isinstance(pool, Processes) and (pids := pool.pids()):
                os.kill(pids[(batch.cursor.steps + update) % len(pids)], signal.SIGKILL)
        return hashed(batch, update)

    with open_loader(begin(SPEC), workers=2, pool=readers) as loader:
        assert equal(driven(loader, kill_one)[0], whole)
        assert loader.worker_restarts >= len(whole)


@functools.cache
def large_picture(number: int) -> bytes:
    """More than the buffer of a pipe holds."""
    pixels = np.random.default_rng(number).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class LargeSpec(FakeSpec):
    def payload(self, number: int) -> bytes:
        return large_picture(number)


def test_images_larger_than_the_buffer_of_a_pipe_come_through() -> None:
    spec = LargeSpec(lanes=6, records=4 * BATCH)
    whole, held = driven(open_loader(begin(spec), spec))
    assert min(len(image) for images in held[-1].images_LH for image in images) > 2**17
    assert held[-1].num_bytes == sum(len(image) for images in held[-1].images_LH for image in images)
    with open_loader(begin(spec), spec, workers=1) as loader:
        assert equal(driven(loader)[0], whole)


def test_replays_do_not_depend_on_ranks_also_when_their_number_changes() -> None:
    alone, held = driven(open_loader(begin(SPEC), passes=3))
    reference = [sorted(map(sample_of(step), columns(step))) for step in alone]
    got: list[list[Any]] = []
    cursor, tensors = begin(SPEC), dict[str, Tensor]()
    for ranks, most in ((2, 3), (3, 5), (1, 2), (6, 99)):
        loaders = [open_loader(cursor, passes=3, ranks=ranks, rank=rank) for rank in range(ranks)]
        if tensors:
            for loader in loaders:
                loader.close()
            loaders = [
                open_loader(
                    cursor,
                    passes=3,
                    ranks=ranks,
                    rank=rank,
                    members=Members.of_tensors(tensors, loaders[rank].lanes),
                )
                for rank in range(ranks)
            ]
        shared = Exchange(ranks)

        def lead(rank: int, loaders: Any = loaders, shared: Any = shared, most: int = most) -> Any:
            return driven(loaders[rank], most=most, world=ThreadWorld(shared, rank))

        with ThreadPoolExecutor(ranks) as threads:
            by_rank = list(threads.map(lead, range(ranks)))
        for own in zip(*(steps for steps, _ in by_rank), strict=True):
            got.append(sorted(found for one in own for found in map(sample_of(one), columns(one))))
        tensors = {name: one for _, kept in by_rank for name, one in kept[-1].tensors().items()}
        cursor = joined([loader.cursor for loader in loaders])
        for loader in loaders:
            loader.close()
    assert got == reference
    whole = held[-1].tensors()
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[name], tensors[name]) for name in whole)


def test_a_memory_holds_no_more_than_it_should_and_a_file_of_another_version_is_refused() -> None:
    _, held = driven(open_loader(begin(SPEC), passes=2))
    assert {members.prototype_VH.shape for members in held[STEPS:]} == {(SPEC.lanes, STEPS * CHUNK)}
    tensors = held[-1].tensors()
    stored = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("images."))
    assert stored == held[-1].num_bytes
    with pytest.raises(StreamDamaged, match="version 7, this program reads 1"):
        Members.of_tensors({**tensors, "version": torch.tensor(7)}, range(SPEC.lanes))
    with pytest.raises(StreamDamaged, match="there are no images for replay"):
        Members.of_tensors({}, range(SPEC.lanes))
    del tensors["keys.3"]
    with pytest.raises(StreamDamaged, match=r"lack 'keys\.3'"):
        Members.of_tensors(tensors, range(SPEC.lanes))


def test_bytes_that_are_laid_down_are_read_by_their_place() -> None:
    shared = SharedBytes()
    first, second = shared.append(b"one"), shared.append(b"second")
    assert (shared.read(first, 3), shared.read(second, 6), shared.read(1, 4)) == (b"one", b"second", b"nese")
    shared.clear()
    assert shared.append(b"") == shared.append(b"x") == 0
    shared.close()
    shared.close()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"updates": 2, "window_samples": 36, "policy": "newest"},
            "replay.policy must be one of fifo, prototypes",
        ),
        ({"policy": "prototypes"}, "replay.policy is prototypes, but replay.updates = 1 replays nothing"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReplayConfig(**values)
