"""What is wrong with a run, why, and which setting to change: rules over plain facts.

Each rule is a pure function of `Facts`: a finding, or None. Limits are those of the alerts. The order is that
of the table at the end: what stops a run, what spoils it, what will; a cause comes before what it causes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from learner.measure import LIMITS
from ops.alerts import ALIKE_COSINE, BAD_SHARE, DRIFT_MUCH, SORTED_COSINE
from ops.verdicts import LOSS_STUCK, RESIDUAL_MUCH, STALLED_S, WARM_UP_UPDATES, WINDOW_FULL

# Learning rates that no published run of the method comes near to.
RATE_HIGH = {"adamw": 0.02, "sgd": 10.0, "lars": 30.0}
LOSS_ABOVE = 1.1
"""Loss against ln K from which it is not only ignorant but confident and wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a run; None = not known."""

    status: str = "running"
    """running, finished, stopped or left; see `ops.standing`."""
    live: bool = True
    """The learner itself was asked."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """All settings, nested."""
    changes: tuple[Mapping[str, Any], ...] = ()
    """Lines of changes.jsonl."""
    kafka: bool = False
    """The stream is a topic."""
    samples: int = 0
    updates: int = 0
    loss_over_ln_k: float | None = None
    code_entropy_over_ln_k: float | None = None
    feature_std_ratio: float | None = None
    usage_perplexity_ratio: float | None = None
    usage_window_fill: float | None = None
    dead_ratio: float | None = None
    twins_ratio: float | None = None
    sinkhorn_residual: float | None = None
    drift_psi: float | None = None
    novelty_ratio: float | None = None
    autocorrelation: float | None = None
    batch_similarity: float | None = None
    lag: int | None = None
    waiting: bool = False
    since_step_s: float | None = None
    reader_restarts: int = 0
    used: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Records that could not be used, by reason."""
    not_finite: int = 0
    """Steps that were refused."""
    publish_errors: int = 0
    last_publish: str = ""
    """Result of the latest attempt."""
    publish_detail: str = ""
    stale_epochs: int = 0
    snapshot_samples: int | None = None
    redis_error: str = ""
    """Why Redis cannot be reached now; empty = it can, or nobody has asked."""
    redis_warnings: tuple[str, ...] = ()
    checkpoint_errors: int = 0
    damaged: tuple[str, ...] = ()
    """Checkpoints that were set aside."""

    def setting(self, name: str) -> Any:
        """A dotted setting; None when it is not there."""
        place: Any = self.config
        for part in name.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        return place


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
    """Name of the page in ops/runbooks; empty = none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine(facts: Facts) -> list[Finding]:
    """Everything that is wrong, in the order in which to look at it."""
    return [finding for rule in RULES if (finding := rule(facts)) is not None]


def _two_learners(facts: Facts) -> Finding | None:
    if not facts.stale_epochs:
        return None
    return Finding(
        name="two-learners",
        cause="Two learners work on this run; the newer one publishes, this one is refused.",
        evidence=f"{facts.stale_epochs} publishes refused with a stale epoch",
        setting="",
        advice="End one of them. `swavstream snapshots list RUN` shows who publishes.",
        runbook="SwavstreamTwoLearners",
    )


def _stalled(facts: Facts) -> Finding | None:
    since = facts.since_step_s
    if since is None or since <= STALLED_S or facts.waiting or not facts.lag:
        return None
    return Finding(
        name="stalled",
        cause="No step is done although records are unread: a reader, a rank or a disk hangs.",
        evidence=f"{since:.0f} s since the last step, {facts.lag:,} unread records",
        setting="workers",
        advice="Look at storage and at the other ranks; end the learner and run the same command again.",
        runbook="SwavstreamLearnerStalled",
    )


def _learning_rate(facts: Facts) -> Finding | None:
    """A rate that explains what is seen: the sign alone, or a wild value together with trouble."""
    rate, optimizer = facts.setting("optim.learning_rate"), facts.setting("optim.optimizer")
    wild = rate is not None and rate > RATE_HIGH.get(optimizer, math.inf)
    above = facts.loss_over_ln_k is not None and facts.loss_over_ln_k > LOSS_ABOVE
    lost = facts.loss_over_ln_k is not None and facts.loss_over_ln_k > LOSS_STUCK
    trouble = facts.not_finite > 0 or _collapsed(facts) or lost
    raised = [
        line for line in facts.changes
        if line.get("setting") == "optim.learning_rate" and line["new"] > 3 * line["old"]
    ]  # fmt: skip
    if not ((above and not _collapsed(facts)) or (trouble and (wild or raised))):
        return None
    seen = [f"optim.learning_rate is {rate:g} with {optimizer}"] if rate is not None else []
    if facts.loss_over_ln_k is not None:
        seen.append(f"loss is {facts.loss_over_ln_k:.2f} of ln K")
    seen += [f"it was raised from {line['old']:g} at {line['samples']:,} samples" for line in raised[-1:]]
    return Finding(
        name="learning-rate",
        cause="The learning rate is far too high.",
        evidence="; ".join(seen),
        setting="optim.learning_rate",
        advice="Lower it ten times, or lengthen optim.warmup_samples; begin from a checkpoint before.",
        runbook="SwavstreamNotLearning",
    )


def _not_finite(facts: Facts) -> Finding | None:
    if not facts.not_finite:
        return None
    return Finding(
        name="not-finite",
        cause="Loss or gradient was not a finite number.",
        evidence=f"{facts.not_finite} steps refused, see nonfinite.jsonl",
        setting="on_nonfinite",
        advice="A single batch: set it to skip. Many: lower optim.learning_rate or raise swav.epsilon.",
        runbook="SwavstreamNotFinite",
    )


def _collapsed(facts: Facts) -> bool:
    spread = facts.feature_std_ratio
    return spread is not None and spread < LIMITS["feature_std_ratio"][0]


def _stuck(facts: Facts) -> bool:
    ratio = facts.loss_over_ln_k
    return ratio is not None and ratio > LOSS_STUCK and facts.updates > WARM_UP_UPDATES


def _collapse(facts: Facts) -> Finding | None:
    if not _collapsed(facts):
        return None
    return Finding(
        name="collapse",
        cause="The encoder has collapsed: all images have nearly the same feature.",
        evidence=f"feature spread is {facts.feature_std_ratio:.3f} of 1",
        setting="optim.learning_rate",
        advice="Lower it, or lengthen optim.warmup_samples or swav.freeze_samples; begin from the last "
        "healthy snapshot.",
        runbook="SwavstreamFeatureCollapse",
    )


def _not_learning(facts: Facts) -> Finding | None:
    if not _stuck(facts) or _collapsed(facts):
        return None
    code = facts.code_entropy_over_ln_k
    soft = code is not None and code > LOSS_STUCK
    return Finding(
        name="not-learning",
        cause="The loss is at ln K: nothing is being learned"
        + (", because the codes say nothing." if soft else "."),
        evidence=f"loss is {facts.loss_over_ln_k:.3f} of ln K after {facts.updates:,} updates"
        + (f", code entropy is {code:.3f} of it" if soft else ""),
        setting="swav.epsilon",
        advice="Lower it (0.05 to 0.03), or the learning rate; fewer prototypes when batch and queue are small.",
        runbook="SwavstreamNotLearning",
    )


def _window_full(facts: Facts) -> bool:
    return facts.usage_window_fill is not None and facts.usage_window_fill >= WINDOW_FULL


def _dead(facts: Facts) -> Finding | None:
    share = facts.dead_ratio
    many = share is not None and share > LIMITS["dead_prototypes_ratio"][0]
    if not many or not _window_full(facts) or _collapsed(facts):  # a collapse explains it
        return None
    return Finding(
        name="dead-prototypes",
        cause="Many prototypes get no images.",
        evidence=f"{share:.0%} of the prototypes are used less than a twentieth of the even share",
        setting="swav.queue_samples" if _short(facts) else "swav.epsilon",
        advice="Batch and queue should hold several samples a prototype; raise swav.epsilon for softer codes, "
        "or take fewer swav.prototypes in the next run.",
        runbook="SwavstreamPrototypesDying",
    )


def _short(facts: Facts) -> bool:
    """Whether batch and queue together hold fewer samples than there are prototypes."""
    prototypes = facts.setting("swav.prototypes") or [0]
    return (facts.setting("batch") or 0) + (facts.setting("swav.queue_samples") or 0) < max(prototypes)


def _usage(facts: Facts) -> Finding | None:
    ratio = facts.usage_perplexity_ratio
    low = ratio is not None and ratio < LIMITS["usage_perplexity_ratio"][0]
    if not low or not _window_full(facts) or _collapsed(facts):
        return None
    return Finding(
        name="usage",
        cause="A few prototypes take nearly all images, and the encoder has not collapsed.",
        evidence=f"perplexity of usage is {ratio:.3f} of K",
        setting="swav.prior",
        advice="Look at the images of the busiest ones: a stream of one kind, or sorted. An uneven balance "
        "that is meant: swav.prior = powerlaw.",
        runbook="SwavstreamUsageCollapse",
    )


def _twins(facts: Facts) -> Finding | None:
    share = facts.twins_ratio
    if share is None or share <= LIMITS["prototype_twins_ratio"][0]:
        return None
    return Finding(
        name="twins",
        cause="Many prototypes are nearly the same vector: partial collapse, which usage does not show.",
        evidence=f"{share:.0%} of the prototypes have a twin",
        setting="swav.freeze_samples",
        advice="Keep prototypes still at the beginning, or lower swav.epsilon; fewer swav.prototypes next time.",
        runbook="SwavstreamPrototypeTwins",
    )


def _codes(facts: Facts) -> Finding | None:
    residual = facts.sinkhorn_residual
    if residual is None or residual <= RESIDUAL_MUCH:
        return None
    return Finding(
        name="codes",
        cause="Sinkhorn does not converge: codes are not balanced.",
        evidence=f"mass off balance is {residual:.2f}",
        setting="swav.sinkhorn_iterations",
        advice="Raise it to 5 or 10; or raise swav.epsilon.",
        runbook="SwavstreamCodesUnbalanced",
    )


def _sorted(facts: Facts) -> Finding | None:
    alike = {
        "batches": (facts.batch_similarity, ALIKE_COSINE),
        "neighbours": (facts.autocorrelation, SORTED_COSINE),
    }
    seen = [f"{name} {value:.2f}" for name, (value, most) in alike.items() if value and value > most]
    if not seen or _collapsed(facts):
        return None
    return Finding(
        name="sorted",
        cause="Images that arrive together are alike: the stream is sorted, or from a video.",
        evidence=f"closer than others by cosine: {', '.join(seen)}",
        setting="window",
        advice="Begin a new run with a larger window, or write smaller shards from several sources at once.",
        runbook="SwavstreamStreamSorted",
    )


def _drift(facts: Facts) -> Finding | None:
    if facts.drift_psi is None or facts.drift_psi <= DRIFT_MUCH:
        return None
    new = "" if facts.novelty_ratio is None else f", novelty {facts.novelty_ratio:.1%}"
    return Finding(
        name="drift",
        cause="The stream has moved to other images than before.",
        evidence=f"stability index {facts.drift_psi:.2f}{new}",
        setting="health.reference_samples",
        advice="Wanted: nothing, it is the new normal after so many samples. Not wanted: look at the sources.",
        runbook="SwavstreamStreamDrift",
    )


def _bad_records(facts: Facts) -> Finding | None:
    bad = {reason: count for reason, count in facts.skipped.items() if reason != "non_finite"}
    read = facts.used + sum(bad.values())
    if not read or sum(bad.values()) / read <= BAD_SHARE:
        return None
    worst = max(bad, key=lambda reason: bad[reason])
    return Finding(
        name="bad-records",
        cause="Many records cannot be used.",
        evidence=f"{sum(bad.values()):,} of {read:,} skipped, mostly {worst}",
        setting="reader.max_pixels" if worst == "too_large" else "reader.max_bad_fraction",
        advice="Look at the newest source; the run stops by itself above reader.max_bad_fraction.",
        runbook="SwavstreamBadRecords",
    )


def _starved(facts: Facts) -> Finding | None:
    batch = facts.setting("batch")
    if not facts.waiting or facts.lag is None or not batch or facts.lag < 2 * batch:
        return None
    lane = "a partition has none" if facts.kafka else "the window of commits is not complete"
    return Finding(
        name="starved",
        cause=f"The learner waits although enough records are unread: {lane}.",
        evidence=f"{facts.lag:,} unread, a step needs {batch}",
        setting="" if facts.kafka else "window",
        advice="Let the producer spread over all partitions."
        if facts.kafka
        else "Go on ingesting, seal the stream when no more comes, or begin a new run with a smaller window.",
        runbook="SwavstreamStarved",
    )


def _readers(facts: Facts) -> Finding | None:
    if facts.reader_restarts <= 2:
        return None
    return Finding(
        name="readers",
        cause="Reader processes die again and again.",
        evidence=f"{facts.reader_restarts} were replaced",
        setting="workers",
        advice="Nearly always memory: fewer workers, a smaller reader.prefetch or reader.max_pixels.",
        runbook="SwavstreamReadersDying",
    )


def _redis(facts: Facts) -> Finding | None:
    failing = facts.last_publish == "error"
    if not facts.redis_error and not failing:
        return None
    return Finding(
        name="redis",
        cause="Redis is away, or does not take snapshots; the learner goes on without.",
        evidence=facts.redis_error or f"{facts.publish_errors} failed publishes: {facts.publish_detail}",
        setting="snapshot.url",
        advice="Start the server, or correct the address there or in SWAVSTREAM_REDIS_URL.",
        runbook="SwavstreamSnapshotsFailing",
    )


def _stale(facts: Facts) -> Finding | None:
    every = facts.setting("snapshot.every_samples") or 0
    behind = facts.samples - (facts.snapshot_samples or 0)
    known = facts.live and not facts.redis_error and facts.last_publish != "error" and not facts.stale_epochs
    if not known or not every or behind <= 2 * every:
        return None
    return Finding(
        name="snapshots-late",
        cause="Snapshots are made faster than they can be sent.",
        evidence=f"the newest is {behind:,} samples old, {every:,} are set",
        setting="snapshot.every_samples",
        advice="Raise it.",
        runbook="SwavstreamSnapshotStale",
    )


def _redis_settings(facts: Facts) -> Finding | None:
    if not facts.redis_warnings:
        return None
    return Finding(
        name="redis-settings",
        cause="Redis may lose snapshots.",
        evidence="; ".join(facts.redis_warnings),
        setting="",
        advice="Change the server's settings as it says.",
        runbook="SwavstreamSnapshotsFailing",
    )


def _checkpoints(facts: Facts) -> Finding | None:
    if not facts.checkpoint_errors and not facts.damaged:
        return None
    seen = [f"{facts.checkpoint_errors} could not be written"] if facts.checkpoint_errors else []
    seen += [f"damaged: {', '.join(facts.damaged)}"] if facts.damaged else []
    return Finding(
        name="checkpoints",
        cause="Checkpoints are failing: a kill now would cost all since the last good one.",
        evidence="; ".join(seen),
        setting="checkpoint.keep",
        advice="Look at the disk: make room, or keep fewer.",
        runbook="SwavstreamCheckpointFailing",
    )


def _left(facts: Facts) -> Finding | None:
    if facts.status != "left":
        return None
    return Finding(
        name="left",
        cause="Nobody works on this run, and it did not come to an end: it was killed, or ended with an error.",
        evidence=f"no summary, {facts.samples:,} samples at its last checkpoint",
        setting="",
        advice="Run the same `swavstream learn` command again: it goes on from there.",
        runbook="SwavstreamMetricsAbsent",
    )


RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    _left, _two_learners, _stalled, _learning_rate, _not_finite, _collapse, _not_learning, _usage, _dead,
    _twins, _codes, _sorted, _drift, _bad_records, _starved, _readers, _checkpoints, _redis, _stale,
    _redis_settings,
)  # fmt: skip
