"""The contact sheet: the busiest prototypes, a row each, with their most typical images side by side."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ops.live_page.exemplars import Exemplars

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inks:
    """Colours of a sheet, RGB."""

    background: Colour
    ink: Colour
    faint: Colour
    bar: Colour
    track: Colour


LIGHT = Inks(
    background=(250, 250, 248), ink=(28, 32, 38), faint=(98, 104, 112), bar=(42, 111, 151),
    track=(228, 229, 226),
)  # fmt: skip
DARK = Inks(
    background=(21, 28, 32), ink=(233, 233, 230), faint=(160, 164, 168), bar=(111, 183, 216),
    track=(42, 50, 56),
)  # fmt: skip
"""On the ground of the live page's cards in a dark scheme."""
ROWS, COLUMNS, CELL_PX = 20, 12, 64
MARGIN_PX = 24
LABEL_PX = 128
GAP_PX = 4


def contact_sheet(
    exemplars: Exemplars,
    usage_K: NDArray[np.float32],
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    cell_px: int = CELL_PX,
    inks: Inks = LIGHT,
) -> bytes:
    """Draw the contact sheet.

    Args:
        exemplars: what was kept while learning.
        usage_K: [K] share of each prototype, >= 0, sums to 1.
        rows: at most so many prototypes, the busiest first; those without images are left out.
        columns: at most so many images of each.
        cell_px: side of an image on the sheet, pixels.
        inks: colours.

    Returns:
        The bytes of a PNG. Without any image, a sheet that says so.
    """
    shown = busiest(exemplars, usage_K, rows)
    top, pitch = MARGIN_PX + 44, cell_px + GAP_PX
    width = 2 * MARGIN_PX + LABEL_PX + columns * pitch - GAP_PX
    height = top + max(1, len(shown)) * pitch - GAP_PX + MARGIN_PX
    sheet = Image.new("RGB", (width, height), inks.background)
    draw = ImageDraw.Draw(sheet)
    title = "Busiest prototypes, most typical images first"
    draw.text((MARGIN_PX, MARGIN_PX), title, fill=inks.ink, font_size=17)
    if not shown:
        draw.text((MARGIN_PX, top), "No images were kept yet.", fill=inks.faint, font_size=12)
    for row, prototype in enumerate(shown):
        y = top + row * pitch
        share, largest = float(usage_K[prototype]), float(usage_K[shown[0]])
        _label(draw, y + cell_px // 2, prototype, share, share / (largest or 1.0), inks)
        for column, one in enumerate(exemplars.top(prototype)[:columns]):
            picture = Image.fromarray(one.thumb).resize((cell_px, cell_px), Image.Resampling.LANCZOS)
            sheet.paste(picture, (MARGIN_PX + LABEL_PX + column * pitch, y))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def busiest(exemplars: Exemplars, usage_K: NDArray[np.float32], rows: int = ROWS) -> list[int]:
    """Prototypes that have images, most used first; ties by number.

    Raises:
        ValueError: usage is not of K prototypes.
    """
    if len(usage_K) != exemplars.prototypes:
        raise ValueError(
            f"usage is of {len(usage_K)} prototypes, the images are of {exemplars.prototypes}: "
            "give the usage of the first head"
        )
    order = np.argsort(-usage_K, kind="stable")
    has_images = exemplars.counts() > 0
    return [int(prototype) for prototype in order if has_images[prototype]][:rows]


def _label(
    draw: ImageDraw.ImageDraw, middle: int, prototype: int, share: float, of_largest: float, inks: Inks
) -> None:
    left, right = MARGIN_PX, MARGIN_PX + LABEL_PX - 24
    draw.text((left, middle - 19), f"#{prototype}", fill=inks.ink, font_size=15)
    draw.text((left + 58, middle - 17), f"{100 * share:.2f} %", fill=inks.faint, font_size=12)
    bar_px = max(3, (right - left) * of_largest)
    draw.rounded_rectangle((left, middle + 5, right, middle + 9), radius=2, fill=inks.track)
    draw.rounded_rectangle((left, middle + 5, left + bar_px, middle + 9), radius=2, fill=inks.bar)
