"""The live page in a real Chromium: it draws, follows, opens a cluster; keyboard, phone, dark mode."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ops.snapshots.types import PublishResult
from tests.ops import synthetic
from tests.ops.live_demo import DemoRun
from tests.waiting import LIMIT_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def demo() -> Iterator[DemoRun]:
    run = DemoRun(prototypes=24, batch=64, total=6400)
    run.server.start()
    yield run
    run.server.close()


@pytest.fixture
def page(browser: "Browser", demo: DemoRun) -> "Iterator[Page]":
    """A page on the demo run that fails the test when its script does."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.set_default_timeout(1000 * LIMIT_S)
    yield opened
    context.close()
    assert faults == []


def look(page: "Page", demo: DemoRun) -> None:
    page.goto(demo.server.url)
    page.wait_for_selector(".cluster:first-child .shot[style]")


def escape(page: "Page") -> None:
    """Close the open cluster; a dialog tells a moment after it closed, and only then the address is clean."""
    page.keyboard.press("Escape")
    closed(page)


def back(page: "Page") -> None:
    page.go_back()
    closed(page)


def closed(page: "Page") -> None:
    page.wait_for_selector("dialog", state="hidden")
    page.wait_for_url(lambda address: "#" not in address)


def test_before_the_first_step_the_page_says_so(page: "Page", demo: DemoRun) -> None:
    page.goto(demo.server.url)
    page.wait_for_selector("#headline:has-text('Warming up')")
    assert page.inner_text("#state") == "starting"
    assert page.locator("#verdicts li[data-state=unknown]").count() == 8
    page.wait_for_selector("#clusters-note:text-is('Images appear with the first steps.')")
    page.wait_for_selector("#heat[aria-label*='still to come']")
    assert page.locator("#heat canvas").is_hidden()


