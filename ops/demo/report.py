"""What a demo leaves behind: the table that it ends with, its figures, its page and its contact sheet.

The page is one HTML file: no outside asset, readable without a server, light or dark. Its style and charts
are those of the live page.
"""

import base64
import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined

from ops.demo.judge import NEIGHBOURS, Judgement, Sheet, draw_sheet, judge
from ops.demo.run import DemoRun
from ops.inference.load_model import load
from ops.live_page.server import static_part
from ops.monitoring.rules import LOSS_STUCK, agreement_rose
from ops.rundir.files import read_lines, write_json
from ops.rundir.history import at_ends
from ops.rundir.summary import FINISHED, skipped_text

SHEET, SHEET_DARK = "contact-sheet.png", "contact-sheet-dark.png"
PAGE, FIGURES = "summary.html", "demo-figures.json"
PURER = 0.03
"""Purity above that of the untrained network from which prototypes count as learned."""
_MOST_POINTS = 400


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
            "learned": self.learned,
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

    @property
    def learned(self) -> bool:
        """Whether there is evidence that something was learned.

        Drawn pictures have kinds: prototypes must be purer than those of the untrained network. Of others it
        is known only whether views of one image agree on a prototype more than at the start, with a loss
        below ln K.
        """
        summary = self.run.summary
        if not summary.updates:
            return False
        if self.judgement:
            purity = self.judgement.purity
            return purity["trained"] > purity["untrained"] + PURER
        below = summary.loss_over_ln_k is not None and summary.loss_over_ln_k < LOSS_STUCK
        return below and agreement_rose(*self.agreement)

    @property
    def advice(self) -> str:
        """What to say, and to do, when nothing was learned; else empty."""
        run = self.run
        if self.learned:
            return ""
        if not run.summary.updates:
            return (
                f"Nothing was learned: fewer than one batch of {run.config.batch} images arrived. "
                "Give it more images, or more time."
            )
        return (
            f"Nothing was learned in {run.summary.updates:,} updates. "
            "Give it more time (--seconds), or more and other images."
        )


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
    history = read_lines(run_dir / "history.jsonl")
    loss = [(entry["samples"], entry["loss"]) for entry in history if {"samples", "loss"} <= entry.keys()]
    (run_dir / PAGE).write_text(render_page(result, loss), encoding="utf-8")
    write_json(run_dir / FIGURES, result.to_json())
    return result


def render_text(result: DemoResult) -> str:
    """The table that the command ends with, as text."""
    run_dir = result.run.options.run_dir
    rows = figures(result)
    rows += [("accounts", line, "") for line in accounts(result.run)]
    rows.append(("run", str(run_dir), ""))
    if result.sheet:
        rows.append(("contact sheet", str(run_dir / SHEET), ""))
    rows.append(("summary", str(run_dir / PAGE), "open it in a browser"))
    wide = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{wide}}  {value}{f'  ({note})' if note else ''}" for name, value, note in rows]
    tries = [f"  {command}" for command in next_commands(result.run)]
    advice = [result.advice] if result.advice else []
    return "\n".join([f"demo {result.run.status}", *advice, *lines, "try next:", *tries])


