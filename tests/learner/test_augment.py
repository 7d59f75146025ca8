"""The batched photometric half against torchvision, image by image."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learner.augment import UNIFORMS, Views, blur, photometric
from learner.collective import Deal, SingleProcess
from learner.config import AugmentConfig
from tests.oracles.photometric import photometric_all

CPU = torch.device("cpu")
ORACLE_ATOL = 2e-5
"""torchvision turns the hue and builds its blur kernel in float32, and a deviation of 0.22 makes errors
larger."""

OFF = AugmentConfig(jitter_probability=0, grayscale_probability=0, blur_probability=0)


def drawn(count: int, samples: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randint(0, 256, (count, samples, 3, side, side), dtype=torch.uint8, generator=generator)
    return crops, torch.rand(count, samples, 16, generator=generator)


def in_batch(
    crops: Tensor, uniforms: Tensor, config: AugmentConfig, dtype: torch.dtype = torch.float64
) -> Tensor:
    return photometric(crops, uniforms, config, device=CPU, dtype=dtype)


@pytest.mark.parametrize("side", [8, 16, 33])
def test_every_view_equals_torchvision_on_its_own_image(side: int) -> None:
    crops, uniforms = drawn(3, 30, side)
    config = AugmentConfig()
    torch.testing.assert_close(
        in_batch(crops, uniforms, config), photometric_all(crops, uniforms, config), rtol=0, atol=ORACLE_ATOL
    )


@pytest.mark.parametrize("strength", [0.4, 1.25])
def test_all_24_orders_of_jitter_equal_torchvision(strength: float) -> None:
    crops, uniforms = drawn(1, 48, 6)
    uniforms[..., 5] = (torch.arange(48) % 24 + 0.5) / 24
    config = replace(OFF, jitter_probability=1.0, jitter=strength)
    torch.testing.assert_close(
        in_batch(crops, uniforms, config), photometric_all(crops, uniforms, config), rtol=0, atol=ORACLE_ATOL
    )


def test_gray_black_and_white_pixels_survive_a_turn_of_hue() -> None:
    crops, uniforms = drawn(1, 5, 4)
    crops[0, 0], crops[0, 1], crops[0, 2] = 0, 255, 127
    crops[0, 3, 1:] = 0
    config = replace(OFF, jitter_probability=1.0)
    torch.testing.assert_close(
        in_batch(crops, uniforms, config), photometric_all(crops, uniforms, config), rtol=0, atol=ORACLE_ATOL
    )


def test_float32_differs_from_float64_by_rounding_only() -> None:
    crops, uniforms = drawn(2, 30, 16)
    config = AugmentConfig()
    torch.testing.assert_close(
        in_batch(crops, uniforms, config, torch.float32).double(),
        in_batch(crops, uniforms, config),
        rtol=0,
        atol=2e-4,
    )


def test_a_view_looks_the_same_in_whatever_batch_it_turns_up() -> None:
    crops, uniforms = drawn(2, 12, 16)
    config = AugmentConfig()
    whole = in_batch(crops, uniforms, config).view(2, 12, 3, 16, 16)
    few = torch.tensor([7, 2, 11])
    part = in_batch(crops[:, few], uniforms[:, few], config).view(2, 3, 3, 16, 16)
    torch.testing.assert_close(part, whole[:, few], rtol=0, atol=1e-12)


def test_views_of_one_batch_are_drawn_apart() -> None:
    crops, uniforms = drawn(1, 6, 8)
    same = crops[:, :1].expand(-1, 6, -1, -1, -1)
    made = in_batch(same, uniforms, replace(OFF, jitter_probability=1.0))
    assert all(not torch.allclose(made[0], other) for other in made[1:])


def test_with_nothing_applied_only_the_normalisation_is_left() -> None:
    crops, uniforms = drawn(2, 4, 8)
    scaled = crops.flatten(0, 1).double() / 255
    mean = torch.tensor(OFF.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(OFF.std, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(in_batch(crops, uniforms, OFF), (scaled - mean) / std)


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
def test_uniforms_at_both_ends_are_fine(value: float) -> None:
    crops, uniforms = drawn(1, 4, 8)
    uniforms.fill_(value)
    config = AugmentConfig(jitter_probability=1, grayscale_probability=0, blur_probability=1)
    torch.testing.assert_close(
        in_batch(crops, uniforms, config),
        photometric_all(crops, uniforms, config),
        rtol=0,
        atol=ORACLE_ATOL,
    )


def test_the_crops_of_the_caller_are_not_changed() -> None:
    crops, uniforms = drawn(2, 8, 8)
    before = crops.clone()
    in_batch(crops, uniforms, AugmentConfig())
    assert torch.equal(crops, before)


def test_blur_keeps_a_flat_image_and_spreads_a_point_by_its_own_sigma() -> None:
    flat = torch.full((2, 3, 15, 15), 0.3, dtype=torch.float64)
    sigma = torch.tensor([0.1, 2.0], dtype=torch.float64)
    torch.testing.assert_close(blur(flat, sigma, reach_px=6), flat)
    point = torch.zeros(2, 3, 15, 15, dtype=torch.float64)
    point[..., 7, 7] = 1
    spread = blur(point, sigma, reach_px=6)
    assert float(spread[0, 0, 7, 7]) == pytest.approx(1)
    offsets = (torch.arange(15) - 7).double()
    variance = (spread[1, 0].sum(0) * offsets.square()).sum()
    assert float(variance) == pytest.approx(4, rel=0.05)  # cut at 3 sigma


def views(**change: Tensor | None) -> Views:
    crops, uniforms = drawn(2, 4, 8)
    small, more = drawn(3, 4, 6)
    fields = {"uniforms": torch.cat([uniforms, more]), "lane_B": None} | change
    return Views(crops=(crops, small), **fields)  # type: ignore[arg-type]  # refusals are what is tested


def test_a_part_of_the_views_is_the_part_of_every_tensor() -> None:
    whole = views(lane_B=torch.arange(4))
    part = whole.part(torch.tensor([3, 1]))
    assert [tuple(crop.shape) for crop in part.crops] == [(2, 2, 3, 8, 8), (3, 2, 3, 6, 6)]
    assert torch.equal(part.crops[1][:, 0], whole.crops[1][:, 3])
    assert torch.equal(part.uniforms, whole.uniforms[:, [3, 1]])
    assert part.lane_B is not None
    assert part.lane_B.tolist() == [3, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"uniforms": torch.zeros(4, 4, 16)},
        {"uniforms": torch.zeros(5, 3, 16)},
        {"uniforms": torch.zeros(5, 4, len(UNIFORMS) - 1)},
        {"lane_B": torch.zeros(3, dtype=torch.int64)},
    ],
)
def test_views_whose_shapes_do_not_fit_are_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="must be"):
        views(**change)


def test_views_without_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Views(crops=(torch.zeros(2, 0, 3, 8, 8, dtype=torch.uint8),), uniforms=torch.zeros(2, 0, 16))


class Second(SingleProcess):
    """The second of two ranks, as far as who has which lane."""

    rank, world_size = 1, 2


def test_one_rank_needs_no_names_of_lanes_and_several_do() -> None:
    assert views().lanes(Deal(SingleProcess())).tolist() == [0, 1, 2, 3]
    deal = Deal(Second(), [0, 0, 0, 0, 1, 1, 1, 1])
    assert views(lane_B=torch.tensor([4, 4, 6, 7])).lanes(deal).tolist() == [4, 4, 6, 7]
    with pytest.raises(ValueError, match="each sample needs to name its lane"):
        views().lanes(deal)
    with pytest.raises(ValueError, match="2 ranks need to be told the owner of each lane"):
        Deal(Second())
    with pytest.raises(ValueError, match="2 ranks need to be told the owner of each lane"):
        Deal(Second(), [0, 0])


def test_a_lane_of_another_rank_is_refused() -> None:
    for lanes, foreign in (([4, 5, 6, 0], 0), ([4, 5, 8, 7], 8)):
        with pytest.raises(ValueError, match=f"rank 1 of 2 brings a sample of lane {foreign}, which"):
            views(lane_B=torch.tensor(lanes)).lanes(Deal(Second(), [0, 0, 0, 0, 1, 1, 1, 1]))
