import hashlib
import time
from collections import Counter

import numpy as np
import pytest

from ops.demo.drawings import pictures


def _of_kind(kind: str, number: int, size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    rng = np.random.Generator(np.random.Philox(key=np.array([5, number], dtype=np.uint64)))
    return pictures.draw_kind(kind, rng, size)


@pytest.mark.parametrize("size", [8, 31, 64, 128])
def test_every_kind_draws_an_rgb_picture_of_the_size_asked_for(size: int) -> None:
    for kind in pictures.KINDS:
        picture = _of_kind(kind, 1, size)
        assert picture.shape == (size, size, 3), kind
        assert picture.dtype == np.uint8, kind


def test_a_picture_is_a_function_of_seed_number_and_size() -> None:
    first = [pictures.draw(3, number, 48) for number in range(40)]
    again = [pictures.draw(3, number, 48) for number in reversed(range(40))][::-1]
    for (one, kind), (other, same_kind) in zip(first, again, strict=True):
        assert kind == same_kind
        assert np.array_equal(one, other)


def test_pictures_never_repeat_within_a_stream_nor_between_seeds() -> None:
    digests = {
        hashlib.sha256(pictures.draw(seed, number, 32)[0].tobytes()).hexdigest()
        for seed in (0, 1)
        for number in range(300)
    }
    assert len(digests) == 600


def test_the_stream_has_no_end() -> None:
    picture, kind = pictures.draw(2**64 - 1, 2**64 - 1, 32)
    assert picture.shape == (32, 32, 3)
    assert kind in pictures.KINDS


def test_every_kind_comes_equally_often() -> None:
    counts = Counter(pictures.draw(0, number, 8)[1] for number in range(3600))
    assert set(counts) == set(pictures.KINDS)
    expected = 3600 / len(pictures.KINDS)
    # Six standard deviations of a binomial count; the seed is fixed, so this passes always or never.
    assert max(abs(count - expected) for count in counts.values()) < 6 * expected**0.5


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_a_kind_shows_something_and_varies_in_light_and_colour(kind: str) -> None:
    drawn = [_of_kind(kind, number, 32).astype(float) for number in range(40)]
    assert all(picture.std() > 3 for picture in drawn), "a flat picture shows nothing"
    assert np.std([picture.mean() for picture in drawn]) > 3
    hues = np.array([picture.mean((0, 1)) - picture.mean() for picture in drawn])
    assert hues.std(0).max() > 3


def test_drawing_keeps_up_with_a_learner() -> None:
    pictures.draw(0, 0, 64)
    start = time.process_time()
    for number in range(200):
        pictures.draw(0, number, 64)
    # 500 a second and more on one core when alone; processor time, halved for a loaded machine.
    assert 200 / (time.process_time() - start) > 250


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be >= 8"):
        pictures.draw(0, 0, 4)
    with pytest.raises(ValueError, match="seed and number"):
        pictures.draw(-1, 0, 32)
    with pytest.raises(ValueError, match="kind must be one of"):
        pictures.draw_kind("cat", np.random.default_rng(0), 32)
