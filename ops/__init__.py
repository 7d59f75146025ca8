"""Running it: command line, configuration, wiring, checkpoints, snapshots, metrics, evaluation."""
