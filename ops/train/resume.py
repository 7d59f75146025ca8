"""Where a run goes on: its record and settings with the changes that it allows, its cursor, its learner."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.collective import Deal
from learner.learner import Learner
from ops.config import binding
from ops.config.schema import RunConfig, is_identity
from ops.distributed.device import device_of, precision_of
from ops.distributed.world import World
from ops.errors import ConfigError, RankFailed, RunMismatch, RunNotFound
from ops.rundir.checkpoint import Checkpoint, numbers
from ops.rundir.files import RunRecord, append_line, read_run, write_run
from ops.rundir.summary import Progress, RunSummary
from ops.train import init_weights
from ops.train.stream_registration import leave
from stream.config import PROTOTYPES
from stream.cursor import Cursor
from stream.errors import StreamDamaged
from stream.kafka_topic.address import is_topic
from stream.lanes import owned_lanes, owners_of
from stream.loader.prototype_memory import Members
from stream.order import SHARD
from stream.source import Source

logger = logging.getLogger(__name__)

# The key in the store of the ranks under which the first one puts what it found.
OPENED = "opened"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """A run, and where it goes on."""

    run_dir: Path
    record: RunRecord
    config: RunConfig
    """Settings from here on."""
    start: Cursor
    """The cursor of the run's beginning."""
    saved: Checkpoint | None
    """The checkpoint to go on from; None begins."""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Dotted setting -> (old, new) of what is otherwise from here on."""

    @property
    def cursor(self) -> Cursor:
        """Where the run goes on."""
        return self.saved.cursor if self.saved is not None else self.start


def open_run(
    run_dir: Path, *, stream: str, config: RunConfig
) -> tuple[RunRecord, dict[str, tuple[Any, Any]]]:
    """The record of the run in a directory, made when there is none; nothing of an old one is changed yet.

    A run without any checkpoint has learned nothing yet and takes any settings and stream.

    Returns:
        The record as it stands on disk, and dotted setting -> (old, new) of what is asked for otherwise now.

    Raises:
        RunMismatch: a setting differs that makes the run what it is; the message names all of them.
    """
    try:
        record = read_run(run_dir)
    except RunNotFound:
        record = RunRecord.new(stream=stream, config=config.to_dict())
        write_run(run_dir, record)
    folder = run_dir / "checkpoints"
    if not numbers(folder) and not any(folder.glob("damaged-*")):
        fresh = replace(
            record, stream=stream, source={}, config=config.to_dict(), total_samples=None, order_unset=False
        )
        return fresh, {}
    if record.order_unset and config.order != SHARD and not is_topic(stream):
        logger.warning("the run in %s began without a setting `order`: it goes on as order = shard", run_dir)
    config = as_begun(record, config)
    # A setting that is newer than the run had its default then.
    begun = binding.filled(record.config, RunConfig().to_dict())
    changed = binding.differences(begun, config.to_dict())
    fixed = [_difference(name, *values) for name, values in changed.items() if is_identity(name, *values)]
    if fixed:
        raise RunMismatch(
            f"{run_dir} holds a run with other settings: {'; '.join(fixed)}. "
            "Give the old values, or --run another directory"
        )
    return record, changed


def as_begun(record: RunRecord, config: RunConfig) -> RunConfig:
    """Settings asked for, but for what the run was begun without: that stays as it was then."""
    return replace(config, order=SHARD) if record.order_unset else config


def bind(
    run_dir: Path, record: RunRecord, *, stream: str, source: Mapping[str, str], total_samples: int | None
) -> RunRecord:
    """Tie the run to the stream that it reads, the first time; later see that it is the same one.

    Raises:
        RunMismatch: the run has read another stream.
    """
    if not record.source:
        bound = replace(record, stream=stream, source=dict(source), total_samples=total_samples)
        before = read_run(run_dir)
        if before.source and dict(before.source) != dict(source):
            logger.warning(
                "%s was begun on %s and has saved nothing of it: it begins again on %s",
                run_dir,
                before.stream,
                stream,
            )
            leave(before.stream, record.uuid, run_dir)
        write_run(run_dir, bound)
        return bound
    if dict(record.source) != dict(source):
        raise RunMismatch(
            f"{run_dir} holds a run over another stream: it began on {record.stream} "
            f"({_identity(record.source)}), {stream} is {_identity(source)}. "
            "Give that stream, or --run another directory"
        )
    return record


def with_changes(point: ResumePoint, *, stream: str, changed: Mapping[str, tuple[Any, Any]]) -> ResumePoint:
    """The run with what is changed from here on; nothing is written yet."""
    record = point.record
    if stream != record.stream:
        changed = {**changed, "stream": (record.stream, stream)}
    if not changed:
        return point
    total = record.total_samples
    if total is not None and "passes" in changed:
        old, new = changed["passes"]
        total = total // old * new
    record = replace(record, stream=stream, config=point.config.to_dict(), total_samples=total)
    return replace(point, record=record, changed=changed)


def send_resume_point(world: World, found: ResumePoint | RunSummary) -> None:
    """Tell the other ranks, which wait in `receive_resume_point`, what the run directory holds."""
    if isinstance(found, RunSummary):
        world.store_set(OPENED, {"ended": found.to_json()})
    else:
        record, config, start = asdict(found.record), found.config.to_dict(), found.start.to_json()
        world.store_set(OPENED, {"record": record, "config": config, "start": start})


def send_refusal(world: World, error: Exception, exit_code: int) -> None:
    """Tell the other ranks that the run cannot begin."""
    world.store_set(OPENED, {"error": str(error), "exit_code": exit_code})


def receive_resume_point(world: World, run_dir: Path) -> ResumePoint | RunSummary:
    """What the first rank posts; without its checkpoint.

    Raises:
        RankFailed: the run cannot begin.
    """
    body = world.store_wait(OPENED)
    if "error" in body:
        raise RankFailed(f"rank 0 of {world.world_size} cannot begin: {body['error']}", body["exit_code"])
    if "ended" in body:
        return RunSummary(**body["ended"])
    return ResumePoint(
        run_dir=run_dir,
        record=RunRecord(**body["record"]),
        config=RunConfig.from_dict(body["config"]),
        start=Cursor.from_json(body["start"]),
        saved=None,
    )


def checkpoint_for_all(world: World, saved: Checkpoint | None, config: RunConfig) -> Checkpoint | None:
    """The first rank's checkpoint, on every rank: only that one needs to see the run directory.

    Of the members of a memory for replay the other ranks get those of their own lanes.
    """
    if world.world_size == 1:
        return saved
    about = None
    if saved is not None:
        values = {name: value for name, value in saved.state.items() if name != "tensors"}
        about = {"path": str(saved.path), "number": saved.number, "run": saved.run, "values": values}
        about |= {"cursor": saved.cursor.to_json(), "progress": dict(saved.progress)}
    about = world.broadcast_object(about)
    if about is None:
        return None
    tensors = world.broadcast_tensors({} if saved is None else saved.state["tensors"])
    replay: Mapping[str, Tensor] | None = None
    if config.replay.policy == PROTOTYPES:
        lanes = {str(lane) for lane in _own_lanes(world, config)}
        replay = world.broadcast_tensors(
            (saved.replay or {}) if saved is not None else {},
            wanted=lambda name: "." not in name or name.partition(".")[2] in lanes,
        )
    return Checkpoint(
        path=Path(about["path"]),
        number=about["number"],
        run=about["run"],
        state={**about["values"], "tensors": tensors},
        cursor=Cursor.from_json(about["cursor"]),
        progress=about["progress"],
        replay=replay,
    )


def accepting(
    point: ResumePoint, until: str, *, source: Source, changed: dict[str, tuple[Any, Any]]
) -> tuple[ResumePoint, dict[str, tuple[Any, Any]]]:
    """The run with its budget of unusable records suspended for a while; it is one of the changes.

    Args:
        point: the run.
        until: records that the run will have read, used or not, when the budget counts again; `now` is all
            that the stream has now, in all passes; empty changes nothing.
        source: the stream.
        changed: what is changed besides.

    Raises:
        ConfigError: neither a number nor `now`.
    """
    if not until:
        return point, changed
    cursor = point.cursor
    if until == "now":
        passes = max(0, point.config.passes - cursor.pass_number - 1)
        of_a_pass = source.unread(cursor.first_positions(), cursor.pass_number) if passes else 0
        records = cursor.read + source.unread(cursor.positions, cursor.pass_number) + passes * of_a_pass
    elif until.isascii() and until.isdecimal():
        records = int(until)
    else:
        raise ConfigError(f"--accept-bad-until needs a number of records, or `now`; got {until!r}")
    if records <= cursor.read or records == cursor.accept_until:
        return point, changed
    changed = {**changed, "accept_bad_until": (cursor.accept_until, records)}
    cursor = replace(cursor, accept_until=records)
    if point.saved is None:
        return replace(point, start=cursor), changed
    return replace(point, saved=replace(point.saved, cursor=cursor)), changed


def write_changes(point: ResumePoint) -> None:
    """Write down what is changed, once the learner has taken it: to changes.jsonl first, then to run.json."""
    if not point.changed:
        return
    at = {"steps": point.cursor.steps, "samples": point.cursor.samples, "time": time.time()}
    for name, (old, new) in point.changed.items():
        append_line(point.run_dir / "changes.jsonl", {"setting": name, "old": old, "new": new, **at})
    write_run(point.run_dir, point.record)


def _difference(name: str, old: Any, new: Any) -> str:
    return f"{name} is {old!r} there and {new!r} here"


def _identity(source: Mapping[str, str]) -> str:
    return " ".join(f"{name} {value}" for name, value in sorted(source.items()))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Restored:
    """Where a run goes on."""

    learner: Learner
    cursor: Cursor
    progress: Progress
    members: Members | None
    """Of a memory for replay; None has none yet, or is a run without."""
    path: Path | None
    """Of the checkpoint; None at the beginning."""


def restore(point: ResumePoint, saved: Checkpoint | None, world: World) -> Restored:
    """Make the learner as it was saved, or new. All ranks call it.

    Args:
        point: the run; its own checkpoint is not looked at.
        saved: to go on from; None begins.
        world: the ranks.

    Raises:
        ConfigError: settings that the learner cannot have.
        RunMismatch: the state of the checkpoint does not fit the settings, or this program.
    """
    config = point.config
    device = device_of(config, world.local_rank)
    try:
        learner = Learner(
            config.learner,
            seed=config.seed,
            device=device,
            precision=precision_of(config, device),
            total_samples=config.length(point.record.total_samples),
            clock=time.perf_counter,
            deal=Deal(world.group, owners_of(config.lanes, world.world_size, config.model.bn_groups)),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if saved is None:
        init_weights.load(point.run_dir, point.record, learner, world)
        return Restored(learner=learner, cursor=point.start, progress=Progress(), members=None, path=None)
    members = None
    try:
        learner.load_state_dict(saved.state)
        progress = Progress(**saved.progress)
        if config.replay.policy == PROTOTYPES:
            members = Members.of_tensors(saved.replay or {}, _own_lanes(world, config))
    except (ValueError, TypeError, StreamDamaged) as error:
        raise RunMismatch(
            f"checkpoint {saved.path} does not fit: {error}. Give the settings of the run as it was"
        ) from error
    return Restored(learner=learner, cursor=saved.cursor, progress=progress, members=members, path=saved.path)


def _own_lanes(world: World, config: RunConfig) -> tuple[int, ...]:
    return owned_lanes(config.lanes, world.world_size, world.rank, config.model.bn_groups)
