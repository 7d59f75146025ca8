"""The HTML page and the contact sheet of a demo."""

import math
from collections.abc import Mapping, Sequence

from ops.demo import DemoRun
from ops.demo_judgement import Judgement, draw_sheet, judge
from ops.demo_result import (
    FIGURES,
    NOTHING_LEARNED,
    PAGE,
    SHEET,
    SHEET_DARK,
    DemoResult,
    accounts,
    figures,
    learned,
    more_time,
    next_commands,
)
from ops.history import at_ends
from ops.model_io import load
from ops.rundir import read_lines, write_json
from ops.summary_page import SummaryPage, Table, render


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
        (run_dir / SHEET_DARK).write_bytes(sheet.dark_png)
    ends = at_ends(run_dir)
    agreement = ends["view_agreement"], ends["start_view_agreement"]
    result = DemoResult(run=run, judgement=judgement, sheet=sheet, agreement=agreement)
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
        sheet_dark_png=result.sheet.dark_png if result.sheet else b"",
        sheet_note=note,
        tables=tuple(_tables(result)),
    )


def _lead(result: DemoResult) -> str:
    run, summary = result.run, result.run.summary
    if not summary.updates:
        return f"{NOTHING_LEARNED}{more_time(run)}"
    what = "images" if run.options.images else "drawn pictures"
    often = f"went by {run.passes:.1f} times" if run.passes > 1 else "went by once"
    count = run.ingest.get("written", summary.samples) if run.passes > 1 else summary.samples
    once = "" if run.passes > 1 else " None was seen twice."
    text = (
        f"{count:,} {what} {often}. A small network and {summary.prototypes} prototypes were given each of "
        f"them as it came, without labels.{once}"
    )
    if not learned(result):
        text = f"{NOTHING_LEARNED}{more_time(run)} {text}"
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
        shown = result.sheet.prototypes if result.sheet else ()
        tables += [_comparison(result.judgement), _contents(result.judgement, shown)]
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


def _contents(judgement: Judgement, shown: Sequence[int]) -> Table:
    """The prototypes of the contact sheet, in its order, by the kinds of new pictures."""
    held = {prototype: (count, kinds) for prototype, count, kinds in judgement.prototypes}
    rows = tuple(
        (
            f"#{prototype}",
            ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in kinds) or "none of the new pictures",
            f"{count:,}",
        )
        for prototype in shown
        for count, kinds in [held.get(prototype, (0, ()))]
    )
    return Table(
        title="What the busiest prototypes hold",
        header=("prototype", "commonest kinds", "pictures"),
        rows=rows,
        numbers_from=2,
        note=f"The rows of the contact sheet. Kinds are those of the {judgement.pictures:,} new pictures.",
    )


def _smoothed(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Loss averaged over neighbouring entries, so that the trend is seen and not the noise of one batch."""
    reach = max(1, len(points) // 100)
    shown = []
    for place, (samples, _) in enumerate(points):
        near = points[max(0, place - reach) : place + reach + 1]
        shown.append((samples, math.fsum(loss for _, loss in near) / len(near)))
    return tuple(shown)
