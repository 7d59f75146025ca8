"""The facts that `ops.doctor.diagnosis` judges, from a run's files, its live port and its Redis."""

import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import redis
from prometheus_client.parser import text_string_to_metric_families

from ops.errors import RedisUnavailable, SnapshotDamaged, SnapshotNotFound
from ops.live_page.exemplars import NEAR_EQUAL, signatures
from ops.live_page.state import ALIKE, TROUBLE_S
from ops.monitoring.catalog import PREFIX, judged
from ops.monitoring.facts import Facts
from ops.monitoring.verdicts import NOT_PUBLISHED
from ops.rundir.checkpoint import VALUES
from ops.rundir.files import newest_saved, read_json, read_lines, read_run
from ops.rundir.history import at_ends
from ops.rundir.status import ANSWER_S, RUNNING, RunStatus, fetch_live_status, read_status
from ops.rundir.summary import read_summary
from ops.snapshots.probe_images import read as read_probe
from ops.snapshots.redis_client import URL_VARIABLE, connect, error_text
from ops.snapshots.store import warnings_of

ENDS = ("start_loss_over_ln_k", "view_agreement", "start_view_agreement")
FEWEST_COMPARED, COMPARED = 16, 256
"""Images that are compared with each other, at least and at most."""

Series = Mapping[tuple[str, str], float]
"""(metric without prefix, value of its result label or "") -> value."""


def gather(run_dir: Path) -> Facts:
    """Look at a run; takes no lock and changes nothing. Takes some seconds when Redis does not answer.

    Raises:
        RunNotFound: there is none.
    """
    record = read_run(run_dir)
    standing = read_status(run_dir)
    live = fetch_live_status(standing.url) if standing.url else {}
    series = _series(standing.url) if live else {}
    figures = _figures(run_dir, standing, live)
    figures |= at_ends(run_dir)
    ends: dict[str, Any] = {name: figures.get(name) for name in ENDS}
    url = _text(record.config, "snapshot", "url") or os.environ.get(URL_VARIABLE, "")
    error, warnings = _look_at_redis(url) if url else ("", ())
    recent = live.get("recent") or {}
    troubles = recent.get("troubles") or {}
    used, skipped = (recent["used"], recent["skipped"]) if recent else _records(run_dir)
    published = live.get("snapshot") or {}
    return Facts(
        status=standing.status,
        live=bool(live),
        config=record.config,
        changes=tuple(read_lines(run_dir / "changes.jsonl")),
        kafka=record.stream.startswith("kafka"),
        samples=standing.samples,
        updates=int(figures.get("updates") or 0),
        **ends,
        **_against_start(run_dir),
        **judged(figures),
        lag=live.get("lag"),
        waiting=live.get("state") == "waiting",
        since_step_s=live.get("since_step_s"),
        since_start_s=live["now"] - live["started"] if live else None,
        start_samples=live.get("start_samples", 0),
        reader_restarts=troubles.get("reader_restarts", 0),
        used=used,
        skipped=skipped,
        not_finite=_not_finite(run_dir, standing),
        publish_errors=int(series.get(("snapshots_published_total", "error"), 0)),
        last_publish=_last_publish(live),
        publish_detail=_verdict(live, "snapshots"),
        unhealthy=_unhealthy(published),
        stale_epochs=int(series.get(("snapshots_published_total", "stale_epoch"), 0)),
        snapshot_samples=published.get("samples"),
        redis_error=error,
        redis_warnings=warnings,
        checkpoint_errors=troubles.get("checkpoint_error", 0),
        damaged=_damaged(run_dir, troubles.get("checkpoint_damaged", 0)),
        same_images_ratio=_same_images(run_dir),
    )


