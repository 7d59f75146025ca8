import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor, start_cursor
from stream.errors import StreamError, StreamMismatch, TooManyBadRecords
from stream.lanes import LaneStats, Position
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.plan import plan_of
from stream.loader.prefetch import AVAILABLE, STRICT
from stream.loader.shared_memory import FrameLayout, SharedBuffer
from stream.loader.tasks import NotEnough, ReadChunk
from tests.stream.fake_source import FakeSpec, grow
from tests.stream.loader.driving import batches_of, steps_of
from tests.waiting import LIMIT_S

KINDS = (
    CropConfig(count=2, size=12, scale_min=0.3, scale_max=1.0),
    CropConfig(count=1, size=8, scale_min=0.1, scale_max=0.3),
)
CONFIG = ReaderConfig(thumbnail_px=4, poll_s=0.02, max_bad_fraction=1.0)
SPEC = FakeSpec(lanes=6, records=130, bad_every=7)
CHUNK = 3


def begin(spec: FakeSpec, chunk: int = CHUNK, seed: int = 5) -> Cursor:
    return start_cursor(spec.open(), seed=seed, chunk=chunk, window=spec.block)


def load(spec: FakeSpec, cursor: Cursor | None = None, *, workers: int = 0, passes: int = 1) -> list[Batch]:
    cursor = begin(spec) if cursor is None else cursor
    with Loader(spec, cursor=cursor, crops=KINDS, config=CONFIG, workers=workers, passes=passes) as loader:
        return batches_of(loader)


def content(batch: Batch) -> str:
    """Digest of all that the learner gets, and of the names."""
    digest = hashlib.sha256()
    assert batch.thumbs is not None
    for tensor in (*batch.crops, batch.uniforms, batch.lane_B, batch.seq_B, batch.refs_B2, batch.thumbs):
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update("".join(batch.keys).encode())
    return digest.hexdigest()


def records(batch: Batch) -> list[int]:
    return [100 * unit + index for unit, index in batch.refs_B2.tolist()]


def same(one: Batch, other: Batch) -> bool:
    counts = [(b.stats.read, b.stats.used, dict(b.stats.skipped), b.stats.bytes) for b in (one, other)]
    return content(one) == content(other) and one.cursor == other.cursor and counts[0] == counts[1]


def assert_resumes_everywhere(spec: FakeSpec, passes: int, resume: Callable[[Cursor], list[Batch]]) -> None:
    """From the cursor of every batch, as a checkpoint keeps it, follow the batches that followed it."""
    whole = load(spec, passes=passes)
    for number, batch in enumerate(whole):
        tail = resume(Cursor.from_json(batch.cursor.to_json()))
        assert len(tail) == len(whole) - number - 1
        assert all(map(same, tail, whole[number + 1 :]))


def test_batches_hold_the_good_records_of_each_lane_in_its_order() -> None:
    batches = load(SPEC)
    source = SPEC.open()
    for lane in range(SPEC.lanes):
        entries = [entry.unit * 100 + entry.index for entry, _ in source.read(Position(lane=lane), 0)]
        good = [number for number in entries if not SPEC.bad(number)]
        mine = [
            r
            for b in batches
            for r, in_lane in zip(records(b), b.lane_B.tolist(), strict=True)
            if in_lane == lane
        ]
        assert mine == good[: len(batches) * CHUNK]
        assert len(mine) >= 15


def test_a_batch_is_ordered_by_lane_and_then_by_sample() -> None:
    for step, batch in enumerate(load(SPEC)):
        assert batch.lane_B.tolist() == [lane for lane in range(6) for _ in range(CHUNK)]
        assert batch.seq_B.tolist() == list(range(step * CHUNK, (step + 1) * CHUNK)) * 6
        assert [tuple(kind.shape) for kind in batch.crops] == [(2, 18, 3, 12, 12), (1, 18, 3, 8, 8)]
        assert tuple(batch.uniforms.shape) == (3, 18, 16)


def test_a_run_resumes_from_every_batch() -> None:
    assert_resumes_everywhere(SPEC, 2, lambda cursor: load(SPEC, cursor, passes=2))


