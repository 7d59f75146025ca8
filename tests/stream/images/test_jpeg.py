"""JPEGs whose pixels are damaged are refused, whatever else is odd about them is not."""

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stream.errors import BadRecord
from stream.images.decode import decode_image
from stream.images.jpeg import END_OF_IMAGE, START_OF_SCAN, bare_jpeg, segments
from tests.stream.images.test_decode import members

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential": ("RGB", {}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "restarts": ("RGB", {"restart_marker_blocks": 4}),
    "progressive": ("RGB", {"progressive": True}),
}


def photo(kind: str = "sequential") -> bytes:
    """Coarse noise of 200 x 152 pixels: every stretch of its codes says something."""
    mode, options = KINDS[kind]
    cells = Image.fromarray(np.random.default_rng(3).integers(0, 255, (19, 25, 3), dtype=np.uint8))
    out = io.BytesIO()
    cells.resize((200, 152), Image.Resampling.BICUBIC).convert(mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def codes(jpeg: bytes, scan: int = 0) -> slice:
    """Where the codes of a scan lie."""
    found = list(segments(jpeg))
    at = [place for place, segment in enumerate(found) if segment.marker == START_OF_SCAN][scan]
    return slice(found[at].stop, found[at + 1].start)


def decoded(jpeg: bytes) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = decode_image(jpeg, max_pixels=10**6).numpy()
    return image


def reason(jpeg: bytes) -> str:
    with pytest.raises(BadRecord) as caught:
        decode_image(jpeg, max_pixels=10**6)
    return caught.value.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_cut_jpeg_is_refused_also_when_an_end_marker_closes_it(kind: str, end: bytes) -> None:
    whole = photo(kind)
    place = codes(whole)
    for part in (0.1, 0.4, 0.9):
        cut = whole[: round(place.start + part * (place.stop - place.start))] + end
        assert reason(cut) == "truncated"


@pytest.mark.parametrize("kind", ["sequential", "grey", "cmyk", "restarts"])
def test_a_hole_of_zeros_among_the_codes_is_refused(kind: str) -> None:
    whole = photo(kind)
    place = codes(whole)
    for at in range(place.start, place.stop - 700, 500):
        holed = whole[:at] + bytes(600) + whole[at + 600 :]
        assert reason(holed) in {"truncated", "undecodable"}, at


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_even_surface_may_be_zeros_where_the_tables_make_it_so(mode: str) -> None:
    """With tables made for it, a white page with one stroke is hardly anything but zeros."""
    page = Image.new(mode, (800, 800), "white")
    page.paste("black", (10, 10, 30, 17))
    out = io.BytesIO()
    page.save(out, "JPEG", optimize=True)
    assert bytes(64) in out.getvalue()[codes(out.getvalue())]
    assert decoded(out.getvalue()).mean() > 250


def test_codes_that_are_none_are_undecodable() -> None:
    whole = photo("restarts")
    place = codes(whole)
    middle = (place.start + place.stop) // 2
    noise = random.Random(1).randbytes(300).replace(b"\xff", b"\xfe")
    assert reason(whole[:middle] + noise + whole[middle + 300 :]) == "undecodable"


@pytest.mark.parametrize("kind", ["sequential", "grey", "cmyk", "restarts"])
def test_a_header_that_claims_more_rows_than_there_are_is_truncated(kind: str) -> None:
    whole = bytearray(photo(kind))
    at = whole.index(b"\xff\xc0")
    whole[at + 5 : at + 7] = struct.pack(">H", 4 * 152)
    assert reason(bytes(whole)) == "truncated"


def test_a_progressive_jpeg_that_ends_between_two_scans_is_whole_only_if_its_writer_says_so() -> None:
    whole = photo("progressive")
    found = list(segments(whole))
    starts = [segment.start for segment in found if segment.marker == START_OF_SCAN]
    assert len(starts) >= 8
    last = max(segment.start for segment in found if segment.start < starts[-1])  # its table of codes
    assert reason(whole[:last]) == "truncated"
    assert decoded(whole[:last] + b"\xff\xd9").shape == (3, 152, 200)


def test_a_plane_that_has_no_scan_is_missed() -> None:
    """Three scans of one component each, as some writers make them; the last one is cut off."""
    import simplejpeg

    one = simplejpeg.encode_jpeg(
        np.full((16, 16, 1), 99, np.uint8), colorspace="gray", colorsubsampling="gray"
    )
    at = one.index(b"\xff\xc0")
    size = 2 + int.from_bytes(one[at + 2 : at + 4], "big")
    parts = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 16, 16, 3) + parts
    scan, place = one.index(b"\xff\xda"), codes(one)
    header = one[:at] + frame + one[at + size : scan]
    planes = [
        b"\xff\xda" + struct.pack(">HBBB3s", 8, 1, number, 0, b"\0\x3f\0") + one[place]
        for number in (1, 2, 3)
    ]
    assert decoded(header + b"".join(planes) + b"\xff\xd9").shape == (3, 16, 16)
    assert reason(header + b"".join(planes[:2]) + b"\xff\xd9") == "truncated"


