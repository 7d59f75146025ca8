"""An annealed copy of a run for release: a run of its own whose learning rate falls to zero.

A stream has no end, so its run keeps a constant learning rate, at which weights never settle. What is to be
released is therefore a copy: it goes on from the run's newest checkpoint over the next samples of the same
stream while its rate falls, and ends there. The run itself is only read, and may go on meanwhile.

Source: Haegele et al. 2024, arXiv:2405.18392 (constant rate, then a fall as 1 - sqrt over a fifth of the
samples); Singh et al. 2025, arXiv:2503.02844 (the same for a stream without end, annealed branches apart).
"""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from ops.config import binding
from ops.config.checks import refusals
from ops.config.load import build
from ops.config.run_length import pass_samples
from ops.config.schema import RunConfig, is_identity
from ops.errors import ConfigError, RunMismatch, RunNotFound
from ops.rundir import checkpoint
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.files import RunRecord, read_run, write_run
from ops.rundir.lock import RunClaim
from ops.rundir.summary import Progress
from ops.train.data import reading_mode, sealed_samples, source_spec
from stream.cursor import Cursor
from stream.loader.prefetch import AVAILABLE

KIND = "anneal"
SHARE = 0.2
"""Of the samples seen: how many the rate falls over where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """An annealed copy, made now or before."""

    run_dir: Path
    stream: str
    config: RunConfig
    start: int
    """Samples that the run had seen where the copy leaves it."""
    made: bool
    """False: it was there already and goes on."""

    @property
    def end(self) -> int:
        """Samples at which the rate is `final_learning_rate` and the copy ends."""
        return self.config.end_samples


def prepare(
    run_dir: Path,
    out: Path,
    *,
    samples: int | None = None,
    stream: str | None = None,
    assignments: tuple[str, ...] = (),
    ranks: int = 1,
) -> Copy:
    """Make the annealed copy of a run, or find the one that is there.

    Nothing of the run is changed. `learn` on the copy's directory does the rest, and goes on with it after
    an interruption. A copy that was killed while it was made has no run.json and is made again.

    Args:
        run_dir: the run; a learner may be at work in it.
        out: directory of the copy.
        samples: over which the rate falls, raised to whole batches; None = a fifth of those seen. No more
            than the stream still has, where it is sealed.
        stream: where the stream is now; None = as the run has it.
        assignments: `a.b=v`, settings that the copy has otherwise; its port is a free one unless set here.
        ranks: that will learn it.

    Raises:
        RunNotFound: no run there, or it has saved nothing yet.
        RunMismatch: `out` holds something else.
        RunLocked: another process works in `out`.
        ConfigError: the schedule is not constant, a setting that belongs to the run, or no samples are left.
    """
    record = read_run(run_dir)
    record = replace(record, stream=stream or record.stream)
    refused = next(refusals(RunConfig.from_dict(record.config), ranks), None)
    if refused is not None:
        raise ConfigError(refused)
    with RunClaim(out):
        try:
            there = read_run(out)
        except RunNotFound:
            return _make(run_dir, record, out, samples=samples, assignments=assignments)
    if (there.origin.get("kind"), there.origin.get("run")) != (KIND, record.uuid):
        raise RunMismatch(f"{out} holds another run, not an annealed copy of this one: give another --out")
    config = build(there.config, assignments)
    wanted = samples and _whole(samples, config.batch)
    if wanted and wanted != config.optim.anneal_samples:
        raise RunMismatch(
            f"{out} anneals over {config.optim.anneal_samples:,} samples, not {wanted:,}: give --out another "
            "directory for another copy"
        )
    return Copy(
        run_dir=out,
        stream=stream or there.stream,
        config=config,
        start=config.optim.anneal_start_samples,
        made=False,
    )


def _make(
    run_dir: Path, record: RunRecord, out: Path, *, samples: int | None, assignments: tuple[str, ...]
) -> Copy:
    before = RunConfig.from_dict(record.config)
    if before.optim.schedule != "constant":
        raise ConfigError(
            f"the run in {run_dir} has the schedule {before.optim.schedule}, which falls to its own end: "
            "only a constant one needs an annealed copy"
        )
    saved = checkpoint.load_newest(run_dir)
    if saved is None:
        raise RunNotFound(f"the run in {run_dir} has no checkpoint yet: there is nothing to copy")
    config = build(_with_free_port(before).to_dict(), assignments)
    _check_identity(before, config)
    start = saved.cursor.samples
    length = _whole(samples or math.ceil(start * SHARE), config.batch)
    left = _left(record.stream, config, saved.cursor)
    if left is not None and left < length:
        if left == 0:
            passes = max(config.passes, saved.cursor.pass_number) + 1
            raise ConfigError(
                f"the run in {run_dir} has used all of {record.stream}, and an annealed copy learns from "
                f"further samples: give --set passes={passes} to read it once more"
            )
        length = left
    optim = replace(config.optim, anneal_start_samples=start, anneal_samples=length)
    config = replace(config, optim=optim, end_samples=start + length)
    copy = replace(
        RunRecord.new(stream=record.stream, config=config.to_dict()),
        source=record.source,
        total_samples=record.total_samples and record.total_samples // before.passes * config.passes,
        origin={"kind": KIND, "run": record.uuid, "run_dir": str(run_dir), "samples": start},
    )
    # What the copy publishes is its own: its numbers and its fencing begin again.
    progress = replace(Progress(**saved.progress), snapshot_epoch=0, snapshot_version=0, finished=False)
    writer = CheckpointWriter(out, copy.uuid, keep=config.checkpoint.keep)
    writer.save(saved.state, saved.cursor, progress.saved(seconds=progress.seconds), saved.replay)
    writer.flush()
    if (run_dir / "history.jsonl").exists():
        shutil.copyfile(run_dir / "history.jsonl", out / "history.jsonl")
    write_run(out, copy)  # the last: without it there is no copy yet, and what lies there is made again
    return Copy(run_dir=out, stream=record.stream, config=config, start=start, made=True)


def _check_identity(before: RunConfig, config: RunConfig) -> None:
    """Refuse what would not continue the run that is copied."""
    changed = binding.differences(before.to_dict(), config.to_dict())
    fixed = [name for name, values in changed.items() if is_identity(name, *values)]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)} cannot be otherwise in a copy: its weights belong to the run")


def _with_free_port(config: RunConfig) -> RunConfig:
    """The same, on a port of its own: the run may be at work on the configured one."""
    return replace(config, server=replace(config.server, port=min(config.server.port, 0)))


def _whole(samples: int, batch: int) -> int:
    """Raised to whole batches, at least one."""
    return max(1, -(-samples // batch)) * batch


def _left(stream: str, config: RunConfig, cursor: Cursor) -> int | None:
    """Samples that a sealed stream still fills, in all passes, if no record is unusable; None while open."""
    spec = source_spec(stream, config, cursor=cursor)
    source = spec.open()
    try:
        mode = reading_mode(config, spec)
        whole = sealed_samples(source, cursor, mode, config)
        if whole is None:
            return None
        if cursor.pass_number >= config.passes:
            return 0
        left = [source.availability(position, cursor.pass_number).available for position in cursor.positions]
        now = pass_samples(config, left, available=mode == AVAILABLE)
        return now + whole * (config.passes - 1 - cursor.pass_number)
    finally:
        source.close()
