"""What others get: versions, how fresh they are, and what went wrong."""

from ops.grafana import RED, Dashboard, Row, lines, metric, number, query, share
from ops.panels_balance import NOT_PUBLISHED

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
