"""Settings that are allowed but seldom meant."""

from dataclasses import replace

import pytest

from learner.config import LearnerConfig, SwavConfig, advice, suggested_queue


def config(**swav: object) -> LearnerConfig:
    return replace(LearnerConfig(), swav=SwavConfig(**swav))  # type: ignore[arg-type]  # fields vary by test


def test_fewer_samples_than_prototypes_are_warned_of_with_a_queue_that_helps() -> None:
    (line,) = advice(config(prototypes=(3000,)), batch=256)
    assert "batch + queue = 256 is less than the 3000 prototypes" in line
    assert "swav.queue_samples = 3072" in line
    assert advice(config(prototypes=(3000,), queue_samples=3072), batch=256) == ()


@pytest.mark.parametrize(("prototypes", "batch"), [(3000, 256), (100, 64), (512, 512), (2, 4096)])
def test_the_suggested_queue_is_whole_batches_and_enough(prototypes: int, batch: int) -> None:
    queue = suggested_queue(prototypes, batch)
    assert queue % batch == 0
    assert queue + batch >= prototypes


def test_a_queue_shorter_than_a_batch_is_warned_of() -> None:
    assert (
        "does not hold one batch of 256" in advice(config(prototypes=(100,), queue_samples=100), batch=256)[0]
    )


def test_a_queue_that_starts_before_prototypes_move_is_warned_of() -> None:
    lines = advice(config(prototypes=(100,), queue_samples=512, freeze_samples=10), batch=256)
    assert any("frozen" in line for line in lines)


def test_the_paper_at_full_batch_needs_no_advice() -> None:
    assert advice(LearnerConfig(), batch=4096) == ()
