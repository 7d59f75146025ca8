"""What is wrong with a run, why, and which setting to change: rules over plain facts.

Each rule is a pure function of `Facts`: a finding, or None. Limits are those of the alerts. The order is that
of the table at the end: what stops a run, what is wrong with its data, what spoils it, what will; but what
follows from another finding stands under it (`ops.doctor.causes`). Advice looks at what is set: it never
names a value that is there already, nor one that the configuration refuses.
"""

from collections.abc import Callable

from ops.doctor import causes, learning, world
from ops.doctor.case import Facts, Finding

RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    world.left,
    world.two_learners,
    world.stalled,
    learning.same_images,
    world.sorted_stream,
    world.bad_records,
    world.drift,
    learning.learning_rate,
    learning.not_finite,
    learning.collapse,
    learning.not_learning,
    learning.usage,
    learning.dead,
    learning.twins,
    learning.codes,
    world.starved,
    world.readers,
    world.checkpoints,
    world.redis,
    world.stale,
    world.unhealthy,
    world.redis_settings,
)


def examine(facts: Facts) -> list[Finding]:
    """Everything that is wrong, in the order in which to look at it: causes before what follows from them."""
    return causes.in_order([finding for rule in RULES if (finding := rule(facts)) is not None])
