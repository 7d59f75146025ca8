"""Every figure, once: metric, kind, unit, meaning, labels, and where else it shows; light to import.

A figure that the learner reports has one row. The row names its field in `learner.report`, and from it follow
the metric, the live page, the history of a run, what the doctor judges, and the table in the documentation.

The number of series does not depend on the number of prototypes: usage is exported as a histogram over
prototypes, as the ten largest and smallest shares by rank, and as shares of at most 32 fixed groups. All
shares are at /api/v1/prototypes.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.report import HealthReport, StepReport

PREFIX = "swavstream_"

LANES_SHOWN = 256
"""So many lanes have series of their own."""

DURATION_BUCKETS_S = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric, and the figure of the learner that it shows, if it shows one."""

    name: str
    """Without the prefix, as it is queried (counters with _total)."""
    kind: str
    """counter, gauge, histogram or gaugehistogram."""
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    values: str = ""
    """What the labels may be."""
    step: str = ""
    """Field of StepReport; it is at /api/v1/status and in history.jsonl too, under the same name."""
    health: str = ""
    """Field of HealthReport; with a label, a tuple with one value for each value of the label."""
    stats: Mapping[str, str] = field(default_factory=dict)
    """Value of the label -> field of HealthReport."""
    live: bool = False
    """A figure of HealthReport that is at /api/v1/status beside those of the step."""
    history: str | None = ""
    """Key in history.jsonl of a figure of the step; "" = its field's name, None = not kept."""
    chart: bool = False
    """A column of /api/v1/history."""
    judged: str = ""
    """Name under which the rules judge it."""
    per: str = ""
    """k or ln_k: it is judged as a share of that; a metric in ratios is exported so as well."""

    @property
    def figure(self) -> str:
        """The field of the learner's reports; empty = no figure of the learner."""
        return self.step or self.health

    @property
    def expression(self) -> str:
        """PromQL of what the rules judge."""
        share = self.per == "k" and self.unit != "ratio"
        return f"{PREFIX}{self.name} / {PREFIX}prototypes" if share else PREFIX + self.name


def _table(kind: str, *rows: tuple[str, ...]) -> tuple[Metric, ...]:
    """Rows of name, unit, help and, where there are labels, their names and what they may be."""
    return tuple(_metric(kind, *row) for row in rows)


def _metric(
    kind: str, name: str, unit: str, help_: str, labels: str = "", values: str = "", **shown: Any
) -> Metric:
    return Metric(
        name=name, kind=kind, unit=unit, help=help_, labels=tuple(labels.split()), values=values, **shown
    )


def _gauge(name: str, unit: str, help_: str, labels: str = "", values: str = "", **shown: Any) -> Metric:
    return _metric("gauge", name, unit, help_, labels, values, **shown)


COUNTERS = _table(
    "counter",
    (
        "records_total",
        "records",
        "Records read, by what became of them; the sum is all that was read.",
        "outcome reason",
        "outcome used (reason empty) or skipped (reason as in the accounts)",
    ),
    ("samples_total", "samples", "Samples that an update was made from; images per second is its rate."),
    ("steps_total", "steps", "Steps done."),
    ("updates_total", "updates", "Optimizer updates.", "source", "fresh, replay"),
    (
        "learner_seconds_total",
        "seconds",
        "Where the learner's time goes.",
        "phase",
        "load, augment, forward, sinkhorn, backward, optim, branch, health, checkpoint, other",
    ),
    (
        "reader_seconds_total",
        "seconds",
        "Where the readers' time goes, over all reader processes.",
        "phase",
        "read, decode, crop",
    ),
    ("reader_bytes_total", "bytes", "Encoded bytes read."),
    ("reader_restarts_total", "restarts", "Reader processes that died and were replaced."),
    (
        "checkpoints_total",
        "checkpoints",
        "Checkpoints: written, not written, or found damaged at a resume.",
        "result",
        "ok, error, damaged",
    ),
    (
        "snapshots_published_total",
        "snapshots",
        "What became of snapshots and of attempts to publish them.",
        "result",
        "ok, unhealthy, repeated, superseded, stale_epoch, error",
    ),
    ("snapshot_rewinds_total", "rewinds", "Times that newer snapshots were abandoned after a resume."),
    (
        "prototypes_reseeded_total",
        "prototypes",
        "Prototypes re-seeded because no sample came to them; 0 unless reseed.after_samples is set.",
    ),
    (
        "dead_letters_total",
        "records",
        "Records that could not be used and were reported in the dead-letter topic (Kafka only).",
        "result",
        "sent, dropped",
    ),
    ("nan_steps_total", "steps", "Steps whose loss or gradient was not finite; no update was made."),
)

