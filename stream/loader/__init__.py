"""Batches from lanes: reader processes, chunks, tails and replay."""
