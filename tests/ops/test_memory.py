import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.demo.run import PeakMemory, family


def _fake(proc: Path, process: int, parent: int, pages: int, name: str = "(a b) c") -> None:
    (proc / str(process)).mkdir()
    fields = [str(process), f"({name})", "S", str(parent), *["0"] * 19, str(pages)]
    (proc / str(process) / "stat").write_text(" ".join(fields))


def test_memory_is_that_of_a_process_and_all_below_it(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    for process, parent, pages in ((10, 1, 5), (11, 10, 7), (12, 11, 9), (20, 1, 1000)):
        _fake(tmp_path, process, parent, pages)
    assert family(10, tmp_path) == {10: 5 * page, 11: 7 * page, 12: 9 * page}


def test_where_nothing_can_be_told_nothing_is_told(tmp_path: Path) -> None:
    assert family(10, tmp_path / "missing") == {}
    _fake(tmp_path, 20, 1, 3)
    assert family(10, tmp_path) == {}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="memory is counted by /proc")
def test_a_child_that_takes_memory_is_seen() -> None:
    code = "block = bytearray(b'x') * 80_000_000; print(len(block), flush=True); input()"
    with PeakMemory(interval_s=0.02) as memory:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        memory.look()
        child.communicate(b"\n")
    assert memory.peak_processes >= 2
    assert memory.peak_bytes > 80_000_000
