"""Figures into sentences: what is well, what is not, and what it means. Pure functions.

Each verdict is `ok`, `watch`, `bad` or `unknown` (too early, or nothing to tell). The limits are the
proposals of the alert rules; a figure that needs a full usage window says so until the window is full.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from learner.measure import LIMITS

WINDOW_FULL = 0.9
"""Share of the usage window from which usage figures are believed."""
WARM_UP_UPDATES = 300
"""Updates before which a loss at ln K is no finding."""
LOSS_STUCK = 1 - LIMITS["loss_excess_ratio"][0]
LOSS_SLOW = 0.95
"""Loss against ln K: at 1 nothing has been learned."""
AGREEMENT_RISE = 0.05
"""Growth of the agreement of views, corrected for chance, from which a run learns: the mean of 20 batches of
64 images wanders by 0.01."""
AGREEMENT_MUCH = 0.5
"""Agreement of a run that has learned, also where it began so, with the weights of another."""
PERPLEXITY_GOOD = 0.5
PERPLEXITY_LOW = LIMITS["usage_perplexity_ratio"][0]
"""Usage perplexity, of K."""
DEAD_SOME = 0.05
DEAD_MANY = LIMITS["dead_prototypes_ratio"][0]
"""Dead prototypes, of K."""
TWINS_SOME = 0.02
TWINS_MANY = LIMITS["prototype_twins_ratio"][0]
"""Prototypes with a twin, of K."""
SPREAD_LOW = 0.35
SPREAD_NONE = LIMITS["feature_std_ratio"][0]
"""Standard deviation of the features against an even sphere."""
RESIDUAL_SOME = 0.3
RESIDUAL_MUCH = 0.8
"""Mass that Sinkhorn left on the wrong prototypes, at most 2; 0.2 to 0.4 in runs that learn well, with three
rounds at epsilon 0.03."""
STALLED_S = 120.0
"""Seconds without a step, with unread records, after which the learner counts as stalled."""
START_S = 300.0
"""Seconds from the start of a learner, which waits for nothing, to its first step after which it counts as
stalled: by then a state is loaded, ranks have met and readers have brought a batch."""

STATES = ("ok", "watch", "bad", "unknown")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One finding."""

    name: str
    """Short snake_case name; stable."""
    title: str
    """For people."""
    state: str
    """ok, watch, bad or unknown."""
    value: str
    """The figure, as it is read aloud."""
    text: str
    """What it means."""


def learning(figures: Mapping[str, float | None]) -> list[Verdict]:
    """Verdicts on what is learned.

    Args:
        figures: `loss_over_ln_k`, `updates`, `prototypes`, `usage_perplexity`, `usage_window_fill`,
            `dead_prototypes`, `prototype_twins`, `feature_std_ratio`, `sinkhorn_residual`,
            `start_view_agreement` and `late_view_agreement` (means over the first and the latest steps);
            missing or None = not known yet.
    """
    return [
        _loss(figures),
        _balance(figures),
        _dead(figures),
        _twins(figures),
        _spread(figures),
        _codes(figures),
    ]


def stream(
    *,
    lag: int | None,
    waiting: bool,
    since_step_s: float | None,
    since_start_s: float = 0.0,
    restarts: int = 0,
) -> Verdict:
    """Verdict on the flow of records; stalled needs unread records, or a start that brings no first step.

    Args:
        lag: records committed but not yet used; None = not known.
        waiting: the learner waits for records.
        since_step_s: seconds since the last step ended; None = there was none.
        since_start_s: seconds since the learner started.
        restarts: reader processes that were replaced of late.
    """
    title, name = "Stream", "stream"
    text = "Records are used as they come."
    state, value = "ok", "flowing" if lag is None else f"{lag:,} unread"
    if since_step_s is None:
        state, text = "unknown", "No step is done yet."
        value = "waiting" if waiting else "starting"
        if not waiting and since_start_s > START_S:
            state, text = (
                "bad",
                f"No step is done {duration(since_start_s)} after the start: a rank, a reader or disk hangs.",
            )
    elif waiting:
        value, text = (
            "waiting",
            "All records that a whole step can be made of are used; waiting for more is healthy.",
        )
    elif since_step_s > STALLED_S and lag != 0:
        state, text = (
            "bad",
            f"No step for {duration(since_step_s)} although records are unread: a reader or a rank hangs.",
        )
    if restarts and state == "ok":
        state, text = "watch", f"{restarts} reader process(es) died and were replaced."
    return Verdict(name=name, title=title, state=state, value=value, text=text)


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
        "stale_epoch": ("bad", "A newer learner publishes for this run: two learners work on it. End one."),
        "error": ("bad", f"Not published, tried again: {detail}"),
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


def agreement_rose(late: float | None, start: float | None) -> bool:
    """Whether two views of an image agree on a prototype more than by chance and more than at the start.

    This is evidence of learning. A falling loss alone is none: a network whose guesses become even comes down
    to ln K from above, and features that crowd together bring it below.
    """
    if late is None or start is None:
        return False
    return late >= AGREEMENT_MUCH or late - start >= AGREEMENT_RISE


def _known(figures: Mapping[str, float | None], *names: str) -> list[float] | None:
    values = [figures.get(name) for name in names]
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return known if len(known) == len(names) else None


def _unknown(name: str, title: str, text: str = "Not computed yet.") -> Verdict:
    return Verdict(name=name, title=title, state="unknown", value="-", text=text)


