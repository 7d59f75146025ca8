import pytest

from ops.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.37, "0 s"), (1.4, "1 s"), (113, "113 s"), (119.4, "119 s"), (120, "2 min"),
        (7199, "120 min"), (7200, "2 h"), (12_345, "3 h"), (172_800, "2 d"), (1e7, "116 d"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_the_largest_unit_of_which_it_has_two(seconds: float, text: str) -> None:
    assert duration(seconds) == text