def test_every_record_is_used_once_skipped_or_left_over_in_each_pass() -> None:
    batches = load(SPEC, passes=3)
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0, passes=3) as loader:
        used: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for batch in steps_of(loader):
            used[batch.cursor.pass_number] += records(batch)
        end = loader.cursor
        assert loader.finished
        assert loader.lag() == 0
    assert end.samples == sum(map(len, used.values())) == len(batches) * 18
    assert end.samples + sum(end.skipped.values()) + end.left_over == 3 * SPEC.records
    for numbers in used.values():
        assert len(set(numbers)) == len(numbers)
        assert not any(SPEC.bad(number) for number in numbers)
    assert used[0] != used[1] != used[2]
    assert end.pass_number == 3
    assert [p.seq for p in end.positions] == [end.samples // 6] * 6


def test_the_account_of_each_batch_adds_up_to_that_of_the_cursor() -> None:
    total = LaneStats()
    for batch in load(SPEC):
        assert batch.stats.read == batch.stats.used + sum(batch.stats.skipped.values())
        total += batch.stats
        assert batch.cursor.samples == total.used
        assert dict(batch.cursor.skipped) == dict(total.skipped)
    assert set(total.skipped) == {"bad_checksum", "empty", "not_an_image", "truncated"}


def test_a_finished_run_does_nothing() -> None:
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0) as loader:
        batches_of(loader)
        end = loader.cursor
    assert end.left_over > 0
    with Loader(SPEC, cursor=end, crops=KINDS, config=CONFIG, workers=0) as loader:
        assert batches_of(loader) == []
        assert loader.cursor == end


def test_a_stream_too_small_for_one_step_is_left_over() -> None:
    small = FakeSpec(lanes=6, records=17)
    with Loader(small, cursor=begin(small), crops=KINDS, config=CONFIG, workers=0, passes=2) as loader:
        assert batches_of(loader) == []
        assert loader.cursor.left_over == 34


def unfilled(spec: FakeSpec, **options: Any) -> Cursor:
    """The cursor behind all passes."""
    given: dict[str, Any] = {"crops": KINDS, "config": CONFIG, "workers": 0, **options}
    with Loader(spec, cursor=begin(spec), **given) as loader:
        batches_of(loader)
        return loader.cursor


@pytest.mark.parametrize("mode", [STRICT, AVAILABLE])
def test_a_stream_of_which_nothing_can_be_used_is_skipped_by_reason(mode: str) -> None:
    end = unfilled(FakeSpec(lanes=6, records=20, first_bad=0), passes=2, mode=mode)
    assert (end.samples, end.left_over) == (0, 0)
    assert dict(end.skipped) == {"bad_checksum": 10, "empty": 10, "not_an_image": 10, "truncated": 10}


@pytest.mark.parametrize("mode", [STRICT, AVAILABLE])
def test_the_unusable_records_of_a_step_that_is_never_filled_are_skipped(mode: str) -> None:
    # Record n is of lane n mod 6: three full chunks; then one lane of four, one of two records, some bad.
    spec = FakeSpec(lanes=6, records=18 + 8, broken=(19, 20, 25))
    end = unfilled(spec, passes=2, mode=mode)
    assert (end.samples, dict(end.skipped), end.left_over) == (36, {"not_an_image": 2 * 3}, 2 * 5)


def test_lanes_that_have_their_chunk_of_the_unfilled_step_count_what_they_met() -> None:
    # Seven records a lane, in order. Lane 1 has two bad ones and no second chunk; lane 2 has one, and met it.
    end = unfilled(FakeSpec(lanes=3, records=21, block=1, broken=(13, 16, 11)))
    assert (end.samples, dict(end.skipped), end.left_over) == (9, {"not_an_image": 3}, 9)


def test_the_end_of_a_stream_that_another_process_has_seen_is_asked_about_once(tmp_path: Path) -> None:
    growth = tmp_path / "growth.json"
    grow(growth, 8)
    source = FakeSpec(lanes=2, growth=str(growth), block=4, first_bad=0).open()
    wanted = ReadChunk(Position(lane=0), 0, frame=0, column=0, ended=True)
    plan = plan_of(begin(FakeSpec(lanes=2)), KINDS, CONFIG, lanes=2)
    buffer = SharedBuffer(FrameLayout(crops=KINDS, thumbnail_px=4, columns=plan.columns), 1)
    short = wanted.result(source, plan, buffer.frames)
    assert isinstance(short, NotEnough)
    assert (short.ended, dict(short.stats.skipped)) == (True, {})
    grow(growth, 8, sealed=True)
    short = wanted.result(source, plan, buffer.frames)
    buffer.close()
    assert isinstance(short, NotEnough)
    assert (short.ended, sum(short.stats.skipped.values())) == (True, 4)


