"""What arrives: how much, how good, how well mixed, and whether it changes."""

from ops.alerts import ALIKE_COSINE, BAD_SHARE, DRIFT_MUCH, SORTED_COSINE
from ops.grafana import RED, YELLOW, Dashboard, Row, lines, metric, query, rate, share
from ops.metric_table import PREFIX
from ops.panels_balance import NOT_YET

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
              unit="percentunit", low=0, steps=[(BAD_SHARE, RED)]),
        lines("Lanes farthest behind",
              query(f"topk(5, {metric('lane_lag_records', LEARNED)})", "lane {{lane}}"),
              help="Records of a lane not learned from yet. One far above the others is read too slowly.",
              low=0),
        lines("Lag in seconds",
              query(f"max by (stage) ({metric('lane_lag_seconds')})", "{{stage}}",
                    may_be_empty="only Kafka tells when a record came"),
              help="Age of the newest record that the farthest lane got to.", unit="s", low=0),
        lines("Dead letters", query(f"sum by (result) ({rate('dead_letters_total')})", "{{result}}"),
              help="Records that could not be used and were told of in a topic, a second; Kafka only.",
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
                   "much.", low=0, steps=[(0.1, YELLOW), (DRIFT_MUCH, RED)]),
        lines("Novelty", query(metric("novelty_ratio"), may_be_empty=NOT_YET),
              help="Images that fit no prototype of the frozen copy; 1 % as when it was taken.",
              unit="percentunit", low=0),
        lines("Age of the frozen copy",
              query(f"{metric('run_samples')} - {metric('drift_reference_samples')}", may_be_empty=NOT_YET),
              help="Samples since it was taken; drift starts anew when it is replaced.", low=0),
        lines("Mixing", query(metric("stream_autocorrelation"), "neighbours"),
              query(metric("batch_similarity"), "batches", may_be_empty=NOT_YET),
              help="How much closer neighbours in a lane, and samples of a batch, are than others: 0 = well "
                   "mixed.", steps=[(ALIKE_COSINE, YELLOW), (SORTED_COSINE, RED)]),
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
