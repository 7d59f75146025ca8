"""How a run stands, from its directory and, while it is live, from its HTTP port. Imports nothing heavy."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.durations import duration
from ops.rundir.files import newest_saved, read_json, read_lines, read_run
from ops.rundir.lock import Holder, holder_of
from ops.rundir.summary import read_summary

ANSWER_S = 3.0
WORST_LANES = 8
RUNNING, LEFT = "running", "left"
# What a live run is asked for; see `ops.live_page.state.LiveView.status`.
LIVE = ("samples", "loss", "loss_over_ln_k", "usage_perplexity", "rate", "lag", "verdict", "skipped", "lanes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What is known of a run now."""

    status: str
    """running, finished, stopped, or left: it was killed, or has not begun; the same command goes on."""
    run: str
    """The run directory."""
    uuid: str
    stream: str
    holder: str
    """Who works in the directory; empty when nobody does."""
    url: str
    """The live page; empty when none answers."""
    live: Mapping[str, Any]
    """What the live page says; empty when it does not answer."""
    samples: int
    """Used so far; of the last checkpoint when the run is not live."""
    steps: int
    checkpoint: str | None
    """Directory of the newest checkpoint."""
    latest: Mapping[str, Any]
    """The newest entry of the history."""
    changes: int
    """Settings that were changed on the way."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def told(self) -> str:
        """A few lines for people."""
        lines = [f"{self.status}{f' by {self.holder}' if self.holder else ''}: {self.run} ({self.uuid[:8]})"]
        lines.append(f"  stream     {self.stream}")
        lines.append(f"  samples    {self.samples:,} in {self.steps:,} steps")
        figures = {**self.latest, **{name: value for name, value in self.live.items() if value is not None}}
        if figures.get("loss") is not None:
            lines.append(f"  loss       {figures['loss']:.4f} ({figures['loss_over_ln_k']:.4f} of ln K)")
            lines.append(f"  usage      {figures['usage_perplexity']:.1f} prototypes")
        if self.live:
            lines.append(f"  rate       {figures.get('rate', 0.0):,.0f} samples/s, lag {figures.get('lag')}")
            lines += lag_lines(figures.get("lanes") or [])
            lines.append(f"  verdict    {figures.get('verdict')}")
            lines.append(f"  live page  {self.url}")
        lines.append(f"  checkpoint {self.checkpoint or 'none yet'}")
        return "\n".join(lines)


def lag_lines(lanes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lanes that are farthest behind, for people; none when no lane is."""
    behind = [lane for lane in lanes if lane["trained_records"]]
    worst = sorted(behind, key=lambda lane: (-lane["trained_records"], lane["lane"]))[:WORST_LANES]
    told = [
        f"  lane {lane['lane']:<5} {lane['trained_records']:,} records behind in learning"
        f"{_age(lane['trained_s'])}, {lane['fetched_records']:,} in reading ahead{_age(lane['fetched_s'])}"
        for lane in worst
    ]
    rest = sum(lane["trained_records"] for lane in behind) - sum(lane["trained_records"] for lane in worst)
    more = len(behind) - len(worst)
    return [*told, f"  and {more} more lanes {rest:,} records together"] if more else told


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f" ({duration(seconds)})"


def look(run_dir: Path) -> Standing:
    """Look at a run; takes no lock and changes nothing.

    Raises:
        RunNotFound: there is none.
    """
    record = read_run(run_dir)
    holder = holder_of(run_dir)
    url = page_of(run_dir, holder) if holder else ""
    live = ask(url) if url else {}
    if live.get("run") != record.uuid:  # the address means another place on this machine
        live = {}
    saved = newest_saved(run_dir)
    cursor: Mapping[str, Any] = saved[1] if saved else {}
    latest: Mapping[str, Any] = {}
    for entry in read_lines(run_dir / "history.jsonl"):
        latest = entry
    ended = read_summary(run_dir)
    if holder is None and ended is not None and ended.loss is not None:
        # As the run itself has told it: a mean, where the history has single steps.
        told = {name: getattr(ended, name) for name in ("loss", "loss_over_ln_k", "usage_perplexity")}
        latest = {**latest, **told}
    return Standing(
        status=_status(run_dir, holder),
        run=str(run_dir),
        uuid=record.uuid,
        stream=record.stream,
        holder=str(holder) if holder else "",
        url=url if live else "",
        live={name: live.get(name) for name in LIVE} if live else {},
        samples=live.get("samples") or cursor.get("samples", 0),
        steps=max(cursor.get("steps", 0), latest.get("steps", 0) if live else 0),
        checkpoint=str(saved[0]) if saved else None,
        latest=latest,
        changes=sum(1 for _ in read_lines(run_dir / "changes.jsonl")),
    )


def page_of(run_dir: Path, holder: Holder) -> str:
    """Where the live page of the learner that works in a directory is; empty when it has told none.

    The note may be of an earlier learner that was killed, or was copied with the run.
    """
    place = read_json(run_dir / "server.json") or {}
    told = (place.get("host"), place.get("pid")) == (holder.host, holder.pid)
    return str(place.get("url", "")) if told else ""


def ask(url: str) -> dict[str, Any]:
    """What a live run says of itself; empty when it does not answer in time."""
    try:
        with urllib.request.urlopen(f"{url}api/v1/status", timeout=ANSWER_S) as answer:  # noqa: S310  http only
            body = json.load(answer)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _status(run_dir: Path, holder: Holder | None) -> str:
    if holder is not None:
        return RUNNING
    summary = read_summary(run_dir)
    return LEFT if summary is None else summary.status
