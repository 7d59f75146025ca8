"""What `recipes show --stream` says of the first batch, against the records themselves."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.cli.recipes import command
from ops.config.load import build
from ops.config.mixing import look_at_batch
from stream.config import ShardConfig
from stream.lanes import Position
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from stream.shards.writer import ShardWriter
from tests.stream.make_shards import image_record

CLASSES, OF_CLASS, SHARD = 20, 30, 50


def write_sorted(folder: Path, *, labels: bool = True, seal: bool = True) -> str:
    """Class after class, in 12 shards."""
    manifest = Manifest.open(str(folder), create=True)
    with ShardWriter(manifest, source_id="sorted", config=ShardConfig(max_records=SHARD)) as writer:
        for number in range(CLASSES * OF_CLASS):
            writer.write(image_record(number, number // OF_CLASS if labels else None), number)
    if seal:
        manifest.refresh()
        manifest.seal()
    return str(folder)


@pytest.mark.parametrize(("window", "order"), [(0, "window"), (2, "window"), (2, "shard")])
def test_the_first_batch_is_the_one_that_is_read(tmp_path: Path, window: int, order: str) -> None:
    config = build({"lanes": 4, "batch": 40, "window": window, "order": order})
    url = write_sorted(tmp_path)
    said = look_at_batch(url, config)
    source = ShardSpec(url=url, lanes=4, window=window, seed=0, order=order).open()
    entries = [
        entry for lane in range(4) for entry, _ in itertools.islice(source.read(Position(lane=lane), 0), 10)
    ]
    source.close()
    assert said is not None
    assert said.samples == 40
    assert said.shards == len({entry.unit for entry in entries})
    assert said.classes == len({entry.record.label for entry in entries if entry.record})
    assert said.shards_shuffled == pytest.approx(12 * (1 - (11 / 12) ** 40))
    if window:
        assert (said.shards, said.classes) == (2, 4) if order == "window" else said.shards <= 2


def test_without_labels_or_complete_windows_there_is_nothing_said_of_them(tmp_path: Path) -> None:
    config = build({"lanes": 4, "batch": 40, "window": 0})
    said = look_at_batch(write_sorted(tmp_path / "bare", labels=False), config)
    assert said is not None
    assert said.classes is None
    url = write_sorted(tmp_path / "open", seal=False)
    assert look_at_batch(url, config) is None
    assert look_at_batch(url, build({"lanes": 4, "batch": 40, "window": 50})) is None


def test_recipes_show_says_it(tmp_path: Path) -> None:
    url = write_sorted(tmp_path)
    arguments = [
        "show",
        "smoke",
        "--stream",
        url,
        "--set",
        "lanes=4",
        "--set",
        "batch=40",
        "--set",
        "window=0",
    ]
    shown = CliRunner().invoke(command, arguments)
    assert shown.exit_code == 0
    assert "# the first batch: 40 records of 12 shards and " in shown.output
    body = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).output)
    assert body["first_batch"]["samples"] == 40
