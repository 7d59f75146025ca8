"""Rules of the doctor on what is learned; each a pure function of the facts."""

import math

from learner.measure import LIMITS
from ops.doctor_case import Facts, Finding
from ops.verdicts import LOSS_STUCK, RESIDUAL_MUCH, WARM_UP_UPDATES, WINDOW_FULL

# Learning rates that no published run of the method comes near to.
RATE_HIGH = {"adamw": 0.02, "sgd": 10.0, "lars": 30.0}
LOSS_ABOVE = 1.1
"""Loss against ln K from which it is not only ignorant but confident and wrong."""


def learning_rate(facts: Facts) -> Finding | None:
    """A rate that explains what is seen: the sign alone, or a wild value together with trouble."""
    rate, optimizer = facts.setting("optim.learning_rate"), facts.setting("optim.optimizer")
    wild = rate is not None and rate > RATE_HIGH.get(optimizer, math.inf)
    above = _stuck(facts) and (facts.loss_over_ln_k or 0.0) > LOSS_ABOVE
    lost = facts.loss_over_ln_k is not None and facts.loss_over_ln_k > LOSS_STUCK
    trouble = facts.not_finite > 0 or collapsed(facts) or lost
    raised = [
        line for line in facts.changes
        if line.get("setting") == "optim.learning_rate" and line["new"] > 3 * line["old"]
    ]  # fmt: skip
    if not ((above and not collapsed(facts)) or (trouble and (wild or raised))):
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


def not_finite(facts: Facts) -> Finding | None:
    """Loss or gradient was inf or NaN."""
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


def collapsed(facts: Facts) -> bool:
    """Whether all images have nearly the same feature."""
    spread = facts.feature_std_ratio
    return spread is not None and spread < LIMITS["feature_std_ratio"][0]


def _stuck(facts: Facts) -> bool:
    ratio = facts.loss_over_ln_k
    return ratio is not None and ratio > LOSS_STUCK and facts.updates > WARM_UP_UPDATES


def collapse(facts: Facts) -> Finding | None:
    """All features are one."""
    if not collapsed(facts):
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


def not_learning(facts: Facts) -> Finding | None:
    """The loss is at ln K, and it is not the learning rate."""
    if not _stuck(facts) or collapsed(facts) or learning_rate(facts) is not None:
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
        advice="Lower it (0.05 to 0.03), or the learning rate; take fewer prototypes when batch and queue "
        "are small.",
        runbook="SwavstreamNotLearning",
    )


def _window_full(facts: Facts) -> bool:
    return facts.usage_window_fill is not None and facts.usage_window_fill >= WINDOW_FULL


def dead(facts: Facts) -> Finding | None:
    """Prototypes without images."""
    share = facts.dead_ratio
    many = share is not None and share > LIMITS["dead_prototypes_ratio"][0]
    if not many or not _window_full(facts):
        return None
    return Finding(
        name="dead-prototypes",
        cause="Many prototypes get no images.",
        evidence=f"{share:.0%} of the prototypes are used less than a twentieth of the even share",
        setting="swav.queue_samples" if _short(facts) else "swav.epsilon",
        advice="Batch and queue should hold several samples a prototype; raise swav.epsilon for softer "
        "codes, or take fewer swav.prototypes in the next run.",
        runbook="SwavstreamPrototypesDying",
    )


def _short(facts: Facts) -> bool:
    """Whether batch and queue together hold fewer samples than there are prototypes."""
    prototypes = facts.setting("swav.prototypes") or [0]
    room: int = (facts.setting("batch") or 0) + (facts.setting("swav.queue_samples") or 0)
    return room < int(max(prototypes))


def usage(facts: Facts) -> Finding | None:
    """A few prototypes take all."""
    ratio = facts.usage_perplexity_ratio
    low = ratio is not None and ratio < LIMITS["usage_perplexity_ratio"][0]
    if not low or not _window_full(facts):
        return None
    return Finding(
        name="usage",
        cause="A few prototypes take nearly all images"
        + ("." if collapsed(facts) else ", and the encoder has not collapsed."),
        evidence=f"perplexity of usage is {ratio:.3f} of K",
        setting="swav.prior",
        advice="Look at the images of the busiest ones: a stream of one kind, or sorted. An uneven balance "
        "that is meant: swav.prior = powerlaw.",
        runbook="SwavstreamUsageCollapse",
    )


def twins(facts: Facts) -> Finding | None:
    """Prototypes that are one vector."""
    share = facts.twins_ratio
    if share is None or share <= LIMITS["prototype_twins_ratio"][0]:
        return None
    return Finding(
        name="twins",
        cause="Many prototypes are nearly the same vector: partial collapse, which usage does not show.",
        evidence=f"{share:.0%} of the prototypes have a twin",
        setting="swav.freeze_samples",
        advice="Keep prototypes still at the beginning, or lower swav.epsilon; take fewer swav.prototypes "
        "next time.",
        runbook="SwavstreamPrototypeTwins",
    )


def codes(facts: Facts) -> Finding | None:
    """Sinkhorn does not converge."""
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
