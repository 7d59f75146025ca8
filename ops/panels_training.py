"""Where the time goes, and what the optimiser does."""

from ops.grafana import RED, Dashboard, Row, lines, metric, number, quantile, query, rate, share

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
