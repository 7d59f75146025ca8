import pytest

from ops.rundir.summary import FINISHED, RunSummary


def summary(*, samples: int, skipped: dict[str, int], left_over: int) -> RunSummary:
    return RunSummary(
        status=FINISHED,
        run="run",
        samples=samples,
        skipped=sum(skipped.values()),
        left_over=left_over,
        steps=0,
        updates=0,
        passes=1,
        seconds=12_345.0,
        loss=None,
        loss_over_ln_k=None,
        usage_perplexity=None,
        prototypes=8,
        skipped_by_reason=skipped,
        checkpoint=None,
        snapshot=None,
    )


@pytest.mark.parametrize(
    ("skipped", "left_over", "why"),
    [
        ({"empty": 12}, 0, "none of the records can be used"),
        ({"empty": 12}, 3, "the records that can be used do not fill one batch"),
        ({}, 3, "the records do not fill one batch"),
        ({}, 0, "there were no records"),
    ],
)
def test_a_run_that_used_no_record_says_why(skipped: dict[str, int], left_over: int, why: str) -> None:
    told = summary(samples=0, skipped=skipped, left_over=left_over).render()
    assert f"nothing was learned: {why}" in told


def test_a_run_that_learned_says_how_long_it_took_in_the_form_of_all_durations() -> None:
    told = summary(samples=64, skipped={}, left_over=0).render()
    assert told.splitlines()[0] == "finished: 64 samples in 0 steps, 3 h"
    assert "nothing was learned" not in told
