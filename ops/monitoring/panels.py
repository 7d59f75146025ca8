"""The four dashboards, row by row: prototype balance, training, stream and ingest, snapshots."""

from ops.monitoring import rules
from ops.monitoring.catalog import PREFIX
from ops.monitoring.grafana import (
    GREEN,
    RED,
    YELLOW,
    Dashboard,
    Panel,
    Row,
    lines,
    metric,
    number,
    quantile,
    query,
    rate,
    share,
)

NO_QUEUE = "runs without a queue have none; with one it is told once the queue is full"
NO_MEMORY = "only runs with replay.policy = prototypes have one"
NOT_YET = "told once the run has been healthy for some reports"
NARROW = "needs an embedding of 32 dimensions or more, and a batch of more samples than that"
NOT_PUBLISHED = "nothing has been published yet"


def _limits(rule: rules.Rule) -> list[tuple[float, str]]:
    """Colours of a figure from both limits of its rule upwards."""
    if rule.shown is None:
        raise ValueError(f"{rule.name} has one limit")
    if rule.when[0][0].compare == "<":
        return [(rule.bound, YELLOW), (rule.shown.watch.bound(), GREEN)]
    return [(rule.shown.watch.bound(), YELLOW), (rule.bound, RED)]


def _share(name: str) -> str:
    return f"{metric(name)} / {metric('prototypes')}"


GLANCE = Row(
    title="At a glance",
    panels=(
        number("Images a second", f"sum by (instance) ({rate('samples_total')})",
               "Samples that updates were made from. 0 while it waits for records.",
               steps=[(0.001, GREEN)], base=RED),
        number("Loss of ln K", metric("loss_over_ln_k_ratio"),
               "1 = has learned nothing; falls as views predict each other.",
               unit="percentunit", steps=_limits(rules.NOT_LEARNING)),
        number("Prototypes in use", metric("usage_perplexity_ratio"),
               "Perplexity of usage by raw arg-max, of K. Codes are balanced by construction, so they are "
               "not "
               "what is looked at.",
               unit="percentunit", steps=_limits(rules.USAGE), base=RED),
        number("Dead", _share("dead_prototypes"), "Prototypes that get almost no images, of K.",
               unit="percentunit", steps=_limits(rules.DEAD)),
        number("Twins", _share("prototype_twins"),
               "Prototypes that are nearly the same vector as another, of K: partial collapse.",
               unit="percentunit", steps=_limits(rules.TWINS)),
        number("Feature spread", metric("feature_std_ratio"), "1 = all over the sphere, 0 = collapsed.",
               unit="percentunit", steps=_limits(rules.COLLAPSE), base=RED),
        number("Effective rank", metric("embedding_effective_rank"),
               "Directions that the features use; compare within one run only."),
        number("Snapshot age", f"time() - {metric('last_publish_timestamp_seconds')}",
               "Since the last snapshot was published.", unit="s", may_be_empty=NOT_PUBLISHED),
    ),
)  # fmt: skip

