"""The facts that `ops.doctor` judges, from a run's files, its live port and its Redis."""

import math
import os
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from ops.checkpoint import VALUES
from ops.doctor_case import Facts
from ops.errors import RedisUnavailable
from ops.metric_table import PREFIX
from ops.redis_client import URL_VARIABLE, connect, said
from ops.rundir import newest_saved, read_json, read_lines, read_run
from ops.snapshots import warnings_of
from ops.standing import ANSWER_S, Standing, ask, look

RECENT = 20
"""Entries of the history that the loss is averaged over."""

Series = Mapping[tuple[str, str], float]
"""(metric without prefix, value of its result label or "") -> value."""


def gather(run_dir: Path) -> Facts:
    """Look at a run; takes no lock and changes nothing. Takes some seconds when Redis does not answer.

    Raises:
        RunNotFound: there is none.
    """
    record = read_run(run_dir)
    standing = look(run_dir)
    live = ask(standing.url) if standing.url else {}
    series = _series(standing.url) if live else {}
    figures = _figures(run_dir, standing, live)
    figures["loss_over_ln_k"] = _recent_loss(run_dir)
    url = _text(record.config, "snapshot", "url") or os.environ.get(URL_VARIABLE, "")
    error, warnings = _look_at_redis(url) if url else ("", ())
    summary = read_json(run_dir / "summary.json") or {}
    saved = newest_saved(run_dir)
    cursor = saved[1] if saved else {}
    published = live.get("snapshot") or {}
    return Facts(
        status=standing.status,
        live=bool(live),
        config=record.config,
        changes=tuple(read_lines(run_dir / "changes.jsonl")),
        kafka=record.stream.startswith("kafka"),
        samples=standing.samples,
        updates=int(figures.get("updates") or 0),
        **_learned(figures),
        lag=live.get("lag"),
        waiting=live.get("state") == "waiting",
        since_step_s=live.get("since_step_s"),
        reader_restarts=int(series.get(("reader_restarts_total", ""), 0)),
        used=standing.samples,
        skipped=live.get("skipped") or summary.get("skipped_by_reason") or cursor.get("skipped") or {},
        not_finite=sum(1 for _ in read_lines(run_dir / "nonfinite.jsonl")),
        publish_errors=int(series.get(("snapshots_published_total", "error"), 0)),
        last_publish=_last_publish(live),
        publish_detail=_verdict(live, "snapshots"),
        unhealthy=_unhealthy(published),
        stale_epochs=int(series.get(("snapshots_published_total", "stale_epoch"), 0)),
        snapshot_samples=published.get("samples"),
        redis_error=error,
        redis_warnings=warnings,
        checkpoint_errors=int(series.get(("checkpoints_total", "error"), 0)),
        damaged=tuple(sorted(path.name for path in (run_dir / "checkpoints").glob("damaged-*"))),
    )


def _figures(run_dir: Path, standing: Standing, live: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of now, or of the end: the live ones, else those of history and newest checkpoint."""
    if live:
        return {**(live.get("health") or {}), **live}
    saved = newest_saved(run_dir)
    values = (read_json(saved[0] / VALUES) or {}).get("values", {}) if saved else {}
    report = values.get("health") or {}
    figures = {**report, **standing.latest, "prototypes": report.get("prototypes")}
    if report:
        figures["usage_window_fill"] = min(1.0, report["usage_samples"] / report["usage_window_samples"])
    return figures


def _recent_loss(run_dir: Path) -> float | None:
    """Against ln K, mean over the latest entries of the history: one batch alone is noise."""
    recent = deque((entry["loss_over_ln_k"] for entry in read_lines(run_dir / "history.jsonl")), RECENT)
    return sum(recent) / len(recent) if recent else None


def _learned(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What is learned, as shares of K and of ln K."""
    prototypes = figures.get("prototypes") or 0

    def of_k(name: str) -> float | None:
        value = figures.get(name)
        return None if value is None or not prototypes else value / prototypes

    code = figures.get("code_entropy_nats", figures.get("code_entropy"))
    return {
        "loss_over_ln_k": figures.get("loss_over_ln_k"),
        "code_entropy_over_ln_k": None if code is None or prototypes < 2 else code / math.log(prototypes),
        "feature_std_ratio": figures.get("feature_std_ratio"),
        "usage_perplexity_ratio": of_k("usage_perplexity"),
        "usage_window_fill": figures.get("usage_window_fill"),
        "dead_ratio": of_k("dead_prototypes"),
        "twins_ratio": of_k("prototype_twins"),
        "sinkhorn_residual": figures.get("sinkhorn_residual"),
        "drift_psi": figures.get("drift_psi"),
        "novelty_ratio": figures.get("novelty_ratio"),
        "autocorrelation": figures.get("stream_autocorrelation"),
        "batch_similarity": figures.get("batch_similarity"),
    }


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
    return "error" if "Not published" in _verdict(live, "snapshots") else ""


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
        return f"Redis does not answer: {said(error)}", ()


def _text(config: Mapping[str, Any], section: str, name: str) -> str:
    below = config.get(section)
    return str(below.get(name, "")) if isinstance(below, Mapping) else ""
