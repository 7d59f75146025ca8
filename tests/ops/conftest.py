"""Fixtures of runs: a stream of drawn images, and a run over it that nothing interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import torch

from ops.rundir.summary import RunSummary
from ops.train.reporting import RunReporter
from tests.ops import small_runs
from tests.ops.chromium import browser  # noqa: F401  a fixture
from tests.ops.redis_publishing import HELD_UP_S, Make, Publishing


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Children are forked from here, and a thread pool does not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn_stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sealed stream of `small_runs.RECORDS` images; no test changes it."""
    return small_runs.write_stream(tmp_path_factory.mktemp("stream") / "drawn")


@pytest.fixture(scope="module")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, drawn_stream: str, one_thread: None
) -> tuple[Path, RunSummary]:
    """A run over the stream that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, small_runs.run(drawn_stream, run_dir, small_runs.config_of())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[RunReporter]:
    """The reporters of every run of the test, as they were made."""
    made: list[RunReporter] = []

    class Watched(RunReporter):
        def __enter__(self) -> Self:
            made.append(self)
            return super().__enter__()

    monkeypatch.setattr("ops.train.start.RunReporter", Watched)
    return made


@pytest.fixture
def publishing(tmp_path: Path) -> Iterator[Make]:
    """Begins publishers that try again quickly; none of them may hold up its learner."""
    made: list[Publishing] = []

    def make(url: str) -> Publishing:
        made.append(Publishing(url, tmp_path / "run"))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one.longest_s < HELD_UP_S, "the learner never waits"
