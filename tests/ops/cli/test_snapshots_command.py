"""`swavstream snapshots` as a person and as a program use it."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from ops.cli import main
from ops.rundir.files import RunRecord, write_run
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.publisher import Publisher
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import SnapshotTaken
from tests.ops import synthetic


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has published three snapshots and ended."""
    folder = tmp_path_factory.mktemp("run")
    record = RunRecord.new(stream="STREAM", config={})
    write_run(folder, record)
    with EmbeddedRedis(folder) as embedded, connect(embedded.url) as client:
        publisher = Publisher(SnapshotStore(client, record.uuid), EncoderFiles(folder), config_hash="abc")
        publisher.start()
        for number, verdict in ((1, "healthy"), (2, "healthy"), (3, "unhealthy")):
            shot = synthetic.snapshot(number, verdict=verdict)
            publisher.publish(SnapshotTaken(shot, 1000 * number, number))
            while publisher.version < number:
                pass
        assert publisher.close()
    return folder


def call(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main.run(["snapshots", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_list_shows_all_snapshots_newest_first(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["list", str(run_dir)], capsys)
    rows = out.splitlines()[1:]
    assert code == 0
    assert [row.split()[:2] for row in rows] == [["3", "3,000"], ["2", "2,000"], ["1", "1,000"]]
    assert "unhealthy" in rows[0]
    assert rows[0].endswith("head")
    assert rows[1].endswith("stable")


def test_show_gives_programs_the_documented_fields(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["show", str(run_dir), "--json"], capsys)
    body = json.loads(out)
    assert code == 0
    assert {"version", "digest", "samples", "prototypes", "dim", "health"} <= body.keys()
    assert (body["version"], body["samples"], body["prototypes"], body["dim"]) == (3, 3000, 8, 4)
    assert body["digest"] == synthetic.snapshot(3, verdict="unhealthy").digest
    assert body["health"]["verdict"] == "unhealthy"


@pytest.mark.parametrize(("which", "version"), [("head", 3), ("stable", 2), ("1", 1)])
def test_show_takes_a_version_or_a_name(
    run_dir: Path, capsys: pytest.CaptureFixture[str], which: str, version: int
) -> None:
    _, out, _ = call(["show", str(run_dir), which, "--json"], capsys)
    assert json.loads(out)["version"] == version


def test_list_as_json_is_one_list(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(["list", str(run_dir), "--json"], capsys)
    assert [body["version"] for body in json.loads(out)] == [3, 2, 1]


def test_an_unknown_version_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(["show", str(run_dir), "9"], capsys)
    assert code == 1
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1


def test_a_directory_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(["list", str(tmp_path)], capsys)
    assert code == 1
    assert "no run in" in err
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_one_line_without_the_password(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"redis://user:secret@127.0.0.1:{taken.getsockname()[1]}/0"
        code, _, err = call(["list", str(run_dir), "--redis", url], capsys)
    assert code == 1
    assert err.startswith("Error: no answer from redis://127.0.0.1:")
    assert "secret" not in err
    assert len(err.splitlines()) == 1


def test_a_run_that_has_not_published_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, RunRecord.new(stream="STREAM", config={}))
    code, out, _ = call(["list", str(tmp_path)], capsys)
    assert (code, out) == (0, "No snapshot was published yet.\n")
