"""Which findings of the doctor follow from which, so that the cause is looked at first; pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ops.doctor.case import Finding

CAUSES: Mapping[str, tuple[str, ...]] = {
    "stalled": ("readers",),
    "not-finite": ("learning-rate",),
    "collapse": ("same-images", "learning-rate"),
    "not-learning": ("same-images", "sorted", "twins", "codes"),
    "usage": ("collapse", "same-images", "sorted", "drift"),
    "dead-prototypes": ("collapse", "usage", "twins", "same-images", "sorted", "drift"),
    "twins": ("collapse", "same-images", "learning-rate"),
    "codes": ("collapse", "same-images", "learning-rate", "dead-prototypes"),
    "drift": ("sorted",),
    "starved": ("bad-records", "readers"),
    "snapshots-late": ("redis", "two-learners"),
    "snapshots-unhealthy": ("collapse", "usage", "dead-prototypes", "twins", "codes", "not-learning"),
}
"""Finding -> what explains it when it is found too, the nearest first."""

ONLY_WITH_CAUSE = {"snapshots-unhealthy"}
"""No fault by themselves: not told when nothing explains them."""


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, each cause directly before what follows from it, which names it in `follows_from`.

    Args:
        findings: in the order in which causes are looked at; no name twice.
    """
    names = {finding.name for finding in findings}
    linked = [replace(finding, follows_from=_cause(finding.name, names)) for finding in findings]
    linked = [one for one in linked if one.follows_from or one.name not in ONLY_WITH_CAUSE]

    def below(cause: str) -> list[Finding]:
        return [
            each for one in linked if one.follows_from == cause for each in (one, *below(one.name))
        ]  # fmt: skip

    return below("")


def depth(finding: Finding, findings: Sequence[Finding]) -> int:
    """How many causes stand above a finding; 0 = it follows from nothing that was found."""
    by_name = {one.name: one for one in findings}
    above = by_name.get(finding.follows_from)
    return 0 if above is None else 1 + depth(above, findings)


def _cause(name: str, found: set[str]) -> str:
    return next((cause for cause in CAUSES.get(name, ()) if cause in found), "")