def test_the_page_shows_what_the_run_does_and_follows_it(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    assert page.inner_text("#state") == "learning"
    assert page.locator("#chart-loss path.line").count() == 1
    assert page.locator("#chart-hist rect.bar").count() >= 2
    assert "512 of 6,400 samples" in page.inner_text("#progress-text")
    demo.run(8)
    page.wait_for_selector("#progress-text:has-text('1,024 of 6,400')")
    page.wait_for_selector("#chart-loss[aria-label*='1,024 samples']")


def test_the_busiest_clusters_come_first_with_their_pictures(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    busiest = [row["id"] for row in demo.live.prototypes.table()["rows"]]
    shown = page.eval_on_selector_all(".cluster", "cards => cards.map(card => +card.dataset.id)")
    assert shown == busiest
    loaded = page.evaluate(
        """async () => {
            const address = getComputedStyle(document.querySelector('.shot')).backgroundImage.slice(5, -2);
            const image = new Image(); image.src = address; await image.decode(); return image.naturalWidth;
        }"""
    )
    assert loaded >= 48


def test_a_cluster_opens_turns_and_closes_by_keyboard(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    ids = page.eval_on_selector_all(".cluster", "cards => cards.map(card => card.dataset.id)")
    page.focus(".cluster")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("#closer-title") == f"Cluster #{ids[0]}"
    page.wait_for_selector("#closer-tiles .shot[style] >> nth=1")
    assert page.evaluate("location.hash") == f"#cluster-{ids[0]}"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#closer-title:text-is('Cluster #{ids[1]}')")
    assert page.evaluate("location.hash") == f"#cluster-{ids[1]}"
    page.wait_for_selector("#closer-note:has-text('number 2 of 24')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#closer-note:has-text('number 1 of 24')")
    escape(page)
    assert page.evaluate("document.activeElement.dataset.id") == ids[0]


def test_a_cluster_opens_by_mouse_and_closes_by_its_button(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    page.click(".cluster >> nth=1")
    page.wait_for_selector("dialog[open]")
    page.click("#closer-close")
    page.wait_for_selector("dialog", state="hidden")


def test_an_address_opens_its_cluster_and_going_back_closes_it(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    page.goto(demo.server.url + "#cluster-7")
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("#closer-title") == "Cluster #7"
    escape(page)
    page.click(".cluster >> nth=1")
    page.wait_for_selector("dialog[open]")
    back(page)
    page.evaluate("location.hash = 'cluster-999'")
    page.wait_for_selector("#closer-note:has-text('no prototype of this number')")


def test_an_address_that_is_given_while_a_cluster_closes_is_kept(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    page.goto(demo.server.url + "#cluster-7")
    page.wait_for_selector("dialog[open]")
    page.evaluate("document.querySelector('#closer').close(); location.hash = 'cluster-3'")
    page.wait_for_selector("#closer-title:text-is('Cluster #3')")
    page.wait_for_selector("#closer-note:has-text('of images')")
    assert page.evaluate("location.hash") == "#cluster-3"


def test_an_open_cluster_changes_while_data_arrives(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    demo.publish(1)
    look(page, demo)
    last = demo.live.prototypes.table(rising=True)["rows"][0]["id"]
    page.goto(f"{demo.server.url}#cluster-{last}")
    page.wait_for_selector("#closer-note:has-text('number 24 of 24')")
    page.wait_for_selector("#closer-note:has-text('never re-seeded')")
    before = page.get_attribute("#chart-closer path.line", "d")
    assert page.locator("#closer-near .cluster").count() == 6
    demo.reseed(last)
    demo.weights[last] *= 2
    demo.step(reseeded=1)
    demo.publish(2)
    page.wait_for_selector("#closer-note:has-text('number 1 of 24')")
    page.wait_for_selector("#closer-note:has-text('re-seeded 1 time')")
    page.wait_for_selector("#closer-note:has-text('▲')")
    assert page.get_attribute("#chart-closer path.line", "d") != before
    page.wait_for_selector("#events li.watch:has-text('1 prototype re-seeded')", state="attached")


def test_clusters_are_sorted_turned_and_paged(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    page.click("#rising")
    page.wait_for_selector(f".cluster:first-child[data-id='{order(demo, rising=True)[0]}']")
    assert page.inner_text("#rising") == "Smallest first"
    page.select_option("#sort", "change")
    page.wait_for_selector(f".cluster:first-child[data-id='{order(demo, 'change')[0]}']")
    assert page.locator("#sort option[value=cosine]").is_disabled(), "not known before the first snapshot"
    page.select_option("#sort", "number")
    page.wait_for_selector(".cluster:first-child[data-id='0']")
    assert page.inner_text("#pages") == "1 to 24 of 24"
    assert page.locator("#page-on").is_disabled()


def test_many_clusters_come_a_page_at_a_time(browser: "Browser") -> None:
    demo = DemoRun(prototypes=1000, batch=64, thumbs=False)
    demo.step()
    demo.server.start()
    page = browser.new_page()
    page.goto(demo.server.url)
    page.wait_for_selector("#pages:text-is('1 to 24 of 1,000')")
    page.focus("#page-on")
    page.keyboard.press("Enter")
    page.wait_for_selector(f".cluster:first-child[data-id='{order(demo)[24]}']")
    assert page.inner_text("#pages") == "25 to 48 of 1,000"
    shown = page.eval_on_selector_all(".cluster", "all => all.map(one => +one.dataset.id)")
    assert shown == order(demo)[24:48]
    page.fill("#goto", "987")
    page.keyboard.press("Enter")
    page.wait_for_selector("#closer-title:text-is('Cluster #987')")
    escape(page)
    page.focus("#heat")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#heat .tip").startswith("Numbers 1 to 8 by size: ")
    page.close()
    demo.server.close()


SLOW = """() => {
    const real = window.fetch, root = document.documentElement, pages = document.querySelector('#pages');
    window.fetch = async (...asked) => {
        const answer = await real(...asked), offset = /offset=([0-9]+)/.exec(asked[0])?.[1];
        if (offset) {
            if (offset === '0') root.dataset.under = 'way';
            await new Promise((resolve) => setTimeout(resolve, offset === '0' ? 500 : 1500));
            delete root.dataset.under;
        }
        return answer;
    };
    window.drawn = [];
    const note = () => window.drawn.push([pages.textContent, +document.querySelector('.cluster').dataset.id]);
    new MutationObserver(note).observe(pages, { childList: true });
}"""


def test_a_page_that_is_still_to_come_is_not_said_to_be_there(browser: "Browser") -> None:
    demo = DemoRun(prototypes=1000, batch=64, thumbs=False)
    demo.step()
    demo.server.start()
    page = browser.new_page()
    page.goto(demo.server.url)
    page.wait_for_selector("#pages:text-is('1 to 24 of 1,000')")
    page.evaluate(SLOW)
    page.wait_for_selector("html[data-under=way]")
    page.focus("#page-on")
    page.keyboard.press("Enter")
    page.wait_for_selector(f".cluster:first-child[data-id='{order(demo)[24]}']")
    drawn = page.evaluate("window.drawn")
    assert drawn
    assert {first for text, first in drawn if text.startswith("25 to")} == {order(demo)[24]}
    page.close()
    demo.server.close()


def order(demo: DemoRun, sort: str = "size", *, rising: bool = False) -> list[int]:
    rows = demo.live.prototypes.table(sort=sort, rising=rising, count=100)["rows"]
    return [row["id"] for row in rows]


def test_the_heatmap_has_a_colour_for_each_cell_and_is_read_by_keys_and_mouse(
    page: "Page", demo: DemoRun
) -> None:
    demo.run(8)
    demo.die(order(demo)[0])
    demo.run(8)
    look(page, demo)
    page.wait_for_selector("#heat[aria-label*='24 rows and 16 columns, 1 row without use']")
    colours = page.evaluate(
        """() => {
            const canvas = document.querySelector("#heat canvas"), context = canvas.getContext("2d");
            const { width, height } = canvas, all = new Set();
            const at = (x, y) => [...context.getImageData(x * width, y * height, 1, 1).data].join();
            for (let i = 0; i < 16 * 24; i++) all.add(at((i % 16 + .5) / 16, (Math.floor(i / 16) + .5) / 24));
            return { many: all.size, died: at(.97, .99), lived: at(.02, .99) };
        }"""
    )
    assert colours["many"] > 10
    assert colours["died"] == "194,87,26,255"
    assert colours["died"] != colours["lived"]
    page.focus("#heat")
    page.keyboard.press("ArrowDown")
    first = order(demo)[0]
    assert page.inner_text("#heat .tip").startswith(f"#{first}: ")
    assert page.inner_text("#heat .tip").endswith("at 1,024 samples")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#heat .tip").endswith("at 960 samples")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    page.keyboard.press("PageDown")
    assert "no use" in page.inner_text("#heat .tip")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#closer-title:text-is('Cluster #{order(demo)[-1]}')")
    escape(page)
    page.hover("#heat canvas", position={"x": 5, "y": 5})
    assert page.inner_text("#heat .tip").endswith("at 64 samples")
    page.select_option("#heat-order", "number")
    page.hover("#heat canvas", position={"x": 5, "y": 5})
    page.wait_for_selector("#heat .tip:has-text('#0: ')")


def test_several_ranks_and_replaced_readers_are_told(page: "Page", demo: DemoRun) -> None:
    demo.live.ranks = 4
    demo.run(4)
    look(page, demo)
    assert "4 ranks learn together" in page.inner_text("#team")
    demo.step(restarts=2)
    page.wait_for_selector("#team:has-text('2 reader processes died and replaced')")
    page.wait_for_selector("#events li.watch:has-text('2 reader processes')", state="attached")


def test_events_are_chosen_by_kind(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    demo.publish(1)
    demo.live.event("not finite", "loss of update 9 is nan; nothing was changed")
    look(page, demo)
    assert page.locator("#events li").count() == 2
    page.select_option("#kinds", "not finite")
    assert page.locator("#events li.bad").count() == page.locator("#events li").count() == 1


def test_the_keyboard_gets_everywhere_and_what_moves_can_be_stilled(
    browser: "Browser", demo: DemoRun
) -> None:
    demo.run(8)
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    look(page, demo)
    seen: list[str] = []
    for _ in range(70):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    wanted = ["skip", "chart-loss", "chart-lag", "heat-order", "heat", "sort", "rising", "cluster", "events"]
    places = [seen.index(name) for name in wanted]
    assert places == sorted(places), "in the order in which they are read"
    assert page.evaluate("getComputedStyle(document.querySelector('.state i')).animationName") == "none"
    context.close()


def test_a_chart_is_read_by_mouse_and_by_arrow_keys(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    page.hover("#chart-loss")
    assert "samples" in page.inner_text("#chart-loss .tip")
    page.mouse.move(1, 1)
    page.wait_for_selector("#chart-loss .tip", state="detached")
    page.focus("#chart-loss")
    page.keyboard.press("Home")
    assert page.inner_text("#chart-loss .tip").endswith("at 64 samples")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#chart-loss .tip").endswith("at 128 samples")


def test_what_needs_attention_comes_first_and_says_why(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    demo.step(feature_std=0.05, twins=9)
    demo.live.published(PublishResult(result="error", samples=64, digest="d", detail="Connection refused"))
    look(page, demo)
    assert page.inner_text("#headline").startswith("Needs attention: ")
    first = page.locator("#verdicts li").first
    assert first.get_attribute("data-state") == "bad"
    assert first.locator(".text").is_visible()
    assert "Connection refused" in page.inner_text("#verdicts")
    good = page.locator("#verdicts li[data-state=ok]").first
    assert not good.locator(".text").is_visible()
    good.locator("summary").click()
    assert good.locator(".text").is_visible()


def test_the_headline_follows_the_worst_verdict_also_while_the_run_waits(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    demo.step(feature_std=0.3)
    demo.live.state("waiting", "no records")
    assert demo.live.status()["verdict"] == "watch"
    look(page, demo)
    page.wait_for_selector("#state:has-text('waiting')")
    assert page.inner_text("#headline").startswith("Keep an eye on ")


def test_a_long_time_is_told_in_seconds(page: "Page", demo: DemoRun) -> None:
    report = synthetic.report(64, synthetic.shares(demo.prototypes))
    phases = sum(report.seconds.values())
    demo.live.observe(report, synthetic.stats(64), step_s=113 + phases)
    page.goto(demo.server.url)
    page.wait_for_selector("#phases:has-text('113 s')")
    assert "k ms" not in page.inner_text("#phases")


def test_a_falling_loss_alone_is_not_called_learning(page: "Page", demo: DemoRun) -> None:
    for _ in range(8):
        demo.step(agreement=0.1)
    assert demo.live.status()["loss_over_ln_k"] < 1
    look(page, demo)
    assert "It learns" not in page.inner_text("#headline")


def test_a_learner_that_ends_is_noticed_and_its_return_too(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    look(page, demo)
    port = demo.server.port
    demo.server.close()
    page.wait_for_selector("#lost", state="visible")
    page.wait_for_selector("#state:has-text('not reachable')")
    demo.server._port = port
    demo.server.start()
    page.wait_for_selector("#lost", state="hidden")
    page.wait_for_selector("#state:has-text('learning')")


def test_nothing_sticks_out_on_a_phone_in_the_dark(browser: "Browser", demo: DemoRun) -> None:
    demo.run(8)
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    page = context.new_page()
    look(page, demo)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert max(red, green, blue) < 60
    assert page.locator(".cluster").count() == 12
    page.tap(".cluster >> nth=0")
    page.wait_for_selector("dialog[open]")
    page.wait_for_selector("#closer-note:has-text('number 1 of 24')")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 336
    back(page)
    page.tap("#heat")
    page.wait_for_selector("dialog[open]")
    context.close()


def test_nothing_is_asked_of_another_machine_and_the_policy_holds(page: "Page", demo: DemoRun) -> None:
    demo.run(8)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    look(page, demo)
    assert asked
    assert all(url.startswith((demo.server.url, "data:")) for url in asked)
    assert complaints == []


def test_text_can_be_told_from_its_ground_in_both_schemes(browser: "Browser", demo: DemoRun) -> None:
    """Contrast with the ground is at least 4.5 for text, 3 for the edges of controls (WCAG 2.1, AA)."""
    demo.run(2)
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(demo.server.url)
        ratios = page.evaluate(
            """() => {
                const style = getComputedStyle(document.documentElement);
                const light = (name) => {
                    const hex = style.getPropertyValue(name).trim().slice(1);
                    const part = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
                        .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
                };
                const out = {};
                for (const ground of ["--bg", "--card"]) {
                    for (const one of ["ink", "soft", "accent", "ok", "watch", "bad", "warm", "edge"]) {
                        const name = `--${one}`;
                        const pair = [light(ground), light(name)].sort((a, b) => b - a);
                        out[name + " on " + ground] = (pair[0] + 0.05) / (pair[1] + 0.05);
                    }
                }
                return out;
            }"""
        )
        context.close()
        least = {name: 3.0 if "edge" in name else 4.5 for name in ratios}
        assert {name: ratio for name, ratio in ratios.items() if ratio < least[name]} == {}, scheme