def test_a_batch_keeps_its_memory() -> None:
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0) as loader:
        steps = steps_of(loader)
        first = next(iter(steps))
        before = content(first)
        list(steps)
    assert content(first) == before


def test_lag_is_what_is_not_used_yet() -> None:
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0) as loader:
        assert loader.lag() == SPEC.records
        for batch in steps_of(loader):
            assert loader.lag() == SPEC.records - batch.cursor.samples - sum(batch.cursor.skipped.values())


def growing(path: Path, records: int) -> FakeSpec:
    grow(path, records)
    return FakeSpec(lanes=2, growth=str(path), block=4, bad_every=9)


def test_an_open_stream_is_waited_on_and_gives_the_batches_of_the_sealed_one(tmp_path: Path) -> None:
    spec = growing(tmp_path / "growth.json", 0)
    lengths = iter([3, 8, 9, 30, 31, 77, 90])
    waited = 0

    def look() -> bool:
        """Called while the loader waits: the stream grows, and is sealed in the end."""
        nonlocal waited
        if loader.waiting:
            waited += 1
            length = next(lengths, 100)
            grow(tmp_path / "growth.json", length, sealed=length == 100)
        return False

    with Loader(spec, cursor=begin(spec), crops=KINDS, config=CONFIG, workers=0) as loader:
        got = batches_of(loader, stop=look)
        end = loader.cursor
    assert waited >= 8
    assert not loader.waiting
    sealed = FakeSpec(lanes=2, records=100, block=4, bad_every=9)
    assert list(map(content, got)) == list(map(content, load(sealed)))
    assert end.samples + sum(end.skipped.values()) + end.left_over == 100


def test_waiting_costs_next_to_nothing_and_ends_when_told(tmp_path: Path) -> None:
    spec = growing(tmp_path / "growth.json", 6)
    end = time.monotonic() + 1.0
    cpu = time.process_time()
    with Loader(spec, cursor=begin(spec), crops=KINDS, config=CONFIG, workers=0) as loader:
        assert batches_of(loader, stop=lambda: time.monotonic() > end) == []
        assert loader.starving == (0, 1)
        assert not loader.finished
    assert time.process_time() - cpu < 0.3


def test_a_stopped_loader_can_be_asked_to_go_on() -> None:
    stop = False
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0) as loader:
        steps = steps_of(loader, stop=lambda: stop)
        batches = [next(iter(steps))]
        stop = True
        assert list(steps) == []
        stop = False
        batches += steps
    assert list(map(content, batches)) == list(map(content, load(SPEC)))


def until_error(
    loader: Loader, kind: type[Exception], stop: Callable[[], bool] = lambda: False
) -> tuple[list[Batch], str]:
    """All batches that come before the loader ends with this error, and its message."""
    got: list[Batch] = []

    def keep_all() -> None:
        for batch in steps_of(loader, stop=stop):
            got.append(batch)

    with pytest.raises(kind) as caught:
        keep_all()
    return got, str(caught.value)


def test_a_source_that_fails_ends_the_run_after_the_batches_before_it() -> None:
    spec = replace(SPEC, fail_at=80)
    reference = load(SPEC)
    step = next(n for n, batch in enumerate(reference) if 80 in records(batch))
    with Loader(spec, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0) as loader:
        got, message = until_error(loader, OSError)
    assert "record 80 cannot be reached" in message
    assert len(got) == step


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_at_one_record_is_an_error_of_the_stream_that_names_the_lane(
    workers: int,
) -> None:
    spec = replace(SPEC, fault_at=80)
    with Loader(spec, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=workers) as loader:
        got, message = until_error(loader, StreamError)
    assert len(got) >= 1
    assert f"lane {80 % SPEC.lanes} at unit" in message
    assert "ValueError: a fault of the program" in message


BUDGET = ReaderConfig(thumbnail_px=0, max_bad_fraction=0.4, bad_window=60)
WORSE = FakeSpec(lanes=6, records=3000, bad_every=7, first_bad=180, block=4)


