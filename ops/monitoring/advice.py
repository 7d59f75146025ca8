"""What to change first, where that depends on what is set: advice of the rules in `ops.monitoring.rules`.

Each function takes the facts of a run and returns the setting to change (empty = none helps) and what to do.
It never advises a value that is set already, nor one that the configuration refuses.
"""

from ops.config.checks import ROUNDS_WHEN_SHARP, SHARP, enough_queue
from ops.monitoring.conditions import SHIPPED
from ops.monitoring.facts import Facts
from ops.rundir.summary import FEW_UPDATES, FINISHED

Advice = tuple[str, str]

FROM_HEALTHY = "`swavstream learn STREAM --run NEW --init-from RUN:VERSION`"
"""Begins a run with the weights of a snapshot."""
RATE_LOW = {"adamw": 1e-5, "sgd": 1e-3, "lars": 1e-2}
"""Learning rates below which hardly anything moves."""
REPLAYS_MANY = 16
"""Updates of an arriving batch above which none were measured: more are not advised."""
EPSILON_SOFT = 0.1
"""Epsilon above which codes say little: a softer one is not advised."""
FEWEST_KEPT = 2
"""Checkpoints that a run should keep: with one, a damaged newest one has no reserve."""


def lower_rate(facts: Facts) -> Advice:
    """Of a learning rate that is far too high."""
    rate = facts.setting("optim.learning_rate")
    lower = "" if rate is None else f" to {rate / 10:g}"
    return "optim.learning_rate", (
        f"Lower it ten times{lower}. Where the run does not come back: a new run ({FROM_HEALTHY}), "
        "with a longer optim.warmup_samples too."
    )


def survive_not_finite(facts: Facts) -> Advice:
    """Of steps that are refused."""
    skips = facts.setting("on_nonfinite") == "skip"
    return "optim.learning_rate" if skips else "on_nonfinite", (
        ("Single batches are skipped already. " if skips else "A single batch: set it to skip. ")
        + "Many: lower optim.learning_rate"
        + (" or raise swav.epsilon." if (facts.setting("swav.epsilon") or 0.0) < EPSILON_SOFT else ".")
    )


def learn_beyond_start(facts: Facts) -> Advice:
    """Of a run that ends where it began."""
    if facts.updates < FEW_UPDATES:
        return _more_updates(facts)
    return "", (
        "Compare with `--recipe auto` in another run directory: hundreds of updates fit there. A "
        "network that starts with weights of another (--init-from) may need no more."
    )


def learn_more(facts: Facts) -> Advice:
    """Of a loss at ln K."""
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
    if facts.status == FINISHED and facts.updates <= SHIPPED.warm_up_updates:
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


def _more_updates(facts: Facts) -> Advice:
    """Of a run that was too short: more updates of each image, or more images."""
    few = f"The run had {facts.updates:,} updates; below {SHIPPED.warm_up_updates} little can be expected."
    now = facts.setting("replay.updates") or 1
    if facts.kafka or facts.setting("mode") == "available" or now >= REPLAYS_MANY:
        return "", f"{few} Bring more images."
    return "replay.updates", (
        f"{few} Bring more images, or in a new run make more of each: replay.updates above {now}, with "
        "replay.window_samples of several batches."
    )


def _fill_prototypes(facts: Facts) -> Advice:
    """Of a batch and queue that hold fewer samples than there are prototypes."""
    prototypes, room = _prototypes(facts), _room(facts)
    queue = enough_queue(prototypes, facts.setting("batch") or 1)
    few = (
        f"Batch and queue hold {room:,} samples for {prototypes:,} prototypes: no balanced code can use all."
    )
    if queue <= facts.samples // 2:
        return "swav.queue_samples", (
            f"{few} In a new run set it to {queue:,} or more, or take fewer swav.prototypes."
        )
    return "swav.prototypes", f"{few} In a new run take {max(2, room):,} or fewer, or a larger batch."


def revive(facts: Facts) -> Advice:
    """Of dead prototypes."""
    if short_of_prototypes(facts):
        return _fill_prototypes(facts)
    epsilon, reseed = facts.setting("swav.epsilon"), facts.setting("reseed.after_samples") or 0
    softer = epsilon is None or epsilon < EPSILON_SOFT
    above = "" if epsilon is None else f" above {epsilon:g}"
    ways = [f"raise swav.epsilon{above} for softer codes"] if softer else []
    ways += [] if reseed else [f"set reseed.after_samples to {10 * _prototypes(facts):,} or more"]
    now = f"{', or '.join(ways)}. ".capitalize() if ways else ""
    setting = "swav.epsilon" if softer else "swav.prototypes" if reseed else "reseed.after_samples"
    return setting, (
        f"{now}In a new run: a batch and swav.queue_samples that hold several samples a prototype, or fewer "
        "swav.prototypes."
    )


def _prototypes(facts: Facts) -> int:
    """Prototypes of the largest head."""
    return int(max(facts.setting("swav.prototypes") or [0]))


