"""How evaluation and `assign` look at an image: its view, and decoding many images in threads."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stream.errors import BadRecord
from stream.images.decode import decode_image

# B images of a piece   S side of a view in pixels


Name = TypeVar("Name")

_MARGIN = 7 / 8
_PIECE_PIXELS = 1 << 21
PIECE_BYTES = 64 * 1024 * 1024
_THREADS = 2


def centre_view(image_3HW: Tensor, size: int) -> Tensor:
    """The view of an image that evaluation and `assign` look at.

    The square in the middle of the image whose side is 7/8 of the image's short side (as 224 of 256, the
    convention of ImageNet), resized to `size`, bilinear with antialiasing. An image whose short side is
    `size` already keeps its pixels: the middle square of that side is taken as it is.

    Args:
        image_3HW: uint8 [3, H, W].
        size: S, pixels; the size of the run's first kind of crops.

    Returns:
        uint8 [3, S, S].
    """
    height, width = image_3HW.shape[1:]
    short = min(height, width)
    side = short if short == size else max(1, round(short * _MARGIN))
    top, left = (height - side) // 2, (width - side) // 2
    square = image_3HW[:, top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    return resized(square[None], size)[0]


def resized(images_B3HW: Tensor, size: int) -> Tensor:
    """Images at another size: uint8 [B, 3, S, S], bilinear with antialiasing."""
    smaller: Tensor = interpolate(images_B3HW, (size, size), mode="bilinear", antialias=True)
    return smaller


@dataclass(frozen=True, slots=True)
class Seen(Generic[Name]):
    """One piece of what was decoded, in the order in which it came."""

    names: tuple[Name, ...]
    """What each item was called."""
    errors: tuple[BadRecord | None, ...]
    """Why an item could not be decoded; None where it could."""
    views_B3SS: Tensor
    """uint8 [B, 3, S, S], RGB, of those that could; B may be 0."""


def see(
    items: Iterable[tuple[Name, bytes | BadRecord]],
    *,
    size: int,
    max_pixels: int,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[Seen[Name]]:
    """Decode images and cut their centre views, one piece ahead of whoever reads.

    Args:
        items: a name of any type with the encoded image, or with the reason why there is none; read in this
            thread, at most two pieces ahead.
        size: S, pixels.
        max_pixels: larger images become errors.
        piece_bytes: encoded images that are held at once; the image that reaches it ends a piece.

    Returns:
        Pieces of at most 512 items, fewer when views are large, or encoded images.
    """

    def look(payload: bytes) -> Tensor:
        return centre_view(decode_image(payload, max_pixels=max_pixels), size)

    rows = min(512, max(8, _PIECE_PIXELS // size**2))
    waiting: deque[tuple[list[Name], list[Future[Tensor] | BadRecord]]] = deque()
    # Decoding and resizing let other threads run, so two threads keep two processors busy.
    with ThreadPoolExecutor(_THREADS) as pool:
        for piece in _pieces(items, rows, piece_bytes):
            answers: list[Future[Tensor] | BadRecord] = [
                payload if isinstance(payload, BadRecord) else pool.submit(look, payload)
                for _, payload in piece
            ]
            waiting.append(([name for name, _ in piece], answers))
            if len(waiting) > 1:
                yield _gather(*waiting.popleft(), size)
        while waiting:
            yield _gather(*waiting.popleft(), size)


def _pieces(
    items: Iterable[tuple[Name, bytes | BadRecord]], rows: int, piece_bytes: int
) -> Iterator[list[tuple[Name, bytes | BadRecord]]]:
    """Items in lists of at most `rows`, and of few bytes: two lists are held at once."""
    piece: list[tuple[Name, bytes | BadRecord]] = []
    size = 0
    for item in items:
        piece.append(item)
        size += 0 if isinstance(item[1], BadRecord) else len(item[1])
        if len(piece) == rows or size >= piece_bytes:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _gather(names: Sequence[Name], answers: Sequence[Future[Tensor] | BadRecord], size: int) -> Seen[Name]:
    views: list[Tensor] = []
    errors: list[BadRecord | None] = []
    for answer in answers:
        try:
            if isinstance(answer, BadRecord):
                raise answer
            views.append(answer.result())
        except BadRecord as error:
            errors.append(error)
        else:
            errors.append(None)
    stacked = torch.stack(views) if views else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return Seen(tuple(names), tuple(errors), stacked)
