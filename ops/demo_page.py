"""The HTML page and the contact sheet of a demo."""

import math
from collections.abc import Mapping

from ops.demo import DemoRun
from ops.demo_judgement import Judgement, draw_sheet, judge
from ops.demo_result import FIGURES, PAGE, SHEET, DemoResult, accounts, figures, next_commands
from ops.model_io import load
from ops.rundir import read_lines, write_json
from ops.summary_page import SummaryPage, Table, render

_SHOWN_PROTOTYPES = 16


def conclude(run: DemoRun) -> DemoResult:
    """Judge what was learned, and write contact sheet, page and figures into the run directory."""
    judgement, sheet = None, None
    run_dir = run.options.run_dir
    if run.summary.updates:
        network = load(run_dir)
        sheet = draw_sheet(network, str(run.stream))
        if not run.options.images:
            judgement = judge(network, seed=run.options.seed, size=run.picture_px)
        (run_dir / SHEET).write_bytes(sheet.png)
    result = DemoResult(run=run, judgement=judgement, sheet=sheet)
    (run_dir / PAGE).write_text(render(_page(result)), encoding="utf-8")
    write_json(run_dir / FIGURES, result.to_json())
    return result


def _page(result: DemoResult) -> SummaryPage:
    run, summary = result.run, result.run.summary
    loss = tuple(
        (float(entry["samples"]), float(entry["loss"]))
        for entry in read_lines(run.options.run_dir / "history.jsonl")
        if "samples" in entry and "loss" in entry
    )
    note = ""
    if result.sheet:
        note = (
            "A row is a prototype, busiest first; its pictures are those of the newest "
            f"{result.sheet.images:,} that lie nearest to it. Nobody told the learner what belongs together."
        )
    return SummaryPage(
        title="swavstream demo",
        lead=_lead(result),
        figures=figures(result),
        loss=_smoothed(loss),
        ln_k=math.log(summary.prototypes),
        usage=result.sheet.usage if result.sheet else (),
        sheet_png=result.sheet.png if result.sheet else b"",
        sheet_note=note,
        tables=tuple(_tables(result)),
    )


def _lead(result: DemoResult) -> str:
    run, summary = result.run, result.run.summary
    if not summary.updates:
        return (
            f"{summary.samples:,} images were learned from: fewer than one batch of {run.config.batch} "
            "arrived. Give it more images, or more time."
        )
    what = "images" if run.options.images else "drawn pictures"
    text = (
        f"{summary.samples:,} {what} went by once. A small network and {summary.prototypes} prototypes "
        "learned from each of them as it came, without labels, and none was seen twice."
    )
    if result.judgement:
        purity = result.judgement.purity
        text += (
            f" On {result.judgement.pictures:,} new pictures {100 * purity['trained']:.0f} % are of the "
            "commonest kind of their prototype; before learning it was "
            f"{100 * purity['untrained']:.0f} %, chance is {100 * purity['chance']:.0f} %."
        )
    return text


def _tables(result: DemoResult) -> list[Table]:
    run, summary = result.run, result.run.summary
    tables = []
    if result.judgement:
        tables += [_comparison(result.judgement), _contents(result.judgement)]
    tables.append(
        Table(title="Accounts", header=(), rows=tuple((line,) for line in accounts(run)), numbers_from=9)
    )
    snapshot = summary.snapshot
    places = [
        ("run directory", str(run.options.run_dir)),
        ("stream", str(run.stream)),
        ("checkpoint", summary.checkpoint or "none"),
        (
            "snapshot in Redis",
            f"version {snapshot['version']}, {snapshot['digest'][:16]}" if snapshot else "none",
        ),
        ("live page while it ran", run.live_page or "none"),
        ("metrics while it ran", f"{run.live_page}metrics" if run.live_page else "none"),
    ]
    tables.append(Table(title="Where things are", header=(), rows=tuple(places), numbers_from=9))
    commands = tuple((command,) for command in next_commands(run))
    tables.append(Table(title="Try next", header=(), rows=commands, numbers_from=9))
    return tables


def _comparison(judgement: Judgement) -> Table:
    def percent(values: Mapping[str, float], name: str, scale: float) -> str:
        return f"{scale * values[name]:.1f} %" if name in values else ""

    rows = tuple(
        (label, percent(judgement.purity, name, 100), percent(judgement.knn, name, 1))
        for label, name in (
            ("after learning", "trained"),
            ("the same network before", "untrained"),
            ("raw pixels", "raw_pixels"),
            ("chance", "chance"),
        )
    )
    return Table(
        title="Is it more than it was before?",
        header=("", "purity of prototypes", "20 nearest neighbours"),
        rows=rows,
        note=(
            f"On {judgement.pictures:,} pictures that the stream does not hold. Purity: share of pictures "
            "that are of the commonest kind of their prototype; chance deals the kinds out at random. "
            "Nearest neighbours: share of pictures whose kind the 20 nearest in feature space vote for. The "
            "kinds serve these figures only."
        ),
    )


def _contents(judgement: Judgement) -> Table:
    rows = tuple(
        (
            f"#{prototype}",
            ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in kinds),
            f"{count:,}",
        )
        for prototype, count, kinds in judgement.prototypes[:_SHOWN_PROTOTYPES]
    )
    return Table(
        title="What the busiest prototypes hold",
        header=("prototype", "commonest kinds", "pictures"),
        rows=rows,
        numbers_from=2,
    )


def _smoothed(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Loss averaged over neighbouring entries, so that the trend is seen and not the noise of one batch."""
    reach = max(1, len(points) // 100)
    shown = []
    for place, (samples, _) in enumerate(points):
        near = points[max(0, place - reach) : place + reach + 1]
        shown.append((samples, math.fsum(loss for _, loss in near) / len(near)))
    return tuple(shown)
