"""How lanes are dealt to ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.lanes import owned_lanes, owners_of


@given(lanes=st.integers(1, 80), data=st.data())
def test_every_lane_has_one_rank_and_ranks_are_even_to_one_lane(lanes: int, data: st.DataObject) -> None:
    ranks, groups = data.draw(st.integers(1, lanes)), data.draw(st.integers(0, 20))
    owned = [owned_lanes(lanes, ranks, rank, groups) for rank in range(ranks)]
    assert sorted(lane for own in owned for lane in own) == list(range(lanes))
    assert all(list(own) == sorted(own) for own in owned)
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    owners = owners_of(lanes, ranks, groups)
    assert all(owners[lane] == rank for rank, own in enumerate(owned) for lane in own)


@given(lanes=st.integers(1, 80), data=st.data())
def test_a_group_of_batch_norm_lies_on_neighbours_and_a_rank_shares_two_groups_at_most(
    lanes: int, data: st.DataObject
) -> None:
    ranks, groups = data.draw(st.integers(1, lanes)), data.draw(st.integers(1, 20))
    owners = owners_of(lanes, ranks, groups)
    of_group = [sorted(set(owners[group::groups])) for group in range(groups)]
    for members in filter(None, of_group):
        assert members == list(range(members[0], members[-1] + 1))
    for rank in range(ranks):
        assert sum(len(members) > 1 and rank in members for members in of_group) <= 2


def test_eight_groups_on_64_ranks_are_the_eight_ranks_of_a_node_each() -> None:
    owners = owners_of(64, 64, 8)
    for group in range(8):
        assert {owners[lane] for lane in range(group, 64, 8)} == set(range(8 * group, 8 * group + 8))
    # And on eight ranks each has one whole group, for which nothing is sent.
    assert [set(owners_of(64, 8, 8)[group::8]) for group in range(8)] == [{group} for group in range(8)]


def test_more_ranks_than_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 ranks need at least as many lanes, got 4"):
        owners_of(4, 5)
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.1, got 2"):
        owned_lanes(4, 2, 2)
