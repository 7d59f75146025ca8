"""A bounded series: every entry is in one point, and all points but the last stand for equally many."""

import pytest

from ops.live_page.series import Series

Group = tuple[int, ...]


def joined(earlier: Group, weight: int, later: Group, added: int) -> Group:
    assert (len(earlier), len(later)) == (weight, added)
    return earlier + later


@pytest.mark.parametrize("most", [2, 3, 8, 9])
def test_points_are_few_and_each_entry_is_in_one(most: int) -> None:
    series = Series(most, joined)
    for number in range(300):
        series.add((number,))
        assert sum(series.points, ()) == tuple(range(number + 1))
        assert len(series.points) <= most
        assert {len(point) for point in series.points[:-1]} <= {series.stride}
        assert len(series.points[-1]) <= series.stride


def test_a_series_goes_on_from_points_that_were_kept() -> None:
    series = Series(4, joined)
    series.keep([(0, 1), (2, 3)], 2)
    for number in range(4, 9):
        series.add((number,))
    assert series.points == [(0, 1, 2, 3), (4, 5, 6, 7), (8,)]


def test_a_series_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 points, got 1"):
        Series(1, joined)
