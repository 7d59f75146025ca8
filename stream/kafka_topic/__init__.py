"""Kafka topics as streams: reading, writing, dead letters."""
