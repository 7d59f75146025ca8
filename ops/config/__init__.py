"""Settings of a run: their schema, how they are read and checked, and the recipes."""
