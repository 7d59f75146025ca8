"""The road: what travels, where it travels, and how it is written and read back exactly once."""
