"""Every rule of health, once: when it holds, its limits, what that means, what to do, and how it is alerted.

From this table follow the verdicts of the live page (`ops.monitoring.verdicts`), the findings of the doctor
(`ops.doctor.diagnosis`), the alerts (`ops.monitoring.alerts`) and the limits on dashboards. A condition is
written once, as terms over facts by name; the same terms are a predicate here and PromQL in an alert. The
learner's own gate for snapshots has its limits in `learner.step_stats`; five rules take theirs from there.
The file is long because it is the whole table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from learner.step_stats import LIMITS
from ops.monitoring import advice
from ops.monitoring.advice import FROM_HEALTHY, Advice
from ops.monitoring.catalog import PREFIX
from ops.monitoring.conditions import SHIPPED, Scale, Term
from ops.monitoring.facts import Facts, duration
from ops.rundir.summary import FINISHED

LOSS_SLOW, LOSS_STUCK = 0.95, 1 - LIMITS["loss_excess_ratio"].value
"""Loss against ln K: little, and nothing, has been learned."""
LOSS_NOISE = 0.02
"""Change of the loss against ln K that says nothing."""
LOSS_ABOVE = 1.1
"""Loss against ln K from which the network is not only ignorant but confident and wrong."""
AGREEMENT_RISE = 0.05
"""Growth of the agreement of views, corrected for chance, from which a run learns: the mean of 20 batches of
64 images wanders by 0.01."""
AGREEMENT_MUCH = 0.5
"""Agreement of a run that has learned, also where it began so, with the weights of another."""
RESIDUAL_SOME, RESIDUAL_MUCH = 0.3, 0.8
"""Mass that Sinkhorn left on the wrong prototypes, at most 2; 0.2 to 0.4 in runs that learn well, with three
rounds at epsilon 0.03."""
DRIFT_SOME, DRIFT_MUCH = 0.1, 0.25
"""Population stability index from which a shift is some, and a large one, by common use."""
SORTED_COSINE = 0.2
"""How much closer neighbours in a lane may be than other pairs of their batch."""
ALIKE_COSINE = 0.08
"""How much closer samples of a batch may be than samples of different batches: a sorted stream of six kinds
gave 0.1 to 0.24, mixed ones stayed within 0.03."""
BAD_SHARE = 0.05
"""Unusable records, of all that were read."""
SAME_MUCH = 0.5
"""Share of images that are one picture from which this is a fault of the stream."""
RATE_HIGH = {"adamw": 0.02, "sgd": 10.0, "lars": 30.0}
"""Learning rates that no published run of the method comes near to."""

# Whatever name is given to the job: what has shown a learner within a day is one. It may be down, or its
# target may be gone with it; then another target may have gone on with its run.
_SEEN = f"last_over_time({PREFIX}run_info[24h])"
_ENDED = f"(last_over_time({PREFIX}run_ended[24h]) == 1)"
_GONE = f"{_SEEN} unless on (job, instance) up unless on (run) {PREFIX}run_info"
_MISSED = f"((up == 0) and on (job, instance) {_SEEN} or ({_GONE})) unless on (job, instance) {_ENDED}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """How a rule is alerted; the page of its name is in `ops/monitoring/runbooks/`."""

    name: str
    """Without the prefix Swavstream."""
    severity: str
    """page: a person must act now, nothing is learned or something is being lost. ticket: it can wait for
    the morning."""
    for_s: float
    """Seconds that the condition has to hold, before scaling."""
    dashboard: str
    """Name of the dashboard that shows it, see `ops.monitoring.export`."""
    promql: str = ""
    """Instead of the rule's condition, for what facts about one run cannot say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """How the live page tells of a figure, also while nothing is wrong."""

    name: str
    """Short snake_case name; stable."""
    title: str
    value: Callable[[Facts], str]
    """The figure, as it is read aloud."""
    ok: str
    watch: Term
    """From here on it is watched; beyond the rule's own limit it is bad."""
    watched: str
    """What it means between the two limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that can be wrong with a run."""

    name: str
    """Of the doctor's finding; stable, short."""
    text: str
    """One sentence: what is wrong."""
    when: tuple[tuple[Term, ...], ...] = ()
    """It holds where all terms of one of these do; the first term is the figure, others say whether it can
    be judged at all."""
    also: Callable[[Facts], bool] | None = None
    """A further condition, on what only files and settings show; no alert can have it."""
    cause: Callable[[Facts], str] | None = None
    """A sharper sentence, where the facts of one run tell more than the text."""
    evidence: Callable[[Facts], str] | None = None
    """What was seen; None = the doctor cannot see it."""
    advice: Callable[[Facts], Advice] | Advice = ("", "")
    """The setting to change first (empty = none helps), and what to do."""
    alert: Alert | None = None
    page: str = ""
    """Runbook of a rule that is not alerted, or empty."""
    shown: Shown | None = None

    def holds(self, facts: Facts, scale: Scale = SHIPPED) -> bool:
        """Whether this is wrong with a run."""
        found = any(all(term.holds(facts, scale) for term in terms) for terms in self.when)
        return found or (self.also is not None and self.also(facts))

    def promql(self, scale: Scale = SHIPPED) -> str:
        """The condition for Prometheus; empty = there is none."""
        if self.alert is not None and self.alert.promql:
            return scale.scaled(self.alert.promql)
        alternatives = [" and ".join(term.promql(scale) for term in terms) for terms in self.when]
        return " or ".join(alternatives).replace("and unless", "unless")

    @property
    def runbook(self) -> str:
        """Name of its page in ops/monitoring/runbooks; empty = none."""
        page = self.alert.name if self.alert is not None else self.page
        return f"Swavstream{page}" if page else ""

    @property
    def bound(self) -> float:
        """The limit of its figure."""
        return self.when[0][0].bound()


