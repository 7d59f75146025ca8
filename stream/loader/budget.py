"""The budget of unusable records: a run stops when too many of the newest records cannot be used."""

from collections.abc import Sequence
from dataclasses import replace

from stream.cursor import Cursor
from stream.errors import TooManyBadRecords
from stream.lanes import BadRecordRef, LaneStats
from stream.loader.plan import ReadPlan


def charged(
    before: Cursor, after: Cursor, stats: LaneStats, bad: Sequence[BadRecordRef], plan: ReadPlan
) -> Cursor:
    """The cursor after a step, with what the step spent of the budget.

    Args:
        before: the cursor before the step.
        after: the one behind it, which has read and counted, but spent nothing.
        stats: of the step, over all ranks.
        bad: unusable records, for the message.
        plan: says how many may be unusable.

    Raises:
        TooManyBadRecords: the budget is spent; on all ranks at the same step.
    """
    # What was accepted beforehand is forgotten too: the budget begins again behind it.
    accepted = before.read < after.accept_until
    newest = () if accepted else (*after.recent, (stats.seen, stats.seen - stats.used))
    recent = _newest(newest, plan.bad_window)
    if plan.over_budget(sum(read for read, _ in recent), sum(bad for _, bad in recent)):
        raise too_many_bad(before, stats, bad, plan)
    return replace(after, recent=recent)


def too_many_bad(
    cursor: Cursor, stats: LaneStats, bad: Sequence[BadRecordRef], plan: ReadPlan
) -> TooManyBadRecords:
    """What is raised in place of the step that follows a cursor."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats.skipped.items())
    examples = f"; for example {'; '.join(map(str, bad[:3]))}" if bad else ""
    return TooManyBadRecords(
        f"more than {plan.max_bad_fraction:.0%} of the last {plan.bad_window} records cannot "
        f"be used; in this step: {reasons}{examples}. Mend the stream "
        "or raise reader.max_bad_fraction; `learn --accept-bad-until now` goes past all that the stream "
        f"has now (this run has read {cursor.read:,} records)",
        bad=tuple(bad),
    )


def _newest(steps: Sequence[tuple[int, int]], window: int) -> tuple[tuple[int, int], ...]:
    """As few of the newest steps as hold `window` records."""
    first, read = len(steps), 0
    while first > 0 and read < window:
        first -= 1
        read += steps[first][0]
    return tuple(steps[first:])
