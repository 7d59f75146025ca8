"""Learning on a real mount that is full, or read-only, for a while."""

import json
import subprocess
from pathlib import Path

import pytest

from ops.rundir.summary import FINISHED, RunSummary
from tests.ops.learn_on_mount import learn_on_mount
from tests.ops.small_runs import bits

pytestmark = pytest.mark.usefixtures("one_thread")


def may_mount(folder: Path) -> bool:
    """Whether this process may have a mount name space of its own, and mount in it."""
    try:
        tried = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@pytest.mark.parametrize(("kind", "told"), [("full", "No space left"), ("readonly", "Read-only file system")])
def test_a_mount_that_takes_nothing_for_a_while_costs_checkpoints_and_nothing_else(
    tmp_path: Path, drawn_stream: str, whole_run: tuple[Path, RunSummary], kind: str, told: str
) -> None:
    if not may_mount(tmp_path):
        pytest.skip("needs the right to mount: run it as root, outside of a sandbox")
    result = learn_on_mount(drawn_stream, tmp_path, kind)
    assert result["status"] == FINISHED
    assert "could not be written" in result["warnings"]
    assert told in result["warnings"]
    hashed, values, cursor = bits(whole_run[0])
    assert (result["hashed"], result["values"]) == (hashed, json.dumps(values))
    assert result["cursor"] == cursor.to_json()
