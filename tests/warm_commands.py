"""Many commands without paying for the imports of each: a program that has imported them forks one for each.

Requests come on stdin, one JSON list of arguments a line; the answer is a JSON list of exit code and output.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.waiting import LIMIT_S

HEAVY = (
    "torch",
    "torchvision",
    "ops.cli.main",
    "ops.train.start",
    "ops.train.anneal",
    "ops.inference.assign",
    "ops.evaluate.protocol",
)


class WarmCommands:
    """Runs `swavstream ARGUMENTS`, each in a process of its own, in one directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._program = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        return self

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Exit code, and what was written to stdout and stderr."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps(list(arguments)) + "\n")
        self._program.stdin.flush()
        code, told = json.loads(self._program.stdout.readline())
        return code, told

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.communicate(timeout=LIMIT_S)


def _run(arguments: list[str], told: Path) -> int:
    child = os.fork()
    if child == 0:
        import ops.cli.main

        out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(out, number)
        code = ops.cli.main.run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _main() -> None:
    modules: list[Any] = [importlib.import_module(name) for name in HEAVY]
    modules[0].set_num_threads(1)
    told = Path("output.txt")
    for line in sys.stdin:
        code = _run(json.loads(line), told)
        sys.stdout.write(json.dumps([code, told.read_text(errors="replace")]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
