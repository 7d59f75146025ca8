"""Rules of the doctor on the loop, the stream, and what is kept; each a pure function of the facts."""

from ops.doctor.case import Facts, Finding
from ops.doctor.learning import collapsed
from ops.monitoring.alerts import ALIKE_COSINE, BAD_SHARE, DRIFT_MUCH, SORTED_COSINE
from ops.monitoring.verdicts import STALLED_S, START_S, duration

FEWEST_KEPT = 2
"""Checkpoints that a run should keep: with one, a damaged newest one has no reserve."""


def two_learners(facts: Facts) -> Finding | None:
    """Another learner publishes for the run."""
    if not facts.stale_epochs:
        return None
    return Finding(
        name="two-learners",
        cause="Two learners work on this run; the newer one publishes, this one is refused.",
        evidence=f"{facts.stale_epochs} publishes refused with a stale epoch",
        setting="",
        advice="End one of them. `swavstream snapshots show RUN` names who publishes.",
        runbook="SwavstreamTwoLearners",
    )


def stalled(facts: Facts) -> Finding | None:
    """No step although records are unread, or none since the start."""
    since, start = facts.since_step_s, facts.since_start_s
    if since is None and start is not None and start > START_S and not facts.waiting:
        return Finding(
            name="stalled",
            cause="No step is done since the learner started: it hangs while it loads, meets the other ranks "
            "or reads its first batch.",
            evidence=f"{duration(start)} since the start",
            setting="",
            advice="Look at storage and at the other ranks; end the learner and run the same command again.",
            runbook="SwavstreamLearnerStalled",
        )
    if since is None or since <= STALLED_S or facts.waiting or not facts.lag:
        return None
    return Finding(
        name="stalled",
        cause="No step is done although records are unread: a reader, a rank or a disk hangs.",
        evidence=f"{duration(since)} since the last step, {facts.lag:,} unread records",
        setting="",
        advice="Look at storage and at the other ranks; end the learner and run the same command again.",
        runbook="SwavstreamLearnerStalled",
    )


def sorted_stream(facts: Facts) -> Finding | None:
    """Neighbours or batches are alike, without a collapse."""
    alike = {
        "batches": (facts.batch_similarity, ALIKE_COSINE),
        "neighbours": (facts.stream_autocorrelation, SORTED_COSINE),
    }
    seen = [f"{name} {value:.2f}" for name, (value, most) in alike.items() if value and value > most]
    if not seen or collapsed(facts):
        return None
    setting, advice = _mix(facts)
    return Finding(
        name="sorted",
        cause="Images that arrive together are alike: the stream is sorted, or from a video.",
        evidence=f"closer than others by cosine: {', '.join(seen)}",
        setting=setting,
        advice=advice,
        runbook="SwavstreamStreamSorted",
    )


def _mix(facts: Facts) -> tuple[str, str]:
    """What mixes a stream that arrives in order."""
    write = "write smaller shards from several sources at once"
    if facts.setting("order") == "shard":
        return "order", f"Begin a new run with order = window, or {write}."
    window = facts.setting("window")
    if window == 0:  # all commits are mixed already
        return "", f"The window holds the whole stream already: {write}."
    now = "" if window is None else f" than {window}"
    return "window", f"Begin a new run with a larger window{now}, or {write}."


def drift(facts: Facts) -> Finding | None:
    """The stream is another than before."""
    if facts.drift_psi is None or facts.drift_psi <= DRIFT_MUCH:
        return None
    new = "" if facts.novelty_ratio is None else f", novelty {facts.novelty_ratio:.1%}"
    return Finding(
        name="drift",
        cause="The stream has moved to other images than before.",
        evidence=f"stability index {facts.drift_psi:.2f}{new}",
        setting="health.reference_samples",
        advice="Wanted: nothing, it is the new normal after so many samples. Not wanted: see the sources.",
        runbook="SwavstreamStreamDrift",
    )


def bad_records(facts: Facts) -> Finding | None:
    """Many records are skipped."""
    bad = {reason: count for reason, count in facts.skipped.items() if reason != "non_finite"}
    read = facts.used + sum(bad.values())
    if not read or sum(bad.values()) / read <= BAD_SHARE:
        return None
    worst = max(bad, key=lambda reason: bad[reason])
    pixels, most = facts.setting("reader.max_pixels"), facts.setting("reader.max_bad_fraction")
    after = (
        f"Where images that large are meant, raise reader.max_pixels above {pixels or 0:,}."
        if worst == "too_large"
        else f"The run stops by itself above reader.max_bad_fraction = {most}."
    )
    return Finding(
        name="bad-records",
        cause="Many records cannot be used.",
        evidence=f"{sum(bad.values()):,} of the latest {read:,} skipped, mostly {worst}",
        setting="reader.max_pixels" if worst == "too_large" else "reader.max_bad_fraction",
        advice=f"Look at the newest source. {after}",
        runbook="SwavstreamBadRecords",
    )


