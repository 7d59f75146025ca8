import hashlib
import io
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stream.config import CropConfig
from stream.errors import StreamError
from stream.images import crops
from stream.images.decode import decode_image
from stream.lanes import Position
from stream.loader.plan import ReadPlan
from stream.loader.shared_memory import BatchFrame, FrameLayout, SharedBuffer
from stream.loader.tasks import BudgetSpent, Chunk, NotEnough, read_chunk
from tests.stream.fake_source import FakeSource, FakeSpec, grow, picture

KINDS = (
    CropConfig(count=2, size=12, scale_min=0.3, scale_max=1.0),
    CropConfig(count=1, size=8, scale_min=0.1, scale_max=0.3),
)
PLAN = ReadPlan(
    seed=11,
    chunk=4,
    crops=KINDS,
    thumbnail_px=6,
    max_pixels=10_000,
    max_bad_fraction=0.5,
    bad_window=1000,
    columns=12,
    batch=12,
)


def new_frame() -> BatchFrame:
    layout = FrameLayout(crops=KINDS, thumbnail_px=6, columns=PLAN.columns)
    frame = SharedBuffer(layout, 1).frames[0]
    for tensor in (*frame.crops, frame.uniforms, frame.thumbs, frame.seq_B, frame.refs_B2, frame.keys):
        tensor.fill_(99)
    return frame


def tensors(frame: BatchFrame) -> list[torch.Tensor]:
    """Every tensor of a frame, samples first."""
    by_sample = [kind.movedim(1, 0) for kind in (*frame.crops, frame.uniforms)]
    return [*by_sample, frame.thumbs, frame.seq_B, frame.refs_B2, frame.keys]


def numbers(frame: BatchFrame, columns: slice) -> list[int]:
    """Which records of the fake stream lie in these columns."""
    return [100 * unit + index for unit, index in frame.refs_B2[columns].tolist()]


def plain_reading(source: FakeSource, lane: int, n: int) -> list[int]:
    """The first good records of a lane, in its order."""
    found = []
    for entry, _ in source.read(Position(lane=lane), 0):
        number = entry.unit * 100 + entry.index
        if not source.spec.bad(number):
            found.append(number)
    return found[:n]


def test_a_chunk_holds_the_next_good_records_of_the_lane() -> None:
    source = FakeSpec(lanes=3, records=120, bad_every=5).open()
    frame = new_frame()
    position = Position(lane=1)
    got = []
    for _ in range(5):
        chunk = read_chunk(source, position, 0, PLAN, frame, 4)
        assert isinstance(chunk, Chunk)
        got += numbers(frame, slice(4, 8))
        assert frame.seq_B[4:8].tolist() == list(range(position.seq, position.seq + 4))
        position = chunk.after
    assert got == plain_reading(source, 1, 20)
    assert position.seq == 20


def test_what_lies_in_the_frame_is_made_of_the_record_and_of_the_name_of_the_sample() -> None:
    source, frame = FakeSpec(lanes=3, records=120).open(), new_frame()
    read_chunk(source, Position(lane=2, seq=70), 0, PLAN, frame, 0)
    for column, number in enumerate(numbers(frame, slice(0, 4))):
        image = decode_image(picture(number), max_pixels=10_000)
        floats = crops.draw(11, 2, 70 + column, 0, 3 * crops.FLOATS_PER_VIEW).reshape(3, -1)
        for block, views in zip(frame.crops, crops.multi_crop(image, KINDS, floats), strict=True):
            assert torch.equal(block[:, column], views)
        assert np.array_equal(frame.uniforms[:, column].numpy(), crops.uniforms(floats))
        assert torch.equal(frame.thumbs[column], crops.thumbnail(image, 6))
        digest = hashlib.sha256(picture(number)).hexdigest()
        assert bytes(frame.keys[column].numpy()).decode() == digest


