"""Runs, readers, prunes and ingests that are killed with SIGKILL, and what they come to in the end.

A process that has imported everything forks the lives that are killed; a life that was killed is followed by
another one, until the thing is done, and then it is compared, bit by bit, with one that was not interrupted.
"""

import contextlib
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

POINTS = ("begun", "tensors written", "synced", "renamed", "visible", "pruning", "pruned")
"""Of ops/rundir/checkpoint_writer.py."""
RECORDS = 350
IMAGES = 90
REPLAYED = ("passes=2", "replay.updates=2", "replay.window_samples=96", "swav.queue_start_samples=128")
"""Two passes, each step learned from twice, and a queue that begins on the way."""
_PATIENCE_S = 240.0


class Driver:
    """Kills, and keeps account of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.compared = 0
        self.differences: list[str] = []
        self._numbers = iter(range(10**9))

    def new(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}"

    def fork(self, work: Callable[[], Any]) -> int:
        """A life of its own, whose words go to a file."""
        child = os.fork()
        if child:
            return child
        code = 1
        with contextlib.suppress(BaseException):
            log = os.open(self.folder / "lives.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                work()
                code = 0
            except BaseException:  # noqa: BLE001  the life ends here; its code says so
                os.write(log, traceback.format_exc().encode())  # what pytest captures dies with it
        os._exit(code)

    def ended(self, child: int, what: str) -> bool:
        """Wait for a life; whether it was killed. Anything but that or a good end is a difference."""
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            self.kills[what] += 1
            return True
        if code:
            log = (self.folder / "lives.log").read_text(errors="replace")
            self.differences.append(f"{what}: a life ended with {code}: {log[-2000:]}")
        return False

    def killed_after(self, work: Callable[[], Any], seconds: float, what: str) -> bool:
        child = self.fork(work)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return self.ended(child, what)

    def whole(self, work: Callable[[], Any], what: str) -> float:
        """A life that is not killed; the seconds that it took."""
        began = time.monotonic()
        self.ended(self.fork(work), what)
        return time.monotonic() - began


class Runs:
    """Runs over one stream; `reference` is the one that nothing interrupted."""

    def __init__(self, driver: Driver, *more: str) -> None:
        from tests.ops import small_runs

        self.driver = driver
        self.stream = small_runs.write_stream(driver.new("stream"), RECORDS, bad_every=41)
        self.config = small_runs.config_of("checkpoint.every_samples=32", "checkpoint.keep=2", *more)
        self.reference = driver.new("reference")
        self.seconds = driver.whole(self.life(self.reference), "reference")

    def life(self, run_dir: Path, stream: str = "", workers: int = 0) -> Callable[[], Any]:
        import dataclasses

        from tests.ops import small_runs

        config = dataclasses.replace(self.config, workers=workers)
        return lambda: small_runs.run(stream or self.stream, run_dir, config)

    def finish(self, run_dir: Path, what: str, stream: str = "") -> None:
        """Let a run come to its end, and compare it."""
        self.driver.whole(self.life(run_dir, stream), what)
        self.driver.compared += 1
        self.driver.differences += [f"{what}: {name}" for name in differences(self.reference, run_dir)]

    def at_random_moments(self, kills: int) -> None:
        """Anywhere: while it starts, in a step, in a save, at the end."""
        run_dir = self.driver.new("random")
        for _ in range(kills):
            seconds = self.driver.rng.uniform(0.0, self.seconds)
            if not self.driver.killed_after(self.life(run_dir), seconds, "random"):
                self.finish(run_dir, "random")
                run_dir = self.driver.new("random")
        self.finish(run_dir, "random")

    def at_points(self, rounds: int) -> None:
        """At each point of the checkpoint protocol, at the first or a later time that it is passed."""
        for _ in range(rounds):
            run_dir = self.driver.new("points")
            for point in self.driver.rng.sample(POINTS, len(POINTS)):
                times = self.driver.rng.choice((1, 1, 2))
                child = self.driver.fork(partial(self._to_point, run_dir, point, times))
                if not self.driver.ended(child, point):
                    self.finish(run_dir, point)
                    run_dir = self.driver.new("points")
            self.finish(run_dir, "points")

    def readers(self, kills: int) -> None:
        """Reader processes of a run that lives on, and at last the run with its readers."""
        run_dir = self.driver.new("readers")
        child = self.driver.fork(self.life(run_dir, workers=2))
        deadline, done = time.monotonic() + _PATIENCE_S, 0
        while done < kills and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                self.driver.differences.append("readers: there were none to kill")
                break
            for pid in self.driver.rng.sample(found := readers_of(child), min(1, len(found))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    done += 1
            time.sleep(self.driver.rng.uniform(0.0, 0.3))
        self.driver.kills["reader"] += done
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        self.driver.ended(child, "readers")
        self.finish(run_dir, "readers")

    def prunes(self, rounds: int) -> None:
        """A run is killed, the stream pruned under it, the prune killed at one of its changes; and on."""
        import shutil

        copy = self.driver.new("copy")
        shutil.copytree(self.stream, copy)
        run_dir = self.driver.new("pruned")
        for _ in range(rounds):
            # Three checkpoints on, so that there is something to prune.
            child = self.driver.fork(partial(self._to_point, run_dir, "pruned", 3, str(copy)))
            if not self.driver.ended(child, "run that is pruned"):
                break
            change = self.driver.rng.randrange(5)
            self.driver.ended(
                self.driver.fork(partial(killed_at_change, change, partial(prune, copy))), "prune"
            )
        self.finish(run_dir, "prune", str(copy))
        self.driver.whole(partial(prune, copy), "prune")
        self.driver.differences += damages(copy)
        if list((copy / "shards").glob("*.tar")):
            self.driver.differences.append("prune: shards are left that are not needed")

    def _to_point(self, run_dir: Path, point: str, times: int, stream: str = "") -> None:
        from ops.rundir.checkpoint_writer import CheckpointWriter

        begin, left = CheckpointWriter.__init__, iter(range(times - 1, -1, -1))

        def at(passed: str) -> None:
            if passed == point and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def begin_with_kill(writer: CheckpointWriter, *arguments: Any, **options: Any) -> None:
            begin(writer, *arguments, **{**options, "at": at})

        CheckpointWriter.__init__ = begin_with_kill  # type: ignore[method-assign,assignment]  # of this life only
        self.life(run_dir, stream)()


def ingests(driver: Driver, kills: int) -> None:
    """An ingest that also prunes, killed at random moments and at single changes of the store."""
    from tests.ingest.made import folder_of, settings

    source = folder_of(driver.folder / "images", 0, IMAGES)
    for number in range(0, IMAGES, 5):
        (source / f"{number:06d}-broken.jpg").write_bytes(b"no image")

    def work(place: Path) -> Callable[[], Any]:
        from ingest.sources import open_source
        from ingest.worker import run_ingest
        from stream.config import RetentionConfig

        config = settings(per_shard=7, retention=RetentionConfig(keep_bytes=80_000))
        return lambda: run_ingest(open_source((str(source),)), str(place), config)

    reference = driver.new("ingested")
    seconds = driver.whole(work(reference), "ingest")
    place = driver.new("ingest")
    for number in range(kills):
        if number % 2:
            done = driver.killed_after(work(place), driver.rng.uniform(0.0, seconds), "ingest")
        else:
            change = driver.rng.randrange(12)
            done = driver.ended(driver.fork(partial(killed_at_change, change, work(place))), "ingest")
        if not done or number == kills - 1:
            driver.whole(work(place), "ingest")
            driver.compared += 1
            if contents(place) != contents(reference):
                driver.differences.append(f"ingest: {place.name} holds other records than {reference.name}")
            driver.differences += damages(place)
            place = driver.new("ingest")


def prune(place: Path) -> None:
    """As far as who reads allows."""
    from stream.config import RetentionConfig
    from stream.shards.manifest import Manifest
    from stream.shards.retention import prune as prune_stream

    prune_stream(Manifest.open(str(place)), RetentionConfig(keep_hours=1e-9))


def killed_at_change(change: int, work: Callable[[], Any]) -> None:
    """Do the work; this process is killed before or after one change of a local store."""
    from stream.storage import LocalStore

    left = iter(range(change, -(10**9), -1))

    def deadly(name: str) -> None:
        real = getattr(LocalStore, name)

        def changed(*arguments: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments)
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(LocalStore, name, changed)

    for name in ("create", "replace", "upload", "delete"):
        deadly(name)
    work()


def differences(one: Path, other: Path) -> list[str]:
    """Names of all that two finished runs do not have in common, bit by bit."""
    import torch

    from ops.rundir.checkpoint import load_newest
    from ops.rundir.files import read_lines

    first, second = load_newest(one), load_newest(other)
    if first is None or second is None:
        return ["a run has no checkpoint"]
    tensors, others = first.state.pop("tensors"), second.state.pop("tensors")
    found = [f"tensor {name} is in one only" for name in tensors.keys() ^ others.keys()]
    found += [
        f"tensor {name}"
        for name in tensors.keys() & others.keys()
        if tensors[name].dtype != others[name].dtype or not torch.equal(tensors[name], others[name])
    ]
    members = [
        {name: tensor.tolist() for name, tensor in (run.replay or {}).items()} for run in (first, second)
    ]
    if members[0] != members[1]:
        found.append("images for replay")
    if not tensors:
        found.append("there are no tensors to compare")
    if first.state != second.state:
        found.append("values of the learner")
    if first.cursor.to_json() != second.cursor.to_json():
        found.append(f"cursor: {first.cursor} and {second.cursor}")
    own = ("seconds", "snapshot_epoch", "snapshot_version")
    progress = [{k: v for k, v in run.progress.items() if k not in own} for run in (first, second)]
    if progress[0] != progress[1]:
        found.append(f"progress: {progress[0]} and {progress[1]}")
    steps = [[line["steps"] for line in read_lines(run / "history.jsonl")] for run in (one, other)]
    if steps[0] != steps[1]:
        found.append(f"history: steps {steps[0]} and {steps[1]}")
    if list((other / "checkpoints").glob(".tmp-*")):
        found.append("unfinished checkpoints are left")
    return found


def contents(place: Path) -> tuple[list[bytes], Any, bool, list[Any]]:
    """Digests of all records in their order, the accounts, whether there is an end, and what was rejected."""
    from ingest.rejects import read_rejects
    from stream.shards.index import decode_index
    from stream.shards.manifest import Manifest

    manifest = Manifest.open(str(place))
    digests: list[bytes] = []
    accounts: Counter[str] = Counter()
    for number in range(len(manifest)):
        commit = manifest.entry(number)
        accounts.update(found=commit.accounts.found, written=commit.accounts.written)
        if commit.n:
            index = decode_index(manifest.store.read(commit.index_uri), name=commit.index_uri, n=commit.n)
            digests += [index.row(row).digest for row in range(commit.n)]
    return digests, accounts, manifest.sealed, list(read_rejects(manifest))


def damages(place: Path) -> list[str]:
    from stream.shards.manifest import Manifest
    from stream.shards.verify import verify

    found = verify(Manifest.open(str(place)), deep=True)
    return [f"{place.name}: {damage.name}: {damage.what}" for damage in found]


def readers_of(run: int) -> list[int]:
    """Process ids of the readers of a run: the children of its fork server."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    servers = [pid for pid, parent in parents.items() if parent == run and b"forkserver" in command(pid)]
    return [pid for pid, parent in parents.items() if parent in servers]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def drive(folder: Path, seed: int, counts: Sequence[int]) -> dict[str, Any]:
    """Kill, in this process.

    Args:
        folder: an empty one.
        seed: of the moments.
        counts: kills at random moments of a run, rounds over all points of the checkpoint protocol, kills of
            reader processes, rounds of kill and prune, kills of an ingest, kills at random moments of a run
            with replay, by each policy.
    """
    import torch

    import ops.train.start  # noqa: F401  so that no life has to

    torch.set_num_threads(1)
    at_random, rounds, readers, prunes, ingest_kills, with_replay = counts
    driver = Driver(folder, seed)
    runs = Runs(driver)
    runs.at_random_moments(at_random)
    runs.at_points(rounds)
    if readers:
        runs.readers(readers)
    if prunes:
        runs.prunes(prunes)
    if ingest_kills:
        ingests(driver, ingest_kills)
    if with_replay:
        for policy in ("fifo", "prototypes"):
            Runs(driver, *REPLAYED, f"replay.policy={policy}").at_random_moments(with_replay)
    return {
        "kills": dict(driver.kills),
        "compared": driver.compared,
        "differences": driver.differences,
        "seconds": round(runs.seconds, 2),
    }
