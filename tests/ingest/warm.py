"""Program: imports everything once, then forks a process for each ingest that a test asks for.

A test that kills many processes cannot wait for the imports of each. Requests come on stdin, one JSON list a
line: ["start", {source, stream, per_shard, workers, open, most_bytes}] answers the process id, ["wait", pid]
the exit code (negative for a signal).
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from ingest.decode_pool import DECODERS
from ingest.errors import IngestError
from ingest.sources import open_source
from ingest.worker import run_ingest
from tests.ingest.made import settings
from tests.waiting import LIMIT_S

ERROR_TOLD = 7


def run(request: dict[str, Any]) -> int:
    """What the forked process does."""
    if request["most_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["most_bytes"], request["most_bytes"]))
    config = settings(per_shard=request["per_shard"], workers=request["workers"], short_side=0)
    source = open_source(request["source"])
    try:
        run_ingest(source, request["stream"], config, open_stream=request["open"])
    except IngestError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return ERROR_TOLD
    return 0


def serve() -> None:
    importlib.import_module(DECODERS)
    for line in sys.stdin:
        what, argument = json.loads(line)
        if what == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(argument, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                code = 1
                try:
                    code = run(argument)
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


class Warm:
    """The program above, seen from a test."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        """Where the processes write what goes wrong."""
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.ingest.warm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=Path(__file__).parents[2],
                text=True,
            )

    def start(
        self,
        source: Path,
        stream: Path,
        *,
        per_shard: int,
        workers: int = 0,
        open_stream: bool = False,
        most_bytes: int = 0,
    ) -> int:
        """Start an ingest; its process id."""
        request = {"source": str(source), "stream": str(stream), "per_shard": per_shard, "workers": workers}
        return self._ask("start", {**request, "open": open_stream, "most_bytes": most_bytes})

    def wait(self, pid: int) -> int:
        """Exit code of a process that was started, when it has ended."""
        return self._ask("wait", pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            cast("Any", pipe).close()
        self._process.wait(LIMIT_S)

    def _ask(self, what: str, argument: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, argument]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


if __name__ == "__main__":
    serve()
