"""Small streams of drawn pictures and runs that have just begun, for tests of what looks at images."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from learner.learner import Learner
from ops.config import recipes
from ops.config.load import build
from ops.config.schema import RunConfig
from ops.demo.drawings.pictures import KINDS
from ops.demo.feed import encoded
from ops.distributed.device import device_of
from ops.rundir.checkpoint_writer import CheckpointWriter
from ops.rundir.files import RunRecord, write_run
from stream.config import ShardConfig
from stream.cursor import Cursor
from stream.lanes import Position
from stream.record import Record, sha256_of
from stream.shards.manifest import Manifest
from stream.shards.writer import ShardWriter


def drawn(number: int, *, seed: int = 0, size: int = 32) -> Record:
    """One picture with its kind as label."""
    payload, kind = encoded(seed, number, size)
    return Record(
        payload=payload,
        sha256=sha256_of(payload),
        media_type="image/jpeg",
        source=f"drawn#{number}",
        label=KINDS.index(kind),
        label_name=kind,
    )


def write_stream(folder: Path, records: Iterable[Record], *, shard: int = 50) -> str:
    """A sealed stream of these records."""
    manifest = Manifest.open(str(folder), create=True)
    with ShardWriter(manifest, source_id="test", config=ShardConfig(max_records=shard)) as writer:
        for number, record in enumerate(records):
            writer.write(record, number)
    manifest.refresh()
    manifest.seal()
    return str(folder)


def tiny_config(assignments: Sequence[str] = ()) -> RunConfig:
    """The smallest network, views of 32 pixels, 16 prototypes."""
    small = ("swav.prototypes=[16]", "model.projection_hidden=32", "model.projection_dim=16", "device=cpu")
    return build(recipes.load("smoke").values, (*small, *assignments))


def begun_run(run_dir: Path, config: RunConfig | None = None) -> tuple[Path, Learner]:
    """A run whose only checkpoint holds its first weights; gives the directory and the same learner."""
    config = config or tiny_config()
    run_dir.mkdir(parents=True)
    record = RunRecord.new(stream="nowhere", config=config.to_dict())
    write_run(run_dir, record)
    learner = Learner(
        config.learner,
        seed=config.seed,
        device=device_of(config),
        precision=config.precision,
        total_samples=None,
        clock=time.monotonic,
    )
    cursor = Cursor(
        source={},
        seed=config.seed,
        lanes=config.lanes,
        chunk=config.chunk,
        window=config.window,
        positions=tuple(Position(lane=lane) for lane in range(config.lanes)),
    )
    writer = CheckpointWriter(run_dir, record.uuid, keep=2)
    writer.save(learner.state_dict(), cursor, {})
    writer.flush()
    return run_dir, learner
