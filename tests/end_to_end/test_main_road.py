"""The whole road through the command line: images, shards, an interrupted pass, snapshots, judgement."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from webdataset import tariterators

from ops.demo.drawings.pictures import KINDS
from ops.demo.feed import encoded
from tests.waiting import LIMIT_S
from tests.warm_commands import WarmCommands

PROGRAM = [sys.executable, "-c", "from ops.cli.main import main; main()"]
FIRST, SECOND, TEST, BAD = 300, 220, 120, 5
BATCH = 64
SETTINGS = [
    "--recipe", "smoke", "--set", "server.port=0", "--set", "snapshot.every_samples=128",
    "--set", "swav.prototypes=24", "--set", "reader.poll_s=0.1",
]  # fmt: skip


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _last_json(text: str) -> dict[str, Any]:
    body = json.loads(text.splitlines()[-1])
    assert isinstance(body, dict)
    return body


def _interrupted(stream: Path, run_dir: Path) -> tuple[int, dict[str, Any]]:
    """Learn from a stream that is still open, and press Ctrl-C once all that is there was used."""
    child = subprocess.Popen(
        [*PROGRAM, "learn", str(stream), "--run", str(run_dir), *SETTINGS, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(), start_new_session=True,
    )  # fmt: skip
    watchdog = threading.Timer(LIMIT_S, child.kill)
    watchdog.start()
    history = run_dir / "history.jsonl"
    try:
        while not history.exists() or len(history.read_text().splitlines()) < FIRST // BATCH:
            assert child.poll() is None, child.communicate()
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)
        told, complaints = child.communicate()
    finally:
        watchdog.cancel()
        child.kill()
    assert child.returncode == 0, complaints
    return child.returncode, _last_json(told)


@dataclass(frozen=True)
class Road:
    """What every command of the road said."""

    folder: Path
    stream: Path
    test: Path
    run: Path
    ingested: list[dict[str, Any]]
    stopped: dict[str, Any]
    finished: dict[str, Any]
    commands: WarmCommands

    def swavstream(self, *arguments: str | Path) -> str:
        """Run one command to its end; what it printed."""
        return _told(self.commands, *arguments)


def _told(commands: WarmCommands, *arguments: str | Path) -> str:
    code, out, errors = commands.apart([str(argument) for argument in arguments])
    assert code == 0, errors
    return out


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmCommands]:
    with WarmCommands(tmp_path_factory.mktemp("commands")) as run:
        yield run


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, commands: WarmCommands) -> Road:
    work = tmp_path_factory.mktemp("road")
    first, second, other, stream, test, run_dir = (
        work / name for name in ("first", "second", "other", "stream", "test", "run")
    )
    for number in range(FIRST + SECOND + TEST):
        payload, kind = encoded(0, number, 48)
        folder = first if number < FIRST else second if number < FIRST + SECOND else other
        place = folder / kind / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(payload)
    for number in range(BAD):
        (first / KINDS[0] / f"bad-{number}.jpg").write_bytes(b"no image %d" % number)
    ingest = ("--label-from", "parent", "--json", "--set", "shard.max_records=100", "--set", "workers=1")
    told = [_last_json(_told(commands, "ingest", first, stream, "--open", *ingest))]
    told.append(_last_json(_told(commands, "ingest", first, stream, "--open", *ingest)))
    _, stopped = _interrupted(stream, run_dir)
    told.append(_last_json(_told(commands, "ingest", second, stream, *ingest)))
    _told(commands, "ingest", other, test, *ingest)
    finished = _last_json(_told(commands, "learn", stream, "--run", run_dir, *SETTINGS, "--json"))
    return Road(first, stream, test, run_dir, told, stopped, finished, commands)


def test_every_file_is_accounted_for_and_a_second_ingest_adds_nothing(road: Road) -> None:
    first, again, second = road.ingested
    assert (first["found"], first["written"]) == (FIRST + BAD, FIRST)
    assert sum(first["skipped"].values()) == BAD
    assert {name: again[name] for name in ("found", "written", "skipped")} == {
        name: first[name] for name in ("found", "written", "skipped")
    }
    assert second["written"] == SECOND


def test_the_shards_are_webdataset_tars(road: Road) -> None:
    samples: list[dict[str, Any]] = []
    for path in (road.stream / "shards").glob("*.tar"):
        with path.open("rb") as file:  # webdataset's own opener leaves files open
            members = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            samples += tariterators.group_by_keys(members)
    assert len(samples) == FIRST + SECOND
    assert len({sample["__key__"] for sample in samples}) == FIRST + SECOND
    labels = {json.loads(sample["json"])["label_name"] for sample in samples}
    assert labels == {path.name for path in road.folder.iterdir()}


def test_ctrl_c_saves_and_the_same_command_goes_on(road: Road) -> None:
    assert road.stopped["status"] == "stopped"
    assert road.stopped["samples"] == FIRST // BATCH * BATCH
    assert Path(road.stopped["checkpoint"]).parent == road.run / "checkpoints"
    assert road.finished["status"] == "finished"
    used, left = road.finished["samples"], road.finished["left_over"]
    assert used + road.finished["skipped"] + left == FIRST + SECOND
    assert road.finished["updates"] == road.finished["steps"] == used // BATCH
    assert road.finished["seconds"] > road.stopped["seconds"]


def test_an_interrupted_run_ends_with_the_same_bits_as_one_that_was_not(road: Road, tmp_path: Path) -> None:
    arguments: tuple[str | Path, ...] = ("learn", road.stream, "--run", tmp_path / "run", *SETTINGS, "--json")
    straight = _last_json(road.swavstream(*arguments))
    assert straight["snapshot"]["digest"] == road.finished["snapshot"]["digest"]
    assert straight["loss"] == road.finished["loss"]


def test_a_finished_run_does_nothing_and_says_the_same(road: Road) -> None:
    assert _last_json(road.swavstream("learn", road.stream, "--run", road.run, "--json")) == road.finished


def test_the_newest_snapshot_is_that_of_the_end(road: Road) -> None:
    shown = json.loads(road.swavstream("snapshots", "show", road.run, "--json"))
    assert shown["version"] == road.finished["snapshot"]["version"]
    assert shown["digest"] == road.finished["snapshot"]["digest"]
    assert (shown["samples"], shown["prototypes"]) == (road.finished["samples"], 24)
    listed = road.swavstream("snapshots", "list", road.run)
    assert shown["digest"][:12] in listed


def test_features_are_evaluated_beside_raw_pixels_and_the_untrained_network(road: Road) -> None:
    report = json.loads(
        road.swavstream("evaluate", "knn", road.run, "--train", road.stream, "--test", road.test, "--json")
    )
    assert (report["bank"], report["queries"]) == (FIRST + SECOND, TEST)
    assert report["samples"] == road.finished["samples"]
    for name in ("trained", "raw_pixels", "untrained"):
        assert 100 / report["classes"] < report[name]["k20"] <= 100


def test_every_image_of_a_folder_gets_its_prototype(road: Road) -> None:
    answers = [
        json.loads(line) for line in road.swavstream("assign", road.run, road.folder, "--json").splitlines()
    ]
    assert len(answers) == FIRST + BAD
    good = [answer for answer in answers if "prototype" in answer]
    assert len(good) == FIRST
    assert all(0 <= answer["prototype"] < 24 for answer in good)
    assert {answer["reason"] for answer in answers if "reason" in answer} == {"not_an_image"}


def test_a_checkpoint_that_is_damaged_is_passed_over(road: Road, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(road.run, run_dir, ignore=shutil.ignore_patterns("redis*", "*.sock"))
    newest = run_dir / "checkpoints" / Path(road.finished["checkpoint"]).name
    (newest / "learner.safetensors").write_bytes(b"damaged")
    answers = road.swavstream("assign", run_dir, road.folder / KINDS[1], "--json").splitlines()
    assert len(answers) == len(list((road.folder / KINDS[1]).iterdir()))
