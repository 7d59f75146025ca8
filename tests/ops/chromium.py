"""A real Chromium for tests of pages. Where there is none they skip, or fail by SWAVSTREAM_REQUIRE."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REQUIRED = "chromium" in os.environ.get("SWAVSTREAM_REQUIRE", "").split(",")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def _missing(what: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(f"SWAVSTREAM_REQUIRE asks for chromium, but {what}")
    pytest.skip(f"pages are not looked at: {what}")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed (pip install playwright)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        _missing("there is no chromium (apt-get install chromium)")
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=program, args=FLAGS)
        yield launched
        launched.close()
