"""Several ranks as forked processes, joined as a launcher would join them; what each is given is kept."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ops.cli.main
import ops.train.resume
from learner.augment import Views
from learner.learner import Learner
from learner.report import StepReport
from ops.config.schema import RunConfig
from ops.errors import RankFailed
from ops.train.signals import StopRequest
from tests.ops.small_runs import run
from tests.ports import free_port
from tests.waiting import LIMIT_S, wait_for

Trace = dict[int, tuple[float, list[str]]]
"""Number of the update -> loss, and the samples of its global batch with every byte of their views."""


@dataclass(kw_only=True)
class Ranks:
    """Processes that were started, and what they left behind."""

    folder: Path
    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)
    """Rank -> exit code; below zero the signal that ended it."""

    def wait(self) -> list[dict[str, Any]]:
        """What each rank ended with, once all have ended: `summary`, or the type and text of an `error`."""
        deadline = time.monotonic() + LIMIT_S
        while len(self.codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        self.codes[rank] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                self.kill(*range(len(self.pids)))
                raise TimeoutError(f"of {len(self.pids)} ranks only {sorted(self.codes)} have ended")
            time.sleep(0.02)
        paths = [self.folder / f"rank-{rank}.json" for rank in range(len(self.pids))]
        return [json.loads(path.read_text()) if path.exists() else {} for path in paths]

    def kill(self, *ranks: int, number: int = signal.SIGKILL) -> None:
        """Send ranks a signal."""
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def await_update(self, number: int) -> None:
        """Return once the first rank has begun this update."""
        wait_for(lambda: number in traced(self.folder), f"update {number}")


def start(
    world: int,
    stream: str,
    run_dir: Path,
    config: RunConfig,
    *,
    at: Callable[[int, int], None] = lambda _rank, _update: None,
    **more: Any,
) -> Ranks:
    """Fork ranks that learn together.

    Args:
        world: how many.
        stream: to learn from.
        run_dir: of the run.
        config: of the run.
        at: called in each rank before each update, with rank and number of the update.
        more: for `learn`.
    """
    number = len(list(run_dir.parent.glob(f"{run_dir.name}-life-*")))
    folder = run_dir.parent / f"{run_dir.name}-life-{number}"
    folder.mkdir(parents=True)
    port = free_port()
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                os.environ |= _joining(rank, world, port)
                _be_rank(rank, folder, stream, run_dir, config, at, more)
            os._exit(1)
        pids.append(pid)
    return Ranks(folder=folder, pids=pids)


def launch(arguments: Sequence[str], *, nproc: int) -> int:
    """As `ops.distributed.launcher.launch` on one machine; the ranks are forked, so none imports anything."""
    port, pids = free_port(), []
    for rank in range(nproc):
        pid = os.fork()
        if pid == 0:
            code = 1
            with suppress(BaseException):
                os.environ |= _joining(rank, nproc, port)
                code = ops.cli.main.run([*arguments])
                sys.stdout.flush()
            os._exit(code)
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


def _joining(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher puts in the environment of a rank."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def _be_rank(
    rank: int,
    folder: Path,
    stream: str,
    run_dir: Path,
    config: RunConfig,
    at: Callable[[int, int], None],
    more: dict[str, Any],
) -> None:
    trace = (folder / f"trace-{rank}.jsonl").open("a", encoding="utf-8")

    class Traced(Learner):
        def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
            at(rank, self.updates)
            number = self.updates
            report = super().step(views, accumulate=accumulate, fresh=fresh)
            line = {"update": number, "loss": report.loss, "samples": _named(views)}
            trace.write(json.dumps(line) + "\n")
            trace.flush()
            return report

    vars(ops.train.resume)["Learner"] = Traced  # in a process of its own
    stop, code = StopRequest(), 0
    try:
        outcome: dict[str, Any] = {"summary": run(stream, run_dir, config, stop=stop, **more).to_json()}
    except Exception as error:  # noqa: BLE001  # carried to the test
        outcome, code = {"error": f"{type(error).__name__}: {error}"}, 1
        outcome["told_by_another"] = isinstance(error, RankFailed)
    (folder / f"rank-{rank}.json").write_text(json.dumps(outcome))
    os._exit(code or stop.exit_code)


def _named(views: Views) -> list[str]:
    names = []
    assert views.lane_B is not None
    for column in range(len(views.lane_B)):
        digest = hashlib.sha256(views.uniforms[:, column].numpy().tobytes())
        for kind in views.crops:
            digest.update(kind[:, column].contiguous().numpy().tobytes())
        names.append(f"{int(views.lane_B[column])} {digest.hexdigest()}")
    return names


def traced(*folders: Path) -> Trace:
    """The updates that lives of a run made; where two made the same, they must have been the same."""
    found: Trace = {}
    for folder in folders:
        lines: dict[int, list[dict[str, Any]]] = {}
        for path in folder.glob("trace-*.jsonl"):
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    body = json.loads(line)
                    lines.setdefault(body["update"], []).append(body)
        ranks = len(list(folder.glob("trace-*.jsonl")))
        for update, parts in lines.items():
            if len(parts) == ranks:  # else some rank died in it
                names = sorted(name for part in parts for name in part["samples"])
                assert found.get(update, (0.0, names))[1] == names, f"update {update} was another one"
                found[update] = (parts[0]["loss"], names)
    return found
