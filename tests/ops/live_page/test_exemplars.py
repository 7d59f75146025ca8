"""Typical images: the best stay, doubles do not, the old fade, memory is bounded, the sheet shows them."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ops.demo.contact_sheet import busiest, contact_sheet
from ops.live_page.exemplars import Exemplars
from tests.ops import synthetic


def offer(
    exemplars: Exemplars,
    assigned: list[int],
    scores: list[float],
    *,
    keys: list[str] | None = None,
    pictures: NDArray[np.uint8] | None = None,
    samples: int = 0,
    seed: int = 0,
) -> None:
    count = len(assigned)
    exemplars.observe(
        np.array(assigned, np.int64),
        np.array(scores, np.float32),
        keys if keys is not None else [f"{seed}-{index}" for index in range(count)],
        pictures if pictures is not None else synthetic.thumbs(count, seed=seed),
        samples=samples,
    )


def scores_of(exemplars: Exemplars, prototype: int) -> list[float]:
    return [round(one.score, 4) for one in exemplars.top(prototype)]


def test_the_most_typical_images_stay_best_first() -> None:
    exemplars = Exemplars(2, each=3, thumbnail_px=16)
    offer(exemplars, [0, 0, 0, 0, 0, 1], [0.1, 0.5, 0.3, 0.4, 0.2, 0.9])
    assert scores_of(exemplars, 0) == [0.5, 0.4, 0.3]
    assert scores_of(exemplars, 1) == [0.9]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 1)), min_size=1, max_size=40), st.integers(1, 7))
def test_order_and_size_of_batches_do_not_matter(pairs: list[tuple[int, float]], size: int) -> None:
    pictures = synthetic.thumbs(len(pairs))
    together, apart = Exemplars(4, each=3, thumbnail_px=16), Exemplars(4, each=3, thumbnail_px=16)
    keys = [str(index) for index in range(len(pairs))]
    assigned, scores = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    offer(together, assigned, scores, keys=keys, pictures=pictures)
    for start in range(0, len(pairs), size):
        part = slice(start, start + size)
        offer(apart, assigned[part], scores[part], keys=keys[part], pictures=pictures[part])
    for prototype in range(4):
        assert scores_of(together, prototype) == scores_of(apart, prototype)
        expected = sorted((round(score, 4) for kind, score in pairs if kind == prototype), reverse=True)[:3]
        assert scores_of(together, prototype) == pytest.approx(expected, abs=1e-4)


def test_a_prototype_with_many_images_in_a_batch_takes_no_place_from_one_with_few() -> None:
    exemplars = Exemplars(2, each=3, thumbnail_px=16)
    offer(exemplars, [0] * 30 + [1], [0.9] * 30 + [0.1])
    assert scores_of(exemplars, 1) == [0.1]


def test_the_picture_is_that_of_its_sample() -> None:
    exemplars = Exemplars(2, each=2, thumbnail_px=16)
    pictures = synthetic.thumbs(3)
    offer(exemplars, [1, 1, 0], [0.3, 0.8, 0.5], pictures=pictures)
    best = exemplars.top(1)[0]
    assert np.array_equal(best.thumb, np.moveaxis(pictures[1], 0, -1))
    assert best.key == "0-1"


def test_the_same_image_is_kept_once_however_often_it_comes() -> None:
    exemplars = Exemplars(1, each=4, thumbnail_px=16)
    picture = synthetic.thumbs(1)
    for score in (0.5, 0.7, 0.6):
        offer(exemplars, [0], [score], keys=["same"], pictures=picture)
    assert scores_of(exemplars, 0) == [0.7]


def test_near_equal_pictures_are_kept_once_even_under_other_keys() -> None:
    exemplars = Exemplars(1, each=4, thumbnail_px=16)
    picture = synthetic.thumbs(1)
    nearly = np.clip(picture.astype(int) + 2, 0, 255).astype(np.uint8)
    offer(exemplars, [0, 0], [0.5, 0.6], keys=["a", "b"], pictures=np.concatenate([picture, nearly]))
    assert [one.key for one in exemplars.top(0)] == ["b"]


def test_an_image_that_is_now_assigned_elsewhere_leaves_its_old_prototype() -> None:
    exemplars = Exemplars(2, each=4, thumbnail_px=16)
    picture = synthetic.thumbs(1)
    offer(exemplars, [0], [0.9], keys=["a"], pictures=picture)
    offer(exemplars, [1], [0.5], keys=["a"], pictures=picture, samples=10)
    assert exemplars.counts().tolist() == [0, 1]


def test_an_old_place_counts_half_after_a_half_life() -> None:
    exemplars = Exemplars(1, each=1, thumbnail_px=16, half_life_samples=1000)
    offer(exemplars, [0], [0.8], seed=1)
    offer(exemplars, [0], [0.41], seed=2, samples=900)
    assert scores_of(exemplars, 0) == [0.8]
    offer(exemplars, [0], [0.41], seed=3, samples=1000)
    assert scores_of(exemplars, 0) == [0.41]


def test_negative_scores_are_kept_but_last() -> None:
    exemplars = Exemplars(1, each=2, thumbnail_px=16)
    offer(exemplars, [0, 0], [-0.5, 0.2])
    assert scores_of(exemplars, 0) == [0.2, -0.5]


def test_without_thumbnails_nothing_is_kept() -> None:
    exemplars = Exemplars(2, thumbnail_px=16)
    exemplars.observe(np.zeros(1, np.int64), np.ones(1, np.float32), ["a"], None, samples=1)
    assert exemplars.counts().tolist() == [0, 0]


@pytest.mark.parametrize(("prototypes", "each", "side"), [(64, 12, 48), (3000, 6, 48), (30_000, 4, 19)])
def test_memory_is_bounded_by_fewer_then_smaller_images(prototypes: int, each: int, side: int) -> None:
    exemplars = Exemplars(prototypes, each=12, thumbnail_px=48)
    assert (exemplars.each, exemplars.side) == (each, side)
    assert prototypes * each * side * side * 3 <= 128 << 20


def test_smaller_images_show_the_same_picture() -> None:
    exemplars = Exemplars(1, each=4, thumbnail_px=16, memory_bytes=4 * 8 * 8 * 3)
    picture = np.full((1, 3, 16, 16), 200, np.uint8)
    picture[:, 0, :8] = 10
    offer(exemplars, [0], [0.5], pictures=picture)
    thumb = exemplars.top(0)[0].thumb
    assert thumb.shape == (8, 8, 3)
    assert thumb[0, 0].tolist() == [10, 200, 200]
    assert thumb[7, 7].tolist() == [200, 200, 200]


def test_stamps_change_exactly_when_images_do() -> None:
    exemplars = Exemplars(3, each=1, thumbnail_px=16)
    before = exemplars.stamps()
    offer(exemplars, [1], [0.5], seed=1)
    changed = exemplars.stamps() != before
    assert changed.tolist() == [False, True, False]
    before = exemplars.stamps()
    offer(exemplars, [1], [0.4], seed=2)
    assert (exemplars.stamps() == before).all()


def test_a_strip_holds_the_images_side_by_side() -> None:
    exemplars = Exemplars(1, each=3, thumbnail_px=16)
    offer(exemplars, [0, 0], [0.3, 0.6])
    strip = np.asarray(Image.open(io.BytesIO(exemplars.strip(0))))
    assert strip.shape == (16, 32, 3)
    assert np.array_equal(strip[:, :16], exemplars.top(0)[0].thumb)


def test_images_are_kept_over_a_restart(tmp_path: Path) -> None:
    one, other = Exemplars(5, each=3, thumbnail_px=16), Exemplars(5, each=3, thumbnail_px=16)
    offer(one, [0, 0, 3, 3, 3, 3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    one.save(tmp_path / "images")
    assert other.load(tmp_path / "images")
    for prototype in range(5):
        assert [row.key for row in one.top(prototype)] == [row.key for row in other.top(prototype)]
    for exemplars in (one, other):
        offer(exemplars, [0, 3], [0.15, 0.35], seed=7, samples=100)
    assert [scores_of(one, row) for row in range(5)] == [scores_of(other, row) for row in range(5)]


@pytest.mark.parametrize("damage", ["missing", "cut", "shape"])
def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "images"
    saved = Exemplars(5 if damage != "shape" else 6, each=3, thumbnail_px=16)
    offer(saved, [0], [0.5])
    if damage != "missing":
        saved.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    exemplars = Exemplars(5, each=3, thumbnail_px=16)
    assert not exemplars.load(path)
    assert exemplars.counts().sum() == 0


def test_nothing_kept_is_saved_and_loaded_too(tmp_path: Path) -> None:
    Exemplars(2, thumbnail_px=16).save(tmp_path / "images")
    assert Exemplars(2, thumbnail_px=16).load(tmp_path / "images")


def test_what_could_not_be_written_is_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.mkdir()
    (path / "in the way").touch()
    with pytest.raises(OSError, match="images"):
        Exemplars(2, thumbnail_px=16).save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "images"
    (tmp_path / ".images.part").write_bytes(b"half")
    Exemplars(2, thumbnail_px=16).save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_ring_costs_little_time_per_batch() -> None:
    exemplars = Exemplars(256, thumbnail_px=48)
    draw = np.random.default_rng(0)
    pictures = synthetic.thumbs(256, side=48)
    best = float("inf")
    for step in range(40):
        assigned = draw.integers(0, 256, 256)
        scores = draw.uniform(0.3, 0.8, 256).astype(np.float32)
        began = time.thread_time()
        exemplars.observe(assigned, scores, [""] * 256, pictures, samples=256 * step)
        best = min(best, time.thread_time() - began)
    # Measured 0.005 s on a busy machine; the step of such a batch takes some tenths of a second.
    assert best < 0.03


def test_a_contact_sheet_has_a_row_for_each_of_the_busiest() -> None:
    exemplars = Exemplars(4, each=5, thumbnail_px=16)
    offer(exemplars, [0, 1, 1, 3, 3, 3], [0.5] * 6)
    usage = np.array([0.2, 0.3, 0.1, 0.4], np.float32)
    assert busiest(exemplars, usage, 10) == [3, 1, 0]
    small = Image.open(io.BytesIO(contact_sheet(exemplars, usage, rows=2, columns=3, cell_px=32)))
    large = Image.open(io.BytesIO(contact_sheet(exemplars, usage, rows=3, columns=3, cell_px=32)))
    assert large.height - small.height == 36
    assert small.width == large.width


def test_the_sheet_shows_the_images_themselves() -> None:
    exemplars = Exemplars(1, each=2, thumbnail_px=16)
    red = np.zeros((1, 3, 16, 16), np.uint8)
    red[:, 0] = 255
    offer(exemplars, [0], [0.5], pictures=red)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(exemplars, np.ones(1, np.float32), cell_px=32))))
    assert (sheet.reshape(-1, 3) == (255, 0, 0)).all(axis=1).sum() == 32 * 32


def test_a_sheet_without_images_says_so() -> None:
    sheet = contact_sheet(Exemplars(3, thumbnail_px=16), np.zeros(3, np.float32))
    assert Image.open(io.BytesIO(sheet)).format == "PNG"


def test_usage_of_another_head_is_refused() -> None:
    with pytest.raises(ValueError, match="of 2 prototypes"):
        contact_sheet(Exemplars(3, thumbnail_px=16), np.zeros(2, np.float32))