def _room(facts: Facts) -> int:
    """Samples that one code is balanced over: those of a batch and of a full queue, whole batches of it."""
    batch, queue = facts.setting("batch") or 0, facts.setting("swav.queue_samples") or 0
    return int(batch + (queue // batch * batch if batch else 0))


def short_of_prototypes(facts: Facts) -> bool:
    """Whether batch and queue together hold fewer samples than there are prototypes."""
    return 0 < _room(facts) < _prototypes(facts)


def spread_usage(facts: Facts) -> Advice:
    """Of a few prototypes that take nearly all images."""
    look = "Look at the images of the busiest ones: a stream of one kind, or sorted."
    if facts.setting("swav.prior") == "powerlaw":
        return "", look
    return "swav.prior", f"{look} An uneven balance that is meant: swav.prior = powerlaw."


def separate(facts: Facts) -> Advice:
    """Of twins."""
    epsilon, frozen = facts.setting("swav.epsilon"), facts.setting("swav.freeze_samples") or 0
    still = f"swav.freeze_samples above {frozen:,}" if frozen else "set swav.freeze_samples"
    new = f"In a new run: {still}, so that prototypes keep still at the beginning, or fewer swav.prototypes."
    if epsilon is None or epsilon > SHARP:
        lower = "" if epsilon is None else f" to {SHARP:g}"
        return "swav.epsilon", f"Lower it{lower} for harder codes. {new}"
    return "swav.freeze_samples", new


def balance_codes(facts: Facts) -> Advice:
    """Of Sinkhorn that does not converge."""
    rounds, epsilon = facts.setting("swav.sinkhorn_iterations"), facts.setting("swav.epsilon")
    few = rounds is None or rounds < ROUNDS_WHEN_SHARP
    softer = epsilon is None or epsilon < EPSILON_SOFT
    ways = [f"raise swav.sinkhorn_iterations to {ROUNDS_WHEN_SHARP}"] if few else []
    ways += [f"raise swav.epsilon{'' if epsilon is None else f' above {epsilon:g}'}"] if softer else []
    ways = ways or ["lower optim.learning_rate: scores are too far apart for any setting of the codes"]
    setting = "swav.sinkhorn_iterations" if few else "swav.epsilon" if softer else "optim.learning_rate"
    return setting, f"{'; or '.join(ways)}.".capitalize()


def mix(facts: Facts) -> Advice:
    """Of a stream that arrives in order."""
    write = "write smaller shards from several sources at once"
    if facts.setting("order") == "shard":
        return "order", f"Begin a new run with order = window, or {write}."
    window = facts.setting("window")
    if window == 0:  # all commits are mixed already
        return "", f"The window holds the whole stream already: {write}."
    now = "" if window is None else f" than {window}"
    return "window", f"Begin a new run with a larger window{now}, or {write}."


def worst_reason(facts: Facts) -> str:
    """The reason for which most records are unusable."""
    return max(facts.bad_records, key=lambda reason: facts.bad_records[reason])


def mend_records(facts: Facts) -> Advice:
    """Of records that cannot be used."""
    if worst_reason(facts) == "too_large":
        return "reader.max_pixels", (
            "Look at the newest source. Where images that large are meant, raise reader.max_pixels above "
            f"{facts.setting('reader.max_pixels') or 0:,}."
        )
    most = facts.setting("reader.max_bad_fraction")
    return "reader.max_bad_fraction", (
        f"Look at the newest source. The run stops by itself above reader.max_bad_fraction = {most}."
    )


def smaller_window(facts: Facts) -> bool:
    """Whether a smaller window of commits is possible."""
    window = facts.setting("window")
    return window is None or window > 1


def feed(facts: Facts) -> Advice:
    """Of a learner that waits although records are unread."""
    if facts.kafka:
        return "", "Let the producer spread over all partitions."
    more = "Go on ingesting, or seal the stream when no more comes"
    if not smaller_window(facts):
        return "", f"{more}."
    return "window", f"{more}; or begin a new run with a window smaller than {facts.setting('window')}."


def less_memory(facts: Facts) -> Advice:
    """Of readers that die."""
    workers, prefetch = facts.setting("workers"), facts.setting("reader.prefetch")
    fewer, shorter = workers is None or workers > 1, prefetch is None or prefetch > 1
    ways = [f"fewer workers{'' if workers is None else f' than {workers}'}"] if fewer else []
    ways += [f"a smaller reader.prefetch{'' if prefetch is None else f' than {prefetch}'}"] if shorter else []
    setting = "workers" if fewer else "reader.prefetch" if shorter else "reader.max_pixels"
    return setting, f"Nearly always memory: {' or '.join([*ways, 'a smaller reader.max_pixels'])}."


def make_room(facts: Facts) -> Advice:
    """Of checkpoints that fail."""
    keep = facts.setting("checkpoint.keep")
    if keep is None or keep <= FEWEST_KEPT:
        return "", "Look at the disk and make room."
    return "checkpoint.keep", f"Look at the disk and make room, or keep fewer than {keep}."


def rarer_snapshots(facts: Facts) -> Advice:
    """Of snapshots that come too late."""
    if facts.publishing_fails or facts.stale_epochs:
        return "", "They come again by themselves once its cause is mended."
    return "snapshot.every_samples", f"Raise it above {facts.snapshot_every:,}."
