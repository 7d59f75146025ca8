import pytest

from stream.json_values import string, whole


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [1], -1, 2**63])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        whole(value)


def test_whole_numbers_keep_their_bounds() -> None:
    assert (whole(0), whole(2**63 - 1), whole(-1, least=-1), whole(7, most=7)) == (0, 2**63 - 1, -1, 7)
    with pytest.raises(ValueError, match=r"in -1\.\.7, got 8"):
        whole(8, least=-1, most=7)


@pytest.mark.parametrize("value", [None, 1, b"text", ["text"]])
def test_what_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="expected text"):
        string(value)
