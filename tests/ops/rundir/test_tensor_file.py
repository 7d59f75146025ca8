"""Files of tensors: readable to whom the umask says, as all files of a run."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ops.rundir.lock import RunLock
from ops.rundir.tensor_file import save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600), (0o027, 0o640)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "weights.safetensors"
    before = os.umask(umask)
    try:
        save_tensors({"a": torch.arange(3)}, path, {"note": "kept"})
        with RunLock(tmp_path):
            pass
    finally:
        os.umask(before)
    assert load_file(path)["a"].tolist() == [0, 1, 2]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {mode}
