"""One catalogue of figures: what is read by name keeps its name, and follows from the rows."""

import dataclasses
import json
import re

from learner.report import HealthReport, StepReport
from ops.live_page.state import LiveView
from ops.monitoring.catalog import CHARTED, HEALTH, JUDGED, METRICS, STEP, entry_of, judged
from tests.ops import synthetic

# Fixed lists: dashboards, scripts and files of earlier runs know these names. Names are added, never changed.
METRIC_NAMES = {
    "counter": """
        records_total samples_total steps_total updates_total learner_seconds_total reader_seconds_total
        reader_bytes_total reader_restarts_total checkpoints_total snapshots_published_total
        snapshot_rewinds_total prototypes_reseeded_total dead_letters_total nan_steps_total
        ingest_images_total ingest_bytes_total ingest_shards_total
    """,
    "gauge": """
        build_info run_info prototypes batch_samples run_samples run_start_samples run_updates
        learner_waiting learner_ready run_ended stream_lag_records lane_lag_records lane_lag_seconds loss
        loss_over_ln_k_ratio learning_rate gradient_norm usage_perplexity_ratio usage_window_fill_ratio
        usage_gini_ratio usage_kl_to_prior_nats dead_prototypes replay_prototypes prototype_twins
        prototype_nn_cosine
        prototype_usage_top_ratio prototype_usage_bottom_ratio group_usage_ratio feature_std_ratio
        embedding_effective_rank embedding_alpha_req embedding_lidar_rank uniformity alignment
        code_entropy_nats prediction_entropy_nats sinkhorn_marginal_residual view_agreement_ratio
        queue_fill_ratio queue_age_samples queue_staleness_cosine stream_autocorrelation batch_similarity
        drift_psi novelty_ratio drift_reference_samples prototype_shift_cosine snapshot_version
        snapshot_epoch snapshot_samples snapshot_every_samples snapshot_bytes snapshot_abandoned
        learner_start_timestamp_seconds last_step_timestamp_seconds last_checkpoint_timestamp_seconds
        last_publish_timestamp_seconds ingest_waiting ingest_last_image_timestamp_seconds
    """,
    "histogram": """
        step_duration_seconds checkpoint_duration_seconds publish_duration_seconds
    """,
    "gaugehistogram": """
        prototype_usage_ratio
    """,
}
HISTORY_KEYS = """
    code_entropy dead_prototypes feature_std_ratio gradient_norm lag learning_rate loss loss_over_ln_k
    prediction_entropy queue_fill rate samples seconds sinkhorn_residual steps time updates
    usage_perplexity view_agreement
"""
STATUS_KEYS = """
    checkpoint code_entropy_nats dead_prototypes effective_rank facts feature_std_ratio gradient_norm
    health lag lanes late_view_agreement learning_rate ln_k loss loss_over_ln_k now phases
    prediction_entropy_nats prototype_twins prototypes queue_fill ranks rate reason recent restarts run
    run_dir samples since_step_s sinkhorn_residual skipped snapshot start_samples start_view_agreement
    started state step_s total_samples updates usage_perplexity usage_reports usage_window_fill verdict
    verdicts view_agreement
"""
CHART_COLUMNS = """
    dead_prototypes feature_std_ratio lag learning_rate loss loss_over_ln_k rate samples time
    usage_perplexity view_agreement
"""
HEALTH_KEYS = """
    alignment alpha_req batch_similarity code_entropy_nats dead_prototypes drift_psi effective_rank
    feature_std_ratio group_usage lidar_rank loss loss_excess_ratio nn_cosine_max nn_cosine_mean
    nn_cosine_p50 nn_cosine_p99 novelty_ratio prediction_entropy_nats prototype_shift_p50
    prototype_shift_p99 prototype_twins prototypes queue_age_max_samples queue_age_mean_samples
    queue_staleness_cosine reference_samples samples sinkhorn_residual stream_autocorrelation uniformity
    unused_by_chance usage_bottom usage_gini_ratio usage_histogram usage_kl_to_prior_nats
    usage_perplexity usage_perplexity_raw usage_samples usage_top usage_window_samples view_agreement
    view_agreement_corrected
"""
NO_FIGURES = {"assigned_B", "assigned_N", "score_B", "seconds", "health", "reseeded"}
"""Fields of a step report that are no figure: tensors, seconds by phase, a part of its own, and a counter."""


