"""Evaluations of a run against labelled streams."""
