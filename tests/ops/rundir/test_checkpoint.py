"""Checkpoints: whole or not at all, damaged ones refused by name, a full disk survived."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ops.errors import CheckpointDamaged, CheckpointFailed, RunMismatch
from ops.rundir.checkpoint import load_newest, meta_digest, numbers, read_meta
from ops.rundir.checkpoint_writer import CheckpointWriter
from stream.cursor import Cursor
from stream.lanes import Position
from tests.waiting import LIMIT_S

FILES = ("learner.safetensors", "state.json", "cursor.json", "meta.json")
POINTS = ("begun", "tensors written", "synced", "renamed", "visible", "pruning", "pruned")


def state(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    weights = torch.randn(40, 30, generator=generator)
    tensors = {
        "weight": weights,
        "half": weights.bfloat16(),
        "count": torch.tensor(number),
        "mask": weights > 0,
    }
    return {"version": 1, "tensors": tensors, "values": {"samples": number, "rate": 0.1 + number}}


def cursor(number: int) -> Cursor:
    positions = tuple(Position(lane=lane, unit=number, idx=lane) for lane in range(4))
    return Cursor(
        source={"kind": "shards", "uuid": "u"},
        seed=1, lanes=4, chunk=2, window=1, steps=number, samples=8 * number, positions=positions,
    )  # fmt: skip


def save(writer: CheckpointWriter, number: int) -> None:
    writer.save(state(number), cursor(number), {"seconds": float(number)})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no file above a size: what `ulimit -f` does, told as an error instead of a signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 4
        path.write_bytes(body)


def test_what_is_saved_reads_back_equal(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=2)
    save(writer, 5)
    path = writer.flush()
    found = load_newest(tmp_path)
    assert found is not None
    assert found.path == path == tmp_path / "checkpoints" / "ckpt-000001"
    assert found.cursor == cursor(5)
    assert found.progress == {"seconds": 5.0}
    assert found.run == "run"
    assert found.state["values"] == state(5)["values"]
    assert found.state["version"] == 1
    for name, tensor in state(5)["tensors"].items():
        assert found.state["tensors"][name].dtype == tensor.dtype
        assert torch.equal(found.state["tensors"][name], tensor), name


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    CheckpointWriter(tmp_path, "run", keep=1)
    assert load_newest(tmp_path) is None


def test_the_state_is_taken_over_and_not_copied_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=1)
    given, written, save_file = state(1), [], safetensors.torch.save_file

    def write(tensors: dict[str, torch.Tensor], path: Path, **more: Any) -> None:
        written.append({name: tensor.data_ptr() for name, tensor in tensors.items()})
        save_file(tensors, path, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", write)
    writer.save(given, cursor(1), {})
    writer.flush()
    assert written == [{name: tensor.data_ptr() for name, tensor in given["tensors"].items()}]


def test_whether_the_last_save_failed_is_known_once_it_has_ended(tmp_path: Path) -> None:
    held = threading.Event()
    writer = CheckpointWriter(
        tmp_path, "run", keep=1, at=lambda point: point == "begun" and held.wait(LIMIT_S)
    )
    with largest_file(100):
        save(writer, 1)
        threading.Timer(0.1, held.set).start()
        assert writer.failed()
    save(writer, 2)
    assert not writer.failed()


def test_at_most_one_save_is_in_flight(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def at(point: str) -> None:
        inside[0] += {"begun": 1, "visible": -1}.get(point, 0)
        most[0] = max(most[0], inside[0])

    writer = CheckpointWriter(tmp_path, "run", keep=9, at=at)
    for number in range(5):
        save(writer, number)
    writer.flush()
    assert most == [1]
    assert numbers(tmp_path / "checkpoints") == [1, 2, 3, 4, 5]


def test_the_newest_n_are_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=2)
    for number in range(5):
        save(writer, number)
    writer.flush()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "ckpt-000004",
        "ckpt-000005",
    ]


@pytest.mark.parametrize("how", ["missing", "cut short", "empty", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    newest = writer.flush()
    assert newest is not None
    damage(newest / name, how)
    with caplog.at_level(logging.WARNING):
        found = load_newest(tmp_path)
    assert found is not None
    assert found.cursor.steps == 1
    assert f"checkpoint {newest.name} is damaged: {name}" in caplog.text
    assert "ckpt-000001 is used" in caplog.text


def test_a_damaged_checkpoint_is_set_aside_and_its_number_not_given_again(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    newest = writer.flush()
    assert newest is not None
    damage(newest / "cursor.json", "empty")
    assert load_newest(tmp_path, set_aside=True) is not None
    again = CheckpointWriter(tmp_path, "run", keep=3)
    save(again, 3)
    assert again.flush() == tmp_path / "checkpoints" / "ckpt-000003"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["ckpt-000001", "ckpt-000003", "damaged-000002"]


def test_when_all_are_damaged_nothing_starts_from_the_beginning_in_silence(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    writer.flush()
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path / "learner.safetensors", "one bit")
    with pytest.raises(
        CheckpointDamaged, match=r"no checkpoint of .* can be trusted.*ckpt-000002.*ckpt-000001"
    ):
        load_newest(tmp_path, set_aside=True)
    assert numbers(tmp_path / "checkpoints") == [1, 2]


def test_another_version_of_the_layout_is_refused(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    newest = writer.flush()
    assert newest is not None
    meta = {**read_meta(newest), "version": 99}
    (newest / "meta.json").write_text(json.dumps({**meta, "sha256": meta_digest(meta)}))
    with pytest.raises(RunMismatch, match="ckpt-000002 has version 99; this program reads 1"):
        load_newest(tmp_path, set_aside=True)
    assert numbers(tmp_path / "checkpoints") == [1, 2]


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    writer.flush()

    def away(_path: Path) -> tuple[str, int]:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("ops.rundir.checkpoint.file_digest", away)
        with pytest.raises(OSError, match="Stale file handle"):
            load_newest(tmp_path, set_aside=True)
    found = load_newest(tmp_path)
    assert found is not None
    assert found.cursor.steps == 2


@pytest.mark.parametrize("room", [100, 4_000])
def test_a_full_disk_is_a_warning_and_the_next_save_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    writer.flush()
    with largest_file(room), caplog.at_level(logging.WARNING):
        save(writer, 2)
        with pytest.raises(CheckpointFailed, match="could not be written"):
            writer.flush()
    assert "ckpt-000002 could not be written" in caplog.text
    assert writer.failures == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["ckpt-000001"]
    save(writer, 3)
    assert writer.flush() is not None
    found = load_newest(tmp_path)
    assert found is not None
    assert found.cursor.steps == 3


def test_a_folder_that_vanished_is_a_warning_too(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    shutil.rmtree(tmp_path / "checkpoints")
    save(writer, 1)
    with pytest.raises(CheckpointFailed):
        writer.flush()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_of_a_save_the_run_has_the_old_or_the_new_checkpoint(
    tmp_path: Path, point: str
) -> None:
    before = CheckpointWriter(tmp_path, "run", keep=1)
    save(before, 1)
    before.flush()
    child = os.fork()
    if child == 0:
        writer = CheckpointWriter(tmp_path, "run", keep=1, at=lambda passed: passed == point and os._exit(9))
        save(writer, 2)
        writer.flush()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    found = load_newest(tmp_path)
    assert found is not None
    visible = POINTS.index(point) >= POINTS.index("renamed")
    assert found.cursor.steps == (2 if visible else 1)
    after = CheckpointWriter(tmp_path, "run", keep=1)
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    save(after, 3)
    after.flush()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_an_unforeseen_error_while_writing_is_not_taken_for_a_written_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[str] = []
    writer = CheckpointWriter(
        tmp_path, "run", keep=3, on_result=lambda result, _seconds: results.append(result)
    )
    save(writer, 1)
    writer.flush()

    def out_of_memory(*_args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _args: None)
        patch.setattr(safetensors.torch, "save_file", out_of_memory)
        save(writer, 2)
        assert writer.failed()
    with pytest.raises(CheckpointFailed, match="ended early"):
        writer.flush()
    assert results == ["ok", "error"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["ckpt-000001"]
    save(writer, 3)
    assert not writer.failed()


def test_old_checkpoints_that_cannot_be_listed_stay_and_the_new_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=1)
    save(writer, 1)
    writer.settle()

    def away(_folder: Path) -> list[int]:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("ops.rundir.checkpoint_writer.numbers", away)
        save(writer, 2)
        assert writer.flush() == tmp_path / "checkpoints" / "ckpt-000002"
    assert "could not be removed" in caplog.text
    assert numbers(tmp_path / "checkpoints") == [1, 2]
    save(writer, 3)
    writer.flush()
    assert numbers(tmp_path / "checkpoints") == [3]


def test_whether_a_save_would_wait_is_known_in_a_moment(tmp_path: Path) -> None:
    held = threading.Event()
    writer = CheckpointWriter(
        tmp_path, "run", keep=1, at=lambda point: point == "begun" and held.wait(LIMIT_S)
    )
    assert writer.free(0.0)
    save(writer, 1)
    assert not writer.free(0.05)
    held.set()
    assert writer.free(LIMIT_S)


def test_a_newest_checkpoint_that_is_a_link_to_nowhere_is_damaged(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    newest = writer.flush()
    assert newest is not None
    newest.rename(tmp_path / "moved")
    newest.symlink_to(tmp_path / "nowhere")
    for holder in (False, True):
        with pytest.raises(CheckpointDamaged, match="ckpt-000001 is damaged"):
            load_newest(tmp_path, set_aside=holder)


@pytest.mark.parametrize("name", ["ckpt-00000\u00b2", "ckpt-\u0663", "ckpt-1", "ckpt-", "ckpt-0000001"])
def test_what_only_looks_like_a_checkpoint_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / name.replace("ckpt", "damaged")).mkdir()
    assert load_newest(tmp_path, set_aside=True) is None
    writer = CheckpointWriter(tmp_path, "run", keep=1)
    save(writer, 1)
    assert writer.flush() == tmp_path / "checkpoints" / "ckpt-000001"


@pytest.mark.parametrize("damage", ["[" * 100_000, '{"a":' * 100_000])
def test_a_newest_checkpoint_that_nests_too_deep_to_be_read_is_refused_like_any_other(
    tmp_path: Path, damage: str
) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    newest = writer.flush()
    assert newest is not None
    (newest / "meta.json").write_text(damage)
    found = load_newest(tmp_path, set_aside=True)
    assert found is not None
    assert found.path.name == "ckpt-000001"


def test_reading_changes_nothing(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    path = writer.flush()
    assert path is not None
    damage(path / "state.json", "one bit")
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    load_newest(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