GAUGES = (
    _gauge("build_info", "1", "The program.", "version revision"),
    _gauge("run_info", "1", "The run.", "run config_hash"),
    _gauge("prototypes", "prototypes", "K of the first head.", health="prototypes"),
    _gauge("batch_samples", "samples", "Samples of one step, over all ranks."),
    _gauge("run_samples", "samples", "Samples seen by the run, over restarts.", step="samples"),
    _gauge("run_start_samples", "samples", "Samples that the run had seen when this life of it began."),
    _gauge("run_updates", "updates", "Updates done by the run, over restarts.", step="updates"),
    _gauge("learner_waiting", "bool", "1 while the learner waits for records that have not arrived."),
    _gauge("learner_ready", "bool", "1 from the first step until the run is stopping."),
    _gauge("run_ended", "bool",
           "1 once the run is over as it should be: at its end, or ended by hand. Its port then "
           "waits for one more look of whoever has looked so far."),
    _gauge("stream_lag_records", "records", "Records committed but not yet used."),
    _gauge("lane_lag_records", "records", "Records of a lane not yet learned from, or not yet read ahead.",
           "stage lane", "trained, fetched; 0 to lanes - 1, at most 255"),
    _gauge("lane_lag_seconds", "seconds",
           "Age of the newest record of a lane that was learned from or read ahead; 0 = all were "
           "(Kafka only).", "stage lane", "trained, fetched; 0 to lanes - 1, at most 255"),
    _gauge("loss", "nats", "Swapped prediction loss.", step="loss", chart=True),
    _gauge("loss_over_ln_k_ratio", "ratio", "Loss against ln K; 1 = has learned nothing.",
           step="loss_over_ln_k", chart=True, judged="loss_over_ln_k"),
    _gauge("learning_rate", "1", "Learning rate of the last update.", step="learning_rate", chart=True),
    _gauge("gradient_norm", "1", "2-norm of the whole gradient before clipping.", step="gradient_norm"),
    _gauge("usage_perplexity_ratio", "ratio",
           "Prototypes in use, of K: exp of the entropy of usage by raw arg-max, corrected for its window.",
           step="usage_perplexity", chart=True, judged="usage_perplexity_ratio", per="k"),
    _gauge("usage_window_fill_ratio", "ratio",
           "How full the usage window is; usage figures mean little before 1.", step="usage_window_fill",
           history=None, judged="usage_window_fill"),
    _gauge("usage_gini_ratio", "ratio", "Inequality of usage; 0 = even, 1 = one prototype takes all.",
           health="usage_gini_ratio"),
    _gauge("usage_kl_to_prior_nats", "nats", "Divergence of usage from the wanted prior; 0 = as wanted.",
           health="usage_kl_to_prior_nats"),
    _gauge("dead_prototypes", "prototypes", "Prototypes used less than a twentieth of the even share.",
           step="dead_prototypes", chart=True, judged="dead_prototypes_ratio", per="k"),
    _gauge("replay_prototypes", "prototypes",
           "Prototypes that have images in the memory for replay (replay.policy = prototypes only)."),
    _gauge("prototype_twins", "prototypes", "Prototypes with another one in nearly the same direction.",
           health="prototype_twins", live=True, judged="prototype_twins_ratio", per="k"),
    _gauge("prototype_nn_cosine", "cosine",
           "Cosine of a prototype with its nearest other one, over prototypes.", "stat", "p50, p99, max",
           stats={"p50": "nn_cosine_p50", "p99": "nn_cosine_p99", "max": "nn_cosine_max"}),
    _gauge("prototype_usage_top_ratio", "ratio", "The largest shares of usage; 1/K is even.", "rank",
           "1 (largest) to 10", health="usage_top"),
    _gauge("prototype_usage_bottom_ratio", "ratio", "The smallest shares of usage; 1/K is even.", "rank",
           "1 (smallest) to 10", health="usage_bottom"),
    _gauge("group_usage_ratio", "ratio",
           "Share of usage of a fixed group of prototypes (number modulo groups).", "group", "00 to 31",
           health="group_usage"),
    _gauge("feature_std_ratio", "ratio", "Spread of the features; 1 = all over the sphere, 0 = collapsed.",
           step="feature_std_ratio", chart=True, judged="feature_std_ratio"),
    _gauge("embedding_effective_rank", "dimensions", "Effective rank of the features of a batch; 1 to D.",
           health="effective_rank", live=True),
    _gauge("embedding_alpha_req", "1", "Decay exponent of the features' spectrum.", health="alpha_req"),
    _gauge("embedding_lidar_rank", "dimensions",
           "Effective rank of what tells images apart against views; high for noise too.",
           health="lidar_rank"),
    _gauge("uniformity", "1", "log mean exp(-2 d^2) over pairs of samples; lower is more even.",
           health="uniformity"),
    _gauge("alignment", "1", "Mean squared distance of two views of a sample.", health="alignment"),
    _gauge("code_entropy_nats", "nats", "Mean entropy of the codes; ln K = codes say nothing.",
           step="code_entropy_nats", history="code_entropy", judged="code_entropy_over_ln_k", per="ln_k"),
    _gauge("prediction_entropy_nats", "nats", "Mean entropy of the predictions.",
           step="prediction_entropy_nats", history="prediction_entropy"),
    _gauge("sinkhorn_marginal_residual", "ratio",
           "Mass that Sinkhorn left on the wrong prototypes; 0 = balanced, at most 2.",
           step="sinkhorn_residual", judged="sinkhorn_residual"),
    _gauge("view_agreement_ratio", "ratio", "Two views on one prototype, corrected for chance; 0 = chance.",
           step="view_agreement", chart=True),
    _gauge("queue_fill_ratio", "ratio", "How full the feature queue is; 0 without one.", step="queue_fill"),
    _gauge("queue_age_samples", "samples", "Age of the features in the queue.", "stat", "mean, max",
           stats={"mean": "queue_age_mean_samples", "max": "queue_age_max_samples"}),
    _gauge("queue_staleness_cosine", "cosine",
           "Features against those of the same images when the queue's oldest were made; 1 = fresh.",
           health="queue_staleness_cosine"),
    _gauge("stream_autocorrelation", "cosine", "How much closer neighbours in a lane are than other pairs.",
           health="stream_autocorrelation", judged="stream_autocorrelation"),
    _gauge("batch_similarity", "cosine",
           "How much closer samples of a batch are than samples of different batches; 0 = well mixed.",
           health="batch_similarity", judged="batch_similarity"),
    _gauge("drift_psi", "1",
           "Shift of the stream among groups of prototypes, seen by a frozen copy of the network; 0 = none.",
           health="drift_psi", judged="drift_psi"),
    _gauge("novelty_ratio", "ratio",
           "Samples that fit no prototype of the frozen copy; 0.01 = as when it was taken.",
           health="novelty_ratio", judged="novelty_ratio"),
    _gauge("drift_reference_samples", "samples",
           "Samples that the run had seen when the frozen copy was taken.", health="reference_samples"),
    _gauge("prototype_shift_cosine", "cosine",
           "1 - cosine of a prototype with itself in the frozen copy, over prototypes.", "stat", "p50, p99",
           stats={"p50": "prototype_shift_p50", "p99": "prototype_shift_p99"}),
    _gauge("snapshot_version", "version", "Snapshot published last."),
    _gauge("snapshot_epoch", "epoch", "Fencing number under which it was published."),
    _gauge("snapshot_samples", "samples", "Samples that the run had seen at the snapshot published last."),
    _gauge("snapshot_every_samples", "samples",
           "Samples between two snapshots as set; 0 = only one at the end."),
    _gauge("snapshot_bytes", "bytes", "Size of the last snapshot in Redis."),
    _gauge("snapshot_abandoned", "snapshots", "Snapshots that the last rewind abandoned."),
    _gauge("learner_start_timestamp_seconds", "seconds", "When this life of the run began, unix time."),
    _gauge("last_step_timestamp_seconds", "seconds", "When the last step ended, unix time."),
    _gauge("last_checkpoint_timestamp_seconds", "seconds",
           "When the last checkpoint was written, unix time."),
    _gauge("last_publish_timestamp_seconds", "seconds", "When the last snapshot was published, unix time."),
)  # fmt: skip

