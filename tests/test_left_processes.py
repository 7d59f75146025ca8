"""What the tests say of processes that they leave."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.left_processes import VARIABLE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="processes are found in /proc"
)

# One program of its own, and one child that is forked; both go on in sessions of their own.
LEAVES = """
import os, subprocess, sys, time
from pathlib import Path

def note(pid):
    with Path({pids!r}).open("a") as file:
        file.write(f"{{pid}}\\n")

def test_first():
    note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid)
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
    note(child)

def test_last():
    {last}
"""


def leaving(folder: Path, last: str) -> tuple[int, str]:
    """Exit code and output of pytest over two tests, of which the first leaves processes."""
    (folder / "test_leaving.py").write_text(LEAVES.format(pids=str(folder / "pids"), last=last))
    (folder / "conftest.py").write_text(
        "from tests import left_processes\n"
        "left_processes.END_S = 0.5\n"
        "from tests.conftest import no_process_is_left\n"
    )
    # The processes hold its output open: it ends when they do.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)],
        cwd=Path(__file__).parents[1], check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", VARIABLE))},
    )  # fmt: skip
    return done.returncode, done.stdout


def test_processes_that_are_left_fail_the_tests_and_are_named_and_killed(tmp_path: Path) -> None:
    code, out = leaving(tmp_path, last="pass")
    assert code == 1, out
    assert "2 passed, 1 error" in out
    for pid in (tmp_path / "pids").read_text().split():
        assert re.search(rf"process {pid} \(.*?\), started by \S*test_first \(call\)", out), out


def test_tests_that_are_killed_leave_no_process(tmp_path: Path) -> None:
    code, out = leaving(tmp_path, last="os.kill(os.getpid(), 9)")
    assert code == -9, out
