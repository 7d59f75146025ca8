"""For each alert: series of a sick learner, when it fires, and with what value; and of a healthy one."""

from dataclasses import dataclass, field

STEP_S = 15
"""Seconds between two points of every series."""
POINTS = 480

UP = 'up{job="swavstream",instance="learner"}'

HEALTHY = {
    UP: "1x{n}",
    'run_info{run="r"}': "1x{n}",
    "run_ended": "0x{n}",
    "learner_start_timestamp_seconds": "0x{n}",
    "last_step_timestamp_seconds": "0+15x{n}",
    "learner_waiting": "0x{n}",
    "stream_lag_records": "5000-1x{n}",
    "batch_samples": "256x{n}",
    "prototypes": "3000x{n}",
    "feature_std_ratio": "0.9x{n}",
    "loss_over_ln_k_ratio": "0.7x{n}",
    "run_updates": "1000+30x{n}",
    "run_start_samples": "0x{n}",
    "run_samples": "256000+7680x{n}",
    "usage_perplexity_ratio": "0.8x{n}",
    "usage_window_fill_ratio": "1x{n}",
    "dead_prototypes": "100x{n}",
    "prototype_twins": "10x{n}",
    "sinkhorn_marginal_residual": "0.3x{n}",
    "drift_psi": "0.02x{n}",
    "batch_similarity": "0.01x{n}",
    "stream_autocorrelation": "0.01x{n}",
    'records_total{outcome="used",reason=""}': "0+100x{n}",
    'records_total{outcome="skipped",reason="truncated"}': "0+1x{n}",
    'records_total{outcome="skipped",reason="non_finite"}': "0+50x{n}",
    "nan_steps_total": "3x{n}",
    "reader_restarts_total": "1x{n}",
    'checkpoints_total{result="ok"}': "0+1x{n}",
    'checkpoints_total{result="error"}': "2x{n}",
    'snapshots_published_total{result="ok"}': "0+1x{n}",
    'snapshots_published_total{result="error"}': "4x{n}",
    'snapshots_published_total{result="stale_epoch"}': "0x{n}",
    "snapshot_samples": "250000+7680x{n}",
    "snapshot_every_samples": "50000x{n}",
}
"""A learner that is well, with things that are no fault: old errors, a few bad records, batches left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What makes one alert fire."""

    sick: dict[str, str | None]
    """Instead of the healthy series; None = the series is not there."""
    fires_s: int
    """Seconds after which it fires; it does not one point earlier."""
    value: str
    labels: dict[str, str] = field(default_factory=dict)
    """Beside those of the rule."""


def _gauge(name: str, value: str, fires_s: int, shown: str) -> Case:
    return Case(sick={name: value + "x{n}"}, fires_s=fires_s, value=shown)


# `increase` reaches out by half a point at the edge of what it sees, hence 1.125 for one.
CASES = {
    "SwavstreamMetricsAbsent": Case(sick={UP: "0x{n}"}, fires_s=300, value="0"),
    # Later than 120 s is 135 s, the next point; and then it has to hold for a minute.
    "SwavstreamLearnerStalled": Case(sick={"last_step_timestamp_seconds": "0x{n}"}, fires_s=195, value="195"),
    "SwavstreamNotFinite": Case(sick={"nan_steps_total": "3x3 4x{n}"}, fires_s=60, value="1.125"),
    "SwavstreamFeatureCollapse": _gauge("feature_std_ratio", "0.01", 120, "0.01"),
    "SwavstreamNotLearning": _gauge("loss_over_ln_k_ratio", "1", 600, "1"),
    "SwavstreamUsageCollapse": _gauge("usage_perplexity_ratio", "0.01", 600, "0.01"),
    "SwavstreamPrototypesDying": _gauge("dead_prototypes", "750", 1800, "0.25"),
    "SwavstreamPrototypeTwins": _gauge("prototype_twins", "600", 1800, "0.2"),
    "SwavstreamCodesUnbalanced": _gauge("sinkhorn_marginal_residual", "1.2", 600, "1.2"),
    "SwavstreamStreamDrift": _gauge("drift_psi", "0.4", 300, "0.4"),
    "SwavstreamStreamSorted": _gauge("batch_similarity", "0.5", 900, "0.5"),
    # The rate needs two points.
    "SwavstreamBadRecords": Case(
        sick={
            'records_total{outcome="skipped",reason="truncated"}': "0+25x{n}",
            'records_total{outcome="skipped",reason="non_finite"}': "0x{n}",
        },
        fires_s=315,
        value="0.2",
    ),
    "SwavstreamStarved": Case(
        sick={"learner_waiting": "1x{n}", "stream_lag_records": "3000x{n}"}, fires_s=600, value="3000"
    ),
    # 50 records more every point: the growth over 30 minutes, put on by its edges, passes 2,560 in time.
    "SwavstreamFallingBehind": Case(sick={"stream_lag_records": "0+50x{n}"}, fires_s=2565, value="6000"),
    "SwavstreamReadersDying": Case(sick={"reader_restarts_total": "1x3 5x{n}"}, fires_s=60, value="5"),
    "SwavstreamCheckpointFailing": Case(
        sick={'checkpoints_total{result="error"}': "2x3 3x{n}"}, fires_s=60, value="1.125"
    ),
    "SwavstreamSnapshotsFailing": Case(
        sick={'snapshots_published_total{result="error"}': "4+1x{n}"},
        fires_s=315,
        value="21.5",
        labels={"result": "error"},
    ),
    "SwavstreamSnapshotStale": Case(sick={"snapshot_samples": "100000x{n}"}, fires_s=300, value="3.096e+05"),
    "SwavstreamTwoLearners": Case(
        sick={'snapshots_published_total{result="stale_epoch"}': "0x3 1x{n}"},
        fires_s=60,
        value="1",
        labels={"result": "stale_epoch"},
    ),
}
