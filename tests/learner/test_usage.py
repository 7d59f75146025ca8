"""The usage window: counts of the latest whole batches."""

import pytest
import torch

from learner.health import UsageWindow


def test_the_window_counts_the_newest_batches_that_fit() -> None:
    window = UsageWindow(4, 6)
    for batch in ([0, 0, 0], [1, 1, 2], [3, 3, 3]):
        window.push(torch.tensor(batch))
    assert window.counts_K.tolist() == [0, 2, 1, 3]
    assert len(window) == 6
    torch.testing.assert_close(window.shares(), torch.tensor([0, 2, 1, 3]) / 6)


def test_a_batch_larger_than_the_window_is_still_counted() -> None:
    window = UsageWindow(2, 3)
    for _ in range(2):
        window.push(torch.tensor([0, 1, 1, 1, 1]))
    assert window.counts_K.tolist() == [1, 4]


def test_the_default_length_is_ten_samples_for_each_prototype() -> None:
    assert UsageWindow(300, 0).samples == 3000


def test_a_window_restored_at_any_step_goes_on_with_the_same_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    straight = UsageWindow(5, 20)
    for _ in range(8):
        restored = UsageWindow(5, 20)
        restored.load_state_dict(straight.state_dict())
        batch = torch.randint(0, 5, (6,), generator=generator)
        straight.push(batch)
        restored.push(batch)
        assert torch.equal(restored.counts_K, straight.counts_K)
        assert len(restored) == len(straight)


def test_shares_before_the_first_batch_are_zero() -> None:
    assert UsageWindow(3, 5).shares().tolist() == [0, 0, 0]


@pytest.mark.parametrize(("assigned", "batches"), [([0, 9], [2]), ([0, 1], [3]), ([-1], [1])])
def test_a_saved_window_that_does_not_fit_is_refused(assigned: list[int], batches: list[int]) -> None:
    state = {"tensors": {"assigned": torch.tensor(assigned)}, "values": {"batches": batches}}
    with pytest.raises(ValueError, match="saved usage window"):
        UsageWindow(5, 20).load_state_dict(state)
