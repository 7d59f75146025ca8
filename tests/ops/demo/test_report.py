import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ops.demo.judge import Judgement, Sheet
from ops.demo.report import DemoResult, render_page, render_text
from ops.demo.run import DemoOptions, DemoRun, demo_config
from ops.rundir.summary import RunSummary

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The first eight bytes of every PNG: enough to see where the picture goes.
PNG = b"\x89PNG\r\n\x1a\n"
JUDGEMENT = Judgement(
    purity={"trained": 0.5, "untrained": 0.2, "chance": 0.1},
    knn={"trained": 60.0, "untrained": 58.0, "raw_pixels": 45.0},
    pictures=4000,
    prototypes={1: (1200, [("night", 0.75), ("city", 0.2)])},
)


def sheet_of(usage: Sequence[float]) -> Sheet:
    return Sheet(png=PNG, dark_png=PNG + b"dark", prototypes=(1, 0), usage=tuple(usage), images=3000)


def result_of(
    run_dir: Path = Path("demo-run"),
    *,
    updates: int = 400,
    loss: float = 0.8,
    agreement: tuple[float, float] = (0.4, 0.1),
    usage: Sequence[float] = (),
    judgement: Judgement | None = None,
    prototypes: int = 64,
    images: str = "pictures",
) -> DemoResult:
    """What a demo comes to, without one."""
    summary = RunSummary(
        status="stopped", run=str(run_dir), samples=64 * updates, skipped=0, left_over=0, steps=updates,
        updates=updates, passes=1, seconds=9.0, loss=4.2 * loss, loss_over_ln_k=loss, usage_perplexity=9.0,
        prototypes=prototypes, skipped_by_reason={}, checkpoint=None, snapshot=None,
    )  # fmt: skip
    options = DemoOptions(run_dir=run_dir, images=images)
    run = DemoRun(
        options=options, config=demo_config(options), stream=run_dir / "stream", picture_px=64,
        summary=summary, ingest={"written": 128, "found": 128, "skipped": {}}, seconds=30.0, peak_bytes=0,
        peak_processes=0, live_page="", exit_code=0, time_used=True,
    )  # fmt: skip
    sheet = sheet_of(usage) if usage else None
    return DemoResult(run=run, judgement=judgement, sheet=sheet, agreement=agreement)


LOSS = ((0, 4.1), (100, 3.9), (200, 3.2))


def data_of(page: str) -> dict[str, Any]:
    """What the charts are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    read: dict[str, Any] = json.loads(found[1])
    return read


def test_a_demo_says_plainly_when_nothing_was_learned() -> None:
    nothing = result_of(updates=12, loss=1.02, agreement=(0.1, 0.09))
    said = "Nothing was learned in 12 updates. Give it more time"
    assert render_text(nothing).splitlines()[1].startswith(said)
    assert said in render_page(nothing, LOSS)
    assert nothing.to_json()["learned"] is False
    assert "Nothing was learned" in render_text(result_of(loss=0.9, agreement=(0.1, 0.09)))
    good = result_of(loss=0.9, agreement=(0.4, 0.09))
    assert "Nothing was learned" not in render_text(good) + render_page(good, LOSS)
    none = result_of(updates=0, loss=1.0, agreement=(0.0, 0.0))
    assert "fewer than one batch of 64 images arrived" in render_text(none)
    assert "fewer than one batch of 64 images arrived" in render_page(none, ())


def test_drawn_pictures_must_have_become_purer() -> None:
    assert result_of(judgement=JUDGEMENT).learned
    assert not result_of(judgement=replace(JUDGEMENT, purity=JUDGEMENT.purity | {"untrained": 0.48})).learned


def test_the_page_needs_nothing_from_outside() -> None:
    page = render_page(result_of(usage=(0.5, 0.5), judgement=JUDGEMENT), LOSS)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "url(" not in page.replace("url(#", "")
    assert "@import" not in page
    assert "fetch(" not in page


def test_everything_given_is_on_the_page() -> None:
    page = render_page(result_of(usage=(0.25, 0.5, 0.25), judgement=JUDGEMENT, images=""), LOSS)
    for text in (
        "128 drawn pictures went by 200.0 times", "25,600", "Loss against ln K", "Accounts", "128 found",
        "newest 3,000", "50.0 %", "45.0 %", "night 75 %, city 20 %", "1,200", "none of the new pictures",
    ):  # fmt: skip
        assert text in page, text
    assert data_of(page) == {
        "loss": [[0, 4.0], [100, pytest.approx(11.2 / 3)], [200, 3.55]],
        "ln_k": pytest.approx(math.log(64)),
        "usage": [0.5, 0.25, 0.25],
    }  # fmt: skip
    assert "data:image/png;base64,iVBORw0KGgo=" in page


def test_text_from_outside_cannot_become_markup() -> None:
    wild = "<img src=x onerror=alert(1)>\"'&"
    page = render_page(result_of(Path(wild), usage=(1.0,), judgement=judged_as(wild)), LOSS)
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") > 3


def judged_as(kind: str) -> Judgement:
    return replace(JUDGEMENT, prototypes={1: (1200, [(kind, 0.75)])})


def test_parts_that_are_not_there_leave_no_hole() -> None:
    page = render_page(result_of(), ())
    assert 'class="chart"' not in page
    assert "picture>" not in page
    assert "prototypes hold" not in page
    assert "Accounts" in page


def test_a_long_loss_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(place, 4.0 - place / 5000) for place in range(5000)]
    drawn = data_of(render_page(result_of(), points))["loss"]
    assert 300 < len(drawn) <= 500
    assert (drawn[0][0], drawn[-1][0]) == (0, 4999)


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
    loss = [(64 * place, 4.16 - place / 300) for place in range(400)]
    result = result_of(Path("x" * 300), usage=(0.1, 0.6, 0.3), judgement=JUDGEMENT)
    (tmp_path / "page.html").write_text(render_page(result, loss))
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
    page_of_one = render_page(result_of(usage=(1.0,), prototypes=1), ((0, 0.0), (10, 0.0)))
    (tmp_path / "page.html").write_text(page_of_one)
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("#chart-usage rect.bar")
    assert "NaN" not in page.locator("#chart-loss path.line").evaluate("path => path.getAttribute('d')")
    context.close()