WINDOW_FULL = Term("usage_window_fill", ">=", 0.9)
"""Usage figures are believed from here on."""
WARMED_UP = Term("updates", ">", "warm_up_updates")
MINUTE = 60.0


def _gate(name: str) -> Term:
    """A limit of the learner's gate for snapshots, as the term that holds where the gate does not pass."""
    limit = LIMITS[name]
    return Term(name, "<" if limit.rule == "at least" else ">", limit.value)


def agreement_rose(late: float | None, start: float | None) -> bool:
    """Whether two views of an image agree on a prototype more than by chance and more than at the start.

    This is evidence of learning. A falling loss alone is none: a network whose guesses become even comes down
    to ln K from above, and features that crowd together bring it below.
    """
    if late is None or start is None:
        return False
    return late >= AGREEMENT_MUCH or late - start >= AGREEMENT_RISE


def _count(share: float | None, facts: Facts) -> str:
    return f"{(share or 0.0) * facts.prototypes:.0f} of {facts.prototypes}"


LEFT = Rule(
    name="left",
    text="Prometheus gets no metrics from a learner whose run has not ended.",
    also=lambda facts: facts.status == "left",
    cause=lambda _: "No process works on this run and it has not come to an end: killed, or an error.",
    evidence=lambda facts: f"no summary, {facts.samples:,} samples at its last checkpoint",
    advice=("", "Run the same `swavstream learn` command again: it goes on from there."),
    alert=Alert(
        name="MetricsAbsent", severity="page", for_s=5 * MINUTE, dashboard="training", promql=_MISSED
    ),
)

TWO_LEARNERS = Rule(
    name="two-learners",
    text="Another learner publishes for the same run; this one is refused.",
    when=((Term("stale_epochs", ">"),),),
    evidence=lambda facts: f"{facts.stale_epochs} publishes refused with a stale epoch",
    advice=("", "End one of them. `swavstream snapshots show RUN` names who publishes."),
    alert=Alert(name="TwoLearners", severity="page", for_s=0, dashboard="snapshots"),
)

_NOT_WAITING = Term("waiting", "==", 0)


def _stalled_for(facts: Facts) -> str:
    if facts.since_step_s is None:
        return f"{duration(facts.since_start_s or 0.0)} since the start"
    return f"{duration(facts.since_step_s)} since the last step, {facts.lag:,} unread records"


STALLED = Rule(
    name="stalled",
    text="No step is done although records are unread, or none since the learner started.",
    when=(
        (Term("since_step_s", ">", "stalled_s"), _NOT_WAITING, Term("lag", ">")),
        (Term("since_start_s", ">", "start_s"), _NOT_WAITING, Term("since_step_s", "unknown")),
    ),
    cause=lambda facts: (
        "No step is done since the learner started: it hangs while it loads, meets the other ranks or reads "
        "its first batch."
        if facts.since_step_s is None
        else "No step is done although records are unread: a reader, a rank or a disk hangs."
    ),
    evidence=_stalled_for,
    advice=("", "Look at storage and at the other ranks; end the learner and run the same command again."),
    alert=Alert(name="LearnerStalled", severity="page", for_s=MINUTE, dashboard="training"),
)

