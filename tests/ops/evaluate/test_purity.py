import pytest
import torch

from ops.evaluate.knn import purity, purity_by_chance


def test_purity_counts_the_commonest_kind_of_each_prototype() -> None:
    assigned = torch.tensor([0, 0, 0, 1, 1, 4, 4, 4])
    kinds = torch.tensor([2, 2, 1, 0, 1, 5, 5, 5])
    assert purity(assigned, kinds) == pytest.approx((2 + 1 + 3) / 8)


def test_prototypes_of_one_kind_each_are_pure_whatever_their_numbers_are() -> None:
    kinds = torch.arange(200) % 7
    assert purity(30 - 3 * kinds, kinds) == 1.0


def test_one_prototype_for_everything_has_the_share_of_the_commonest_kind() -> None:
    kinds = torch.tensor([0] * 60 + [1] * 40)
    assert purity(torch.zeros(100, dtype=torch.int64), kinds) == pytest.approx(0.6)


def test_chance_is_above_one_over_kinds_and_below_what_a_good_clustering_gets() -> None:
    kinds = torch.arange(900) % 9
    chance = purity_by_chance(kinds.clone(), kinds)
    assert 1 / 9 < chance < 0.3
    assert chance < purity(kinds, kinds) == 1.0


def test_images_without_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="one kind for each"):
        purity(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="got 2 for 3"):
        purity(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
