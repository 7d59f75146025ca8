"""What lies in a run directory, and how its small files are read and written. Nothing heavy is imported.

run.json          which run this is: uuid, stream, settings, length
auto.json         what `--recipe auto` chose when the run began, and why
lock              which process works here now
checkpoints/      ckpt-<number>/, the newest last
probe.safetensors the first samples as thumbnails, for comparing snapshots
history.jsonl     figures over time, one line an entry, thinner the longer the run
changes.jsonl     settings changed on the way: when, at which sample, from what to what
nonfinite.jsonl   steps whose loss or gradient was not finite; nonfinite/ keeps skipped batches
summary.json      how the run last ended
exemplars.safetensors, usage-history.safetensors  typical images and usage over time, for the live page
server.json       where metrics and live page are, while it runs

The JSON is such that every reader accepts it: numbers that are not finite become null.
"""

import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ops.errors import NoRoom, RunMismatch, RunNotFound
from stream.storage import NO_ROOM, write_whole

RUN_VERSION = 1
FIRST_WEIGHTS = "initial.safetensors"
# What a start replaces, until the run begins.
EARLIER_WEIGHTS = f".{FIRST_WEIGHTS}.before"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What run.json holds."""

    uuid: str
    """Names the run everywhere: keys in Redis carry it."""
    created: float
    """Unix seconds."""
    stream: str
    """Address of the stream, as last given."""
    source: Mapping[str, str]
    """Identity of the stream; the address may change, this may not. Empty until the stream was seen."""
    config: Mapping[str, Any]
    """All settings, as last given."""
    total_samples: int | None
    """Samples that the run will see, fixed when it began; None when the stream was open."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the first weights come from when they were not drawn: `kind` (anneal or weights), and which run,
    checkpoint or snapshot it was."""
    order_unset: bool = False
    """The run began when `order` was no setting: it goes on as shard, whatever a recipe says today."""

    @classmethod
    def new(cls, *, stream: str, config: Mapping[str, Any]) -> "RunRecord":
        """The record of a run that begins now and has not yet seen its stream."""
        return cls(
            uuid=uuid.uuid4().hex,
            created=time.time(),
            stream=stream,
            source={},
            config=dict(config),
            total_samples=None,
        )


@contextlib.contextmanager
def room_in(run_dir: Path) -> Iterator[None]:
    """Tell of a full disk in one line; around what cannot do without being written there.

    Raises:
        NoRoom: instead of the error of the system, which need not name a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise NoRoom(
            f"no room is left for the run directory {run_dir} ({error.strerror}): make room there and run "
            "the same command again, or give --run a directory on another disk"
        ) from error


def read_run(run_dir: Path) -> RunRecord:
    """Which run is in a directory.

    Raises:
        RunNotFound: none is.
        RunMismatch: it was written by another version of this program.
    """
    body = read_json(run_dir / "run.json")
    if body is None:
        raise RunNotFound(f"no run in {run_dir}: `swavstream learn STREAM --run {run_dir}` makes one")
    version = body.pop("version", None)
    if version != RUN_VERSION:
        raise RunMismatch(f"{run_dir / 'run.json'} has version {version!r}; this program reads {RUN_VERSION}")
    try:
        record = RunRecord(**body)
    except TypeError as error:
        raise RunMismatch(f"{run_dir / 'run.json'} cannot be read: {error}") from error
    if "order" not in record.config:
        return replace(record, config={**record.config, "order": "shard"}, order_unset=True)
    return record


def write_run(run_dir: Path, record: RunRecord) -> None:
    """Write run.json, whole or not at all."""
    write_json(run_dir / "run.json", {"version": RUN_VERSION, **asdict(record)})


def read_json(path: Path) -> dict[str, Any] | None:
    """One JSON object from a file; None when there is no file, or it does not hold one."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested too deep
        return None
    return body if isinstance(body, dict) else None


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    write_whole(path, f"{json.dumps(body, indent=1)}\n".encode())


def append_line(path: Path, body: Mapping[str, Any]) -> None:
    """Add one JSON line to a file and sync it."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(body) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file; none when it is missing. A line that a crash cut short is left out."""
    try:
        with path.open(encoding="utf-8", errors="replace") as handle:
            for line in handle:
                with contextlib.suppress(ValueError, RecursionError):
                    body = json.loads(line)
                    if isinstance(body, dict):
                        yield body
    except FileNotFoundError:
        return


def newest_saved(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """Directory and cursor of the newest checkpoint, by name and unchecked: for looking, not for resuming."""
    for path in sorted((run_dir / "checkpoints").glob("ckpt-*"), reverse=True):
        cursor = read_json(path / "cursor.json")
        if cursor is not None:
            return path, cursor
    return None


def plain(value: Any) -> Any:
    """The value with every inf and nan replaced by None, at any depth; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def dumps(value: Any) -> str:
    """One line of JSON, keys in their order, without inf and nan."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def restore_first_weights(run_dir: Path) -> None:
    """Put back the first weights that a start has replaced."""
    with contextlib.suppress(FileNotFoundError):
        (run_dir / EARLIER_WEIGHTS).replace(run_dir / FIRST_WEIGHTS)


def settle_first_weights(run_dir: Path) -> None:
    """The first weights that a start has written count from here on; also where it was killed meanwhile."""
    if (run_dir / FIRST_WEIGHTS).exists():
        (run_dir / EARLIER_WEIGHTS).unlink(missing_ok=True)
    else:
        restore_first_weights(run_dir)
