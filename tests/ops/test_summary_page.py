import re
from xml.etree import ElementTree

from ops.demo.html import Figure, SummaryPage, Table, loss_chart, render, usage_chart

# The first eight bytes of every PNG: enough to see where the picture goes.
PNG = b"\x89PNG\r\n\x1a\n"


def _page(**changes: object) -> SummaryPage:
    values: dict[str, object] = {
        "title": "A run",
        "lead": "It went well.",
        "figures": (Figure(name="images", value="12,000"),),
        "loss": ((0.0, 4.1), (100.0, 3.9), (200.0, 3.2)),
        "ln_k": 4.16,
        "usage": (0.5, 0.25, 0.25),
        "sheet_png": PNG,
        "tables": (Table(title="Accounts", header=("what", "count"), rows=(("found", "12"),)),),
    }
    return SummaryPage(**(values | changes))  # type: ignore[arg-type]


def test_the_page_needs_nothing_from_outside() -> None:
    page = render(_page())
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page


def test_everything_given_is_on_the_page() -> None:
    page = render(_page())
    for text in ("A run", "It went well.", "12,000", "ln K = 4.16", "Accounts", "found", "3 prototypes"):
        assert text in page, text
    assert "data:image/png;base64,iVBORw0KGgo=" in page


def test_text_from_outside_cannot_become_markup() -> None:
    wild = "<img src=x onerror=alert(1)>\"'&"
    table = Table(title=wild, header=(wild,), rows=((wild, wild),), note=wild)
    figure = Figure(name=wild, value=wild, note=wild)
    page = render(_page(title=wild, lead=wild, figures=(figure,), tables=(table,), sheet_note=wild))
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_dollar_signs_in_texts_stay_as_they_are() -> None:
    assert "$title and $5" in render(_page(lead="$title and $5"))


def test_parts_that_are_not_there_leave_no_hole() -> None:
    page = render(_page(loss=(), usage=(), sheet_png=b"", tables=()))
    assert "<svg" not in page
    assert "<section" not in page
    assert "It went well." in page


def test_the_loss_curve_stays_inside_its_frame_and_ends_at_the_last_point() -> None:
    points = [(float(place), 4.0 - place / 5000) for place in range(5000)]
    svg = ElementTree.fromstring(loss_chart(points, 4.16))
    curve = svg.find("polyline")
    assert curve is not None
    places = [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]
    assert len(places) <= 1000
    assert all(46 <= x <= 510 and 16 <= y <= 216 for x, y in places)
    assert places[-1][0] == 510
    # The loss falls, so the curve goes down: y grows downwards.
    assert places[-1][1] > places[0][1]


def test_a_flat_curve_on_ln_k_can_be_drawn() -> None:
    assert "polyline" in loss_chart([(0.0, 2.0), (10.0, 2.0)], 2.0)


def test_bars_stand_busiest_first_and_fill_no_more_than_the_frame() -> None:
    svg = ElementTree.fromstring(usage_chart([0.1, 0.6, 0.3]))
    heights = [float(bar.attrib["height"]) for bar in svg.iter("rect")]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 3
    assert abs(heights[0] / heights[2] - 6) < 0.05
