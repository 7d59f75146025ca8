"""Which stream a run reads, by its address: shards, or a Kafka topic. The one place that tells them apart."""

from dataclasses import replace

from ops.config.run_length import pass_samples
from ops.config.schema import RunConfig
from ops.distributed.world import World
from ops.errors import ConfigError, RunMismatch
from ops.rundir.files import RunRecord
from stream.config import NONE
from stream.cursor import Cursor
from stream.kafka_topic.address import OPEN, check, is_topic, read_address
from stream.kafka_topic.dead_letters import KafkaProgress
from stream.kafka_topic.source import TopicSpec
from stream.loader.loader import Loader
from stream.loader.prefetch import AVAILABLE, STRICT
from stream.loader.prototype_memory import Members
from stream.shards.source import ShardSource, ShardSpec
from stream.source import Source, SourceSpec
from stream.storage import local_path


def check_address(stream: str) -> None:
    """Refuse what is no address of a stream, or holds a password, before it is shown or written anywhere.

    Raises:
        ValueError: what is wrong with it.
    """
    if is_topic(stream):
        read_address(stream)
    else:
        local_path(stream)


def source_spec(
    stream: str, config: RunConfig, *, until: str = "", cursor: Cursor | None = None
) -> SourceSpec:
    """How the stream at an address is read.

    Args:
        stream: folder or URL of shards, or kafka://HOST:PORT/TOPIC.
        config: of the run.
        until: where a topic ends for a run that begins: now, an offset or a time; empty = it stays open.
        cursor: where the run goes on; None begins. The ends that it holds stay, whatever `until` says.

    Raises:
        ConfigError: `until` for shards, or not an end; an address that is none.
    """
    if not is_topic(stream):
        if until:
            raise ConfigError(
                f"--until is for Kafka topics; {stream} ends where it is sealed: swavstream seal"
            )
        if cursor is not None and cursor.order != config.order:
            raise RunMismatch(
                f"the checkpoint was saved with order = {cursor.order}, and the run's order is "
                f"{config.order}: put back the run.json that belongs to it"
            )
        return ShardSpec(
            url=stream, lanes=config.lanes, window=config.window, seed=config.seed, order=config.order
        )
    if config.window == 0:
        raise ConfigError(
            "window = 0 means all commits of a sealed stream of shards; on a Kafka topic window is the "
            "number of records of a block: set it to 1 or more"
        )
    try:
        check(until)
        return TopicSpec(
            url=stream,
            lanes=config.lanes,
            window=config.window,
            seed=config.seed,
            kafka=config.kafka,
            until=until,
            bounds=cursor.bounds if cursor is not None else (),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def pinned(spec: SourceSpec, start: Cursor) -> SourceSpec:
    """The same, with the ends of a topic as they were found when the run began."""
    return replace(spec, bounds=start.bounds) if isinstance(spec, TopicSpec) else spec


def reading_mode(config: RunConfig, spec: SourceSpec) -> str:
    """How lanes make a step; where settings leave it open, as they come on a live topic, else in order."""
    if config.mode != "auto":
        return config.mode
    live = isinstance(spec, TopicSpec) and all(end == OPEN for _, end in spec.bounds)
    return AVAILABLE if live and config.replay.updates == config.accumulate == 1 else STRICT


def open_loader(
    spec: SourceSpec,
    config: RunConfig,
    cursor: Cursor,
    *,
    members: Members | None,
    world: World,
    pin_memory: bool,
) -> Loader:
    """Start the readers of one rank.

    Args:
        spec: opens the stream.
        config: of the run.
        cursor: where it goes on.
        members: of a memory for replay, of the same moment; None has none yet.
        world: the ranks, of which this is one.
        pin_memory: batches are to go to a CUDA device.

    Raises:
        StreamError: the stream cannot be read, or is not the one of the cursor.
    """
    return Loader(
        spec,
        replay=config.replay,
        members=members,
        cursor=cursor,
        crops=config.crops,
        config=config.reader,
        workers=config.workers,
        ranks=world.world_size,
        rank=world.rank,
        passes=config.passes,
        tail=config.tail == "train",
        pin_memory=pin_memory,
        mode=reading_mode(config, spec),
        groups=config.model.bn_groups,
    )


def sealed_samples(source: Source, cursor: Cursor, mode: str, config: RunConfig) -> int | None:
    """Samples of one pass when the stream has its end and all are good; None while it is open.

    Args:
        source: the stream.
        cursor: of the run, at any place: what counts is where its passes begin.
        mode: how lanes make a step.
        config: of the run.

    Raises:
        ConfigError: not even one batch.
    """
    if not source.sealed():
        return None
    if isinstance(source, ShardSource):  # whose first shards may have been pruned since
        records = source.records(cursor.begin)
        samples = pass_samples(config, records)
    else:
        lanes = [source.availability(position, 0).available for position in cursor.first_positions()]
        records, samples = sum(lanes), pass_samples(config, lanes, available=mode == AVAILABLE)
    if samples == 0:
        raise ConfigError(
            f"the stream is sealed with {records} records, {_too_few(config)}: "
            "nothing could be learned; lower batch and lanes"
        )
    return samples


def _too_few(config: RunConfig) -> str:
    if config.tail == "train":
        return f"fewer than the {config.lanes} lanes"
    return f"fewer than one batch of {config.batch}"


def dead_letters_of(stream: str, config: RunConfig, record: RunRecord) -> KafkaProgress | None:
    """Sends the dead letters of a run over a topic, and commits its progress. None for shards."""
    if not is_topic(stream):
        return None
    address, kafka = read_address(stream), config.kafka
    letters = "" if kafka.dead_letters == NONE else kafka.dead_letters or f"{address.topic}.dead"
    group = "" if kafka.group == NONE else kafka.group or f"swavstream-{record.uuid[:8]}"
    return KafkaProgress(address, kafka, dead_letters=letters, group=group, run=record.uuid)