HISTOGRAMS = _table(
    "histogram",
    ("step_duration_seconds", "seconds", "Length of a step, from batch to batch."),
    ("checkpoint_duration_seconds", "seconds", "Time that a checkpoint took."),
    ("publish_duration_seconds", "seconds", "Time that publishing a snapshot took, beside the learner."),
)

GAUGE_HISTOGRAMS = _table(
    "gaugehistogram",
    (
        "prototype_usage_ratio",
        "ratio",
        "Prototypes by usage x K: 1 = the even share, 0 = unused. Query without rate().",
    ),
)

INGEST = (
    *_table(
        "counter",
        (
            "ingest_images_total",
            "images",
            "Found by an ingest, by what became of them; over all starts of its source.",
            "outcome reason",
            "outcome written (reason empty) or skipped (reason as in the accounts)",
        ),
        ("ingest_bytes_total", "bytes", "Encoded image bytes that an ingest has written."),
        ("ingest_shards_total", "shards", "Shards that an ingest has committed; 0 for a topic."),
    ),
    *_table(
        "gauge",
        ("ingest_waiting", "bool", "1 while an ingest is held up by runs that are too far behind."),
        ("ingest_last_image_timestamp_seconds", "seconds", "When an ingest last found an image, unix time."),
    ),
)
"""What `ingest --metrics-port` exports."""