def without_end(jpeg: bytes) -> bytes:
    return jpeg[:-2]


def with_bytes_before_its_end(jpeg: bytes) -> bytes:
    return jpeg[:-2] + b"padding" * 30 + jpeg[-2:]


def with_zeros_before_its_end(jpeg: bytes) -> bytes:
    return jpeg[:-2] + bytes(300) + jpeg[-2:]


def with_bytes_in_its_header(jpeg: bytes) -> bytes:
    at = next(segment.start for segment in segments(jpeg) if segment.marker == 0xDB)
    return jpeg[:at] + b"between two segments" + jpeg[at:]


def with_bytes_behind_a_scan(jpeg: bytes) -> bytes:
    at = codes(jpeg).stop
    return jpeg[:at] + b"behind a scan" + jpeg[at:]


def with_an_odd_version(jpeg: bytes) -> bytes:
    return jpeg.replace(b"JFIF\0\x01", b"JFIF\0\x03")


def with_a_broken_profile(jpeg: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe2\x00\x14ICC_PROFILE\0\x03\x02junk" + jpeg[2:]


def with_a_video_behind(jpeg: bytes) -> bytes:
    return jpeg + b"\xff\xda" * 1000 + random.Random(1).randbytes(2000)


def with_scan_markers_in_a_comment(jpeg: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xfe\x07\xd2" + b"\xff\xda" * 1000 + jpeg[2:]


def with_an_unknown_segment(jpeg: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xf3\x00\x04ab" + jpeg[2:]


ODD: list[Callable[[bytes], bytes]] = [
    without_end,
    with_bytes_before_its_end,
    with_zeros_before_its_end,
    with_bytes_in_its_header,
    with_an_odd_version,
    with_a_broken_profile,
    with_a_video_behind,
    with_scan_markers_in_a_comment,
    with_an_unknown_segment,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", ODD)
def test_what_no_pixel_depends_on_costs_none_and_hides_no_damage(
    kind: str, odd: Callable[[bytes], bytes]
) -> None:
    whole = photo(kind)
    assert np.array_equal(decoded(odd(whole)), decoded(whole))
    place = codes(whole)
    cut = whole[: (place.start + place.stop) // 2] + b"\xff\xd9"
    assert reason(odd(cut)) in {"truncated", "undecodable"}


def test_bytes_behind_an_early_scan_do_not_hide_what_follows() -> None:
    whole = photo("progressive")
    assert np.array_equal(decoded(with_bytes_behind_a_scan(whole)), decoded(whole))
    place = codes(whole, -1)
    cut = whole[: (place.start + place.stop) // 2] + b"\xff\xd9"
    assert reason(with_bytes_behind_a_scan(cut)) == "truncated"


def test_more_than_thirteen_megabytes_behind_a_jpeg_do_not_refuse_it() -> None:
    whole = photo()
    video = random.Random(1).randbytes(14 << 20)
    assert video.count(b"\xff\xda") > 200
    assert np.array_equal(decoded(whole + video), decoded(whole))


def test_the_walk_ends_at_the_end_marker_and_knows_each_scan() -> None:
    whole = photo("restarts")
    found = list(segments(whole + b"\xff\xd8\xff\xda\x00\x04ab"))
    assert found[-1].marker == END_OF_IMAGE
    assert found[-1].stop == len(whole)
    assert [segment.marker for segment in found].count(START_OF_SCAN) == 1
    assert whole[found[-2].stop : found[-1].start].count(b"\xff\xd0") > 1
    assert bare_jpeg(whole + b"behind").endswith(whole[found[-2].body :])


def test_sound_photos_have_the_pixels_that_pillow_gives_them(test_data: Path) -> None:
    """Every JPEG of two sets is accepted."""
    count = 0
    for place in (
        *sorted((test_data / "photos").glob("*.tar")),
        *sorted((test_data / "mini10-84").glob("*.tar")),
    ):
        for _, payload in members(place, (".jpg", ".jpeg")):
            image = decode_image(payload, max_pixels=10**8)
            count += 1
            if count % 40 == 0:
                wanted = np.asarray(Image.open(io.BytesIO(payload)).convert("RGB"))
                if wanted.shape == (*image.shape[1:], 3):
                    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 2
    assert count > 4000
