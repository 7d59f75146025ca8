"""Rules of the doctor on what is learned; each a pure function of the facts."""

import math

from learner.measure import LIMITS
from ops.config.checks import ROUNDS_WHEN_SHARP, SHARP, enough_queue
from ops.doctor.case import Facts, Finding
from ops.monitoring.verdicts import LOSS_STUCK, RESIDUAL_MUCH, WARM_UP_UPDATES, WINDOW_FULL, agreement_rose
from ops.rundir.summary import FINISHED

# Learning rates that no published run of the method comes near to.
RATE_HIGH = {"adamw": 0.02, "sgd": 10.0, "lars": 30.0}
FROM_HEALTHY = "`swavstream learn STREAM --run NEW --init-from RUN:VERSION`"
"""Begins a run with the weights of a snapshot."""
RATE_LOW = {"adamw": 1e-5, "sgd": 1e-3, "lars": 1e-2}
"""Learning rates below which hardly anything moves."""
REPLAYS_MANY = 16
"""Updates of an arriving batch above which none were measured: more are not advised."""
EPSILON_SOFT = 0.1
"""Epsilon above which codes say little: a softer one is not advised."""
SAME_MUCH = 0.5
"""Share of images that are one picture from which this is a fault of the stream."""
LOSS_NOISE = 0.02
"""Change of the loss against ln K that says nothing."""
LOSS_ABOVE = 1.1
"""Loss against ln K from which it is not only ignorant but confident and wrong."""


def same_images(facts: Facts) -> Finding | None:
    """One picture over and over: nothing can be learned from it, whatever is set."""
    share = facts.same_images_ratio
    if share is None or share <= SAME_MUCH:
        return None
    return Finding(
        name="same-images",
        cause="Most images of the stream are one and the same picture.",
        evidence=f"{share:.0%} of the first images that arrived are nearly equal pixel by pixel",
        setting="",
        advice="Look at the source: a camera that stands still, blank pages, or a placeholder for what is "
        "gone. No setting helps; begin a new run once the stream holds different images.",
        runbook="SwavstreamFeatureCollapse",
    )


def learning_rate(facts: Facts) -> Finding | None:
    """A rate that explains what is seen: a loss that it drove up, or a wild value together with trouble."""
    rate, optimizer = facts.setting("optim.learning_rate"), facts.setting("optim.optimizer")
    wild = rate is not None and rate > RATE_HIGH.get(optimizer, math.inf)
    lost = facts.loss_over_ln_k is not None and facts.loss_over_ln_k > LOSS_STUCK
    spoiled = collapsed(facts) or twins(facts) is not None or codes(facts) is not None
    trouble = facts.not_finite > 0 or lost or spoiled
    raised = [
        line for line in facts.changes
        if line.get("setting") == "optim.learning_rate" and line["new"] > 3 * line["old"]
    ]  # fmt: skip
    if not (_driven_up(facts) or (trouble and (wild or raised))):
        return None
    seen = [f"optim.learning_rate is {rate:g} with {optimizer}"] if rate is not None else []
    if facts.loss_over_ln_k is not None:
        start = facts.start_loss_over_ln_k
        began = "" if start is None else f", at the start {start:.2f}"
        seen.append(f"loss is {facts.loss_over_ln_k:.2f} of ln K{began}")
    seen += [f"it was raised from {line['old']:g} at {line['samples']:,} samples" for line in raised[-1:]]
    lower = "" if rate is None else f" to {rate / 10:g}"
    return Finding(
        name="learning-rate",
        cause="The learning rate is far too high.",
        evidence="; ".join(seen),
        setting="optim.learning_rate",
        advice=f"Lower it ten times{lower}. Where the run does not come back: a new run ({FROM_HEALTHY}), "
        "with a longer optim.warmup_samples too.",
        runbook="SwavstreamNotLearning",
    )