def starved(facts: Facts) -> Finding | None:
    """It waits although a step's records are there."""
    batch = facts.setting("batch")
    if not facts.waiting or facts.lag is None or not batch or facts.lag < 2 * batch:
        return None
    window = facts.setting("window")
    smaller = window is None or window > 1
    lane = "the window of commits is not complete" if smaller else "no lane has a whole chunk"
    lane = "a partition has none" if facts.kafka else lane
    return Finding(
        name="starved",
        cause=f"The learner waits although enough records are unread: {lane}.",
        evidence=f"{facts.lag:,} unread, a step needs {batch}",
        setting="" if facts.kafka or not smaller else "window",
        advice="Let the producer spread over all partitions."
        if facts.kafka
        else "Go on ingesting, or seal the stream when no more comes"
        + (f"; or begin a new run with a window smaller than {window}." if smaller else "."),
        runbook="SwavstreamStarved",
    )


def readers(facts: Facts) -> Finding | None:
    """Reader processes die."""
    if facts.reader_restarts <= 2:
        return None
    workers, prefetch = facts.setting("workers"), facts.setting("reader.prefetch")
    fewer, shorter = workers is None or workers > 1, prefetch is None or prefetch > 1
    ways = [f"fewer workers{'' if workers is None else f' than {workers}'}"] if fewer else []
    ways += [f"a smaller reader.prefetch{'' if prefetch is None else f' than {prefetch}'}"] if shorter else []
    less = " or ".join([*ways, "a smaller reader.max_pixels"])
    setting = "workers" if fewer else "reader.prefetch" if shorter else "reader.max_pixels"
    return Finding(
        name="readers",
        cause="Reader processes die again and again.",
        evidence=f"{facts.reader_restarts} were replaced within half an hour",
        setting=setting,
        advice=f"Nearly always memory: {less}.",
        runbook="SwavstreamReadersDying",
    )


def redis(facts: Facts) -> Finding | None:
    """Snapshots cannot be sent."""
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


def stale(facts: Facts) -> Finding | None:
    """Snapshots come too late."""
    every = facts.setting("snapshot.every_samples") or 0
    behind = facts.samples - max(facts.snapshot_samples or 0, facts.start_samples)
    if not facts.live or not every or behind <= 2 * every:
        return None
    failing = bool(facts.redis_error) or facts.last_publish == "error" or facts.stale_epochs > 0
    return Finding(
        name="snapshots-late",
        cause="Readers get no newer snapshots."
        if failing
        else "Snapshots are made faster than they can be sent.",
        evidence=f"the newest is {behind:,} samples old, {every:,} are set",
        setting="" if failing else "snapshot.every_samples",
        advice="They come again by themselves once its cause is mended."
        if failing
        else f"Raise it above {every:,}.",
        runbook="SwavstreamSnapshotStale",
    )


def unhealthy(facts: Facts) -> Finding | None:
    """Snapshots fail the limits of health."""
    if not facts.unhealthy:
        return None
    return Finding(
        name="snapshots-unhealthy",
        cause="Snapshots are published but not healthy: `stable` stays where it is.",
        evidence=facts.unhealthy,
        setting="",
        advice="Nothing here: who reads `stable` still gets the last healthy one.",
        runbook="SwavstreamSnapshotStale",
    )


def redis_settings(facts: Facts) -> Finding | None:
    """The server may drop what it holds."""
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


def checkpoints(facts: Facts) -> Finding | None:
    """Checkpoints fail."""
    if not facts.checkpoint_errors and not facts.damaged:
        return None
    keep = facts.setting("checkpoint.keep")
    many = keep is not None and keep > FEWEST_KEPT
    seen = [f"{facts.checkpoint_errors} could not be written"] if facts.checkpoint_errors else []
    seen += [f"damaged: {', '.join(facts.damaged)}"] if facts.damaged else []
    return Finding(
        name="checkpoints",
        cause="Checkpoints are failing: a kill now would cost all since the last good one.",
        evidence="; ".join(seen),
        setting="checkpoint.keep" if many else "",
        advice="Look at the disk and make room" + (f", or keep fewer than {keep}." if many else "."),
        runbook="SwavstreamCheckpointFailing",
    )


def left(facts: Facts) -> Finding | None:
    """It was killed, or ended with an error."""
    if facts.status != "left":
        return None
    return Finding(
        name="left",
        cause="Nobody works on this run and it has not come to an end: killed, or an error.",
        evidence=f"no summary, {facts.samples:,} samples at its last checkpoint",
        setting="",
        advice="Run the same `swavstream learn` command again: it goes on from there.",
        runbook="SwavstreamMetricsAbsent",
    )
