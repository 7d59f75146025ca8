"""A run from its start to its summary: resume, loop, ranks in step, reporting."""
