"""The cursor: what is saved reads back equal, and nothing else is taken for a cursor."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.cursor import Cursor, WindowStart
from stream.errors import StreamDamaged, StreamError
from stream.lanes import Position
from tests.damages import other_than

COUNTS = st.integers(0, 2**62)


@st.composite
def positions(draw: st.DrawFn, lanes: int) -> tuple[Position, ...]:
    numbers = draw(st.lists(st.tuples(*[COUNTS] * 6), min_size=lanes, max_size=lanes))
    return tuple(
        Position(lane=lane, unit=unit, base=base, idx=idx, seq=seq, end=end - 1, proof=proof)
        for lane, (unit, base, idx, seq, end, proof) in enumerate(numbers)
    )


@st.composite
def cursors(draw: st.DrawFn) -> Cursor:
    lanes = draw(st.integers(1, 4))
    start = WindowStart(
        pass_number=draw(COUNTS),
        steps=draw(COUNTS),
        positions=draw(positions(lanes)),
        pass_ends=tuple(draw(st.lists(COUNTS, max_size=2))),
    )
    pairs = st.lists(st.tuples(COUNTS, COUNTS), max_size=3).map(tuple)
    return Cursor(
        source=draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)),
        seed=draw(COUNTS),
        lanes=lanes,
        chunk=draw(COUNTS),
        window=draw(COUNTS),
        pass_number=draw(COUNTS),
        steps=draw(COUNTS),
        samples=draw(COUNTS),
        skipped=draw(st.dictionaries(st.text(max_size=4), COUNTS, max_size=2)),
        left_over=draw(COUNTS),
        positions=draw(positions(lanes)),
        recent=draw(pairs),
        replay=draw(st.none() | st.just(start)),
        begin=draw(COUNTS),
        accept_until=draw(COUNTS),
        deadly=draw(pairs),
    )


def test_a_position_from_before_there_were_proofs_has_none_and_a_longer_one_is_refused() -> None:
    cursor = Cursor(source={}, seed=0, lanes=1, chunk=1, window=1, positions=(Position(lane=0, base=7),))
    body = json.loads(cursor.to_json())
    assert body["positions"] == [[0, 0, 7, 0, 0, -1]]
    for more in ([3, 3], [-1], ["3"], [3.0]):
        with pytest.raises(StreamDamaged):
            Cursor.from_json(json.dumps({**body, "positions": [body["positions"][0] + more]}))


@given(cursor=cursors())
def test_a_cursor_comes_back_as_it_was(cursor: Cursor) -> None:
    again = Cursor.from_json(cursor.to_json())
    assert again == cursor
    assert again.to_json() == cursor.to_json()


@given(cursor=cursors(), data=st.data())
def test_a_changed_cursor_is_refused_or_is_one(cursor: Cursor, data: st.DataObject) -> None:
    """Which of the two cannot be told here: the checksum of the checkpoint does (tests of checkpoints)."""
    text = data.draw(other_than(cursor.to_json().encode())).decode("utf-8", "replace")
    try:
        found = Cursor.from_json(text)
    except StreamDamaged:
        return
    assert Cursor.from_json(found.to_json()) == found
    assert [position.lane for position in found.positions] == list(range(found.lanes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


FIELDS = (
    "version", "source", "seed", "lanes", "chunk", "window", "pass_number", "steps", "samples", "skipped",
    "left_over", "positions", "recent", "replay", "begin", "accept_until", "deadly", "something else",
)  # fmt: skip


@given(field=st.sampled_from(FIELDS), value=JSON)
def test_no_value_of_any_field_gives_anything_but_a_cursor_or_damage(field: str, value: object) -> None:
    plain = Cursor(source={}, seed=0, lanes=1, chunk=1, window=1, positions=(Position(lane=0),))
    try:
        found = Cursor.from_json(json.dumps({**json.loads(plain.to_json()), field: value}))
    except StreamDamaged:
        return
    assert Cursor.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 100_000, '{"version": 1}', '{"version": 2}'])
def test_text_that_is_no_cursor_is_damage(text: str) -> None:
    with pytest.raises(StreamError):
        Cursor.from_json(text)


def test_missing_positions_are_refused_with_one_line() -> None:
    cursor = Cursor(
        source={},
        seed=0,
        lanes=2,
        chunk=1,
        window=1,
        positions=tuple(Position(lane=lane) for lane in range(2)),
    )
    for rows in (
        [[0, 0, 0, 0, 0, -1]],
        [[0, 0, 0, 0, 0, -1]] * 2,
        [[1, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, -1]],
    ):
        body = {**json.loads(cursor.to_json()), "positions": rows}
        with pytest.raises(StreamDamaged, match="2 lanes needs exactly one position a lane") as caught:
            Cursor.from_json(json.dumps(body))
        assert "\n" not in str(caught.value)


def test_what_is_not_set_is_not_written_so_that_older_cursors_are_equal() -> None:
    cursor = Cursor(source={}, seed=0, lanes=1, chunk=1, window=1, positions=(Position(lane=0),))
    assert not {"begin", "accept_until", "deadly", "replay"} & json.loads(cursor.to_json()).keys()
    assert replace(cursor, begin=3) != cursor
