import subprocess
import sys
import threading

import pytest

from ops.demo.run import PeakMemory, repeated

BLOCK = 80_000_000
ALONE = f"block = bytearray(b'x') * {BLOCK}; print(len(block), flush=True); input()"
# Each of the four processes looks at every page, so every page belongs to all of them.
SHARED = f"""
import mmap, os, sys
block = mmap.mmap(-1, {BLOCK})
block.write(b"x" * {BLOCK})
ready, seen = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.write(seen, bytes([sum(block[::4096]) % 256]))
        sys.stdin.read()
        os._exit(0)
for _ in range(3):
    os.read(ready, 1)
print("ready", flush=True)
sys.stdin.read()
for _ in range(3):
    os.wait()
"""


def peak_beside(code: str) -> PeakMemory:
    """Memory of this process and of a program that has printed a line, as what it adds."""
    before, memory = PeakMemory(), PeakMemory()
    before.look()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    memory.look()
    child.communicate(b"\n")
    memory.peak_bytes -= before.peak_bytes
    memory.peak_processes -= before.peak_processes
    return memory


def test_a_child_that_takes_memory_is_seen() -> None:
    memory = peak_beside(ALONE)
    assert memory.peak_processes == 1
    assert memory.peak_bytes > BLOCK


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many processes share a page")
def test_pages_that_processes_share_count_once() -> None:
    memory = peak_beside(SHARED)
    assert memory.peak_processes == 4
    assert BLOCK < memory.peak_bytes < 2 * BLOCK


def test_a_look_is_repeated_until_it_is_over_or_the_context_is_left() -> None:
    looks: list[int] = []
    over = threading.Event()

    def look() -> bool:
        looks.append(1)
        if len(looks) == 3:
            over.set()
        return over.is_set()

    with repeated(look, every_s=0.001):
        assert over.wait(60)
    assert len(looks) == 3
    with repeated(lambda: False, every_s=60):
        pass  # leaving does not wait for the next look
