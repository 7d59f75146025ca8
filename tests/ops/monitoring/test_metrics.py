"""What a scrape shows, compared with what was reported."""

import math
import threading
import time
from dataclasses import replace

import pytest
import torch
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ops.monitoring.catalog import LEARNER, METRICS, PREFIX
from ops.monitoring.metrics import Metrics
from ops.snapshots.types import RESULTS, PublishResult
from stream.lanes import LaneLag
from tests.ops import synthetic

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def series(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of a scrape in the text format."""
    text = metrics.text()[0].decode()
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def openmetrics(text: str) -> dict[str, Metric]:
    """Families of a page in the OpenMetrics format, by name."""
    found = parse_openmetrics(text)  # type: ignore[no-untyped-call]  # untyped in the library
    return {family.name: family for family in found}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return series(metrics)[name, tuple(sorted(labels.items()))]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="0.1.0", revision="abc", run="run-1", config_hash="c")


def observed(metrics: Metrics) -> Metrics:
    usage = synthetic.shares(40)
    metrics.observe(
        synthetic.report(640, usage), synthetic.stats(64, {"truncated": 3}), step_s=0.5, load_s=0.1
    )
    return metrics


def test_records_by_outcome_add_up_to_what_was_read(metrics: Metrics) -> None:
    for skipped in ({"truncated": 2}, {"empty": 1, "truncated": 1}, {}):
        metrics.observe(synthetic.report(640, synthetic.shares(40)), synthetic.stats(64, skipped), step_s=0.5)
    assert value(metrics, "records_total", outcome="used", reason="") == 192
    assert value(metrics, "records_total", outcome="skipped", reason="truncated") == 3
    assert value(metrics, "records_total", outcome="skipped", reason="empty") == 1


def test_steps_samples_and_updates_are_counted(metrics: Metrics) -> None:
    for _ in range(3):
        observed(metrics)
    assert value(metrics, "steps_total") == 3
    assert value(metrics, "samples_total") == 192
    assert value(metrics, "updates_total", source="fresh") == 3


def test_prototypes_that_were_reseeded_are_counted(metrics: Metrics) -> None:
    for reseeded in (2, 0, 3):
        report = replace(synthetic.report(640, synthetic.shares(40)), reseeded=reseeded)
        metrics.observe(report, synthetic.stats(64), step_s=0.5)
    assert value(metrics, "prototypes_reseeded_total") == 5


def test_replayed_samples_are_updates_but_not_samples(metrics: Metrics) -> None:
    metrics.observe(synthetic.report(640, synthetic.shares(40)), synthetic.stats(64), step_s=0.5, replays=3)
    assert value(metrics, "samples_total") == 64
    assert value(metrics, "steps_total") == 1
    assert value(metrics, "updates_total", source="fresh") == 1
    assert value(metrics, "updates_total", source="replay") == 3


def test_seconds_by_phase_add_up_to_the_step(metrics: Metrics) -> None:
    observed(metrics)
    phases = {
        labels: number
        for (name, labels), number in series(metrics).items()
        if name == "learner_seconds_total"
    }
    assert sum(phases.values()) == pytest.approx(0.5)
    assert phases[("phase", "load"),] == pytest.approx(0.1)


def test_a_checkpoint_counts_for_what_it_held_up_the_loop_not_for_its_writing(metrics: Metrics) -> None:
    report = synthetic.report(640, synthetic.shares(40))
    metrics.observe(report, synthetic.stats(), step_s=0.9, load_s=0.1, save_s=0.2)
    metrics.checkpoint("ok", 7.0)
    assert value(metrics, "learner_seconds_total", phase="checkpoint") == pytest.approx(0.2)
    assert value(metrics, "learner_seconds_total", phase="load") == pytest.approx(0.1)
    assert value(metrics, "checkpoint_duration_seconds_sum") == pytest.approx(7.0)


def test_figures_of_the_step_are_gauges(metrics: Metrics) -> None:
    observed(metrics)
    assert value(metrics, "loss_over_ln_k_ratio") == pytest.approx(0.8)
    assert value(metrics, "loss") == pytest.approx(0.8 * math.log(40))
    assert value(metrics, "run_samples") == 640
    assert value(metrics, "feature_std_ratio") == pytest.approx(0.9)


def test_usage_perplexity_is_a_ratio_to_k(metrics: Metrics) -> None:
    metrics.observe(synthetic.report(640, torch.full((40,), 1 / 40)), synthetic.stats(), step_s=0.5)
    assert value(metrics, "usage_perplexity_ratio") == pytest.approx(1.0)


def test_usage_perplexity_follows_each_step_after_the_first_health_report(metrics: Metrics) -> None:
    metrics.observe(synthetic.report(640, torch.full((40,), 1 / 40)), synthetic.stats(), step_s=0.5)
    half = torch.cat([torch.full((20,), 1 / 20), torch.zeros(20)])
    metrics.observe(synthetic.report(704, half, with_health=False), synthetic.stats(), step_s=0.5)
    assert value(metrics, "usage_perplexity_ratio") == pytest.approx(0.5)


def test_the_histogram_over_prototypes_counts_each_of_them(metrics: Metrics) -> None:
    usage = torch.zeros(40)
    usage[:10] = 0.1  # four even shares each; thirty are unused
    metrics.observe(synthetic.report(640, usage), synthetic.stats(), step_s=0.5)
    assert value(metrics, "prototype_usage_ratio_bucket", le="0.0") == 30
    assert value(metrics, "prototype_usage_ratio_bucket", le="3.0") == 30
    assert value(metrics, "prototype_usage_ratio_bucket", le="10.0") == 40
    assert value(metrics, "prototype_usage_ratio_bucket", le="+Inf") == 40


def test_a_figure_that_can_no_longer_be_told_is_not_a_number(metrics: Metrics) -> None:
    usage = synthetic.shares(40)
    first = synthetic.report(640, usage)
    metrics.observe(first, synthetic.stats(), step_s=0.5)
    assert first.health is not None
    without = replace(first.health, drift_psi=None, prototype_shift_p50=None, prototype_shift_p99=None)
    metrics.observe(replace(first, health=without), synthetic.stats(), step_s=0.5)
    assert math.isnan(value(metrics, "drift_psi"))
    assert math.isnan(value(metrics, "prototype_shift_cosine", stat="p50"))


def test_series_do_not_grow_with_the_number_of_prototypes() -> None:
    counts = []
    for prototypes in (64, 3000):
        metrics = Metrics(version="0.1.0")
        metrics.observe(synthetic.report(640, synthetic.shares(prototypes)), synthetic.stats(), step_s=0.5)
        counts.append(len(series(metrics)))
    assert counts[0] == counts[1] < 250


def test_what_is_not_known_is_not_exported(metrics: Metrics) -> None:
    names = {name for name, _ in series(metrics)}
    assert "loss" not in names
    observed(metrics)
    names = {name for name, _ in series(metrics)}
    assert "loss" in names
    assert "embedding_alpha_req" not in names


def test_top_and_bottom_shares_are_labelled_by_rank(metrics: Metrics) -> None:
    usage = synthetic.shares(40)
    metrics.observe(synthetic.report(640, usage), synthetic.stats(), step_s=0.5)
    assert value(metrics, "prototype_usage_top_ratio", rank="1") == pytest.approx(float(usage.max()))
    assert value(metrics, "prototype_usage_bottom_ratio", rank="1") == pytest.approx(float(usage.min()))
    groups = [number for (name, _), number in series(metrics).items() if name == "group_usage_ratio"]
    assert len(groups) == 32
    assert sum(groups) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", RESULTS)
def test_every_result_of_publishing_is_counted(metrics: Metrics, kind: str) -> None:
    version = 3 if kind in {"ok", "unhealthy", "repeated"} else 0
    metrics.published(PublishResult(result=kind, samples=64, digest="d", version=version, epoch=2, time=5.0))
    assert value(metrics, "snapshots_published_total", result=kind) == 1
    assert (("snapshot_version", ()) in series(metrics)) == bool(version)


def test_a_rewind_is_counted(metrics: Metrics) -> None:
    metrics.published(PublishResult(result="ok", samples=64, digest="d", version=4, abandoned=(3, 2)))
    assert value(metrics, "snapshot_rewinds_total") == 1
    assert value(metrics, "snapshot_abandoned") == 2


def test_state_of_the_loop_is_shown(metrics: Metrics) -> None:
    assert (value(metrics, "learner_waiting"), value(metrics, "learner_ready")) == (0, 0)
    metrics.waiting(True)
    metrics.ready(True)
    metrics.lag(12)
    metrics.reader_restarts(2)
    metrics.reader_restarts(3)
    metrics.non_finite()
    metrics.checkpoint("ok", 0.4)
    metrics.checkpoint("error")
    assert (value(metrics, "learner_waiting"), value(metrics, "learner_ready")) == (1, 1)
    assert value(metrics, "stream_lag_records") == 12
    assert value(metrics, "reader_restarts_total") == 3
    assert value(metrics, "nan_steps_total") == 1
    assert value(metrics, "checkpoints_total", result="ok") == 1
    assert value(metrics, "checkpoints_total", result="error") == 1
    assert value(metrics, "checkpoint_duration_seconds_count") == 1


def test_the_start_is_told_before_there_is_a_step(metrics: Metrics) -> None:
    assert value(metrics, "learner_start_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert ("last_step_timestamp_seconds", ()) not in series(metrics)


def test_failures_are_counted_from_zero_so_that_the_first_one_is_seen(metrics: Metrics) -> None:
    assert value(metrics, "checkpoints_total", result="error") == 0
    assert value(metrics, "snapshots_published_total", result="error") == 0


def test_program_and_run_are_said_once(metrics: Metrics) -> None:
    assert value(metrics, "build_info", version="0.1.0", revision="abc") == 1
    assert value(metrics, "run_info", run="run-1", config_hash="c") == 1
    assert not any(
        {"run", "version"} & dict(labels).keys()
        for name, labels in series(metrics)
        if name not in {"build_info", "run_info"}
    )


def test_openmetrics_is_given_to_who_asks_for_it(metrics: Metrics) -> None:
    observed(metrics)
    body, kind = metrics.text(OPENMETRICS)
    families = openmetrics(body.decode())
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert families["swavstream_prototype_usage_ratio"].type == "gaugehistogram"
    assert metrics.text("text/plain")[1].startswith("text/plain")


def test_every_metric_of_the_table_is_exported_and_none_besides(metrics: Metrics) -> None:
    usage = synthetic.shares(40)
    report = synthetic.report(640, usage)
    metrics.observe(report, synthetic.stats(64, {"truncated": 1}), step_s=0.5)
    metrics.lag(0)
    behind = {"trained_records": 9, "trained_s": 1.0, "fetched_records": 4, "fetched_s": 0.5}
    metrics.lanes([LaneLag(lane=lane, **behind) for lane in range(300)])  # type: ignore[arg-type]
    metrics.dead_letters(2, 1)
    metrics.replay_memory(17)
    metrics.checkpoint("ok", 0.1)
    metrics.published(PublishResult(result="ok", samples=64, digest="d", version=4, abandoned=(3,)))
    body = metrics.text(OPENMETRICS)[0].decode()
    exported = {name for name in openmetrics(body) if name.startswith(PREFIX)}
    table = {PREFIX + row.name.removesuffix("_total") for row in LEARNER}
    cannot_be_told = {
        "embedding_alpha_req", "embedding_lidar_rank", "queue_age_samples", "queue_staleness_cosine",
    }  # fmt: skip
    assert exported == table - {PREFIX + name for name in cannot_be_told}
    assert cannot_be_told <= {row.name for row in METRICS}


def test_two_learners_in_one_process_do_not_share_numbers() -> None:
    one, other = Metrics(version="1"), Metrics(version="1")
    observed(one)
    assert value(one, "steps_total") == 1
    assert value(other, "steps_total") == 0


def test_scrapes_while_it_counts_see_whole_pages(metrics: Metrics) -> None:
    stop = threading.Event()
    failures: list[Exception] = []

    def scrape() -> None:
        while not stop.is_set():
            try:
                series(metrics)
            except ValueError as error:
                failures.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    report, stats = synthetic.report(640, synthetic.shares(40)), synthetic.stats()
    for _ in range(100):
        metrics.observe(report, stats, step_s=0.1)
    stop.set()
    thread.join()
    assert failures == []
    assert value(metrics, "steps_total") == 100


def test_lag_is_told_for_a_bounded_number_of_lanes(metrics: Metrics) -> None:
    lags = [
        LaneLag(lane=lane, trained_records=lane, trained_s=None, fetched_records=0, fetched_s=0.0)
        for lane in range(1000)
    ]
    metrics.lanes(lags)
    found = [labels for name, labels in series(metrics) if name.endswith("lane_lag_records")]
    assert len(found) == 2 * 256
    assert value(metrics, "lane_lag_records", stage="trained", lane="7") == 7
    assert not any(
        ("stage", "trained") in labels
        for name, labels in series(metrics)
        if name.endswith("lane_lag_seconds")
    )


def test_the_memory_for_replay_is_told_only_where_there_is_one(metrics: Metrics) -> None:
    assert not [name for name, _ in series(metrics) if "replay_prototypes" in name]
    metrics.replay_memory(17)
    assert value(metrics, "replay_prototypes") == 17


def test_dead_letters_are_counted_once(metrics: Metrics) -> None:
    metrics.dead_letters(3, 0)
    metrics.dead_letters(5, 2)
    assert value(metrics, "dead_letters_total", result="sent") == 5
    assert value(metrics, "dead_letters_total", result="dropped") == 2
