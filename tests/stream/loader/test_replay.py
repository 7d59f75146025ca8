"""Replays: which samples, in which views, and the same ones after any resume, on any workers and ranks."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stream.config import ReplayConfig
from stream.cursor import Cursor, joined, start_cursor
from stream.errors import StreamDamaged, StreamMismatch
from stream.images import crops
from stream.images.decode import decode_image
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.replay import choose
from stream.processes import Processes
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from stream.source import Entry
from tests.stream.fake_source import FakeSource, FakeSpec, picture
from tests.stream.loader.driving import KeptPools, batches_of, steps_of, together, with_replays
from tests.stream.loader.test_loader import CHUNK, CONFIG, KINDS, SPEC, begin, load, records
from tests.stream.loader.test_loader_shards import append

BATCH = SPEC.lanes * CHUNK
STEPS = 3
REPLAY = ReplayConfig(updates=3, window_samples=STEPS * BATCH)
Step = list[Batch]
"""The batch of a step, and its replays."""


def open_loader(cursor: Cursor, spec: FakeSpec = SPEC, **more: Any) -> Loader:
    settings: dict[str, Any] = {"replay": REPLAY, "workers": 0, "passes": 1, **more}
    return Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, **settings)


def steps_from(cursor: Cursor, spec: FakeSpec = SPEC, **more: Any) -> list[Step]:
    with open_loader(cursor, spec, **more) as loader:
        return with_replays(loader)


def content(batch: Batch) -> list[bytes]:
    """All that the learner gets of a batch, and the names."""
    tensors = (*batch.crops, batch.uniforms, batch.lane_B, batch.seq_B, batch.refs_B2)
    thumbs = [] if batch.thumbs is None else [batch.thumbs]
    found = [tensor.contiguous().numpy().tobytes() for tensor in (*tensors, *thumbs)]
    return [*found, "".join(batch.keys).encode(), batch.cursor.to_json().encode()]


def equal(got: Sequence[Step], wanted: Sequence[Step]) -> bool:
    return [list(map(content, step)) for step in got] == [list(map(content, step)) for step in wanted]


def names(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.lane_B.tolist(), batch.seq_B.tolist(), strict=True))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"updates": 0}, "updates must be >= 1"),
        ({"window_samples": -1, "updates": 2}, "window_samples must be >= 0"),
        ({"window_samples": 36}, "updates = 1 replays nothing"),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReplayConfig(**values)


@pytest.mark.parametrize(("window", "fits"), [(0, "take 18"), (17, "take 18"), (40, "take 36 or 54")])
def test_a_window_that_is_not_whole_batches_is_refused_and_told_what_fits(window: int, fits: str) -> None:
    with pytest.raises(ValueError, match=f"batch 18, got {window}: {fits}"):
        open_loader(begin(SPEC), replay=ReplayConfig(updates=2, window_samples=window))


def test_a_choice_holds_each_place_at_most_once_and_every_place_equally_often() -> None:
    counts = np.zeros((4, 7), dtype=np.int64)
    for step in range(1500):
        picks_VC = choose(seed=3, step=step, update=1 + step % 3, lanes=4, chunk=5, held=7)
        for lane in range(4):
            assert len(set(picks_VC[lane].tolist())) == 5
            counts[lane, picks_VC[lane]] += 1
    expected = 1500 * 5 / 7
    assert counts.sum() == 4 * 1500 * 5
    # Each count is binomial; the bound is five standard deviations.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(1500 * (5 / 7) * (2 / 7))


PINNED = [[2, 0, 1, 9], [1, 9, 4, 8]]


def test_the_choice_is_pinned() -> None:
    """It is part of what a run is: another one would not continue an old checkpoint."""
    assert choose(seed=1, step=2, update=3, lanes=2, chunk=4, held=10).tolist() == PINNED
    for other in ({"seed": 2}, {"step": 3}, {"update": 2}):
        arguments = {"seed": 1, "step": 2, "update": 3, **other}
        assert choose(**arguments, lanes=2, chunk=4, held=10).tolist() != PINNED


def test_replays_are_drawn_from_each_lanes_latest_samples_without_repetition() -> None:
    steps = steps_from(begin(SPEC), passes=2)
    assert [len(step) for step in steps] == [3] * len(steps)
    drawn_ages = set()
    for number, (batch, *replays) in enumerate(steps):
        arrived = {name for step in steps[max(0, number + 1 - STEPS) : number + 1] for name in names(step[0])}
        for again in replays:
            assert again.lane_B.tolist() == batch.lane_B.tolist()
            assert len(set(names(again))) == BATCH
            assert set(names(again)) <= arrived
            drawn_ages |= {number - seq // CHUNK for _, seq in names(again)}
    assert drawn_ages == {0, 1, 2}
    assert names(steps[-1][1]) != names(steps[-1][2])


def test_a_replay_brings_the_records_that_arrived_under_these_names() -> None:
    arrived: dict[tuple[int, int], tuple[int, str]] = {}
    for batch, *replays in steps_from(begin(SPEC)):
        arrived |= dict(zip(names(batch), zip(records(batch), batch.keys, strict=True), strict=True))
        for again in replays:
            assert [arrived[name] for name in names(again)] == list(
                zip(records(again), again.keys, strict=True)
            )


def test_each_draw_gives_new_views_of_the_sample_by_a_number_of_its_own() -> None:
    uniforms = set()
    for step, (batch, *replays) in enumerate(steps_from(begin(SPEC))):
        for update, again in enumerate([batch, *replays]):
            column = 7
            lane, seq = names(again)[column]
            number = step * REPLAY.updates + update if update else 0
            floats = crops.draw(5, lane, seq, number, 3 * crops.FLOATS_PER_VIEW).reshape(3, -1)
            image = decode_image(picture(records(again)[column]), max_pixels=10**6)
            for kind, views in zip(again.crops, crops.multi_crop(image, KINDS, floats), strict=True):
                assert torch.equal(kind[:, column], views)
            assert np.array_equal(again.uniforms[:, column].numpy(), crops.uniforms(floats))
            uniforms |= {row.numpy().tobytes() for row in again.uniforms.transpose(0, 1)}
    assert len(uniforms) == BATCH * REPLAY.updates * (step + 1)


def test_a_window_of_one_batch_is_reshuffled() -> None:
    steps = steps_from(begin(SPEC), replay=ReplayConfig(updates=2, window_samples=BATCH))
    for batch, again in steps:
        assert sorted(names(again)) == names(batch)
        assert batch.cursor.replay is None
    assert any(names(again) != names(batch) for batch, again in steps)


def test_one_update_is_the_plain_loader() -> None:
    steps = steps_from(begin(SPEC), replay=ReplayConfig())
    assert equal(steps, [[batch] for batch in load(SPEC)])
    assert all("replay" not in step[0].cursor.to_json() for step in steps)


def test_batches_are_those_without_replay_and_only_bytes_and_seconds_are_counted_again() -> None:
    for plain, (batch, *replays) in zip(load(SPEC), steps_from(begin(SPEC)), strict=True):
        assert content(replace(batch, cursor=plain.cursor)) == content(plain)
        assert replace(batch.cursor, replay=None) == plain.cursor
        for again in replays:
            assert (again.stats.read, again.stats.used, dict(again.stats.skipped)) == (0, 0, {})
            assert again.stats.bytes > 0
            assert again.cursor == batch.cursor


@pytest.mark.parametrize(("window_steps", "passes"), [(3, 2), (8, 3)])
def test_a_run_resumes_from_every_batch_with_its_replays(window_steps: int, passes: int) -> None:
    """With bad records, over the ends of passes, and with a window that is longer than a pass."""
    replays = ReplayConfig(updates=3, window_samples=window_steps * BATCH)
    whole = steps_from(begin(SPEC), replay=replays, passes=passes)
    assert len({step[0].cursor.pass_number for step in whole}) == passes
    for number, step in enumerate(whole):
        cursor = Cursor.from_json(step[0].cursor.to_json())
        assert cursor == step[0].cursor
        assert equal(steps_from(cursor, replay=replays, passes=passes), whole[number + 1 :])


def test_a_finished_pass_goes_on_in_a_later_run_of_more_passes() -> None:
    with open_loader(begin(SPEC)) as loader:
        first = with_replays(loader)
        end = Cursor.from_json(loader.cursor.to_json())
    with open_loader(end) as loader:
        assert batches_of(loader) == []
    assert equal([*first, *steps_from(end, passes=2)], steps_from(begin(SPEC), passes=2))


@pytest.mark.parametrize("workers", [1, 3])
def test_reader_processes_give_the_replays_that_one_process_gives(workers: int) -> None:
    whole = steps_from(begin(SPEC), passes=2)
    assert equal(steps_from(begin(SPEC), passes=2, workers=workers), whole)
    assert equal(steps_from(whole[6][0].cursor, passes=2, workers=workers), whole[7:])


def test_killed_readers_are_replaced_and_no_replay_is_lost_or_changed() -> None:
    whole = steps_from(begin(SPEC))
    got: list[Step] = []
    readers = KeptPools()

    def kill_one(number: int) -> None:
        """One of each pool: of the loader, and of what reads the window again while there is such."""
        for pool in readers.pools:
            if isinstance(pool, Processes) and (pids := pool.pids()):
                os.kill(pids[number % len(pids)], signal.SIGKILL)

    with open_loader(whole[2][0].cursor, workers=2, pool=readers) as loader:
        kill_one(0)
        steps = steps_of(loader)
        for batch in steps:
            got.append([batch])
            kill_one(len(got))
            for again in steps.replays():
                got[-1].append(again)
                if len(got) % 2:
                    kill_one(len(got[-1]))
        assert loader.worker_restarts >= len(got) + 2
    assert equal(got, whole[3:])


def test_the_replays_do_not_depend_on_ranks_also_when_their_number_changes() -> None:
    reference = [sorted(map(sample_of(step), columns(step))) for step in steps_from(begin(SPEC), passes=3)]
    got: list[list[Any]] = []
    cursor = begin(SPEC)
    for ranks, count in ((2, 3), (3, 5), (1, 2), (6, 99)):
        loaders = [open_loader(cursor, passes=3, ranks=ranks, rank=rank) for rank in range(ranks)]
        for step in together(loaders, count):
            got.append(sorted(found for own in step for found in map(sample_of(own), columns(own))))
        cursor = joined([loader.cursor for loader in loaders])
    assert got == reference
    with open_loader(begin(SPEC), passes=3) as loader:
        with_replays(loader)
        assert cursor == loader.cursor


def columns(step: Step) -> list[tuple[int, int]]:
    return [(update, column) for update, batch in enumerate(step) for column in range(len(batch.keys))]


def sample_of(step: Step) -> Any:
    """Name, record and every byte of the views of a sample, by update and column."""

    def sample(place: tuple[int, int]) -> tuple[Any, ...]:
        update, column = place
        batch = step[update]
        views = b"".join(kind[:, column].numpy().tobytes() for kind in batch.crops)
        return update, names(batch)[column], batch.keys[column], views

    return sample


def test_a_window_that_is_no_longer_what_it_was_is_refused() -> None:
    cursor = steps_from(begin(SPEC))[3][0].cursor
    with pytest.raises(StreamMismatch, match="records of the stream have changed"):
        steps_from(cursor, replace(SPEC, bad_every=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class RottenSpec(FakeSpec):
    """Each record can be read once."""

    def open(self) -> FakeSource:
        return RottenSource(self)


class RottenSource(FakeSource):
    def entry(self, unit: int, index: int) -> Entry:
        return replace(super().entry(unit, index), record=None, reason="checksum")


def test_a_record_that_has_become_unusable_ends_the_run_and_is_named() -> None:
    spec = RottenSpec(lanes=6, records=130)
    with open_loader(begin(spec), spec) as loader:
        steps = steps_of(loader)
        assert records(next(iter(steps)))
        with pytest.raises(StreamDamaged, match=r"lane 0, unit \d, record \d+ was used before .*checksum"):
            list(steps.replays())


def test_a_cursor_keeps_the_start_of_its_window_and_one_without_reads_as_before() -> None:
    cursor = steps_from(begin(SPEC), passes=2)[-1][0].cursor
    assert cursor.replay is not None
    assert cursor.replay.steps == cursor.steps - (STEPS - 1)
    assert Cursor.from_json(cursor.to_json()) == cursor
    with pytest.raises(StreamDamaged):
        Cursor.from_json(cursor.to_json().replace('"pass_ends"', '"ends"'))
    with pytest.raises(ValueError, match="one position a lane"):
        replace(cursor, replay=replace(cursor.replay, positions=cursor.positions[1:]))


def test_records_of_shards_are_replayed_and_resumed(tmp_path: Path) -> None:
    manifest = Manifest.open(str(tmp_path / "stream"), create=True)
    append(manifest, [17, 1, 40, 23])
    manifest.seal()
    spec = ShardSpec(url=str(tmp_path / "stream"), lanes=5, window=2, seed=3)
    source = spec.open()
    start = start_cursor(source, seed=3, chunk=2, window=2)
    replays = ReplayConfig(updates=2, window_samples=40)

    def steps(cursor: Cursor, workers: int = 0) -> list[Step]:
        with Loader(
            spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=workers, passes=2, replay=replays
        ) as loader:
            return with_replays(loader)

    whole = steps(start)
    arrived = {name: key for batch, _ in whole for name, key in zip(names(batch), batch.keys, strict=True)}
    for _, again in whole:
        assert [arrived[name] for name in names(again)] == list(again.keys)
    assert equal(steps(start, workers=2), whole)
    for number in (5, 11):
        assert equal(steps(whole[number][0].cursor), whole[number + 1 :])
    for unit, index in ((-1, 0), (0, 17), (4, 0)):
        with pytest.raises(StreamMismatch, match=f"no record {index} of commit {unit}"):
            source.entry(unit, index)
    source.close()


def test_a_plain_loader_reads_on_from_a_cursor_with_a_window() -> None:
    whole = steps_from(begin(SPEC))
    with Loader(SPEC, cursor=whole[2][0].cursor, crops=KINDS, config=CONFIG, workers=0) as loader:
        assert [batch.keys for batch in batches_of(loader)] == [step[0].keys for step in whole[3:]]