def _loss(figures: Mapping[str, float | None]) -> Verdict:
    name, title = "loss", "Learning"
    known = _known(figures, "loss_over_ln_k", "updates")
    if known is None:
        return _unknown(name, title, "No step is done yet.")
    ratio, updates = known
    value = f"{ratio:.3f} of ln K"
    if ratio < LOSS_SLOW:
        return _agreeing(figures, value, updates)
    if updates < WARM_UP_UPDATES:
        return Verdict(
            name=name,
            title=title,
            state="unknown",
            value=value,
            text=f"Too early: the first {WARM_UP_UPDATES} updates say little.",
        )
    stuck = ratio > LOSS_STUCK
    text = (
        "The loss sticks at ln K: nothing is learned. `swavstream doctor RUN` names what to change first."
        if stuck
        else "The loss is close to ln K: little is learned so far."
    )
    return Verdict(name=name, title=title, state="bad" if stuck else "watch", value=value, text=text)


def _agreeing(figures: Mapping[str, float | None], value: str, updates: float) -> Verdict:
    """The verdict on a loss that is well below ln K, by the agreement of views."""
    late, start = figures.get("late_view_agreement"), figures.get("start_view_agreement")
    if agreement_rose(late, start):
        state, text = "ok", "The loss is well below ln K, and views of one image find the same prototype."
    elif updates < WARM_UP_UPDATES or late is None:
        state, text = "unknown", "The loss is below ln K; whether views come to agree is not seen yet."
    else:
        state, text = (
            "watch",
            "The loss is below ln K, but views of one image find the same prototype no more often than at "
            "the start.",
        )
    return Verdict(name="loss", title="Learning", state=state, value=value, text=text)


def _share(
    figures: Mapping[str, float | None],
    field: str,
    *,
    name: str,
    title: str,
    limits: tuple[float, float],
    texts: tuple[str, str, str],
) -> Verdict:
    """A count of prototypes judged by its share of K; above the two `limits` it is watch, bad."""
    known = _known(figures, field, "prototypes")
    if known is None:
        return _unknown(name, title)
    count, prototypes = known
    share = count / prototypes
    level = (share > limits[0]) + (share > limits[1])
    return Verdict(
        name=name,
        title=title,
        state=STATES[level],
        value=f"{count:.0f} of {prototypes:.0f}",
        text=texts[level],
    )


def _balance(figures: Mapping[str, float | None]) -> Verdict:
    name, title = "balance", "Balance"
    known = _known(figures, "usage_perplexity", "prototypes")
    if known is None:
        return _unknown(name, title)
    used, prototypes = known
    value = f"{used:.0f} of {prototypes:.0f} in use"
    early = _early(figures)
    if early is not None:
        return Verdict(name=name, title=title, state="unknown", value=value, text=early)
    ratio = used / prototypes
    if ratio >= PERPLEXITY_GOOD:
        return Verdict(
            name=name, title=title, state="ok", value=value, text="Images spread over most prototypes."
        )
    state = "watch" if ratio >= PERPLEXITY_LOW else "bad"
    text = (
        "A part of the prototypes takes most images."
        if state == "watch"
        else "A few prototypes take nearly all images: collapse, or a sorted stream."
    )
    return Verdict(name=name, title=title, state=state, value=value, text=text)


def _dead(figures: Mapping[str, float | None]) -> Verdict:
    early = _early(figures)
    found = _share(
        figures,
        "dead_prototypes",
        name="dead",
        title="Dead prototypes",
        limits=(DEAD_SOME, DEAD_MANY),
        texts=(
            "Nearly every prototype gets images.",
            "Some prototypes get almost no images.",
            "Many prototypes get no images: `swavstream doctor RUN` names what to change first.",
        ),
    )
    if early is None or found.state == "unknown":
        return found
    return Verdict(name=found.name, title=found.title, state="unknown", value=found.value, text=early)


def _twins(figures: Mapping[str, float | None]) -> Verdict:
    return _share(
        figures,
        "prototype_twins",
        name="twins",
        title="Twins",
        limits=(TWINS_SOME, TWINS_MANY),
        texts=(
            "Prototypes point in different directions.",
            "Some prototypes are nearly the same vector.",
            "Many prototypes are the same vector: partial collapse, which usage cannot show.",
        ),
    )


def _spread(figures: Mapping[str, float | None]) -> Verdict:
    name, title = "spread", "Feature spread"
    known = _known(figures, "feature_std_ratio")
    if known is None:
        return _unknown(name, title)
    ratio = known[0]
    if ratio >= SPREAD_LOW:
        state, text = "ok", "Features are spread over the sphere."
    elif ratio >= SPREAD_NONE:
        state, text = "watch", "Features are crowded together."
    else:
        state, text = "bad", "All images have nearly the same feature: the encoder has collapsed."
    return Verdict(name=name, title=title, state=state, value=f"{ratio:.2f} of 1", text=text)


def _codes(figures: Mapping[str, float | None]) -> Verdict:
    name, title = "codes", "Codes"
    known = _known(figures, "sinkhorn_residual")
    if known is None:
        return _unknown(name, title)
    residual = known[0]
    if residual <= RESIDUAL_SOME:
        state, text = "ok", "Sinkhorn converges: codes are balanced."
    elif residual <= RESIDUAL_MUCH:
        state, text = "watch", "Codes are not quite balanced: more Sinkhorn rounds would help."
    else:
        state, text = "bad", "Sinkhorn does not converge: codes are not balanced."
    return Verdict(name=name, title=title, state=state, value=f"{residual:.3f} off balance", text=text)


def _early(figures: Mapping[str, float | None]) -> str | None:
    """Why usage figures cannot be judged yet; None when they can."""
    fill = figures.get("usage_window_fill")
    if fill is None or fill >= WINDOW_FULL:
        return None
    return f"Too early: the usage window is {100 * fill:.0f} % full."


def duration(seconds: float) -> str:
    """For people: 113 s, 5 min, 3 h, 2 d."""
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
