"""Durations for people, in one form everywhere. Imports nothing."""


def duration(seconds: float) -> str:
    """A duration in the largest unit of which it has two: 113 s, 5 min, 3 h, 2 d."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
