"""The doctor: which cause explains what a run shows."""
