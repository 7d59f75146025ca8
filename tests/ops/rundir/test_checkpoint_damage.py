"""Whatever befalls a checkpoint on disk: it is refused by name, and never read as something else."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.errors import CheckpointDamaged, RunMismatch
from ops.rundir.checkpoint import CURSOR, META, TENSORS, VALUES, Checkpoint, load, load_newest, name_of
from ops.rundir.checkpoint_writer import CheckpointWriter
from tests.damages import other_than
from tests.ops.rundir.test_checkpoint import save

FILES = (TENSORS, VALUES, CURSOR, META)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints."""
    run_dir = tmp_path_factory.mktemp("run")
    writer = CheckpointWriter(run_dir, "run", keep=3)
    save(writer, 1)
    save(writer, 2)
    writer.flush()
    return run_dir


def same(one: Checkpoint, other: Checkpoint) -> bool:
    tensors, others = one.state["tensors"], other.state["tensors"]
    return (
        one.cursor == other.cursor
        and one.progress == other.progress
        and one.state["values"] == other.state["values"]
        and tensors.keys() == others.keys()
        and all(torch.equal(tensors[name], others[name]) for name in tensors)
    )


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_file_of_a_checkpoint_is_refused_or_changes_nothing(
    saved: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    whole = saved / "checkpoints" / name_of(2)
    copy = tmp_path / name_of(2)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(data.draw(other_than((whole / name).read_bytes())))
    if name != META:
        with pytest.raises(
            CheckpointDamaged, match=f"{name_of(2)} is damaged: {name} is not what was written"
        ):
            load(copy)
        return
    try:
        found = load(copy)
    except (CheckpointDamaged, RunMismatch):
        return
    assert same(found, load(whole)), "spaces between the values of meta.json mean nothing"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_with_a_changed_newest_checkpoint_the_one_before_is_used(
    saved: Path, tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    place = tmp_path / "checkpoints" / name_of(2) / data.draw(st.sampled_from(FILES[:3]))
    place.write_bytes(data.draw(other_than(place.read_bytes())))
    found = load_newest(tmp_path)
    assert found is not None
    assert same(found, load(saved / "checkpoints" / name_of(1)))
