"""What a demo leaves behind: the table that it ends with, its figures, its page and its contact sheet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.demo.html import Figure, SummaryPage, Table, render
from ops.demo.judge import Judgement, Sheet, draw_sheet, judge
from ops.demo.run import DemoRun
from ops.inference.load_model import load
from ops.monitoring.rules import LOSS_STUCK, agreement_rose
from ops.rundir.files import read_lines, write_json
from ops.rundir.history import at_ends
from ops.rundir.summary import FINISHED

SHEET, PAGE, FIGURES = "contact-sheet.png", "summary.html", "demo-figures.json"
SHEET_DARK = "contact-sheet-dark.png"


NOTHING_LEARNED = "Nothing was learned"
PURER = 0.03
"""Purity above that of the untrained network from which prototypes count as learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """A demo and what was found."""

    run: DemoRun
    judgement: Judgement | None
    """None for images that have no kinds, and when nothing was learned."""
    sheet: Sheet | None
    agreement: tuple[float | None, float | None] = (None, None)
    """Of two views on one prototype, corrected for chance: recently, and at the start; None = not known."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        run = self.run
        return {
            "status": run.status,
            "passes": round(run.passes, 2),
            "learned": learned(self),
            "run": str(run.options.run_dir),
            "stream": str(run.stream),
            "seconds": round(run.seconds, 1),
            "ingest": run.ingest,
            "learn": run.summary.to_json(),
            "purity": self.judgement.purity if self.judgement else None,
            "knn20": self.judgement.knn if self.judgement else None,
            "peak_memory_bytes": run.peak_bytes,
            "peak_processes": run.peak_processes,
            "live_page": run.live_page,
            "contact_sheet": str(run.options.run_dir / SHEET) if self.sheet else None,
            "page": str(run.options.run_dir / PAGE),
        }


def render_text(result: DemoResult) -> str:
    """The table that the command ends with, as text."""
    run = result.run
    rows = [(figure.name, figure.value, figure.note) for figure in figures(result)]
    rows += [("accounts", line, "") for line in accounts(run)]
    rows.append(("run", str(run.options.run_dir), ""))
    if result.sheet:
        rows.append(("contact sheet", str(run.options.run_dir / SHEET), ""))
    rows.append(("summary", str(run.options.run_dir / PAGE), "open it in a browser"))
    wide = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{wide}}  {value}{f'  ({note})' if note else ''}" for name, value, note in rows]
    tries = "\n".join(f"  {command}" for command in next_commands(run))
    nothing = [] if learned(result) else [NOTHING_LEARNED + more_time(run)]
    return "\n".join([f"demo {run.status}", *nothing, *lines, "try next:", tries])


def learned(result: DemoResult) -> bool:
    """Whether there is evidence that something was learned.

    Drawn pictures have kinds: prototypes must be purer than those of the untrained network. Of others it is
    known only whether views of one image agree on a prototype more than at the start, with a loss below ln K.
    """
    summary = result.run.summary
    if not summary.updates:
        return False
    if result.judgement:
        purity = result.judgement.purity
        return purity["trained"] > purity["untrained"] + PURER
    below = summary.loss_over_ln_k is not None and summary.loss_over_ln_k < LOSS_STUCK
    return below and agreement_rose(*result.agreement)


def more_time(run: DemoRun) -> str:
    """What to do when nothing was learned."""
    if not run.summary.updates:
        return (
            f": fewer than one batch of {run.config.batch} images arrived. Give it more images, or more time."
        )
    return f" in {run.summary.updates:,} updates. Give it more time (--seconds), or more and other images."


def figures(result: DemoResult) -> tuple[Figure, ...]:
    """The numbers that are shown large."""
    run, summary = result.run, result.run.summary
    often = f", every image {run.passes:.1f} times" if run.passes > 1 else ""
    rate = summary.samples / max(summary.seconds, 1e-9)
    rows = [
        ("images learned from", f"{summary.samples:,}", f"{summary.updates:,} updates{often}"),
        ("images a second", f"{rate:,.0f}", f"over {summary.seconds:.0f} s, waiting included"),
    ]
    if summary.loss is not None and summary.loss_over_ln_k is not None:
        note = f"{summary.loss_over_ln_k:.2f} of ln K; 1 = nothing learned"
        rows.append(("loss", f"{summary.loss:.2f}", note))
    if summary.usage_perplexity is not None:
        used = f"{summary.usage_perplexity:.0f} of {summary.prototypes}"
        rows.append(("prototypes in use", used, "perplexity of their usage"))
    if result.judgement:
        trained, *others = (
            100 * result.judgement.purity[name] for name in ("trained", "untrained", "chance")
        )
        note = "untrained {:.0f} %, chance {:.0f} %".format(*others)
        rows.append(("purity by kind", f"{trained:.0f} %", note))
    if run.peak_bytes:
        note = f"peak of all {run.peak_processes} processes"
        rows.append(("memory", f"{run.peak_bytes / 1e9:.2f} GB", note))
    return tuple(Figure(name=name, value=value, note=note) for name, value, note in rows)


def accounts(run: DemoRun) -> list[str]:
    """Two sums that must hold, spelled out."""
    ingest, summary = run.ingest, run.summary
    lines = []
    if ingest:
        skipped = f"{sum(ingest['skipped'].values()):,} skipped{_reasons(ingest['skipped'])}"
        lines.append(f"ingest: {ingest['found']:,} found = {ingest['written']:,} written + {skipped}")
    total = summary.samples + summary.skipped + summary.left_over
    written = ingest.get("written", total)
    read, rest = "", ""
    if run.passes > 1:
        read = f" read {run.passes:.1f} times = {total:,}"
    elif written != total:
        rest = f" + {written - total:,} not read yet"
    lines.append(
        f"learn: {written:,} records{read} = {summary.samples:,} used + {summary.skipped:,} "
        f"skipped{_reasons(summary.skipped_by_reason)} + {summary.left_over:,} left over{rest}"
    )
    return lines


def _reasons(skipped: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in skipped.items())})" if skipped else ""


def next_commands(run: DemoRun) -> list[str]:
    """What a reader may try on the run that is there now."""
    where = run.options.run_dir
    commands = [f"swavstream snapshots list {where}", f"swavstream assign {where} {run.stream} | head"]
    if run.summary.status != FINISHED:
        commands.insert(0, f"swavstream learn {run.stream} --run {where}")
    return commands


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
            f"{result.sheet.images:,} that lie nearest to it. The learner was not told what belongs together."
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
    tables.append(Table(title="Accounts", rows=tuple((line,) for line in accounts(run))))
    snapshot = summary.snapshot
    places = (
        ("run directory", str(run.options.run_dir)),
        ("stream", str(run.stream)),
        ("checkpoint", summary.checkpoint or "none"),
        (
            "snapshot in Redis",
            f"version {snapshot['version']}, {snapshot['digest'][:16]}" if snapshot else "none",
        ),
        ("live page while it ran", run.live_page or "none"),
        ("metrics while it ran", f"{run.live_page}metrics" if run.live_page else "none"),
    )
    tables.append(Table(title="Where things are", rows=places))
    tables.append(Table(title="Try next", rows=tuple((command,) for command in next_commands(run))))
    return tables


def _comparison(judgement: Judgement) -> Table:
    def percent(values: Mapping[str, float], name: str, scale: float) -> str:
        return f"{scale * values[name]:.1f} %" if name in values else ""

    labels = {
        "trained": "after learning", "untrained": "the same network before", "raw_pixels": "raw pixels",
        "chance": "chance",
    }  # fmt: skip
    return Table(
        title="Is it more than it was before?",
        header=("", "purity of prototypes", "20 nearest neighbours"),
        rows=tuple(
            (label, percent(judgement.purity, name, 100), percent(judgement.knn, name, 1))
            for name, label in labels.items()
        ),
        numbers_from=1,
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
