"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

from tests.kafka_broker import kafka, kafka_of_session  # noqa: F401  fixtures

DATA_VARIABLE = "SWAVSTREAM_TEST_DATA"


@pytest.fixture
def test_data() -> Path:
    """Folder of real images; the test is skipped where the variable does not name one."""
    place = os.environ.get(DATA_VARIABLE, "")
    if not place:
        pytest.skip(f"needs real images: set {DATA_VARIABLE}")
    folder = Path(place)
    if not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE} names {place}, which is not a folder")
    return folder.resolve()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not change what they test."""
    for name in list(os.environ):
        if name.startswith("SWAVSTREAM_") and not name.startswith("SWAVSTREAM_TEST_"):
            monkeypatch.delenv(name)