def _driven_up(facts: Facts) -> bool:
    """Whether the loss stands far above ln K and has not stood there from the start.

    A network that has not moved is above ln K as well: its guesses are sharp and mean nothing.
    """
    if not _stuck(facts) or collapsed(facts) or same_images(facts) is not None:
        return False
    loss, start = facts.loss_over_ln_k or 0.0, facts.start_loss_over_ln_k
    return loss > LOSS_ABOVE and (start is None or loss > start + LOSS_NOISE)


def not_finite(facts: Facts) -> Finding | None:
    """Loss or gradient was inf or NaN."""
    if not facts.not_finite:
        return None
    skips = facts.setting("on_nonfinite") == "skip"
    return Finding(
        name="not-finite",
        cause="Loss or gradient was not a finite number.",
        evidence=f"{facts.not_finite} steps refused, see nonfinite.jsonl",
        setting="optim.learning_rate" if skips else "on_nonfinite",
        advice=("Single batches are skipped already. " if skips else "A single batch: set it to skip. ")
        + "Many: lower optim.learning_rate"
        + (" or raise swav.epsilon." if (facts.setting("swav.epsilon") or 0.0) < EPSILON_SOFT else "."),
        runbook="SwavstreamNotFinite",
    )


def collapsed(facts: Facts) -> bool:
    """Whether all images have nearly the same feature."""
    spread = facts.feature_std_ratio
    return spread is not None and spread < LIMITS["feature_std_ratio"][0]


def _stuck(facts: Facts) -> bool:
    """Whether the loss is at ln K or above after long enough; a run that is over has had all its updates."""
    ratio = facts.loss_over_ln_k
    judged = facts.updates > WARM_UP_UPDATES or (facts.status == FINISHED and facts.updates > 0)
    return ratio is not None and ratio > LOSS_STUCK and judged


def _worse(facts: Facts) -> bool:
    """Whether a finished run ends with more loss than it began with, and its views agree no better."""
    loss, start = facts.loss_over_ln_k, facts.start_loss_over_ln_k
    if facts.status != FINISHED or loss is None or start is None:
        return False
    return loss > start + LOSS_NOISE and not agreement_rose(facts.view_agreement, facts.start_view_agreement)


def collapse(facts: Facts) -> Finding | None:
    """All features are one."""
    if not collapsed(facts):
        return None
    return Finding(
        name="collapse",
        cause="The encoder has collapsed: all images have nearly the same feature.",
        evidence=f"feature spread is {facts.feature_std_ratio:.3f} of 1",
        setting="optim.learning_rate",
        advice=f"Begin a new run from the last healthy snapshot ({FROM_HEALTHY}), with a lower rate, or a "
        "longer optim.warmup_samples or swav.freeze_samples.",
        runbook="SwavstreamFeatureCollapse",
    )


def not_learning(facts: Facts) -> Finding | None:
    """The loss is at ln K, or no better than at the start, and it is not the learning rate."""
    stuck = _stuck(facts)
    if not (stuck or _worse(facts)) or collapsed(facts) or learning_rate(facts) is not None:
        return None
    code, start = facts.code_entropy_over_ln_k, facts.start_loss_over_ln_k
    soft = code is not None and code > LOSS_STUCK
    setting, advice = _first_to_change(facts)
    return Finding(
        name="not-learning",
        cause=(
            "The loss is at ln K: nothing is being learned"
            if stuck
            else "The loss is worse than at the start"
        )
        + (", because the codes say nothing." if soft else "."),
        evidence=f"loss is {facts.loss_over_ln_k:.3f} of ln K after {facts.updates:,} updates"
        + (f", at the start {start:.3f}" if start is not None else "")
        + (f", code entropy is {code:.3f} of it" if soft else ""),
        setting=setting,
        advice=advice,
        runbook="SwavstreamNotLearning",
    )


