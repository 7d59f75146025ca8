import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ops.inference.images import centre_view, see
from stream.errors import BadRecord


def _noise(height: int, width: int) -> Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def _png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = _noise(32, 32)
    assert torch.equal(centre_view(image, 32), image)


def test_an_image_whose_short_side_is_right_loses_only_its_ends() -> None:
    image = _noise(32, 50)
    assert torch.equal(centre_view(image, 32), image[:, :, 9:41])
    tall = _noise(51, 32)
    assert torch.equal(centre_view(tall, 32), tall[:, 9:41])


def test_seven_eighths_of_the_short_side_are_seen_of_other_images() -> None:
    image = torch.zeros(3, 64, 100, dtype=torch.uint8)
    image[:, 4:60, 22:78] = 200  # the middle square of 56 pixels
    assert torch.equal(centre_view(image, 32), torch.full((3, 32, 32), 200, dtype=torch.uint8))
    assert torch.equal(centre_view(image, 56), image[:, 4:60, 22:78])


@pytest.mark.parametrize(("height", "width"), [(100, 80), (20, 33), (224, 300)])
def test_resizing_agrees_with_an_antialiased_resize_of_pillow(height: int, width: int) -> None:
    image = _noise(height, width)
    side = round(min(height, width) * 7 / 8)
    top, left = (height - side) // 2, (width - side) // 2
    pillow = Image.fromarray(image[:, top : top + side, left : left + side].permute(1, 2, 0).numpy())
    expected = np.asarray(pillow.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    found = centre_view(image, 32).permute(1, 2, 0).numpy().astype(int)
    # Both round to whole grey levels, at different moments.
    assert abs(found - expected).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40_000), (40_000, 1), (3, 2)])
def test_an_image_of_any_shape_gives_a_small_view(height: int, width: int) -> None:
    assert centre_view(_noise(height, width), 32).shape == (3, 32, 32)


def test_pictures_are_seen_in_their_order_with_bad_ones_named() -> None:
    images = [_noise(32, 32).roll(number, dims=2) for number in range(1100)]
    items: list[tuple[int, bytes | BadRecord]] = [
        (number, _png(image)) for number, image in enumerate(images)
    ]
    items[5] = (5, b"\xff\xd8\xff broken")
    items[1000] = (1000, BadRecord("unreadable"))
    names: list[int] = []
    found: list[Tensor] = []
    bad: dict[int, str] = {}
    for seen in see(items, size=32, max_pixels=10**6):
        names += seen.names
        found += list(seen.views_B3SS)
        bad |= {name: error.reason for name, error in zip(seen.names, seen.errors, strict=True) if error}
    assert names == list(range(1100))
    assert bad == {5: "truncated", 1000: "unreadable"}
    good = [image for number, image in enumerate(images) if number not in bad]
    assert torch.equal(torch.stack(found), torch.stack(good))


def test_a_piece_without_any_good_picture_has_no_view() -> None:
    (seen,) = see([("a", b""), ("b", BadRecord("gone"))], size=32, max_pixels=100)
    assert [error.reason for error in seen.errors if error] == ["empty", "gone"]
    assert seen.views_B3SS.shape == (0, 3, 32, 32)


def test_nothing_to_see_gives_no_piece() -> None:
    assert list(see([], size=32, max_pixels=100)) == []


def test_large_files_come_in_small_pieces() -> None:
    items: list[tuple[int, bytes | BadRecord]] = [(number, b"x" * 400) for number in range(7)]
    items[1] = (1, BadRecord("gone"))
    read: list[int] = []

    def source() -> Iterator[tuple[int, bytes | BadRecord]]:
        for item in items:
            read.append(item[0])
            yield item

    pieces = see(source(), size=32, max_pixels=100, piece_bytes=1000)
    assert next(pieces).names == (0, 1, 2, 3)
    assert read == list(range(7)), "one piece ahead, and no more"
    assert [piece.names for piece in pieces] == [(4, 5, 6)]
