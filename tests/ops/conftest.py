"""Fixtures of runs: a stream of drawn images, and a run over it that nothing interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import torch

from ops.followers import Followers
from ops.outcome import Summary
from tests.ops import small_runs


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Children are forked from here, and a thread pool does not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn_stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sealed stream of `small_runs.RECORDS` images; nobody changes it."""
    return small_runs.write_stream(tmp_path_factory.mktemp("stream") / "drawn")


@pytest.fixture(scope="module")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, drawn_stream: str, one_thread: None
) -> tuple[Path, Summary]:
    """A run over the stream that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, small_runs.run(drawn_stream, run_dir, small_runs.config_of())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Followers]:
    """The followers of every run of the test, as they were made."""
    made: list[Followers] = []

    class Watched(Followers):
        def __enter__(self) -> Self:
            made.append(self)
            return super().__enter__()

    monkeypatch.setattr("ops.beginning.Followers", Watched)
    return made