def test_too_many_bad_records_end_the_run_with_reasons_and_places() -> None:
    with Loader(WORSE, cursor=begin(WORSE), crops=KINDS, config=BUDGET, workers=0) as loader:
        got, message = until_error(loader, TooManyBadRecords)
    assert len(got) >= 6
    assert got[0].thumbs is None
    for part in ("40%", "last 60 records", "truncated ", "lane 0, unit ", "reader.max_bad_fraction"):
        assert part in message


def test_the_records_that_spent_the_budget_come_with_the_error() -> None:
    with Loader(WORSE, cursor=begin(WORSE), crops=KINDS, config=BUDGET, workers=0) as loader:
        with pytest.raises(TooManyBadRecords) as caught:
            batches_of(loader)
        assert {place.lane for place in caught.value.bad} <= set(range(6))
        assert len(caught.value.bad) > 20


def test_bad_records_that_were_accepted_beforehand_end_no_run() -> None:
    cursor = replace(begin(WORSE), accept_until=WORSE.records)
    with Loader(WORSE, cursor=cursor, crops=KINDS, config=BUDGET, workers=0) as loader:
        batches = batches_of(loader)
    assert len(batches) >= 6
    assert loader.cursor.read + loader.cursor.left_over == WORSE.records


@pytest.mark.parametrize("workers", [0, 1])
def test_an_open_stream_that_goes_bad_behind_what_was_accepted_ends_the_run_and_is_not_waited_on(
    tmp_path: Path, workers: int
) -> None:
    grow(tmp_path / "growth", 3000)
    spec = FakeSpec(lanes=6, growth=str(tmp_path / "growth"), first_bad=180, block=4)
    deadline = time.monotonic() + LIMIT_S
    with Loader(
        spec,
        cursor=replace(begin(spec), accept_until=100),
        crops=KINDS,
        config=replace(BUDGET, poll_s=0.02),
        workers=workers,
    ) as loader:
        got, _ = until_error(loader, TooManyBadRecords, lambda: time.monotonic() > deadline)
        assert 100 <= loader.cursor.read < 240
    assert len(got) >= 6
    deadline = time.monotonic() + LIMIT_S
    with Loader(
        spec,
        cursor=replace(loader.cursor, accept_until=260),
        crops=KINDS,
        config=replace(BUDGET, poll_s=0.02),
        workers=workers,
    ) as loader:
        until_error(loader, TooManyBadRecords, lambda: time.monotonic() > deadline)


def test_the_budget_of_bad_records_is_part_of_the_cursor() -> None:
    """A fifth of the records is bad: known once the window is full, at the same step after any resume."""
    spec = FakeSpec(lanes=6, records=300, bad_every=5)
    config = replace(BUDGET, bad_window=100, max_bad_fraction=0.15)
    with Loader(spec, cursor=begin(spec), crops=KINDS, config=config, workers=0) as loader:
        whole, _ = until_error(loader, TooManyBadRecords)
    assert len(whole) >= 3
    for number, batch in enumerate(whole):
        cursor = Cursor.from_json(batch.cursor.to_json())
        with Loader(spec, cursor=cursor, crops=KINDS, config=config, workers=0) as loader:
            assert len(until_error(loader, TooManyBadRecords)[0]) == len(whole) - number - 1


def test_a_cursor_of_another_stream_is_refused() -> None:
    for other in (FakeSpec(lanes=6, records=130, seed=8), FakeSpec(lanes=5, records=130)):
        with pytest.raises(StreamMismatch, match="begin a new run"):
            Loader(SPEC, cursor=begin(other), crops=KINDS, config=CONFIG, workers=0)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"passes": 0}, {"crops": ()}, {"ranks": 7}, {"rank": 1}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    arguments = {"crops": KINDS, "config": CONFIG, "workers": 0, **wrong}
    with pytest.raises(ValueError, match=r"must be|need at least"):
        Loader(SPEC, cursor=begin(SPEC), **arguments)  # type: ignore[arg-type]


def test_a_batch_that_no_memory_can_hold_is_refused() -> None:
    with pytest.raises(StreamError, match=r"lower reader\.prefetch, the batch or the crops"):
        Loader(SPEC, cursor=begin(SPEC, chunk=10**8), crops=KINDS, config=CONFIG, workers=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_batches_come_in_page_locked_memory_when_asked() -> None:
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0, pin_memory=True) as loader:
        assert all(kind.is_pinned() for kind in next(iter(steps_of(loader))).crops)
