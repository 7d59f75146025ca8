"""What `swavstream status` says of lanes."""

from ops.standing import WORST_LANES, lag_lines


def lane(number: int, behind: int) -> dict[str, float | int | None]:
    return {
        "lane": number, "trained_records": behind, "trained_s": None, "fetched_records": 0, "fetched_s": None,
    }  # fmt: skip


def test_the_lanes_farthest_behind_are_named_and_the_others_summed() -> None:
    lines = lag_lines([lane(number, number) for number in range(WORST_LANES + 3)])
    assert len(lines) == WORST_LANES + 1
    assert lines[0].startswith("  lane 10    10 records behind")
    assert lines[-1] == "  and 2 more lanes 3 records together"
    assert lag_lines([lane(0, 0)]) == []
