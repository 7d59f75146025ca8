"""Drawn pictures of known kinds."""
