"""Ranks: what the launcher tells a process, the process group, devices."""