USAGE = Row(
    title="Balance",
    panels=(
        Panel(
            title="Usage of prototypes", kind="heatmap", width=16, height=10,
            queries=(query(f"sum by (le) ({metric('prototype_usage_ratio_bucket')})"),),
            help="How many prototypes have which usage, in even shares: 1 is even, the lowest row is unused. "
                 "A "
                 "healthy run is a bright band around 1; a bright lowest row are dead prototypes.",
        ),
        lines("Loss", query(metric("loss"), "loss"), query(f"ln({metric('prototypes')})", "ln K"),
              help="Swapped prediction, nats. At ln K nothing is learned.", low=0),
        lines("Perplexity and inequality", query(metric("usage_perplexity_ratio"), "perplexity of K"),
              query(metric("usage_gini_ratio"), "Gini"),
              query(metric("usage_window_fill_ratio"), "usage window"),
              help="Usage figures mean little before the usage window is full.",
              unit="percentunit", low=0, high=1),
        Panel(
            title="Largest shares", kind="bargauge", width=4, height=7, unit="percentunit",
            queries=(query(f"max by (rank) ({metric('prototype_usage_top_ratio')})", "{{rank}}"),),
            help="The ten most used prototypes, by rank. Which they are is on the live page.",
            clusters=True,
        ),
        Panel(
            title="Smallest shares", kind="bargauge", width=4, height=7, unit="percentunit",
            queries=(query(f"min by (rank) ({metric('prototype_usage_bottom_ratio')})", "{{rank}}"),),
            help="The ten least used prototypes, by rank.", clusters=True,
        ),
        lines("Usage by group", query(f"avg by (group) ({metric('group_usage_ratio')})", "{{group}}"),
              help="Shares of fixed groups of prototypes; even bands are balance, a shift is drift.",
              unit="percentunit", stacked=True, low=0, high=1),
        lines("Memory for replay", query(_share("replay_prototypes"), may_be_empty=NO_MEMORY),
              help="Prototypes that have images in it, of K (replay.policy = prototypes).",
              unit="percentunit", low=0, high=1),
        lines("Divergence from the prior", query(metric("usage_kl_to_prior_nats")),
              help="0 = usage is as wanted; by chance (K - 1) / (2 x samples in the window).", low=0),
    ),
)  # fmt: skip

COLLAPSE = Row(
    title="Collapse",
    panels=(
        lines("Dead and twins", query(_share("dead_prototypes"), "dead"), query(_share("prototype_twins"),
              "twins"),
              help="Of K. Twins are the partial collapse that usage cannot show.", unit="percentunit", low=0,
              steps=[(rules.TWINS.bound, YELLOW), (rules.DEAD.bound, RED)]),
        lines("Re-seeded", query(f"increase({metric('prototypes_reseeded_total')}[5m])"),
              help="Prototypes re-seeded because no sample came to them, in five minutes; 0 unless "
                   "reseed.after_samples is set.", low=0),
        lines("Nearest other prototype", query(metric("prototype_nn_cosine"), "{{stat}}"),
              help="Cosine of a prototype with its nearest other one. Random directions have about 0.3; near "
                   "1 "
                   "are twins.", high=1),
        lines("Feature spread", query(metric("feature_std_ratio"), "spread"),
              help="Below the line the encoder has collapsed.", unit="percentunit", low=0,
              steps=[(rules.COLLAPSE.bound, RED)]),
        lines("Effective ranks", query(metric("embedding_effective_rank"), "RankMe"),
              query(metric("embedding_lidar_rank"), "LiDAR", may_be_empty="needs two assigned views"),
              help="Directions that the features use, and that tell images apart.", low=0),
        lines("Spectrum", query(metric("embedding_alpha_req"), "alpha-ReQ", may_be_empty=NARROW),
              query(metric("uniformity"), "uniformity"), query(metric("alignment"), "alignment"),
              help="Decay of the spectrum (about 1 is good); evenness of features; distance of two views."),
        lines("Codes and predictions", query(metric("code_entropy_nats"), "codes"),
              query(metric("prediction_entropy_nats"), "predictions"),
              query(f"ln({metric('prototypes')})", "ln K"),
              help="Entropies, nats. Codes at ln K say nothing.", low=0),
        lines("Agreement of views", query(metric("view_agreement_ratio")),
              help="Two views of an image on one prototype, corrected for chance: 0 also under collapse.",
              unit="percentunit", high=1),
        lines("Sinkhorn residual", query(metric("sinkhorn_marginal_residual")),
              help="Mass on the wrong prototypes after the last round; rises before steps fail.",
              low=0, steps=_limits(rules.CODES)),
        lines("Queue", query(metric("queue_fill_ratio"), "full"),
              query(metric("queue_staleness_cosine"), "features against today's", may_be_empty=NO_QUEUE),
              help="A queue is used once full; features much older than the network mislead the codes.",
              unit="percentunit", high=1),
        lines("Age of the queue", query(metric("queue_age_samples"), "{{stat}}", may_be_empty=NO_QUEUE),
              help="Samples seen since a queued feature was made.", low=0),
        lines("Movement of prototypes", query(metric("prototype_shift_cosine"), "{{stat}}",
              may_be_empty=NOT_YET),
              help="1 - cosine of each prototype with itself in the frozen copy.", low=0),
    ),
)  # fmt: skip

