"""The run directory: files, lock, checkpoints, history, summary and status."""