SAME_IMAGES = Rule(
    name="same-images",
    text="Most images of the stream are one and the same picture.",
    when=((Term("same_images_ratio", ">", SAME_MUCH),),),
    evidence=lambda facts: (
        f"{facts.same_images_ratio:.0%} of the first images that arrived are nearly equal pixel by pixel"
    ),
    advice=(
        "",
        "Look at the source: a camera that stands still, blank pages, or a placeholder for what is gone. No "
        "setting helps; begin a new run once the stream holds different images.",
    ),
    page="FeatureCollapse",
)


def _alike(facts: Facts) -> str:
    seen = {"batches": facts.batch_similarity, "neighbours": facts.stream_autocorrelation}
    far = [
        f"{name} {seen[name]:.2f}"
        for name, terms in zip(seen, SORTED.when, strict=True)
        if terms[0].holds(facts)
    ]
    return f"closer than others by cosine: {', '.join(far)}"


SORTED = Rule(
    name="sorted",
    text="Images that arrive together are alike: the stream is sorted, or from a video.",
    when=(
        (Term("batch_similarity", ">", ALIKE_COSINE),),
        (Term("stream_autocorrelation", ">", SORTED_COSINE),),
    ),
    evidence=_alike,
    advice=advice.mix,
    alert=Alert(name="StreamSorted", severity="ticket", for_s=15 * MINUTE, dashboard="stream"),
)

BAD_RECORDS = Rule(
    name="bad-records",
    text="Many records cannot be used.",
    when=((Term("bad_records_ratio", ">", BAD_SHARE),),),
    evidence=lambda facts: (
        f"{sum(facts.bad_records.values()):,} of the latest {facts.used + sum(facts.bad_records.values()):,} "
        f"skipped, mostly {advice.worst_reason(facts)}"
    ),
    advice=advice.mend_records,
    alert=Alert(name="BadRecords", severity="ticket", for_s=5 * MINUTE, dashboard="stream"),
)

DRIFT = Rule(
    name="drift",
    text="The stream has moved to other images than before.",
    when=((Term("drift_psi", ">", DRIFT_MUCH),),),
    evidence=lambda facts: (
        f"stability index {facts.drift_psi:.2f}"
        + ("" if facts.novelty_ratio is None else f", novelty {facts.novelty_ratio:.1%}")
    ),
    advice=(
        "health.reference_samples",
        "Wanted: nothing, it is the new normal after so many samples. Not wanted: see the sources.",
    ),
    alert=Alert(name="StreamDrift", severity="ticket", for_s=5 * MINUTE, dashboard="stream"),
)


def _raised(facts: Facts) -> list[Mapping[str, Any]]:
    """Changes by which the learning rate went up more than threefold."""
    return [
        line
        for line in facts.changes
        if line.get("setting") == "optim.learning_rate" and line["new"] > 3 * line["old"]
    ]


def _rate_too_high(facts: Facts) -> bool:
    """A rate that explains what is seen: a loss that it drove up, or a wild value together with trouble.

    A network that has not moved is above ln K as well: its guesses are sharp and mean nothing.
    """
    rate, loss, start = facts.setting("optim.learning_rate"), facts.loss_over_ln_k, facts.start_loss_over_ln_k
    wild = rate is not None and rate > RATE_HIGH.get(facts.setting("optim.optimizer"), math.inf)
    explained = COLLAPSE.holds(facts) or SAME_IMAGES.holds(facts)
    driven_up = loss is not None and loss > LOSS_ABOVE and (start is None or loss > start + LOSS_NOISE)
    spoiled = any(rule.holds(facts) for rule in (NOT_FINITE, COLLAPSE, TWINS, CODES))
    trouble = spoiled or (loss is not None and loss > LOSS_STUCK)
    return (_at_ln_k(facts) and driven_up and not explained) or (trouble and (wild or bool(_raised(facts))))