LEARNER: tuple[Metric, ...] = (*COUNTERS, *GAUGES, *HISTOGRAMS, *GAUGE_HISTOGRAMS)
"""What the learner exports."""

METRICS: tuple[Metric, ...] = (*LEARNER, *INGEST)
"""The whole table."""

STEP = tuple(row for row in GAUGES if row.step)
"""Figures of every step."""

HEALTH = tuple(row for row in GAUGES if row.health or row.stats)
"""Figures of a health report."""

CHARTED = tuple(row.figure for row in GAUGES if row.chart)
"""Names of the figures of which the live page draws a line."""

JUDGED = {row.judged: row for row in GAUGES if row.judged}
"""What the rules judge, by name."""


def figures_of(report: "StepReport", health: "HealthReport | None") -> dict[str, float | None]:
    """The figures of a step that people are shown, by name.

    Args:
        report: of the step.
        health: the latest health report, which may be older; None when there was none.
    """
    figures: dict[str, float | None] = {row.step: getattr(report, row.step) for row in STEP}
    if report.loss_over_ln_k > 0:
        figures["ln_k"] = report.loss / report.loss_over_ln_k
    if health is not None:
        figures |= {row.health: getattr(health, row.health) for row in HEALTH if row.live}
    return figures


def entry_of(
    report: "StepReport", *, steps: int, seconds: float, rate: float, lag: int
) -> dict[str, float | int]:
    """One step as an entry of history.jsonl.

    Args:
        report: of the learner.
        steps: global batches so far.
        seconds: spent on the run, over restarts.
        rate: samples a second, of the last seconds.
        lag: records committed but not yet used.
    """
    kept = {row.history or row.step: getattr(report, row.step) for row in STEP if row.history is not None}
    return {
        "time": time.time(),
        "seconds": round(seconds, 3),
        "steps": steps,
        **kept,
        "rate": rate,
        "lag": lag,
    }


def judged(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures in the form in which rules judge them; None = not known, or not finite.

    Args:
        figures: by the names of the reports' fields, or of history.jsonl; `prototypes` is K.
    """
    prototypes = figures.get("prototypes") or 0
    prototypes = prototypes if math.isfinite(prototypes) else 0
    whole = {"": 1.0, "k": float(prototypes), "ln_k": math.log(max(1, prototypes))}
    found: dict[str, float | None] = {}
    for name, row in JUDGED.items():
        value = figures.get(row.figure)
        if value is None and row.history:
            value = figures.get(row.history)
        known = float("nan") if value is None else float(value)
        found[name] = known / whole[row.per] if math.isfinite(known) and whole[row.per] > 0 else None
    return found
