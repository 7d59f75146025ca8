"""Slices and orders, against the deal that defines them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.order import MOST_SORTED, lane_order, lane_total, record_order, slice_bounds, window_order

SIZES = st.lists(st.integers(0, 300), max_size=12)
LANES = st.integers(1, 70)


@given(sizes=SIZES, lanes=LANES)
def test_slices_have_the_sizes_of_a_deal_one_by_one(sizes: list[int], lanes: int) -> None:
    before = 0
    for n in sizes:
        dealt = np.bincount((before + np.arange(n)) % lanes, minlength=lanes)
        own = [slice_bounds(n, before, lanes, lane) for lane in range(lanes)]
        assert [stop - start for start, stop in own] == dealt.tolist()
        before += n


@given(n=st.integers(0, 10**12), before=st.integers(0, 10**12), lanes=LANES)
def test_slices_of_a_commit_are_consecutive_and_cover_it(n: int, before: int, lanes: int) -> None:
    at = 0
    for lane in range(lanes):
        start, stop = slice_bounds(n, before, lanes, lane)
        assert start == at
        assert stop >= start
        at = stop
    assert at == n


@given(sizes=SIZES, lanes=LANES)
def test_lanes_are_even_to_one_record_after_every_commit(sizes: list[int], lanes: int) -> None:
    totals = [0] * lanes
    before = 0
    for n in sizes:
        for lane in range(lanes):
            start, stop = slice_bounds(n, before, lanes, lane)
            totals[lane] += stop - start
        before += n
        assert max(totals) - min(totals) <= 1
        assert totals == [lane_total(before, lanes, lane) for lane in range(lanes)]


@given(
    seed=st.integers(0, 2**63 - 1),
    pass_number=st.integers(0, 2**32 - 1),
    lane=st.integers(0, 2**20),
    number=st.integers(0, 2**62),
    count=st.integers(0, 50),
)
def test_orders_are_permutations(seed: int, pass_number: int, lane: int, number: int, count: int) -> None:
    records = record_order(seed=seed, pass_number=pass_number, lane=lane, number=number, count=count)
    window = window_order(seed=seed, pass_number=pass_number, lane=lane, first=number, count=count)
    assert sorted(records.tolist()) == list(range(count))
    assert sorted(window.tolist()) == list(range(count))


def test_each_part_of_the_key_changes_the_order() -> None:
    base = {"seed": 1, "pass_number": 0, "lane": 3, "number": 64, "count": 100}
    orders = [record_order(**base).tolist()]
    orders += [record_order(**(base | {name: base[name] + 1})).tolist() for name in list(base)[:4]]
    orders.append(window_order(seed=1, pass_number=0, lane=3, first=64, count=100).tolist())
    assert len({tuple(order) for order in orders}) == 6


def test_every_place_of_a_slice_is_as_likely_as_any_other() -> None:
    counts = np.zeros((6, 6))
    for number in range(6000):
        order = record_order(seed=9, pass_number=0, lane=1, number=number, count=6)
        counts[np.arange(6), order] += 1
    # Each cell is binomial(6000, 1/6) with standard deviation 29; 5 of them are not left by chance.
    assert np.abs(counts - 1000).max() < 145


def _mulhilo(a: int, b: int) -> tuple[int, int]:
    return a * b >> 64, a * b & 2**64 - 1


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64-10 as in the paper, table 2 and figure 4, with Python's whole numbers."""
    words, keys = list(counter), list(key)
    for _ in range(10):
        high0, low0 = _mulhilo(0xD2E7470EE14C6C93, words[0])
        high1, low1 = _mulhilo(0xCA5A826395121157, words[2])
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) % 2**64, (keys[1] + 0xBB67AE8584CAA73B) % 2**64]
    return words


@pytest.mark.parametrize("tag", [1, 2])
def test_the_documented_key_and_counter_give_the_order(tag: int) -> None:
    seed, pass_number, lane, number, count = 2**63 - 1, 7, 63, 10**12, 11
    words: list[int] = []
    block = 0
    while len(words) < count:
        block += 1  # numpy raises the counter before it uses it
        words += _philox([block, 0, lane, number], [seed, tag << 32 | pass_number])
    expected = sorted(range(count), key=words.__getitem__)
    if tag == 1:
        order = window_order(seed=seed, pass_number=pass_number, lane=lane, first=number, count=count)
    else:
        order = record_order(seed=seed, pass_number=pass_number, lane=lane, number=number, count=count)
    assert order.tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 2, 5, 1000, MOST_SORTED, MOST_SORTED + 1, 70_000, 300**2, 10**6 + 3])
