"""The feature queue: whole batches, used once full, one sequence for any number of ranks."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from learner.collective import Deal, SingleProcess
from learner.queue import FeatureQueue

CPU = torch.device("cpu")


def features(step: int, samples: int = 4) -> Tensor:
    """[2, samples, 3], every number different."""
    return step * 1000.0 + torch.arange(2 * samples * 3).view(2, samples, 3)


def push(queue: FeatureQueue, step: int, samples: int = 4) -> None:
    queue.push(features(step, samples), torch.arange(samples), stamp=step * 4, total=samples)


def filled(steps: int, capacity: int = 12) -> FeatureQueue:
    queue = FeatureQueue(views=2, dim=3, capacity=capacity)
    for step in range(steps):
        push(queue, step)
    return queue


def test_it_is_not_used_before_it_is_full() -> None:
    fill = []
    queue = FeatureQueue(views=2, dim=3, capacity=12)
    for step in range(5):
        fill.append((queue.full, queue.fill, len(queue)))
        push(queue, step)
    assert fill == [(False, 0, 0), (False, 1 / 3, 4), (False, 2 / 3, 8), (True, 1, 12), (True, 1, 12)]


def test_it_is_full_by_count_whatever_the_features_are() -> None:
    queue = FeatureQueue(views=1, dim=3, capacity=4)
    queue.push(torch.zeros(1, 4, 3), torch.arange(4), stamp=0, total=4)
    assert queue.full


def test_it_holds_the_newest_batches_oldest_first_each_view_with_its_own() -> None:
    queue = filled(5)
    assert torch.equal(queue.features(), torch.cat([features(2), features(3), features(4)], dim=1))


def test_a_length_that_is_no_multiple_of_the_batch_holds_the_whole_batches_that_fit() -> None:
    queue = filled(5, capacity=11)
    assert (len(queue), queue.full, queue.fill) == (8, True, 1)


def test_a_queue_shorter_than_one_batch_is_refused_and_not_silently_off() -> None:
    queue = FeatureQueue(views=2, dim=3, capacity=3)
    with pytest.raises(ValueError, match=r"queue_samples = 3 does not hold one batch of 4"):
        push(queue, 0)


def test_a_short_last_batch_does_not_take_it_out_of_use() -> None:
    queue = filled(3)
    push(queue, 3, samples=1)
    assert queue.full
    assert len(queue) == 9


def test_what_is_pushed_is_a_copy_without_gradient() -> None:
    queue = FeatureQueue(views=2, dim=3, capacity=4)
    batch = features(1).requires_grad_()
    queue.push(batch, torch.arange(4), stamp=0, total=4)
    with torch.no_grad():
        batch.zero_()
    assert torch.equal(queue.features(), features(1))
    assert not queue.features().requires_grad


def test_ages_count_the_samples_since() -> None:
    queue = filled(5)
    assert queue.ages(20) == (8.0, 12)
    assert filled(0).ages(20) is None


def test_a_queue_restored_at_any_step_goes_on_with_the_same_features() -> None:
    straight = filled(0)
    for step in range(7):
        restored = filled(0)
        restored.load_state_dict(straight.state_dict(SingleProcess(), CPU), Deal(SingleProcess()), CPU)
        for queue in (straight, restored):
            push(queue, step)
        assert torch.equal(restored.features(), straight.features())
        assert (restored.full, len(restored), restored.ages(99)) == (
            straight.full,
            len(straight),
            straight.ages(99),
        )


def test_samples_out_of_lane_order_come_back_in_the_order_that_they_were_used_in() -> None:
    queue = FeatureQueue(views=2, dim=3, capacity=4)
    queue.push(features(0), torch.tensor([2, 0, 2, 1]), stamp=0, total=4)
    restored = filled(0)
    restored.load_state_dict(queue.state_dict(SingleProcess(), CPU), Deal(SingleProcess()), CPU)
    assert torch.equal(restored.features(), queue.features())


@dataclass
class Seat(SingleProcess):
    """One of several ranks, as far as loading asks."""

    rank: int
    world_size: int


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_saved_queue_is_dealt_by_lanes_to_any_number_of_ranks(world: int) -> None:
    state = filled(5).state_dict(SingleProcess(), CPU)
    parts = []
    for rank in range(world):
        queue = FeatureQueue(views=2, dim=3, capacity=12)
        queue.load_state_dict(state, Deal(Seat(rank, world), [lane % world for lane in range(8)]), CPU)
        assert queue.full
        assert len(queue) == 12
        parts.append(queue.features())
    whole = {tuple(row) for row in filled(5).features().transpose(0, 1).flatten(1).tolist()}
    dealt = [tuple(row) for part in parts for row in part.transpose(0, 1).flatten(1).tolist()]
    assert len(dealt) == 12
    assert set(dealt) == whole


def test_a_shorter_queue_after_a_restart_keeps_the_newest() -> None:
    queue = FeatureQueue(views=2, dim=3, capacity=5)
    queue.load_state_dict(filled(5).state_dict(SingleProcess(), CPU), Deal(SingleProcess()), CPU)
    assert torch.equal(queue.features(), features(4))


def test_features_of_another_width_are_refused() -> None:
    queue = FeatureQueue(views=2, dim=4, capacity=12)
    with pytest.raises(ValueError, match=r"saved queue has shape \(2, 12, 3\)"):
        queue.load_state_dict(filled(5).state_dict(SingleProcess(), CPU), Deal(SingleProcess()), CPU)
