"""What is wrong with a run, why, and which setting to change: rules over plain facts.

Each rule is a pure function of `Facts`: a finding, or None. Limits are those of the alerts. The order is that
of the table at the end: what stops a run, what is wrong with its data, what spoils it, what will; but what
follows from another finding stands under it (`ops.doctor_causes`). Advice looks at what is set: it never
names a value that is there already, nor one that the configuration refuses.
"""

from collections.abc import Callable

from ops import doctor_causes, doctor_learning, doctor_world
from ops.doctor_case import Facts, Finding

RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    doctor_world.left,
    doctor_world.two_learners,
    doctor_world.stalled,
    doctor_learning.same_images,
    doctor_world.sorted_stream,
    doctor_world.bad_records,
    doctor_world.drift,
    doctor_learning.learning_rate,
    doctor_learning.not_finite,
    doctor_learning.collapse,
    doctor_learning.not_learning,
    doctor_learning.usage,
    doctor_learning.dead,
    doctor_learning.twins,
    doctor_learning.codes,
    doctor_world.starved,
    doctor_world.readers,
    doctor_world.checkpoints,
    doctor_world.redis,
    doctor_world.stale,
    doctor_world.unhealthy,
    doctor_world.redis_settings,
)


def examine(facts: Facts) -> list[Finding]:
    """Everything that is wrong, in the order in which to look at it: causes before what follows from them."""
    return doctor_causes.in_order([finding for rule in RULES if (finding := rule(facts)) is not None])