def test_an_answer_depends_on_the_question_alone() -> None:
    source, once, again = FakeSpec(lanes=3, records=200, bad_every=4).open(), new_frame(), new_frame()
    first = read_chunk(source, Position(lane=0), 0, PLAN, once, 0)
    assert isinstance(first, Chunk)
    for lane in (2, 0, 1):
        read_chunk(source, Position(lane=lane), 1, PLAN, again, 8)
    second = read_chunk(FakeSpec(lanes=3, records=200, bad_every=4).open(), first.after, 0, PLAN, once, 4)
    repeated = read_chunk(source, Position(lane=0), 0, PLAN, again, 0)
    also = read_chunk(source, first.after, 0, PLAN, again, 4)
    assert isinstance(second, Chunk)
    assert isinstance(repeated, Chunk)
    assert isinstance(also, Chunk)
    assert (repeated.after, also.after) == (first.after, second.after)
    assert repeated.bad == first.bad
    for one, other in zip(tensors(once), tensors(again), strict=True):
        assert torch.equal(one[:8], other[:8])


def test_only_the_columns_of_the_chunk_are_written() -> None:
    frame = new_frame()
    read_chunk(FakeSpec(lanes=3, records=120).open(), Position(lane=1), 0, PLAN, frame, 4)
    for tensor in tensors(frame):
        assert bool((tensor[:4] == 99).all())
        assert bool((tensor[8:] == 99).all())