BALANCE = Dashboard(
    name="balance",
    title="Prototype balance",
    help="Is it alive, is it learning, is it balanced.",
    rows=(GLANCE, USAGE, COLLAPSE),
)


TOTALS = Row(
    title="Run",
    panels=(
        number("Samples", metric("run_samples"), "Distinct images so far, over restarts."),
        number("Updates", metric("run_updates"), "Optimizer steps so far, over restarts."),
        number("Learners", f"count({metric('build_info')})", "Learners that answer."),
        number("Runs", f"count(count by (run) ({metric('run_info')}))", "Different runs among them."),
        number("Waiting", metric("learner_waiting"), "1 while it waits for records that have not arrived."),
        number("Ready", metric("learner_ready"), "1 from the first step until the run is stopping.", base=RED,
               steps=[(1, "green")]),
        number("Batch", metric("batch_samples"), "Samples of one step, over all ranks."),
        number("Last step",
               f"time() - ({metric('last_step_timestamp_seconds')} "
               f"or {metric('learner_start_timestamp_seconds')})",
               "Seconds since it ended, or since the learner started.", unit="s"),
    ),
)  # fmt: skip

SPEED = Row(
    title="Speed",
    panels=(
        lines("Samples and updates",
              query(f"sum by (instance) ({rate('samples_total')})", "samples"),
              query(f"sum by (instance, source) ({rate('updates_total')})", "updates, {{source}}"),
              help="A second. Replays are updates from samples that were seen before.", low=0),
        lines("Where the time goes", query(f"sum by (phase) ({rate('learner_seconds_total')})", "{{phase}}"),
              help="Share of a second. Much `load` means that readers are too slow; `health` is what all "
                   "watching costs in the learner.", unit="percentunit", stacked=True, low=0),
        lines("Step time",
              *(query(quantile(q, "step_duration_seconds"), name)
                for q, name in ((0.5, "p50"), (0.99, "p99"))),
              help="From batch to batch.", unit="s", low=0),
        lines("Steps", query(f"sum by (instance) ({rate('steps_total')})"), help="A second.", low=0),
        lines("Memory", query('process_resident_memory_bytes{instance=~"$instance"}'),
              help="Of the learner's process; readers are beside it.", unit="bytes", low=0),
        lines("Processor", query('rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval])'),
              help="Cores in use by the learner's process.", low=0),
    ),
)  # fmt: skip

OPTIMISER = Row(
    title="Optimiser",
    panels=(
        lines("Loss", query(metric("loss_over_ln_k_ratio")), help="Of ln K.", unit="percentunit", low=0),
        lines("Learning rate", query(metric("learning_rate")), help="Of the last update.", low=0),
        lines("Gradient", query(metric("gradient_norm")), help="2-norm before clipping.", low=0),
        lines("Steps that were not finite", query(f"increase({metric('nan_steps_total')}[5m])"),
              help="Refused: loss or gradient was inf or NaN. Any is a reason to look.", low=0,
              steps=[(1, RED)]),
        lines("Checkpoints", query(f"sum by (result) (increase({metric('checkpoints_total')}[5m]))",
              "{{result}}"),
              help="In five minutes, by result.", low=0),
        lines("Checkpoint time",
              query(share(f"rate({metric('checkpoint_duration_seconds_sum')}[5m])",
                          f"rate({metric('checkpoint_duration_seconds_count')}[5m])"), "seconds each"),
              query(f"time() - {metric('last_checkpoint_timestamp_seconds')}", "since the last",
                    may_be_empty="none has been written yet"),
              help="Writing goes on in the background.", unit="s", low=0),
    ),
)  # fmt: skip

TRAINING = Dashboard(
    name="training",
    title="Training",
    help="Speed, where the time goes, and what the optimiser does.",
    rows=(TOTALS, SPEED, OPTIMISER),
)


SKIPPED = 'outcome="skipped"'
USABLE = 'reason!="non_finite"'
"""Of what was skipped: a sound record in a batch that was left out is not unusable, as for the alert."""
LEARNED = 'stage="trained"'