def test_the_order_of_a_window_is_a_permutation_at_every_size(count: int) -> None:
    order = lane_order(seed=3, pass_number=2, lane=5, first=128, count=count)
    whole = order.at(0, count)
    assert np.array_equal(np.sort(whole), np.arange(count))
    # Any part of it can be asked for.
    parts = [order.at(start, min(start + 977, count)) for start in range(0, count, 977)]
    assert np.array_equal(np.concatenate([*parts, order.at(0, 0)]), whole)


@pytest.mark.parametrize("count", [6, MOST_SORTED + 1, 1_000_003])
def test_a_record_comes_at_every_place_of_a_window_equally_often(count: int) -> None:
    cells, times = 6, 3000
    found = np.zeros((cells, cells))
    places = [cell * count // cells for cell in range(cells)]
    for first in range(times):
        order = lane_order(seed=9, pass_number=0, lane=1, first=first, count=count)
        records = [int(order.at(place, place + 1)[0]) for place in places]
        found[np.arange(cells), [record * cells // count for record in records]] += 1
    # Each cell is binomial(3000, 1/6) with standard deviation 20; 5 of them are not left by chance.
    assert np.abs(found - times / cells).max() < 102


@pytest.mark.parametrize("count", [MOST_SORTED, MOST_SORTED + 1, 10**6])
def test_what_is_read_together_was_not_together(count: int) -> None:
    """Neighbours of the order are as far apart as two records drawn at random: a third of the window."""
    records = lane_order(seed=4, pass_number=0, lane=0, first=0, count=count).at(0, count) / count
    for distance in (1, 2, 64, 256, 1000):
        apart = np.abs(records[distance:] - records[:-distance])
        # Mean 1/3 and standard deviation 0.236 of one, 0.001 of the mean of 65,000.
        assert apart.mean() == pytest.approx(1 / 3, abs=0.006)
    thirds = np.bincount((records * 3).astype(int).reshape(-1)[: count // 9 * 9 : 3], minlength=3)
    assert thirds / thirds.sum() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_network_is_the_documented_one() -> None:
    seed, pass_number, lane, first, count = 5, 1, 2, 77, MOST_SORTED + 1
    left, right = 257, 256  # 257^2 is the first square that is not smaller, 65,537 / 257 = 255.02
    words: list[int] = []
    block = 0
    while len(words) < 8 * left:
        block += 1
        words += _philox([block, 0, lane, first], [seed, 3 << 32 | pass_number])

    def once(record: int) -> int:
        r, l = divmod(record, left)  # noqa: E741  the letters of the description
        for number in range(8):
            if number % 2 == 0:
                l = (l + words[number * left + r]) % left  # noqa: E741
            else:
                r = (r + words[number * left + l]) % right
        return l + left * r

    places = [0, 1, 2, 1000, 65_535, 65_536]
    expected = []
    for place in places:
        record = once(place)
        while record >= count:
            record = once(record)
        expected.append(record)
    order = lane_order(seed=seed, pass_number=pass_number, lane=lane, first=first, count=count)
    assert [int(order.at(place, place + 1)[0]) for place in places] == expected


def test_a_sorted_order_of_a_window_is_the_documented_one() -> None:
    words = [word for block in (1, 2, 3) for word in _philox([block, 0, 2, 77], [5, 3 << 32 | 1])][:11]
    order = lane_order(seed=5, pass_number=1, lane=2, first=77, count=11)
    assert order.at(0, 11).tolist() == sorted(range(11), key=words.__getitem__)


def test_orders_of_today_are_the_orders_of_yesterday() -> None:
    assert record_order(seed=7, pass_number=0, lane=3, number=10**9, count=8).tolist() == [
        2,
        6,
        4,
        1,
        7,
        0,
        5,
        3,
    ]
