import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ops.demo.html import Figure, SummaryPage, Table, render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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
        "sheet_dark_png": PNG + b"dark",
        "tables": (Table(title="Accounts", header=("what", "count"), rows=(("found", "12"),)),),
    }
    return SummaryPage(**(values | changes))  # type: ignore[arg-type]


def test_the_page_needs_nothing_from_outside() -> None:
    page = render(_page())
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page
    assert "fetch(" not in page


def data_of(page: str) -> dict[str, Any]:
    """What the charts are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    read: dict[str, Any] = json.loads(found[1])
    return read


def test_everything_given_is_on_the_page() -> None:
    page = render(_page())
    for text in ("A run", "It went well.", "12,000", "Loss against ln K", "Accounts", "found"):
        assert text in page, text
    assert data_of(page) == {
        "loss": [[0.0, 4.1], [100.0, 3.9], [200.0, 3.2]], "ln_k": 4.16, "usage": [0.5, 0.25, 0.25],
    }  # fmt: skip
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
    assert 'class="chart"' not in page
    assert 'class="card"' not in page
    assert "It went well." in page


def test_a_long_loss_curve_is_thinned_and_keeps_its_ends() -> None:
    points = tuple((float(place), 4.0 - place / 5000) for place in range(5000))
    drawn = data_of(render(_page(loss=points)))["loss"]
    assert len(drawn) <= 500
    assert (tuple(drawn[0]), tuple(drawn[-1])) == (points[0], points[-1])


def test_prototypes_stand_busiest_first() -> None:
    assert data_of(render(_page(usage=(0.1, 0.6, 0.3))))["usage"] == [0.6, 0.3, 0.1]


HEIGHTS = "bars => bars.map((bar) => +bar.getAttribute('height'))"
ENDS = """() => {
    const path = document.querySelector("#chart-loss path.line").getAttribute("d").split(/[ML]/).slice(1);
    const place = (text) => text.split(" ").map(Number), chart = document.querySelector("#chart-loss");
    return [place(path[0]), place(path.at(-1)), [chart.clientWidth, chart.clientHeight], path.length];
}"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_the_charts_of_the_live_page_show_the_figures(
    browser: "Browser", tmp_path: Path, scheme: Any, width: int
) -> None:
    loss = tuple((64.0 * place, 4.16 - place / 300) for place in range(400))
    table = Table(title="Accounts", rows=(("read", "x" * 300),))
    (tmp_path / "page.html").write_text(render(_page(loss=loss, usage=(0.1, 0.6, 0.3), tables=(table,))))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#chart-usage svg")
    first, last, (wide, high), points = page.evaluate(ENDS)
    assert points == 400
    assert last[1] > first[1], "the loss falls, and y grows downwards"
    assert all(0 <= x <= wide and 0 <= y <= high for x, y in (first, last))
    assert page.locator("#chart-loss .ref-label").text_content() == "ln K = 4.16: nothing learned"
    heights = page.locator("#chart-usage rect.bar").evaluate_all(HEIGHTS)
    assert heights == sorted(heights, reverse=True)
    assert heights[0] / heights[2] == pytest.approx(6, abs=0.05)
    page.locator("#chart-usage").focus()
    page.keyboard.press("Home")
    assert page.locator("#chart-usage .tip").text_content() == "60.00 % of the images: number 1 of 3"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shown = page.locator("picture img").evaluate("image => image.currentSrc").rpartition(",")[2]
    assert base64.b64decode(shown) == (PNG + b"dark" if scheme == "dark" else PNG)
    context.close()
    assert faults == []


def test_a_flat_curve_and_a_single_prototype_can_be_drawn(browser: "Browser", tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(_page(loss=((0.0, 2.0), (10.0, 2.0)), ln_k=2.0, usage=(1.0,))))
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#chart-usage rect.bar")
    assert "NaN" not in page.locator("#chart-loss path.line").evaluate("path => path.getAttribute('d')")
    context.close()