def _first_to_change(facts: Facts) -> tuple[str, str]:
    """The setting behind a loss at ln K, and what to do with it; never to what it is set to."""
    warm_up = facts.setting("optim.warmup_samples") or 0
    if short_of_prototypes(facts):
        return _fill_prototypes(facts)
    if 0 < facts.samples <= warm_up:
        if facts.status != FINISHED:
            return "", f"Wait: the warm-up of the learning rate lasts until {warm_up:,} samples."
        return "optim.warmup_samples", (
            f"The run was over before its warm-up of {warm_up:,} samples: in a new run make it "
            f"{facts.samples // 10:,} or less, or bring more images."
        )
    if facts.status == FINISHED and facts.updates <= WARM_UP_UPDATES:
        return _more_updates(facts)
    epsilon = facts.setting("swav.epsilon")
    if epsilon is None or epsilon > SHARP:
        return "swav.epsilon", f"Lower it{'' if epsilon is None else f' from {epsilon:g}'} to {SHARP:g}."
    rate, optimizer = facts.setting("optim.learning_rate"), facts.setting("optim.optimizer")
    if rate is not None and rate < RATE_LOW.get(optimizer, 0.0):
        return "optim.learning_rate", f"Raise it ten times to {10 * rate:g}: hardly anything moves."
    if rate is not None:
        return "optim.learning_rate", (
            f"Lower it three times to {rate / 3:.2g}; epsilon is as low as {epsilon:g} already. In a new run "
            "take fewer swav.prototypes or weaker augmentation."
        )
    return "", "Compare the settings with those of a recipe: `swavstream recipes show NAME`."


def _more_updates(facts: Facts) -> tuple[str, str]:
    """A run that was too short to tell: more updates of each image, or more images."""
    told = f"The run had {facts.updates:,} updates; below {WARM_UP_UPDATES} little can be expected."
    now = facts.setting("replay.updates") or 1
    if facts.kafka or facts.setting("mode") == "available" or now >= REPLAYS_MANY:
        return "", f"{told} Bring more images."
    return "replay.updates", (
        f"{told} Bring more images, or in a new run make more of each: replay.updates above {now}, with "
        "replay.window_samples of several batches."
    )


def _fill_prototypes(facts: Facts) -> tuple[str, str]:
    """What to change where batch and queue hold fewer samples than there are prototypes."""
    prototypes, room = _prototypes(facts), _room(facts)
    batch = facts.setting("batch") or 1
    queue = enough_queue(prototypes, batch)
    told = (
        f"Batch and queue hold {room:,} samples for {prototypes:,} prototypes: no balanced code can use all."
    )
    if queue <= facts.samples // 2:
        return "swav.queue_samples", (
            f"{told} In a new run set it to {queue:,} or more, or take fewer swav.prototypes."
        )
    return "swav.prototypes", f"{told} In a new run take {max(2, room):,} or fewer, or a larger batch."


def _window_full(facts: Facts) -> bool:
    return facts.usage_window_fill is not None and facts.usage_window_fill >= WINDOW_FULL


def dead(facts: Facts) -> Finding | None:
    """Prototypes without images."""
    share = facts.dead_prototypes_ratio
    many = share is not None and share > LIMITS["dead_prototypes_ratio"][0]
    if not many or not _window_full(facts):
        return None
    setting, advice = _revive(facts)
    return Finding(
        name="dead-prototypes",
        cause="Many prototypes get no images.",
        evidence=f"{share:.0%} of the prototypes are used less than a twentieth of the even share",
        setting=setting,
        advice=advice,
        runbook="SwavstreamPrototypesDying",
    )


def _revive(facts: Facts) -> tuple[str, str]:
    """What brings images to dead prototypes."""
    if short_of_prototypes(facts):
        return _fill_prototypes(facts)
    epsilon, reseed = facts.setting("swav.epsilon"), facts.setting("reseed.after_samples") or 0
    softer = epsilon is None or epsilon < EPSILON_SOFT
    ways = (
        [f"raise swav.epsilon{'' if epsilon is None else f' above {epsilon:g}'} for softer codes"]
        if softer
        else []
    )
    ways += [] if reseed else [f"set reseed.after_samples to {10 * _prototypes(facts):,} or more"]
    now = f"{', or '.join(ways)}. ".capitalize() if ways else ""
    setting = "swav.epsilon" if softer else "swav.prototypes" if reseed else "reseed.after_samples"
    return setting, (
        f"{now}In a new run: a batch and swav.queue_samples that hold several samples a prototype, or fewer "
        "swav.prototypes."
    )


