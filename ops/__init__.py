"""Running it: command line, configuration, runs, checkpoints, snapshots, metrics, evaluation."""
