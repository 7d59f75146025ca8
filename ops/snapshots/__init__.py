"""Versioned prototype snapshots in Redis: writing, reading, watching, the embedded server."""
