import itertools
import json
import random
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from ops.config import recipes
from ops.config.load import build
from tests.benchmarks.learning import cells, plain_swav
from tests.benchmarks.learning.__main__ import main
from tests.benchmarks.learning.data import ORDERS
from tests.oracles import swapped_loss


def test_a_tiny_part_gives_five_lines_and_is_not_computed_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--out", str(tmp_path / "out"), "--data", "drawn", "--orders", "uniform", "--seeds", "0",
        "--recipes", "smoke+swav.prototypes=[16]", "--images", "320", "--points", "2", "--on", "test",
    ]  # fmt: skip
    main(arguments)
    out = tmp_path / "out"
    table = (out / "table.md").read_text().splitlines()
    wanted = ["raw pixels", "untrained", "k-means, 400", "k-means, 1600", "the paper's loop", "ours"]
    assert [line.split(" | ")[3] for line in table[2:]] == wanted
    (picture,) = out.glob("*.svg")
    drawing = ElementTree.fromstring(picture.read_text())
    assert len(drawing.findall(".//{*}polyline")) == 2 * len(wanted)
    for line in ("loop", "ours"):
        (path,) = (out / "cells").glob(f"*.{line}.*")
        points = json.loads(path.read_text())
        assert [point["samples"] for point in points][-1] == 320
        seconds = [point["cpu_seconds"] for point in points]
        assert len(seconds) >= 2
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
        assert all(0 <= point["whitened_k20"] <= 100 for point in points)
    capsys.readouterr()
    monkeypatch.setattr(cells.Judge, "__init__", None)
    main(arguments)
    assert capsys.readouterr().out.count(" s  ") == 0
    with pytest.raises(SystemExit, match="take another --out"):
        main([*arguments, "--images", "300"])


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_is_the_same_each_time_and_has_no_image_twice(name: str) -> None:
    labels = [place % 5 for place in range(500)]
    one, other = (ORDERS[name](labels, random.Random("seed")) for _ in range(2))
    assert one == other
    assert len(set(one)) == len(one)
    counts = Counter(labels[place] for place in one)
    if name == "longtail":
        assert [counts[label] for label in range(5)] == [100, 32, 10, 3, 1]
    else:
        assert counts == Counter(labels)
    changes = sum(labels[a] != labels[b] for a, b in itertools.pairwise(one))
    assert {"uniform": changes > 350, "sorted": changes == 4, "recurring": changes == 24}.get(
        name, changes > 4
    )


def test_codes_of_the_loop_are_balanced_and_its_loss_is_the_papers() -> None:
    config = build(
        recipes.load("smoke").values,
        ("swav.prototypes=[6]", "swav.sinkhorn_iterations=60", "swav.epsilon=0.03"),
    )
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 24, 6, generator=draw) * 0.2
    codes = torch.stack([plain_swav.sinkhorn(scores[view], 0.03, 60) for view in range(2)])
    assert torch.allclose(codes.sum(2), torch.ones(2, 24), atol=1e-5)
    assert torch.allclose(codes.sum(1), torch.full((2, 6), 4.0), atol=1e-3)
    by_pairs = swapped_loss.swapped_loss(scores.tolist(), codes.tolist(), config.swav.temperature)
    assert float(plain_swav.swapped_loss(scores, config)) == pytest.approx(sum(by_pairs) / 24, rel=1e-4)
