"""Image libraries write what they think of bad files to descriptor 2, many lines each: keep them quiet."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def decoders_silenced() -> Iterator[None]:
    """While images are decoded in this process; what Python writes to stderr still gets there."""
    python, kept = sys.stderr, os.dup(2)
    with Path(os.devnull).open("wb") as nothing, os.fdopen(kept, "w", buffering=1) as aside:
        try:
            own = python.fileno() == 2
        except (OSError, ValueError, AttributeError):  # a stand-in without a file
            own = False
        python.flush()
        if own:
            sys.stderr = aside
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            aside.flush()
            os.dup2(kept, 2)
            sys.stderr = python
