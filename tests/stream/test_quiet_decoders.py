"""What C libraries write to descriptor 2 is not seen; what Python writes to stderr is."""

import subprocess
import sys

PROGRAM = """
import os, sys
from stream.processes import decoders_silenced
with decoders_silenced():
    os.write(2, b"Corrupt JPEG data\\n")
    print("three images cannot be used", file=sys.stderr)
os.write(2, b"after\\n")
print("and Python", file=sys.stderr)
"""


def test_only_python_writes_to_the_terminal_while_images_are_decoded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.splitlines() == ["three images cannot be used", "after", "and Python"]