FLOW = Row(
    title="Flow",
    panels=(
        lines("Unread records", query(metric("stream_lag_records")),
              help="Committed but not yet used. Falling is catching up; growing for long is falling behind.",
              low=0),
        lines("Records", query(f"sum by (outcome) ({rate('records_total')})", "{{outcome}}"),
              help="Read, a second, by what became of them; together all that was read.", low=0,
              stacked=True),
        lines("Skipped, by reason",
              query(f"sum by (reason) ({rate('records_total', SKIPPED)})", "{{reason}}",
                    may_be_empty="a stream without bad records skips none"),
              help="A second.", low=0),
        lines("Unusable",
              query(share(f"sum by (instance) ({rate('records_total', SKIPPED, USABLE)})",
                          f"sum by (instance) ({rate('records_total')})"),
                    may_be_empty="a stream without bad records skips none"),
              help="Share of what was read; not what was left out with a batch that was not finite.",
              unit="percentunit", low=0, steps=[(rules.BAD_SHARE, RED)]),
        lines("Lanes farthest behind",
              query(f"topk(5, {metric('lane_lag_records', LEARNED)})", "lane {{lane}}"),
              help="Records of a lane not learned from yet. One far above the others is read too slowly.",
              low=0),
        lines("Lag in seconds",
              query(f"max by (stage) ({metric('lane_lag_seconds')})", "{{stage}}",
                    may_be_empty="only Kafka tells when a record came"),
              help="Age of the newest record that the farthest lane got to.", unit="s", low=0),
        lines("Dead letters", query(f"sum by (result) ({rate('dead_letters_total')})", "{{result}}"),
              help="Records that could not be used and were reported in a topic, a second; Kafka only.",
              low=0),
        lines("Waiting", query(metric("learner_waiting")),
              help="1 while it waits for records that have not arrived: healthy on a quiet stream.", low=0,
              high=1),
        lines("Bytes", query(f"sum by (instance) ({rate('reader_bytes_total')})"),
              help="Encoded, read a second.",
              unit="Bps", low=0),
    ),
)  # fmt: skip

NO_INGEST = "an ingest shows its own metrics only with --metrics-port"

INGEST = Row(
    title="Ingest",
    panels=(
        lines("Images brought in",
              query(f"sum by (outcome) (rate({PREFIX}ingest_images_total[$__rate_interval]))", "{{outcome}}",
                    may_be_empty=NO_INGEST),
              help="Of all ingests that are scraped, a second, by what became of them.", low=0, stacked=True),
        lines("Bytes written",
              query(f"sum(rate({PREFIX}ingest_bytes_total[$__rate_interval]))", "bytes",
                    may_be_empty=NO_INGEST),
              help="Encoded, a second.", unit="Bps", low=0),
        lines("Shards and waits",
              query(f"sum(increase({PREFIX}ingest_shards_total[5m]))", "shards in five minutes",
                    may_be_empty=NO_INGEST),
              query(f"max({PREFIX}ingest_waiting)", "held up", may_be_empty=NO_INGEST),
              help="Held up: a run is farther behind than --max-ahead.", low=0),
        lines("Since the last image",
              query(f"time() - max({PREFIX}ingest_last_image_timestamp_seconds)", "seconds",
                    may_be_empty=NO_INGEST),
              help="Seconds; a source at its end, or one that hangs.", unit="s", low=0),
    ),
)  # fmt: skip

MIX = Row(
    title="What arrives",
    panels=(
        lines("Drift", query(metric("drift_psi"), may_be_empty=NOT_YET),
              help="Shift among groups of prototypes, seen by a frozen copy of the network. 0.1 is some, "
                   "0.25 "
                   "much.", low=0, steps=[(rules.DRIFT_SOME, YELLOW), (rules.DRIFT_MUCH, RED)]),
        lines("Novelty", query(metric("novelty_ratio"), may_be_empty=NOT_YET),
              help="Images that fit no prototype of the frozen copy; 1 % as when it was taken.",
              unit="percentunit", low=0),
        lines("Age of the frozen copy",
              query(f"{metric('run_samples')} - {metric('drift_reference_samples')}", may_be_empty=NOT_YET),
              help="Samples since it was taken; drift starts again from zero when it is replaced.", low=0),
        lines("Mixing", query(metric("stream_autocorrelation"), "neighbours"),
              query(metric("batch_similarity"), "batches", may_be_empty=NOT_YET),
              help="How much closer neighbours in a lane, and samples of a batch, are than others: 0 = well "
                   "mixed.", steps=[(rules.ALIKE_COSINE, YELLOW), (rules.SORTED_COSINE, RED)]),
    ),
)  # fmt: skip