def watched() -> LiveView:
    """A live page that has seen one step."""
    usage = synthetic.shares(40)
    live = LiveView(run="r", run_dir="/run", prototypes=40)
    live.observe(synthetic.report(640, usage), synthetic.stats(64), step_s=0.5, lag=3)
    return live


def test_metrics_have_the_names_and_kinds_that_dashboards_know() -> None:
    for kind, names in METRIC_NAMES.items():
        assert [row.name for row in METRICS if row.kind == kind] == names.split(), kind


def test_an_entry_of_the_history_has_the_keys_that_earlier_files_have() -> None:
    entry = entry_of(synthetic.report(640, synthetic.shares(40)), steps=10, seconds=1.5, rate=64.0, lag=5)
    assert set(entry) == set(HISTORY_KEYS.split())
    assert (entry["steps"], entry["samples"], entry["seconds"]) == (10, 640, 1.5)
    assert json.loads(json.dumps(entry)) == entry


def test_the_live_page_answers_with_the_fields_that_its_readers_know() -> None:
    live = watched()
    status = live.status()
    assert set(status) == set(STATUS_KEYS.split())
    assert set(status["health"]) == set(HEALTH_KEYS.split())
    assert set(live.history()) == set(CHART_COLUMNS.split())


def test_every_figure_of_a_step_has_one_row() -> None:
    fields = {field.name for field in dataclasses.fields(StepReport)} - NO_FIGURES
    named = [row.step for row in STEP]
    assert sorted(named) == sorted(fields)
    assert set(CHARTED) <= fields


def test_rows_of_a_health_report_name_its_fields_and_no_field_twice() -> None:
    fields = {field.name for field in dataclasses.fields(HealthReport)}
    named = [name for row in HEALTH for name in (row.health, *row.stats.values()) if name]
    assert set(named) <= fields
    assert len(named) == len(set(named))


def test_a_figure_is_judged_alike_from_a_report_and_from_the_history() -> None:
    usage = synthetic.shares(40)
    live = watched()
    now = judged({**live.status()["health"], **live.status()})
    entry = entry_of(synthetic.report(640, usage), steps=10, seconds=1.5, rate=64.0, lag=5)
    later = judged({**entry, "prototypes": 40})
    known = {name for name, value in later.items() if value is not None}
    assert known >= {"code_entropy_over_ln_k", "dead_prototypes_ratio", "feature_std_ratio"}
    assert {name: now[name] for name in known} == {name: later[name] for name in known}
    assert now.keys() == JUDGED.keys()


def test_counts_of_prototypes_are_judged_as_shares_of_k_by_rules_and_alerts_alike() -> None:
    assert judged({"prototypes": 40, "dead_prototypes": 10})["dead_prototypes_ratio"] == 0.25
    dead, usage = JUDGED["dead_prototypes_ratio"], JUDGED["usage_perplexity_ratio"]
    assert dead.expression == "swavstream_dead_prototypes / swavstream_prototypes"
    assert usage.expression == "swavstream_usage_perplexity_ratio"
    assert judged({"prototypes": 40, "usage_perplexity": 10})["usage_perplexity_ratio"] == 0.25


def test_what_is_not_known_is_not_judged() -> None:
    assert set(judged({}).values()) == {None}
    assert judged({"dead_prototypes": 3})["dead_prototypes_ratio"] is None
    assert judged({"prototypes": 1, "code_entropy_nats": 0.0})["code_entropy_over_ln_k"] is None


def test_no_help_text_is_said_of_two_metrics() -> None:
    said = [re.sub(r"\W+", " ", row.help) for row in METRICS]
    assert len(said) == len(set(said))