def _figures(run_dir: Path, standing: RunStatus, live: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of now, or of the end: the live ones, else those of history and newest checkpoint."""
    if live:
        recent = live.get("recent") or {}
        alike = {name: mean for name in ALIKE if (mean := recent.get(name)) is not None}
        return {**(live.get("health") or {}), **live, **alike}
    saved = newest_saved(run_dir)
    values = (read_json(saved[0] / VALUES) or {}).get("values", {}) if saved else {}
    report = values.get("health") or {}
    figures = {**report, **standing.latest, "prototypes": report.get("prototypes")}
    if report:
        figures["usage_window_fill"] = min(1.0, report["usage_samples"] / report["usage_window_samples"])
    return figures


def _records(run_dir: Path) -> tuple[int, Mapping[str, int]]:
    """Records used and skipped between the oldest and the newest checkpoint there; of all, with one."""
    folders = sorted((run_dir / "checkpoints").glob("ckpt-*"))
    cursors = [cursor for path in folders if (cursor := read_json(path / "cursor.json")) is not None]
    if not cursors:
        return 0, (read_json(run_dir / "summary.json") or {}).get("skipped_by_reason") or {}
    first, last = cursors[0] if len(cursors) > 1 else {}, cursors[-1]
    before, skipped = first.get("skipped", {}), last.get("skipped", {})
    used = last["samples"] - first.get("samples", 0)
    return used, {reason: count - before.get(reason, 0) for reason, count in skipped.items()}


def _against_start(run_dir: Path) -> dict[str, Any]:
    """How a run that has ended stands beside its own start; nothing where that is not known."""
    summary = read_summary(run_dir)
    found = None if summary is None else summary.against_start
    if found is None:
        return {}
    return {
        "views_found": found["trained"]["views_found"],
        "start_views_found": found["start"]["views_found"],
        "learned_beyond_start": found["better"],
    }


def _not_finite(run_dir: Path, standing: RunStatus) -> int:
    """Steps that were refused in the last half hour: of now, or of a run that no process works on."""
    end = time.time() if standing.status == RUNNING else standing.latest.get("time", 0.0)
    lines = read_lines(run_dir / "nonfinite.jsonl")
    return sum(1 for line in lines if line.get("time", math.inf) > end - TROUBLE_S)


def _damaged(run_dir: Path, found: int) -> tuple[str, ...]:
    """Checkpoints set aside: `found` in this session, and those that no good one has followed yet."""
    folder = run_dir / "checkpoints"
    names = sorted(path.name for path in folder.glob("damaged-*"))
    newest = max((path.name.partition("-")[2] for path in folder.glob("ckpt-*")), default="")
    late = [name for name in names if name.partition("-")[2] > newest]
    return tuple(sorted({*late, *names[max(0, len(names) - found) :]}))


def _same_images(run_dir: Path) -> float | None:
    """Largest share of the run's probe images that is nearly equal pixel by pixel; None = there are none."""
    try:
        thumbs = read_probe(run_dir).thumbs
    except (SnapshotNotFound, SnapshotDamaged):
        return None
    if len(thumbs) < FEWEST_COMPARED:
        return None
    some = thumbs[:: -(-len(thumbs) // COMPARED)]
    tiny = signatures(some)
    nearest = [(np.square(tiny - one).mean(axis=1) < NEAR_EQUAL**2).mean() for one in tiny]
    return float(max(nearest))


def _series(url: str) -> dict[tuple[str, str], float]:
    """The live run's metrics; empty when they cannot be read."""
    try:
        with urllib.request.urlopen(f"{url}metrics", timeout=ANSWER_S) as answer:  # noqa: S310  http only
            text = answer.read().decode()
    except (urllib.error.URLError, OSError, UnicodeDecodeError):
        return {}
    return {
        (sample.name.removeprefix(PREFIX), sample.labels.get("result", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _last_publish(live: Mapping[str, Any]) -> str:
    """Result of the latest attempt to publish, as far as events tell."""
    return "error" if _verdict(live, "snapshots").startswith(NOT_PUBLISHED) else ""


def _unhealthy(published: Mapping[str, Any]) -> str:
    """Limits that the newest snapshot failed; too early to judge is none."""
    detail = str(published.get("detail", "")) if published.get("result") == "unhealthy" else ""
    return "" if detail.startswith("warming") else detail


def _verdict(live: Mapping[str, Any], name: str) -> str:
    """The sentence of one verdict of the live page."""
    return next((row["text"] for row in live.get("verdicts", ()) if row["name"] == name), "")


def _look_at_redis(url: str) -> tuple[str, tuple[str, ...]]:
    """Why a server cannot be used now, and what is dangerous about its settings."""
    try:
        with connect(url) as client:
            client.ping()
            return "", tuple(warnings_of(client))
    except (redis.RedisError, RedisUnavailable, OSError) as error:
        return f"Redis does not answer: {error_text(error)}", ()


def _text(config: Mapping[str, Any], section: str, name: str) -> str:
    below = config.get(section)
    return str(below.get(name, "")) if isinstance(below, Mapping) else ""
