"""What is wrong with a run, why, and which setting to change: the rules of health over facts of one run.

The order is that of the rules: what stops a run, what is wrong with its data, what spoils it, what will; but
what follows from another finding stands under it. Advice looks at what is set: it never names a value that is
there already, nor one that the configuration refuses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ops.monitoring.conditions import SHIPPED, Scale
from ops.monitoring.facts import Facts
from ops.monitoring.rules import RULES, Rule

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
"""No fault by themselves: left out where nothing explains them."""

SAID_BY: Mapping[str, tuple[str, ...]] = {
    "sorted": ("collapse",),
    "not-learning": ("collapse", "learning-rate"),
    "no-better-than-start": ("collapse", "not-learning", "learning-rate"),
}
"""Finding -> others that say the same and more: it is left out where one of them is found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong."""

    name: str
    """Stable, short."""
    cause: str
    """One sentence."""
    evidence: str
    """What was seen."""
    setting: str
    """The setting to change first; empty when none helps."""
    advice: str
    """What to do."""
    runbook: str
    """Name of the page in ops/monitoring/runbooks; empty = none."""
    follows_from: str = ""
    """Name of the finding that explains this one; empty = it is a cause, as far as is known."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine(facts: Facts, scale: Scale = SHIPPED) -> list[Finding]:
    """Everything that is wrong, in the order in which to look at it: causes before what follows from them.

    Args:
        facts: of the run.
        scale: limits in time; a test may be in a hurry.
    """
    found = {rule.name: rule for rule in RULES if rule.evidence is not None and rule.holds(facts, scale)}
    said = {name for name, others in SAID_BY.items() if found.keys() & set(others)}
    return in_order([_finding(rule, facts) for name, rule in found.items() if name not in said])


def _finding(rule: Rule, facts: Facts) -> Finding:
    setting, advice = rule.advice(facts) if callable(rule.advice) else rule.advice
    return Finding(
        name=rule.name,
        cause=rule.text if rule.cause is None else rule.cause(facts),
        evidence="" if rule.evidence is None else rule.evidence(facts),
        setting=setting,
        advice=advice,
        runbook=rule.runbook,
    )


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
