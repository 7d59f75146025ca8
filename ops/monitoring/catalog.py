"""Every metric that the learner exports, once: name, kind, unit, meaning, labels. Nothing heavy is imported.

The number of series does not depend on the number of prototypes: usage is exported as a histogram over
prototypes, as the ten largest and smallest shares by rank, and as shares of at most 32 fixed groups. All
shares are at /api/v1/prototypes.
"""

from dataclasses import dataclass

PREFIX = "swavstream_"

LANES_SHOWN = 256
"""So many lanes have series of their own."""

DURATION_BUCKETS_S = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric."""

    name: str
    """Without the prefix, as it is queried (counters with _total)."""
    kind: str
    """counter, gauge, histogram or gaugehistogram."""
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    values: str = ""
    """What the labels may be."""


def _table(kind: str, *rows: tuple[str, ...]) -> tuple[Metric, ...]:
    """Rows of name, unit, help and, where there are labels, their names and what they may be."""
    return tuple(
        Metric(
            name=row[0],
            kind=kind,
            unit=row[1],
            help=row[2],
            labels=tuple(row[3].split()) if len(row) > 3 else (),
            values=row[4] if len(row) > 4 else "",
        )
        for row in rows
    )


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
        "load, augment, forward, sinkhorn, backward, optim, health, checkpoint, other",
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
        "Prototypes that began anew because no sample came to them; 0 unless reseed.after_samples is set.",
    ),
    (
        "dead_letters_total",
        "records",
        "Records that could not be used and were told of in the dead-letter topic (Kafka only).",
        "result",
        "sent, dropped",
    ),
    ("nan_steps_total", "steps", "Steps whose loss or gradient was not finite; no update was made."),
)

GAUGES = _table(
    "gauge",
    ("build_info", "1", "The program.", "version revision"),
    ("run_info", "1", "The run.", "run config_hash"),
    ("prototypes", "prototypes", "K of the first head."),
    ("batch_samples", "samples", "Samples of one step, over all ranks."),
    ("run_samples", "samples", "Samples seen by the run, over restarts."),
    ("run_start_samples", "samples", "Samples that the run had seen when this life of it began."),
    ("run_updates", "updates", "Updates done by the run, over restarts."),
    ("learner_waiting", "bool", "1 while the learner waits for records that have not arrived."),
    ("learner_ready", "bool", "1 from the first step until the run is stopping."),
    (
        "run_ended",
        "bool",
        "1 once the run is over as it should be: at its end, or ended by hand. Its port then waits for one "
        "more look of whoever has looked so far.",
    ),
    ("stream_lag_records", "records", "Records committed but not yet used."),
    (
        "lane_lag_records",
        "records",
        "Records of a lane not yet learned from, or not yet read ahead.",
        "stage lane",
        "trained, fetched; 0 to lanes - 1, at most 255",
    ),
    (
        "lane_lag_seconds",
        "seconds",
        "Age of the newest record of a lane that was learned from or read ahead; 0 = all were (Kafka only).",
        "stage lane",
        "trained, fetched; 0 to lanes - 1, at most 255",
    ),
    ("loss", "nats", "Swapped prediction loss."),
    ("loss_over_ln_k_ratio", "ratio", "Loss against ln K; 1 = has learned nothing."),
    ("learning_rate", "1", "Learning rate of the last update."),
    ("gradient_norm", "1", "2-norm of the whole gradient before clipping."),
    (
        "usage_perplexity_ratio",
        "ratio",
        "Prototypes in use, of K: exp of the entropy of usage by raw arg-max, corrected for its window.",
    ),
    ("usage_window_fill_ratio", "ratio", "How full the usage window is; usage figures mean little before 1."),
    ("usage_gini_ratio", "ratio", "Inequality of usage; 0 = even, 1 = one prototype takes all."),
    ("usage_kl_to_prior_nats", "nats", "Divergence of usage from the wanted prior; 0 = as wanted."),
    ("dead_prototypes", "prototypes", "Prototypes used less than a twentieth of the even share."),
    ("prototype_twins", "prototypes", "Prototypes with another one in nearly the same direction."),
    (
        "prototype_nn_cosine",
        "cosine",
        "Cosine of a prototype with its nearest other one, over prototypes.",
        "stat",
        "p50, p99, max",
    ),
    (
        "prototype_usage_top_ratio",
        "ratio",
        "The largest shares of usage; 1/K is even.",
        "rank",
        "1 (largest) to 10",
    ),
    (
        "prototype_usage_bottom_ratio",
        "ratio",
        "The smallest shares of usage; 1/K is even.",
        "rank",
        "1 (smallest) to 10",
    ),
    (
        "group_usage_ratio",
        "ratio",
        "Share of usage of a fixed group of prototypes (number modulo groups).",
        "group",
        "00 to 31",
    ),
    ("feature_std_ratio", "ratio", "Spread of the features; 1 = all over the sphere, 0 = collapsed."),
    ("embedding_effective_rank", "dimensions", "Effective rank of the features of a batch; 1 to D."),
    ("embedding_alpha_req", "1", "Decay exponent of the features' spectrum."),
    (
        "embedding_lidar_rank",
        "dimensions",
        "Effective rank of what tells images apart against views; high for noise too.",
    ),
    ("uniformity", "1", "log mean exp(-2 d^2) over pairs of samples; lower is more even."),
    ("alignment", "1", "Mean squared distance of two views of a sample."),
    ("code_entropy_nats", "nats", "Mean entropy of the codes; ln K = codes say nothing."),
    ("prediction_entropy_nats", "nats", "Mean entropy of the predictions."),
    (
        "sinkhorn_marginal_residual",
        "ratio",
        "Mass that Sinkhorn left on the wrong prototypes; 0 = balanced, at most 2.",
    ),
    ("view_agreement_ratio", "ratio", "Two views on one prototype, corrected for chance; 0 = chance."),
    ("queue_fill_ratio", "ratio", "How full the feature queue is; 0 without one."),
    ("queue_age_samples", "samples", "Age of the features in the queue.", "stat", "mean, max"),
    (
        "queue_staleness_cosine",
        "cosine",
        "Features against those of the same images when the queue's oldest were made; 1 = fresh.",
    ),
    ("stream_autocorrelation", "cosine", "How much closer neighbours in a lane are than other pairs."),
    (
        "batch_similarity",
        "cosine",
        "How much closer samples of a batch are than samples of different batches; 0 = well mixed.",
    ),
    (
        "drift_psi",
        "1",
        "Shift of the stream among groups of prototypes, seen by a frozen copy of the network; 0 = none.",
    ),
    (
        "novelty_ratio",
        "ratio",
        "Samples that fit no prototype of the frozen copy; 0.01 = as when it was taken.",
    ),
    ("drift_reference_samples", "samples", "Samples that the run had seen when the frozen copy was taken."),
    (
        "prototype_shift_cosine",
        "cosine",
        "1 - cosine of a prototype with itself in the frozen copy, over prototypes.",
        "stat",
        "p50, p99",
    ),
    ("snapshot_version", "version", "Snapshot published last."),
    ("snapshot_epoch", "epoch", "Fencing number under which it was published."),
    ("snapshot_samples", "samples", "Samples that the run had seen at the snapshot published last."),
    ("snapshot_every_samples", "samples", "Samples between two snapshots as set; 0 = only one at the end."),
    ("snapshot_bytes", "bytes", "Size of the last snapshot in Redis."),
    ("snapshot_abandoned", "snapshots", "Snapshots that the last rewind abandoned."),
    ("learner_start_timestamp_seconds", "seconds", "When this life of the run began, unix time."),
    ("last_step_timestamp_seconds", "seconds", "When the last step ended, unix time."),
    ("last_checkpoint_timestamp_seconds", "seconds", "When the last checkpoint was written, unix time."),
    ("last_publish_timestamp_seconds", "seconds", "When the last snapshot was published, unix time."),
)

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
