import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from stream.config import CropConfig
from stream.images.crops import (
    FLOATS_PER_VIEW,
    UNIFORMS_PER_VIEW,
    crop_box,
    draw,
    multi_crop,
    multi_crop_into,
    num_views,
    resize_box,
    thumbnail,
    uniforms,
)
from stream.images.decode import decode_image
from tests.oracles import torchvision_crops
from tests.stream.images.test_decode import members

KINDS = (
    CropConfig(count=2, size=32, scale_min=0.25, scale_max=1.0),
    CropConfig(count=4, size=16, scale_min=0.05, scale_max=0.25),
)
# Without AVX2 torchvision resizes in floating point and rounds, which may differ by one level.
LEVELS = 0 if torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"} else 1


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def rows(
    n: int, seed: int = 5, lane: int = 0, seq: int = 0
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return draw(seed, lane, seq, 0, n * FLOATS_PER_VIEW).reshape(n, FLOATS_PER_VIEW)


def furthest(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("size", [(32, 32), (84, 84), (333, 500), (7, 3), (1, 1), (8, 2000)])
def test_views_are_those_that_torchvision_cuts(size: tuple[int, int]) -> None:
    image = noise(*size)
    for seq in range(20):
        floats = rows(num_views(KINDS), seq=seq)
        ours = multi_crop(image, KINDS, floats)
        theirs = torchvision_crops.multi_crop(image, KINDS, floats.tolist())
        assert [view.shape for view in ours] == [(2, 3, 32, 32), (4, 3, 16, 16)]
        assert max(map(furthest, ours, theirs)) <= LEVELS


def test_views_of_photos_are_those_that_torchvision_cuts(test_data: Path) -> None:
    large = (
        CropConfig(count=2, size=224, scale_min=0.14, scale_max=1.0),
        CropConfig(count=6, size=96, scale_min=0.05, scale_max=0.14),
    )
    photos = list(members(test_data / "photos" / "photos-00000.tar", (".jpg",)))[:8]
    for seq, (_, payload) in enumerate(photos):
        image = decode_image(payload, max_pixels=10**8)
        floats = rows(8, seq=seq)
        theirs = torchvision_crops.multi_crop(image, large, floats.tolist())
        assert max(map(furthest, multi_crop(image, large, floats), theirs)) <= LEVELS


def test_the_order_of_pixels_in_memory_does_not_matter() -> None:
    image = noise(50, 70)
    rowwise = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(resize_box(image, 3, 5, 40, 31, 16), resize_box(rowwise, 3, 5, 40, 31, 16))


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    scales=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    row=st.lists(st.floats(0, 1, exclude_max=True), min_size=FLOATS_PER_VIEW, max_size=FLOATS_PER_VIEW),
)
def test_a_box_lies_in_its_image(
    height: int, width: int, scales: tuple[float, float], row: list[float]
) -> None:
    crop = CropConfig(count=1, size=8, scale_min=min(scales), scale_max=max(scales))
    top, left, h, w, _ = crop_box(height, width, crop, row)
    assert 0 <= top < top + h <= height
    assert 0 <= left < left + w <= width


@pytest.mark.parametrize("size", [(32, 32), (300, 500), (40, 400)])
def test_boxes_are_distributed_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    """Two-sample Kolmogorov-Smirnov test of each coordinate; seeds are fixed, so it cannot flicker."""
    crop = CropConfig(count=1, size=8, scale_min=0.1, scale_max=0.9)
    ours = np.array([crop_box(*size, crop, row.tolist())[:4] for row in rows(2000)])
    torch.manual_seed(0)
    image = noise(*size)
    ratio = [3 / 4, 4 / 3]
    theirs = np.array([RandomResizedCrop.get_params(image, [0.1, 0.9], ratio) for _ in range(2000)])
    for coordinate in range(4):
        assert stats.ks_2samp(ours[:, coordinate], theirs[:, coordinate]).pvalue > 0.01


def test_where_no_try_fits_the_largest_central_crop_is_taken() -> None:
    crop = CropConfig(count=1, size=8, scale_min=1.0, scale_max=1.0)
    middle = [0.5] * FLOATS_PER_VIEW
    assert crop_box(300, 900, crop, middle)[:4] == (0, 250, 300, 400)
    assert crop_box(900, 300, crop, middle)[:4] == (250, 0, 400, 300)


def test_a_flipped_view_is_the_mirror_of_the_other() -> None:
    image = noise(40, 40)
    floats = rows(1)
    kind = (CropConfig(count=1, size=16, scale_min=0.3, scale_max=0.9),)
    floats[0, 22] = 0.4999
    flipped = multi_crop(image, kind, floats)[0]
    floats[0, 22] = 0.5
    assert torch.equal(flipped.flip(-1), multi_crop(image, kind, floats)[0])


def test_only_the_column_of_the_sample_is_written() -> None:
    blocks = [torch.full((kind.count, 5, 3, kind.size, kind.size), 7, dtype=torch.uint8) for kind in KINDS]
    floats = rows(6)
    multi_crop_into(noise(20, 20), KINDS, floats, blocks, 3)
    for block, views in zip(blocks, multi_crop(noise(20, 20), KINDS, floats), strict=True):
        assert torch.equal(block[:, 3], views)
        assert bool((block[:, [0, 1, 2, 4]] == 7).all())


def test_further_views_leave_the_first_ones_as_they_are() -> None:
    fewer, more = rows(2), rows(8)
    assert np.array_equal(fewer, more[:2])
    assert np.array_equal(uniforms(fewer), uniforms(more)[:2])


def test_numbers_depend_on_every_part_of_the_name() -> None:
    names = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (1, 3, 2, 4)]
    drawn = np.stack([draw(*name, 64) for name in names])
    assert len(np.unique(drawn)) == drawn.size


def test_numbers_are_pinned_since_a_resume_must_draw_them_again() -> None:
    assert draw(7, 3, 123456789012, 1, 3).tolist() == [
        0.9013294040010521,
        0.03717063519652353,
        0.5778834695830802,
    ]


def test_numbers_are_uniform() -> None:
    drawn = np.concatenate([draw(0, lane, seq, 0, 50) for lane in range(8) for seq in range(50)])
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert 0 <= drawn.min() < drawn.max() < 1


def test_photometric_numbers_never_round_up_to_one() -> None:
    row = np.full((1, FLOATS_PER_VIEW), math.nextafter(1.0, 0.0))
    got = uniforms(row)
    assert got.dtype == np.float32
    assert got.shape == (1, UNIFORMS_PER_VIEW)
    assert float(got.max()) < 1.0
    exact = rows(4)[:, -UNIFORMS_PER_VIEW:]
    assert np.abs(uniforms(rows(4)) - exact).max() <= 2.0**-24


def test_a_thumbnail_shows_the_whole_image() -> None:
    image = torch.zeros(3, 30, 60, dtype=torch.uint8)
    image[0, :, 30:] = 200
    small = thumbnail(image, 6)
    assert small.shape == (3, 6, 6)
    assert small[0, :, 0].tolist() == [0] * 6
    assert small[0, :, 5].tolist() == [200] * 6
