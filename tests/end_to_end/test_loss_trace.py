"""The losses of one small run, step by step: a change of structure must not change what is learned."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ops.rundir.files import read_lines
from tests.ops.small_runs import config_of, run
from tests.stream.make_shards import make_stream

# Of the first run that had records shuffled over whole windows. One thread, float64, PNGs drawn by numpy.
LOSSES = [
    4.834232883547648, 4.178752370613839, 3.6560424557757933, 3.1596672700384207, 3.087618308819706,
    3.249986055492421, 3.189545500567775, 2.982957478034395, 3.044814234737929,
]  # fmt: skip


# The same with replay by prototypes: the fourth step is the first that differs.
BY_PROTOTYPES = [
    4.8342328835476485, 4.17875237061389, 3.6560424557758484, 3.1331938497684404, 3.122405857613704,
    3.2997903836223874, 3.1927559933349694, 3.0691928592301494, 3.065710128090702,
]  # fmt: skip


def drawn_png(number: int) -> bytes:
    """A 24 x 24 picture: coarse cells of one of five palettes."""
    generator = np.random.Generator(np.random.PCG64([7, number]))
    low = 40 * (number % 5)
    cells = generator.integers(low, low + 90, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.kron(cells, np.ones((4, 4, 1), np.uint8))).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("policy", "expected"), [("fifo", LOSSES), ("prototypes", BY_PROTOTYPES)])
def test_the_losses_of_a_run_are_what_they_were(
    tmp_path: Path, one_thread: None, policy: str, expected: list[float]
) -> None:
    make_stream(str(tmp_path / "stream"), (60, 60, 60, 60, 60), image=drawn_png)
    config = config_of(
        "model.backbone=resnet8-w32",
        "precision=float64",
        "replay.updates=2",
        "replay.window_samples=64",
        f"replay.policy={policy}",
        "health.interval_samples=32",
    )
    run(str(tmp_path / "stream"), tmp_path / "run", config)
    losses = [entry["loss"] for entry in read_lines(tmp_path / "run" / "history.jsonl")]
    assert losses == pytest.approx(expected, abs=1e-9)