def _rate_seen(facts: Facts) -> str:
    rate, start = facts.setting("optim.learning_rate"), facts.start_loss_over_ln_k
    seen = (
        [f"optim.learning_rate is {rate:g} with {facts.setting('optim.optimizer')}"]
        if rate is not None
        else []
    )
    if facts.loss_over_ln_k is not None:
        began = "" if start is None else f", at the start {start:.2f}"
        seen.append(f"loss is {facts.loss_over_ln_k:.2f} of ln K{began}")
    seen += [
        f"it was raised from {one['old']:g} at {one['samples']:,} samples" for one in _raised(facts)[-1:]
    ]
    return "; ".join(seen)


LEARNING_RATE = Rule(
    name="learning-rate",
    text="The learning rate is far too high.",
    also=_rate_too_high,
    evidence=_rate_seen,
    advice=advice.lower_rate,
    page="NotLearning",
)

NOT_FINITE = Rule(
    name="not-finite",
    text="Loss or gradient was not a finite number; the step was refused.",
    when=((Term("not_finite", ">"),),),
    evidence=lambda facts: f"{facts.not_finite} steps refused, see nonfinite.jsonl",
    advice=advice.survive_not_finite,
    alert=Alert(name="NotFinite", severity="page", for_s=0, dashboard="training"),
)

COLLAPSE = Rule(
    name="collapse",
    text="All images have nearly the same feature: the encoder has collapsed.",
    when=((_gate("feature_std_ratio"),),),
    evidence=lambda facts: f"feature spread is {facts.feature_std_ratio:.3f} of 1",
    advice=(
        "optim.learning_rate",
        f"Begin a new run from the last healthy snapshot ({FROM_HEALTHY}), with a lower rate, or a longer "
        "optim.warmup_samples or swav.freeze_samples.",
    ),
    alert=Alert(name="FeatureCollapse", severity="page", for_s=2 * MINUTE, dashboard="balance"),
    shown=Shown(
        name="spread",
        title="Feature spread",
        value=lambda facts: f"{facts.feature_std_ratio:.2f} of 1",
        ok="Features are spread over the sphere.",
        watch=Term("feature_std_ratio", "<", 0.35),
        watched="Features are crowded together.",
    ),
)


_NOTHING_LEARNED = "The loss is at ln K: nothing is being learned."
_AT_LN_K = (Term("loss_over_ln_k", ">", LOSS_STUCK), WARMED_UP)


def _over_at_ln_k(facts: Facts) -> bool:
    """Whether a run is over and at ln K; it has had all its updates, however few."""
    return facts.status == FINISHED and facts.updates > 0 and _AT_LN_K[0].holds(facts)


def _at_ln_k(facts: Facts) -> bool:
    return all(term.holds(facts) for term in _AT_LN_K) or _over_at_ln_k(facts)


def _worse(facts: Facts) -> bool:
    """Whether a finished run ends with more loss than it began with, and its views agree no better."""
    loss, start = facts.loss_over_ln_k, facts.start_loss_over_ln_k
    if facts.status != FINISHED or loss is None or start is None:
        return False
    return loss > start + LOSS_NOISE and not agreement_rose(facts.view_agreement, facts.start_view_agreement)


def _loss_seen(facts: Facts) -> str:
    code, start = facts.code_entropy_over_ln_k, facts.start_loss_over_ln_k
    return (
        f"loss is {facts.loss_over_ln_k:.3f} of ln K after {facts.updates:,} updates"
        + (f", at the start {start:.3f}" if start is not None else "")
        + (f", code entropy is {code:.3f} of it: codes say nothing" if code and code > LOSS_STUCK else "")
    )


NOT_LEARNING = Rule(
    name="not-learning",
    text=_NOTHING_LEARNED,
    when=(_AT_LN_K,),
    also=lambda facts: _over_at_ln_k(facts) or _worse(facts),
    cause=lambda facts: _NOTHING_LEARNED if _at_ln_k(facts) else "The loss is worse than at the start.",
    evidence=_loss_seen,
    advice=advice.learn_more,
    alert=Alert(name="NotLearning", severity="page", for_s=10 * MINUTE, dashboard="balance"),
    shown=Shown(
        name="loss",
        title="Learning",
        value=lambda facts: f"{facts.loss_over_ln_k:.3f} of ln K",
        ok="The loss is well below ln K, and views of one image find the same prototype.",
        watch=Term("loss_over_ln_k", ">=", LOSS_SLOW),
        watched="The loss is close to ln K: little is learned so far.",
    ),
)