def test_unusable_records_are_counted_by_reason_and_named() -> None:
    source = FakeSpec(lanes=1, records=100, bad_every=3, block=1).open()
    chunk = read_chunk(source, Position(lane=0), 0, replace(PLAN, chunk=12), new_frame(), 0)
    assert isinstance(chunk, Chunk)
    bad = [2, 5, 8, 11, 14]  # every third of the 17 records that 12 good ones need
    assert (chunk.stats.read, chunk.stats.used) == (17, 12)
    assert chunk.stats.skipped == {"bad_checksum": 1, "empty": 1, "not_an_image": 1, "truncated": 2}
    assert [place.index for place in chunk.bad] == bad
    assert str(chunk.bad[0]) == "lane 0, unit 0, record 2: truncated"
    good = sum(len(picture(n)) for n in range(17) if n not in bad)
    odd = len(b"no image") + 7 + sum(len(picture(n)) * 2 // 3 for n in (2, 14))
    assert chunk.stats.bytes == good + odd


def test_a_position_counts_good_samples_on_from_where_it_stood() -> None:
    source = FakeSpec(lanes=1, records=100, bad_every=3).open()
    chunk = read_chunk(source, Position(lane=0, seq=1000), 2, PLAN, new_frame(), 0)
    assert isinstance(chunk, Chunk)
    assert chunk.after.seq == 1004


def test_a_lane_that_ends_before_the_chunk_is_full_says_so_and_consumes_nothing() -> None:
    source = FakeSpec(lanes=3, records=9).open()
    short = read_chunk(source, Position(lane=0), 0, PLAN, new_frame(), 0)
    assert isinstance(short, NotEnough)
    assert (short.lane, short.needs, short.ended, dict(short.stats.skipped)) == (0, 4, True, {})
    enough_but_bad = FakeSpec(lanes=1, records=7, bad_every=2).open()
    short = read_chunk(enough_but_bad, Position(lane=0), 0, replace(PLAN, chunk=5), new_frame(), 0)
    assert isinstance(short, NotEnough)
    assert (short.lane, short.needs, short.ended) == (0, 8, True)
    # Every second of the seven records is bad.
    assert dict(short.stats.skipped) == {"bad_checksum": 2, "empty": 1}
    assert sorted(place.index for place in short.bad) == [1, 3, 5]


def test_a_lane_that_may_grow_says_how_many_records_it_needs(tmp_path: Path) -> None:
    growth = tmp_path / "growth.json"
    grow(growth, 8)
    source = FakeSpec(lanes=1, growth=str(growth), block=4, bad_every=2).open()
    short = read_chunk(source, Position(lane=0), 0, replace(PLAN, chunk=6), new_frame(), 0)
    assert short == NotEnough(lane=0, needs=10, ended=False)


def test_a_reader_that_has_not_seen_the_newest_records_looks_for_them(tmp_path: Path) -> None:
    growth = tmp_path / "growth.json"
    grow(growth, 0)
    source = FakeSpec(lanes=1, growth=str(growth), block=4).open()
    grow(growth, 4)
    assert isinstance(read_chunk(source, Position(lane=0), 0, PLAN, new_frame(), 0), Chunk)


def test_a_chunk_that_alone_spends_the_budget_is_given_up() -> None:
    source = FakeSpec(lanes=1, records=5000, first_bad=2).open()
    spent = read_chunk(source, Position(lane=0), 0, replace(PLAN, bad_window=40), new_frame(), 0)
    assert isinstance(spent, BudgetSpent)
    # 12 good samples are all that the step could have beside them.
    assert sum(spent.stats.skipped.values()) == 40 - PLAN.batch
    patient = replace(PLAN, bad_window=40, max_bad_fraction=1.0)
    assert isinstance(read_chunk(source, Position(lane=0), 0, patient, new_frame(), 0), NotEnough)


def test_an_image_above_the_limit_of_pixels_is_skipped() -> None:
    source, frame = FakeSpec(lanes=1, records=40, block=1).open(), new_frame()
    smaller = replace(PLAN, max_pixels=14 * 15)
    chunk = read_chunk(source, Position(lane=0), 0, smaller, frame, 0)
    assert isinstance(chunk, Chunk)
    large = chunk.stats.skipped["too_large"]
    assert large == chunk.stats.read - 4
    for number in numbers(frame, slice(0, 4)):
        width, height = Image.open(io.BytesIO(picture(number))).size
        assert width * height <= 14 * 15


def test_frames_do_not_overlap_and_have_the_shapes_of_a_batch() -> None:
    layout = FrameLayout(crops=KINDS, thumbnail_px=6, columns=5)
    buffer = SharedBuffer(layout, 3)
    for value, frame in enumerate(buffer.frames):
        for tensor in tensors(frame):
            tensor.fill_(value)
    for value, frame in enumerate(buffer.frames):
        assert [tuple(kind.shape) for kind in frame.crops] == [(2, 5, 3, 12, 12), (1, 5, 3, 8, 8)]
        assert tuple(frame.uniforms.shape) == (3, 5, crops.UNIFORMS_PER_VIEW)
        assert all(bool((tensor == value).all()) for tensor in tensors(frame))
    frame = buffer.frames[2]
    buffer.close()
    buffer.close()
    assert bool((frame.seq_B == 2).all())


def test_a_frame_without_thumbnails_has_an_empty_tensor_for_them() -> None:
    frame = SharedBuffer(FrameLayout(crops=KINDS, thumbnail_px=0, columns=5), 1).frames[0]
    assert frame.thumbs.shape == (5, 3, 0, 0)


def shared_mappings() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "swavstream-memory" in line]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="anonymous memory is looked up in Linux' /proc")
def test_shared_memory_has_no_name_and_is_let_go() -> None:
    before = shared_mappings()
    buffer = SharedBuffer(FrameLayout(crops=KINDS, thumbnail_px=6, columns=5), 2)
    new = set(shared_mappings()) - set(before)
    assert len(new) == 1
    assert new.pop().endswith("(deleted)")
    buffer.close()
    del buffer
    assert shared_mappings() == before


def test_where_anonymous_memory_is_forbidden_an_unlinked_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    buffer = SharedBuffer(FrameLayout(crops=KINDS, thumbnail_px=6, columns=5), 2)
    buffer.frames[1].seq_B.fill_(3)
    assert buffer.frames[0].seq_B.tolist() == [0] * 5
    buffer.close()


def test_memory_that_cannot_be_reserved_is_refused_at_once() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StreamError, match=r"cannot reserve 0 MiB of shared memory for 2 batches of 5"):
            SharedBuffer(FrameLayout(crops=KINDS, thumbnail_px=6, columns=5), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_memory_that_is_not_there_is_refused_with_what_to_do() -> None:
    huge = FrameLayout(crops=KINDS, thumbnail_px=6, columns=10**9)
    with pytest.raises(StreamError, match=r"memory.*reading needs.*lower reader\.prefetch"):
        SharedBuffer(huge, 2)
