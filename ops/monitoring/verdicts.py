"""Figures into sentences: what is well, what is not, and what it means. Pure functions.

Each verdict is `ok`, `watch`, `bad` or `unknown` (too early, or nothing to tell). What is bad, and from where
on something is watched, is that of the rules.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ops.monitoring.catalog import judged
from ops.monitoring.conditions import SHIPPED
from ops.monitoring.facts import Facts, duration
from ops.monitoring.rules import (
    CODES,
    COLLAPSE,
    DEAD,
    NOT_LEARNING,
    STALLED,
    TWINS,
    TWO_LEARNERS,
    USAGE,
    WARMED_UP,
    Rule,
    Shown,
    agreement_rose,
)

JUDGED_ON_PAGE = (NOT_LEARNING, USAGE, DEAD, TWINS, COLLAPSE, CODES)
"""Rules on what is learned, in the order of the page."""
NOT_PUBLISHED = "Not published, tried again"
"""How the verdict on an attempt that failed begins."""
NAMES_CHANGE = {NOT_LEARNING.name, DEAD.name}
"""Where what to do hangs most on the settings, which the page does not know: it names the doctor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One finding."""

    name: str
    """Short snake_case name; stable."""
    title: str
    state: str
    """ok, watch, bad or unknown."""
    value: str
    """The figure, as it is read aloud."""
    text: str
    """What it means."""


def learning(figures: Mapping[str, float | None]) -> list[Verdict]:
    """Verdicts on what is learned.

    Args:
        figures: as at /api/v1/status, `start_view_agreement` and `late_view_agreement` (means over the first
            and the latest steps) among them; missing or None = not known yet.
    """
    facts = Facts(
        updates=int(_known(figures, "updates") or 0),
        prototypes=int(_known(figures, "prototypes") or 0),
        view_agreement=_known(figures, "late_view_agreement"),
        start_view_agreement=_known(figures, "start_view_agreement"),
        **judged(figures),
    )
    return [_verdict(rule, rule.shown, facts) for rule in JUDGED_ON_PAGE if rule.shown is not None]


def _known(figures: Mapping[str, float | None], name: str) -> float | None:
    value = figures.get(name)
    return None if value is None or not math.isfinite(value) else value


def _verdict(rule: Rule, shown: Shown, facts: Facts) -> Verdict:
    """A rule's figure judged by both limits, once it can be judged."""

    def verdict(state: str, text: str, value: str = "") -> Verdict:
        value = value or shown.value(facts)
        return Verdict(name=shown.name, title=shown.title, state=state, value=value, text=text)

    if facts.value(shown.watch.fact) is None:
        return verdict("unknown", "Not computed yet.", "-")
    watched, text = shown.watch.holds(facts), rule.text
    if rule is NOT_LEARNING and not watched:
        return verdict(*_agreeing(facts, shown.ok))
    if early := _early(rule, facts):
        return verdict("unknown", early)
    if not watched:
        return verdict("ok", shown.ok)
    if not rule.holds(facts):
        return verdict("watch", shown.watched)
    if rule.name in NAMES_CHANGE:
        text += " `swavstream doctor RUN` names what to change first."
    return verdict("bad", text)


def _agreeing(facts: Facts, learned: str) -> tuple[str, str]:
    """State and sentence of a loss that is well below ln K, by the agreement of views."""
    if agreement_rose(facts.view_agreement, facts.start_view_agreement):
        return "ok", learned
    if not WARMED_UP.holds(facts) or facts.view_agreement is None:
        return "unknown", "The loss is below ln K; whether views come to agree is not seen yet."
    return "watch", (
        "The loss is below ln K, but views of one image find the same prototype no more often than at the "
        "start."
    )


def _early(rule: Rule, facts: Facts) -> str:
    """Why a figure cannot be judged yet; empty when it can."""
    missing = next((term for term in rule.when[0][1:] if not term.holds(facts)), None)
    if missing is None:
        return ""
    if missing is WARMED_UP:
        return f"Too early: the first {SHIPPED.warm_up_updates} updates say little."
    return f"Too early: the usage window is {100 * (facts.value(missing.fact) or 0.0):.0f} % full."


def stream(
    *,
    lag: int | None,
    waiting: bool,
    since_step_s: float | None,
    since_start_s: float = 0.0,
    restarts: int = 0,
) -> Verdict:
    """Verdict on the flow of records.

    Args:
        lag: records committed but not yet used; None = not known.
        waiting: the learner waits for records.
        since_step_s: seconds since the last step ended; None = there was none.
        since_start_s: seconds since the learner started.
        restarts: reader processes that were replaced in the last half hour.
    """
    facts = Facts(lag=lag, waiting=waiting, since_step_s=since_step_s, since_start_s=since_start_s)
    value = "flowing" if lag is None else f"{lag:,} unread"
    state, text = "ok", "Records are used as they come."
    if since_step_s is None:
        value, state, text = "waiting" if waiting else "starting", "unknown", "No step is done yet."
    elif waiting:
        value = "waiting"
        text = "All records that a whole step can be made of are used; waiting for more is healthy."
    if STALLED.holds(facts) and STALLED.cause is not None:
        quiet = since_start_s if since_step_s is None else since_step_s
        state, text = "bad", f"{STALLED.cause(facts)} It is so for {duration(quiet)}."
    elif restarts and state == "ok":
        state, text = "watch", f"{restarts} reader process(es) died and were replaced."
    return Verdict(name="stream", title="Stream", state=state, value=value, text=text)


def snapshots(*, version: int, result: str, detail: str, age_s: float | None) -> Verdict:
    """Verdict on publishing.

    Args:
        version: published last; 0 = none yet.
        result: of the latest attempt, as in `ops.snapshots.types.RESULTS`; "" = none yet.
        detail: what went wrong.
        age_s: seconds since the last one was published.
    """
    value = f"v{version}" if version else "none yet"
    age = "" if age_s is None else f" {duration(age_s)} ago"
    if result == "unhealthy" and detail.startswith("warming"):
        result = "warming"
    found = {
        "warming": ("unknown", f"Published{age}; too early to judge, so stable stays where it is."),
        "ok": ("ok", f"Published{age}; it passed the health gate, so stable points at it."),
        "repeated": ("ok", f"Published{age}."),
        "superseded": ("watch", "A newer snapshot was ready before the last one could be sent."),
        "unhealthy": ("watch", f"Published{age}, but not healthy ({detail}): stable stays where it is."),
        "stale_epoch": ("bad", f"{TWO_LEARNERS.text} End one."),
        "error": ("bad", f"{NOT_PUBLISHED}: {detail}"),
    }.get(
        result,
        ("unknown", "Published before this start; the next one is still to come.")
        if version
        else ("unknown", "The first one is still to come."),
    )
    return Verdict(name="snapshots", title="Snapshots", state=found[0], value=value, text=found[1])


def worst(verdicts: list[Verdict]) -> str:
    """The state of all together: bad over watch over ok; unknown when nothing else is."""
    states = {verdict.state for verdict in verdicts}
    return next((state for state in ("bad", "watch", "ok") if state in states), "unknown")