READERS = Row(
    title="Readers",
    panels=(
        lines("Where the readers' time goes", query(f"sum by (phase) ({rate('reader_seconds_total')})",
              "{{phase}}"),
              help="Over all reader processes; 1 = one of them is busy all the time.", stacked=True, low=0),
        lines("Readers replaced", query(f"increase({metric('reader_restarts_total')}[5m])"),
              help="Reader processes that died, in five minutes.", low=0, steps=[(1, RED)]),
    ),
)  # fmt: skip

STREAM = Dashboard(
    name="stream",
    title="Stream and ingest",
    help="What arrives: how much, how good, how well mixed, and whether it changes.",
    rows=(FLOW, MIX, READERS, INGEST),
)


STALE = 'result="stale_epoch"'

LATEST = Row(
    title="Newest",
    panels=(
        number("Version", metric("snapshot_version"), "Published last.", may_be_empty=NOT_PUBLISHED),
        number("Age", f"time() - {metric('last_publish_timestamp_seconds')}", "Since it was published.",
              unit="s",
               may_be_empty=NOT_PUBLISHED),
        number("Behind", f"{metric('run_samples')} - {metric('snapshot_samples')}",
               "Samples that the run has seen since.", may_be_empty=NOT_PUBLISHED),
        number("Interval", metric("snapshot_every_samples"), "Samples between two; 0 = only one at the end."),
        number("Size", metric("snapshot_bytes"), "In Redis.", unit="bytes", may_be_empty=NOT_PUBLISHED),
        number("Epoch", metric("snapshot_epoch"), "Fencing number: rises with each learner that takes over.",
               may_be_empty=NOT_PUBLISHED),
        number("Rewinds", metric("snapshot_rewinds_total"), "Times that newer snapshots were abandoned.",
               steps=[(1, "yellow")]),
        number("Abandoned", metric("snapshot_abandoned"), "Snapshots that the last rewind abandoned.",
               may_be_empty="there was no rewind"),
    ),
)  # fmt: skip

PUBLISHING = Row(
    title="Publishing",
    panels=(
        lines("Version", query(metric("snapshot_version"), may_be_empty=NOT_PUBLISHED),
              help="Of each learner."),
        lines("Results",
              query(f"sum by (result) (increase({metric('snapshots_published_total')}[5m]))", "{{result}}"),
              help="In five minutes. unhealthy: published, but stable stays where it is. error: tried again. "
                   "stale_epoch: another learner publishes for this run.", low=0),
        lines("Refused", query(f"increase({metric('snapshots_published_total', STALE)}[5m])"),
              help="Another learner has taken over: end one of them.", low=0, steps=[(1, RED)]),
        lines("Time to publish",
              query(share(f"rate({metric('publish_duration_seconds_sum')}[5m])",
                          f"rate({metric('publish_duration_seconds_count')}[5m])"), "seconds each"),
              help="Beside the learner, which does not wait for it.", unit="s", low=0),
        lines("Samples behind",
              query(f"{metric('run_samples')} - {metric('snapshot_samples')}", "since the last",
                    may_be_empty=NOT_PUBLISHED),
              query(f"{metric('run_samples')} - {metric('run_start_samples')}", "since the start"),
              query(metric("snapshot_every_samples"), "interval"),
              help="More than two intervals since both the last and the start is stale.", low=0),
    ),
)  # fmt: skip

SNAPSHOTS = Dashboard(
    name="snapshots",
    title="Snapshots",
    help="What others get: versions, how fresh they are, and what went wrong.",
    rows=(LATEST, PUBLISHING),
)