NO_BETTER_THAN_START = Rule(
    name="no-better-than-start",
    text="The run has learned nothing beyond its own start: views of an image find each other no better.",
    also=lambda facts: facts.status == FINISHED and facts.learned_beyond_start is False,
    evidence=lambda facts: (
        f"{100 * (facts.views_found or 0):.1f} % of views find the other view of their image, "
        f"{100 * (facts.start_views_found or 0):.1f} % before the first step, after {facts.updates:,} updates"
    ),
    advice=advice.learn_beyond_start,
    page="NotLearning",
)

USAGE = Rule(
    name="usage",
    text="A few prototypes take nearly all images.",
    when=((_gate("usage_perplexity_ratio"), WINDOW_FULL),),
    evidence=lambda facts: f"perplexity of usage is {facts.usage_perplexity_ratio:.3f} of K",
    advice=advice.spread_usage,
    alert=Alert(name="UsageCollapse", severity="page", for_s=10 * MINUTE, dashboard="balance"),
    shown=Shown(
        name="balance",
        title="Balance",
        value=lambda facts: f"{_count(facts.usage_perplexity_ratio, facts)} in use",
        ok="Images spread over most prototypes.",
        watch=Term("usage_perplexity_ratio", "<", 0.5),
        watched="A part of the prototypes takes most images.",
    ),
)

DEAD = Rule(
    name="dead-prototypes",
    text="Many prototypes get no images.",
    when=((_gate("dead_prototypes_ratio"), WINDOW_FULL),),
    evidence=lambda facts: (
        f"{facts.dead_prototypes_ratio:.0%} of the prototypes have less than a twentieth of the even share"
    ),
    advice=advice.revive,
    alert=Alert(name="PrototypesDying", severity="ticket", for_s=30 * MINUTE, dashboard="balance"),
    shown=Shown(
        name="dead",
        title="Dead prototypes",
        value=lambda facts: _count(facts.dead_prototypes_ratio, facts),
        ok="Nearly every prototype gets images.",
        watch=Term("dead_prototypes_ratio", ">", 0.05),
        watched="Some prototypes get almost no images.",
    ),
)

TWINS = Rule(
    name="twins",
    text="Many prototypes are nearly the same vector: a partial collapse that usage does not show.",
    when=((_gate("prototype_twins_ratio"),),),
    evidence=lambda facts: f"{facts.prototype_twins_ratio:.0%} of the prototypes have a twin",
    advice=advice.separate,
    alert=Alert(name="PrototypeTwins", severity="ticket", for_s=30 * MINUTE, dashboard="balance"),
    shown=Shown(
        name="twins",
        title="Twins",
        value=lambda facts: _count(facts.prototype_twins_ratio, facts),
        ok="Prototypes point in different directions.",
        watch=Term("prototype_twins_ratio", ">", 0.02),
        watched="Some prototypes are nearly the same vector.",
    ),
)

CODES = Rule(
    name="codes",
    text="Sinkhorn does not converge: codes are not balanced.",
    when=((Term("sinkhorn_residual", ">", RESIDUAL_MUCH),),),
    evidence=lambda facts: f"mass off balance is {facts.sinkhorn_residual:.2f}",
    advice=advice.balance_codes,
    alert=Alert(name="CodesUnbalanced", severity="ticket", for_s=10 * MINUTE, dashboard="balance"),
    shown=Shown(
        name="codes",
        title="Codes",
        value=lambda facts: f"{facts.sinkhorn_residual:.3f} off balance",
        ok="Sinkhorn converges: codes are balanced.",
        watch=Term("sinkhorn_residual", ">", RESIDUAL_SOME),
        watched="Codes are not quite balanced: more Sinkhorn rounds would help.",
    ),
)


def _unfed(facts: Facts) -> str:
    if facts.kafka:
        lane = "a partition has none"
    elif advice.smaller_window(facts):
        lane = "the window of commits is not complete"
    else:
        lane = "no lane has a whole chunk"
    return f"The learner waits although enough records are unread: {lane}."


STARVED = Rule(
    name="starved",
    text="The learner waits although enough records for a step are unread: a lane has none.",
    when=((Term("lag", ">=", 2, of="batch"), Term("waiting", "==", 1)),),
    cause=_unfed,
    evidence=lambda facts: f"{facts.lag:,} unread, a step needs {facts.batch}",
    advice=advice.feed,
    alert=Alert(name="Starved", severity="ticket", for_s=10 * MINUTE, dashboard="stream"),
)

