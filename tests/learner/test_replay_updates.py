"""Updates from samples that were seen before: what they count for, and what not."""

import torch

from tests.learner.small_run import BATCH, batch, small_config, small_learner, weights_of


def test_replays_fill_the_queue_but_neither_the_usage_window_nor_the_count_of_samples() -> None:
    learner = small_learner(small_config())
    learner.step(batch(0))
    usage, before = learner.usage(), weights_of(learner)
    report = learner.step(batch(1), fresh=False)
    assert (report.samples, report.updates, report.usage_window_fill) == (BATCH, 2, 1 / 4)
    assert torch.equal(learner.usage(), usage)
    assert report.queue_fill == 1.0
    after = weights_of(learner)
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("model."))


def test_all_updates_of_a_step_are_at_the_same_place_of_the_schedules() -> None:
    learner = small_learner(small_config())
    learner.step(batch(0))
    replays = [learner.step(batch(step), fresh=False) for step in (1, 2)]
    following = learner.step(batch(3))
    assert len({report.learning_rate for report in replays}) == 1
    assert following.learning_rate == replays[0].learning_rate  # the rate follows the samples before
    assert learner.step(batch(4)).learning_rate > following.learning_rate
