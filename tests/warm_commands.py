"""Many commands without paying for the imports of each: a program that has imported them forks one for each.

Requests come on stdin, a line of JSON each: whether stdout and stderr go to files of their own, and the
arguments. The answer is a JSON list of exit code, stdout and stderr.
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
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "XDG_CACHE_HOME": str(self._folder / ".cache"),
            },
        )
        return self

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Exit code, and what was written to stdout and stderr, as it came."""
        code, told, _ = self._ask(arguments, apart=False)
        return code, told

    def apart(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        """Exit code, what was written to stdout, and what to stderr."""
        return self._ask(arguments, apart=True)

    def _ask(self, arguments: Sequence[str], *, apart: bool) -> tuple[int, str, str]:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps([apart, list(arguments)]) + "\n")
        self._program.stdin.flush()
        code, told, errors = json.loads(self._program.stdout.readline())
        return code, told, errors

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.communicate(timeout=LIMIT_S)


def _run(arguments: list[str], told: Path, errors: Path) -> int:
    child = os.fork()
    if child == 0:
        import ops.cli.main

        for number, path in ((1, told), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        code = ops.cli.main.run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _main() -> None:
    modules: list[Any] = [importlib.import_module(name) for name in HEAVY]
    modules[0].set_num_threads(1)
    for line in sys.stdin:
        apart, arguments = json.loads(line)
        told = Path("output.txt")
        errors = Path("errors.txt") if apart else told
        for path in (told, errors):
            path.write_bytes(b"")
        code = _run(arguments, told, errors)
        texts = [path.read_text(errors="replace") for path in (told, errors)]
        sys.stdout.write(json.dumps([code, *texts]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