def render_page(result: DemoResult, loss: Sequence[tuple[int, float]]) -> str:
    """The page as one HTML document; every text is escaped.

    Args:
        result: what was found; a part that is not there is left out.
        loss: (samples seen, loss in nats) over the run.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = (importlib.resources.files("ops.demo") / "summary.html").read_text(encoding="utf-8")
    run, summary = result.run, result.run.summary
    return environment.from_string(template).render(
        static=static_part,
        lead=_lead(result),
        figures=figures(result),
        loss=_curve(loss),
        ln_k=math.log(summary.prototypes),
        sheet=result.sheet,
        judgement=result.judgement,
        neighbours=NEIGHBOURS,
        tables=[
            ("Accounts", [[line] for line in accounts(run)]),
            ("Where things are", _places(run)),
            ("Try next", [[command] for command in next_commands(run)]),
        ],
    )


def figures(result: DemoResult) -> list[tuple[str, str, str]]:
    """The numbers that are shown large: name, value and note."""
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
        trained, untrained, chance = _percents(result.judgement)
        rows.append(("purity by kind", trained, f"untrained {untrained}, chance {chance}"))
    if run.peak_bytes:
        note = f"peak of all {run.peak_processes} processes"
        rows.append(("memory", f"{run.peak_bytes / 1e9:.2f} GB", note))
    return rows


def _percents(judgement: Judgement) -> list[str]:
    """Purity of the trained prototypes, of the untrained ones and by chance."""
    return [f"{100 * judgement.purity[name]:.0f} %" for name in ("trained", "untrained", "chance")]


def accounts(run: DemoRun) -> list[str]:
    """Two sums that must hold, spelled out."""
    ingest, summary = run.ingest, run.summary
    lines = []
    if ingest:
        skipped = skipped_text(sum(ingest["skipped"].values()), ingest["skipped"])
        lines.append(f"ingest: {ingest['found']:,} found = {ingest['written']:,} written + {skipped}")
    total = summary.samples + summary.skipped + summary.left_over
    written = ingest.get("written", total)
    read, rest = "", ""
    if run.passes > 1:
        read = f" read {run.passes:.1f} times = {total:,}"
    elif written != total:
        rest = f" + {written - total:,} not read yet"
    return [*lines, f"learn: {written:,} records{read} = {summary.records()}{rest}"]


def next_commands(run: DemoRun) -> list[str]:
    """What a reader may try on the run that is there now."""
    where = run.options.run_dir
    commands = [f"swavstream snapshots list {where}", f"swavstream assign {where} {run.stream} | head"]
    if run.summary.status != FINISHED:
        commands.insert(0, f"swavstream learn {run.stream} --run {where}")
    return commands


def _lead(result: DemoResult) -> str:
    """What a reader should take away, in a sentence or two."""
    run, summary, judgement = result.run, result.run.summary, result.judgement
    if not summary.updates:
        return result.advice
    what = "images" if run.options.images else "drawn pictures"
    again = run.passes > 1
    count = run.ingest.get("written", summary.samples) if again else summary.samples
    often, once = (f"{run.passes:.1f} times", "") if again else ("once", " None was seen twice.")
    text = (
        f"{result.advice} {count:,} {what} went by {often}. A small network and {summary.prototypes} "
        f"prototypes were given each of them as it came, without labels.{once}"
    )
    if judgement:
        trained, untrained, chance = _percents(judgement)
        text += (
            f" On {judgement.pictures:,} new pictures {trained} are of the commonest kind of their "
            f"prototype; before learning it was {untrained}, chance is {chance}."
        )
    return text.lstrip()


def _places(run: DemoRun) -> list[tuple[str, str]]:
    snapshot = run.summary.snapshot
    return [
        ("run directory", str(run.options.run_dir)),
        ("stream", str(run.stream)),
        ("checkpoint", run.summary.checkpoint or "none"),
        (
            "snapshot in Redis",
            f"version {snapshot['version']}, {snapshot['digest'][:16]}" if snapshot else "none",
        ),
        ("live page while it ran", run.live_page or "none"),
        ("metrics while it ran", f"{run.live_page}metrics" if run.live_page else "none"),
    ]


def _curve(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Loss averaged over neighbouring entries, so that the trend is seen and not the noise of one batch.

    About `_MOST_POINTS` of them at the most, the last included.
    """
    reach, every = max(1, len(points) // 100), max(1, len(points) // _MOST_POINTS)
    shown = []
    for place, (samples, _) in enumerate(points):
        near = points[max(0, place - reach) : place + reach + 1]
        shown.append((samples, math.fsum(loss for _, loss in near) / len(near)))
    return [*shown[:-1:every], *shown[-1:]]
