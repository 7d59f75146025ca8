"""The table of what precision changes can be made, and says what it should."""

import pytest

from tests.benchmarks import precision


def test_float32_is_nearer_to_float64_than_bfloat16_in_the_first_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exact, single, half = (precision.trace(name, 1).losses[0] for name in precision.PRECISIONS)
    assert single == pytest.approx(exact, rel=1e-5)
    assert abs(half - exact) > abs(single - exact)
    assert half == pytest.approx(exact, rel=1e-2)
    precision.main(1)
    assert "bfloat16 - float64" in capsys.readouterr().out
