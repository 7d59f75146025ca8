"""The prototypes as people look at them: orders, changes, neighbours, one from close by."""

import base64

import numpy as np
import pytest

from ops.live_page.exemplars import Exemplars
from ops.live_page.prototypes import COSINES_MOST, LivePrototypes
from tests.ops import synthetic

USAGE = np.array([0.1, 0.4, 0.0, 0.3, 0.2], np.float32)
LATER = np.array([0.3, 0.3, 0.0, 0.2, 0.2], np.float32)


def directions(prototypes: int, dim: int = 8) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    drawn = np.random.default_rng(0).normal(size=(prototypes, dim)).astype(np.float32)
    unit: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = drawn / np.linalg.norm(
        drawn, axis=1, keepdims=True
    )
    return unit


def five() -> LivePrototypes:
    prototypes = LivePrototypes(5)
    prototypes.counted(USAGE, samples=100, window=100)
    prototypes.counted(LATER, samples=200, window=100)
    return prototypes


def order(prototypes: LivePrototypes, sort: str, *, rising: bool = False) -> list[int]:
    return [row["id"] for row in prototypes.table(sort=sort, rising=rising)["rows"]]


def test_prototypes_come_by_size_change_or_number_either_way() -> None:
    prototypes = five()
    assert order(prototypes, "size") == [0, 1, 3, 4, 2]
    assert order(prototypes, "size", rising=True) == [2, 3, 4, 0, 1], "equals keep their order"
    assert order(prototypes, "change")[0] == 0
    assert set(order(prototypes, "change", rising=True)[:2]) == {1, 3}
    assert order(prototypes, "number") == [0, 1, 2, 3, 4]
    assert order(prototypes, "number", rising=True) == [4, 3, 2, 1, 0]


def test_a_row_says_size_rank_and_change_since_when() -> None:
    table = five().table()
    assert table["changed_since"] == 100
    first = table["rows"][0]
    assert (first["id"], first["rank"]) == (0, 1)
    assert first["usage"] == pytest.approx(0.3)
    assert first["change"] == pytest.approx(0.2)
    assert (first["generation"], first["cosine"]) == (None, None)
    assert table["sorts"] == ["size", "change", "number"]


def test_generation_and_nearest_other_are_known_once_directions_are() -> None:
    prototypes, unit = five(), directions(5)
    unit[4] = unit[2]  # twins
    prototypes.learned(unit, np.array([0, 0, 3, 0, 1]), samples=200)
    assert prototypes.table()["sorts"] == ["size", "change", "generation", "cosine", "number"]
    assert order(prototypes, "generation")[:2] == [2, 4]
    assert set(order(prototypes, "cosine")[:2]) == {2, 4}
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    rows = prototypes.table(sort="number")["rows"]
    assert [row["cosine"] for row in rows] == pytest.approx(cosines.max(1).tolist(), abs=1e-6)
    prototypes.learned(directions(5), np.zeros(5, np.int64), samples=300)
    assert max(row["cosine"] for row in prototypes.table()["rows"]) < 0.99


def test_pages_hold_each_prototype_once_and_none_beyond_the_last() -> None:
    prototypes = LivePrototypes(50)
    prototypes.counted(synthetic.shares(50).numpy(), samples=100)
    seen = [row["id"] for offset in (0, 24, 48) for row in prototypes.table(offset=offset)["rows"]]
    assert sorted(seen) == list(range(50))
    assert prototypes.table(offset=72)["rows"] == []


def test_one_prototype_has_its_past_its_neighbours_and_who_is_next_by_size() -> None:
    prototypes, unit = five(), directions(5)
    prototypes.learned(unit, np.zeros(5, np.int64), samples=200)
    one = prototypes.one(1)
    assert (one["rank"], one["busier"], one["quieter"]) == (2, 0, 3)
    assert one["trend"]["samples"] == [100, 200]
    assert one["trend"]["even_shares"] == pytest.approx([2.0, 1.5], rel=0.03)
    expected = [k for k in np.argsort(-(unit @ unit[1]), kind="stable") if k != 1]
    assert [near["id"] for near in one["nearest"]] == expected
    assert one["nearest"][0]["cosine"] == pytest.approx(float(unit[expected[0]] @ unit[1]), abs=1e-6)
    assert prototypes.one(0)["busier"] is None
    assert prototypes.one(2)["quieter"] is None


@pytest.mark.parametrize("number", [-1, 5])
def test_a_prototype_that_does_not_exist_is_an_error(number: int) -> None:
    with pytest.raises(IndexError, match=f"no prototype {number} of 5"):
        five().one(number)


def test_an_unknown_order_is_an_error_that_names_the_known() -> None:
    with pytest.raises(ValueError, match="sort must be one of size, change"):
        five().table(sort="colour")
    with pytest.raises(ValueError, match="order must be one of size, number"):
        five().heatmap("colour")


def test_with_very_many_prototypes_neighbours_are_told_of_one_at_a_time() -> None:
    many = COSINES_MOST + 1
    prototypes = LivePrototypes(many)
    prototypes.counted(np.full(many, 1 / many, np.float32), samples=100)
    prototypes.learned(directions(many), np.zeros(many, np.int64), samples=100)
    assert "cosine" not in prototypes.table()["sorts"]
    assert len(prototypes.one(7)["nearest"]) == 6


def test_the_heatmap_is_rows_of_bytes_and_new_with_each_report() -> None:
    prototypes = five()
    drawn = prototypes.heatmap()
    assert drawn["ids"] == [0, 1, 3, 4, 2]
    assert drawn["samples"] == [100, 200]
    cells = np.frombuffer(base64.b64decode(drawn["cells"]), np.uint8).reshape(5, 2)
    assert cells[4].tolist() == [0, 0], "the one that gets no sample"
    assert cells[0, 1] > cells[0, 0], "the one that grew"
    assert prototypes.heatmap("number")["ids"] == [0, 1, 2, 3, 4]
    prototypes.counted(USAGE, samples=300)
    assert prototypes.heatmap()["samples"] == [100, 200, 300]
    assert prototypes.heatmap()["reports"] == prototypes.reports == 3


def test_with_many_prototypes_a_row_of_the_heatmap_stands_for_several() -> None:
    prototypes = LivePrototypes(1000)
    prototypes.counted(synthetic.shares(1000).numpy(), samples=100)
    drawn = prototypes.heatmap()
    assert drawn["ids"] is None
    assert (len(drawn["rows"]), sum(drawn["rows"])) == (128, 1000)


def test_before_anything_is_known_there_are_empty_answers() -> None:
    prototypes = LivePrototypes(5, Exemplars(5, thumbnail_px=16))
    assert prototypes.heatmap()["samples"] == []
    assert [row["usage"] for row in prototypes.table()["rows"]] == [0] * 5
    assert sum(prototypes.table()["histogram"]) == 0
    one = prototypes.one(0)
    assert (one["nearest"], one["change"], one["trend"]["samples"]) == ([], None, [])
