"""Whatever is killed, and whenever: what results is what would have been, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.forked import forked
from tests.kill_driver import POINTS, differences, drive
from tests.ops.rundir.test_checkpoint import POINTS as WRITTEN
from tests.ops.small_runs import config_of, run, write_stream


def driven(folder: Path, seed: int, *counts: int) -> dict[str, Any]:
    """What came of so many kills: at random moments, rounds over points, readers, prunes, ingests, replay."""
    return forked(lambda: drive(folder, seed, counts), folder / "result.json")


def test_every_point_of_the_checkpoint_protocol_is_killed_at() -> None:
    assert POINTS == WRITTEN


def test_runs_that_are_not_the_same_are_told_apart(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", 120)
    for name, change in {"one": "seed=0", "same": "seed=0", "other": "optim.learning_rate=0.0021"}.items():
        run(stream, tmp_path / name, config_of(change))
    assert differences(tmp_path / "one", tmp_path / "same") == []
    found = differences(tmp_path / "one", tmp_path / "other")
    assert any(name.startswith("tensor ") for name in found)
    assert not any(name.startswith("cursor") for name in found)


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path: Path) -> None:
    result = driven(tmp_path, 4, 3, 1, 1, 2, 2, 1)
    assert result["differences"] == []
    assert set(POINTS) <= set(result["kills"]), "each point of the checkpoint protocol"
    assert sum(result["kills"].values()) >= 10
    assert result["compared"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    result = driven(tmp_path, seed, 30, 3, 8, 6, 12, 15)
    assert result["differences"] == []
    assert set(POINTS) | {"prune", "ingest", "reader", "random"} <= set(result["kills"])
    assert sum(result["kills"].values()) >= 50