def _prototypes(facts: Facts) -> int:
    """Prototypes of the largest head."""
    heads = facts.setting("swav.prototypes") or [0]
    return int(max(heads))


def _room(facts: Facts) -> int:
    """Samples that one code is balanced over: those of a batch and of a full queue, whole batches of it."""
    batch, queue = facts.setting("batch") or 0, facts.setting("swav.queue_samples") or 0
    return int(batch + (queue // batch * batch if batch else 0))


def short_of_prototypes(facts: Facts) -> bool:
    """Whether batch and queue together hold fewer samples than there are prototypes."""
    return 0 < _room(facts) < _prototypes(facts)


def usage(facts: Facts) -> Finding | None:
    """A few prototypes take all."""
    ratio = facts.usage_perplexity_ratio
    low = ratio is not None and ratio < LIMITS["usage_perplexity_ratio"][0]
    if not low or not _window_full(facts):
        return None
    uneven = facts.setting("swav.prior") == "powerlaw"
    return Finding(
        name="usage",
        cause="A few prototypes take nearly all images"
        + ("." if collapsed(facts) else ", and the encoder has not collapsed."),
        evidence=f"perplexity of usage is {ratio:.3f} of K",
        setting="" if uneven else "swav.prior",
        advice="Look at the images of the busiest ones: a stream of one kind, or sorted."
        + ("" if uneven else " An uneven balance that is meant: swav.prior = powerlaw."),
        runbook="SwavstreamUsageCollapse",
    )


def twins(facts: Facts) -> Finding | None:
    """Prototypes that are one vector."""
    share = facts.prototype_twins_ratio
    if share is None or share <= LIMITS["prototype_twins_ratio"][0]:
        return None
    setting, advice = _separate(facts)
    return Finding(
        name="twins",
        cause="Many prototypes are nearly the same vector: partial collapse, which usage does not show.",
        evidence=f"{share:.0%} of the prototypes have a twin",
        setting=setting,
        advice=advice,
        runbook="SwavstreamPrototypeTwins",
    )


def _separate(facts: Facts) -> tuple[str, str]:
    """What drives twins apart."""
    epsilon, frozen = facts.setting("swav.epsilon"), facts.setting("swav.freeze_samples") or 0
    still = f"swav.freeze_samples above {frozen:,}" if frozen else "set swav.freeze_samples"
    new = f"In a new run: {still}, so that prototypes keep still at the beginning, or fewer swav.prototypes."
    if epsilon is None or epsilon > SHARP:
        return (
            "swav.epsilon",
            f"Lower it{'' if epsilon is None else f' to {SHARP:g}'} for harder codes. {new}",
        )
    return "swav.freeze_samples", new


def codes(facts: Facts) -> Finding | None:
    """Sinkhorn does not converge."""
    residual = facts.sinkhorn_residual
    if residual is None or residual <= RESIDUAL_MUCH:
        return None
    rounds, epsilon = facts.setting("swav.sinkhorn_iterations"), facts.setting("swav.epsilon")
    few = rounds is None or rounds < ROUNDS_WHEN_SHARP
    softer = epsilon is None or epsilon < EPSILON_SOFT
    ways = [f"raise swav.sinkhorn_iterations to {ROUNDS_WHEN_SHARP}"] if few else []
    ways += [f"raise swav.epsilon{'' if epsilon is None else f' above {epsilon:g}'}"] if softer else []
    ways += (
        [] if ways else ["lower optim.learning_rate: scores are too far apart for any setting of the codes"]
    )
    return Finding(
        name="codes",
        cause="Sinkhorn does not converge: codes are not balanced.",
        evidence=f"mass off balance is {residual:.2f}",
        setting="swav.sinkhorn_iterations" if few else "swav.epsilon" if softer else "optim.learning_rate",
        advice=f"{'; or '.join(ways)}.".capitalize(),
        runbook="SwavstreamCodesUnbalanced",
    )