FALLING_BEHIND = Rule(
    name="falling-behind",
    text="More records arrive than are used, and have for some time.",
    when=((Term("lag_growth", ">", 10, of="batch"), _NOT_WAITING),),
    alert=Alert(name="FallingBehind", severity="ticket", for_s=30 * MINUTE, dashboard="stream"),
)

READERS = Rule(
    name="readers",
    text="Reader processes die again and again.",
    when=((Term("reader_restarts", ">", 2),),),
    evidence=lambda facts: f"{facts.reader_restarts} were replaced within half an hour",
    advice=advice.less_memory,
    alert=Alert(name="ReadersDying", severity="ticket", for_s=0, dashboard="stream"),
)

CHECKPOINTS = Rule(
    name="checkpoints",
    text="A checkpoint could not be written, or was found damaged.",
    when=((Term("checkpoint_troubles", ">"),),),
    cause=lambda _: "Checkpoints are failing: a kill now would cost all since the last good one.",
    evidence=lambda facts: "; ".join(
        ([f"{facts.checkpoint_errors} could not be written"] if facts.checkpoint_errors else [])
        + ([f"damaged: {', '.join(facts.damaged)}"] if facts.damaged else [])
    ),
    advice=advice.make_room,
    alert=Alert(name="CheckpointFailing", severity="page", for_s=0, dashboard="training"),
)

REDIS = Rule(
    name="redis",
    text="Snapshots cannot be published: Redis or the disk does not take them.",
    when=((Term("publishing_fails", ">"),),),
    cause=lambda _: "Redis is away, or does not take snapshots; the learner goes on without.",
    evidence=lambda facts: (
        facts.redis_error or f"{facts.publish_errors} failed publishes: {facts.publish_detail}"
    ),
    advice=("snapshot.url", "Start the server, or correct the address there or in SWAVSTREAM_REDIS_URL."),
    alert=Alert(name="SnapshotsFailing", severity="ticket", for_s=5 * MINUTE, dashboard="snapshots"),
)

SNAPSHOTS_LATE = Rule(
    name="snapshots-late",
    text="More than two snapshots in a row are missing.",
    when=((Term("snapshot_behind", ">", 2, of="snapshot_every"), Term("snapshot_every", ">")),),
    cause=lambda facts: (
        "Readers get no newer snapshots."
        if facts.publishing_fails or facts.stale_epochs
        else "Snapshots are made faster than they can be sent."
    ),
    evidence=lambda facts: (
        f"the newest is {facts.snapshot_behind:,} samples old, {facts.snapshot_every:,} are set"
    ),
    advice=advice.rarer_snapshots,
    alert=Alert(name="SnapshotStale", severity="ticket", for_s=5 * MINUTE, dashboard="snapshots"),
)

SNAPSHOTS_UNHEALTHY = Rule(
    name="snapshots-unhealthy",
    text="Snapshots are published but not healthy: `stable` stays where it is.",
    also=lambda facts: bool(facts.unhealthy),
    evidence=lambda facts: facts.unhealthy,
    advice=("", "Nothing here: who reads `stable` still gets the last healthy one."),
    page="SnapshotStale",
)

REDIS_SETTINGS = Rule(
    name="redis-settings",
    text="Redis may lose snapshots.",
    also=lambda facts: bool(facts.redis_warnings),
    evidence=lambda facts: "; ".join(facts.redis_warnings),
    advice=("", "Change the server's settings as it says."),
    page="SnapshotsFailing",
)

RULES: tuple[Rule, ...] = (
    LEFT, TWO_LEARNERS, STALLED, SAME_IMAGES, SORTED, BAD_RECORDS, DRIFT, LEARNING_RATE, NOT_FINITE, COLLAPSE,
    NOT_LEARNING, NO_BETTER_THAN_START, USAGE, DEAD, TWINS, CODES, STARVED, FALLING_BEHIND, READERS,
    CHECKPOINTS, REDIS, SNAPSHOTS_LATE, SNAPSHOTS_UNHEALTHY, REDIS_SETTINGS,
)  # fmt: skip
"""In the order in which to look at them: what stops a run, what is wrong with its data, what spoils it, what
will. What follows from another finding the doctor puts under it."""
