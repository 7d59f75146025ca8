"""The commands that compare, fetch, name and prune, on a real run with real networks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from ops.cli import main
from ops.cli import snapshots as snapshots_command
from ops.rundir.files import read_run
from ops.snapshots.embedded_redis import open_redis
from ops.snapshots.store import SnapshotStore
from tests.ops import small_runs

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, drawn_stream: str, one_thread: None) -> Path:
    """A finished run that has published at least two snapshots."""
    folder = tmp_path_factory.mktemp("operated") / "run"
    small_runs.run(drawn_stream, folder, small_runs.config_of("snapshot.every_samples=96"))
    return folder


@pytest.fixture
def call(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        code = main.run(["snapshots", name, str(run_dir), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def published(run_dir: Path) -> tuple[int, int]:
    """The oldest and the newest version; the names are taken away, so that tests do not see each other's."""
    with open_redis(run_dir) as client:
        store = SnapshotStore(client, read_run(run_dir).uuid)
        client.delete(store.key("pins"), store.key("stable"), store.key("stable_log"))
        versions = [info.version for info in store.versions()]
    assert len(versions) >= 2
    return versions[-1], versions[0]


def body_of(answer: tuple[int, str, str]) -> dict[str, Any]:
    assert answer[0] == 0, answer[2]
    body: dict[str, Any] = json.loads(answer[1])
    return body


def test_diff_tells_how_prototypes_usage_and_assignments_changed(
    call: Call, published: tuple[int, int]
) -> None:
    first, last = published
    body = body_of(call("diff", str(first), "head", "--json"))
    assert (body["version_a"], body["version_b"], body["equal"]) == (first, last, False)
    assert body["samples"] > 0
    assert body["prototypes"]["prototypes"] == 16
    assert -1 <= body["prototypes"]["cosine_min"] < 1
    assert body["probe"]["images"] == small_runs.STEPS * 32
    assert (body["probe"]["thumbnail_px"], body["probe"]["view_px"]) == (16, 16)
    assert 0 <= body["probe"]["churn_best_match"] <= body["probe"]["churn"] <= 1
    assert 0 < body["usage"]["total_variation"] < 1


def test_diff_of_a_snapshot_with_itself_has_no_churn(call: Call, published: tuple[int, int]) -> None:
    body = body_of(call("diff", "head", "head", "--json"))
    assert (body["equal"], body["probe"]["churn"]) == (True, 0.0)


def test_diff_says_in_words_what_it_looked_at(call: Call, published: tuple[int, int]) -> None:
    code, out, _ = call("diff", str(published[0]), "head", "--images", "100")
    assert code == 0
    assert re.search(r"^churn +\d+\.\d% have another prototype; ", out, re.MULTILINE)
    assert "100 images of the run's first 128 samples, kept at 16 px" in out
    assert re.search(r"^prototypes +cosine ", out, re.MULTILINE)


def test_diff_without_a_probe_set_says_why(call: Call, run_dir: Path, published: tuple[int, int]) -> None:
    kept = (run_dir / "probe.safetensors").rename(run_dir / "aside")
    try:
        code, out, _ = call("diff", str(published[0]), "head")
    finally:
        kept.rename(run_dir / "probe.safetensors")
    assert code == 0
    assert "churn        not known: there is no " in out
    assert body_of(call("diff", "head", "head", "--json", "--images", "0"))["probe"] is None


def test_fetch_writes_files_that_need_neither_redis_nor_the_run(
    call: Call, tmp_path: Path, published: tuple[int, int]
) -> None:
    dest = tmp_path / "deep" / "MODEL"
    body = body_of(call("fetch", "head", str(dest), "--json"))
    told = json.loads((dest / "snapshot.json").read_text())
    assert body["version"] == told["version"] == published[1]
    assert safetensors.torch.load_file(dest / "prototypes.safetensors")["prototypes"].shape == (16, 16)
    assert safetensors.torch.load_file(dest / "encoder.safetensors")
    assert sorted(path.name for path in dest.parent.iterdir()) == ["MODEL"]
    assert "already in" in call("fetch", "head", str(dest))[1]
    code, _, err = call("fetch", str(published[0]), str(dest))
    assert code == 1
    assert "give another directory" in err


def test_promote_rollback_and_force(call: Call, published: tuple[int, int]) -> None:
    first, last = published
    code, _, err = call("promote", str(first))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "did not pass the health gate" in err
    assert body_of(call("promote", str(first), "--force", "--json")) == {"stable": first, "before": None}
    assert "was before" in call("promote", str(first), "--force")[1]
    assert f"was {first}: `snapshots rollback` goes back" in call("promote", "head", "--force")[1]
    assert body_of(call("rollback", "--json")) == {"stable": first, "before": last}
    code, _, err = call("rollback")
    assert code == 1
    assert f"stable stays at {first}" in err


def test_a_damaged_encoder_is_not_promoted(call: Call, run_dir: Path, published: tuple[int, int]) -> None:
    with open_redis(run_dir) as client:
        info = SnapshotStore(client, read_run(run_dir).uuid).show("head")
    path = run_dir / info.encoder
    aside = path.rename(path.with_suffix(".aside"))
    try:
        code, _, err = call("promote", "head", "--force")
    finally:
        aside.rename(path)
    assert code == 1
    assert "there is no encoder" in err


def test_a_damaged_encoder_is_not_rolled_back_to(
    call: Call, run_dir: Path, published: tuple[int, int]
) -> None:
    first, last = published
    call("promote", str(first), "--force")
    call("promote", str(last), "--force")
    with open_redis(run_dir) as client:
        info = SnapshotStore(client, read_run(run_dir).uuid).show(first)
    path = run_dir / info.encoder
    aside = path.rename(path.with_suffix(".aside"))
    try:
        code, _, err = call("rollback")
    finally:
        aside.rename(path)
    assert code == 1
    assert "there is no encoder" in err
    assert "stable stays: `snapshots promote`" in err
    assert body_of(call("rollback", "--json")) == {"stable": first, "before": last}


def test_pins_are_given_read_moved_and_taken_away(call: Call, published: tuple[int, int]) -> None:
    first, last = published
    assert call("pin", "paper", str(first))[1] == f"pin:paper is now {first}\n"
    assert body_of(call("show", "pin:paper", "--json"))["version"] == first
    assert call("pin", "paper", "head")[1] == f"pin:paper is now {last}, was {first}\n"
    assert call("unpin", "paper")[1] == f"pin:paper is gone; it was {last}\n"
    code, _, err = call("pin", "no good", "head")
    assert code == 1
    assert err.startswith("Error: a pin is called by")
    assert len(err.splitlines()) == 1


def test_prune_takes_snapshots_and_their_encoders(
    run_dir: Path, call: Call, published: tuple[int, int]
) -> None:
    first, _ = published
    call("pin", "paper", str(first))
    would = body_of(call("prune", "--keep", "1", "--ladder", "0", "--dry-run", "--json"))
    body = body_of(call("prune", "--keep", "1", "--ladder", "0", "--json"))
    assert would["pruned"] == body["pruned"]
    assert would["left"] == body["left"] == 2
    assert first not in body["pruned"]
    assert body_of(call("diff", "pin:paper", "head", "--json"))["version_a"] == first
    assert "snapshots are gone" not in call("prune", "--dry-run")[1]


@pytest.mark.parametrize("name", sorted(snapshots_command.command.commands))
def test_every_command_teaches_by_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["snapshots", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"swavstream snapshots {name} RUN/" in out
    assert "--json" in out
