"""Publishing from a run: the Redis that is meant, or one of its own, and a publisher that has begun."""

import logging
from collections.abc import Callable
from pathlib import Path

from ops.config.schema import RunConfig
from ops.embedded import EmbeddedRedis
from ops.encoders import EncoderFiles
from ops.errors import RedisUnavailable
from ops.publish_job import PublishResult
from ops.publisher import Publisher
from ops.redis_client import connect, redis_url
from ops.rundir.files import RunRecord
from ops.rundir.summary import Progress
from ops.snapshots import SnapshotStore

logger = logging.getLogger(__name__)


def start_publisher(
    run_dir: Path,
    record: RunRecord,
    config: RunConfig,
    progress: Progress,
    *,
    on_result: Callable[[PublishResult], None],
    on_warning: Callable[[str], None],
    on_leaving: Callable[[Callable[[], None]], object],
) -> Publisher:
    """Find Redis, or start the run's own, and publish in the background.

    Args:
        run_dir: the run directory; an embedded server has its data there.
        record: which run it is.
        config: its settings.
        progress: with the fence that the publisher goes on from.
        on_result: see `Publisher`.
        on_warning: see `Publisher`.
        on_leaving: takes what is to be called when the run is left, the last first.

    Raises:
        RedisUnavailable: not a Redis URL. A server that is away is only a warning.
    """
    url = redis_url(config.snapshot.url)
    revive = None
    if not url:
        embedded = EmbeddedRedis(run_dir)
        on_leaving(embedded.close)
        try:
            embedded.start()
        except (RedisUnavailable, OSError) as error:
            logger.warning("snapshots cannot be published now, the learner goes on: %s", error)
        url, revive = embedded.url, embedded.ensure
    client = connect(url)
    on_leaving(client.close)
    publisher = Publisher(
        SnapshotStore(client, record.uuid),
        EncoderFiles(run_dir),
        config_hash=config.digest(),
        floor_epoch=progress.snapshot_epoch,
        floor_version=progress.snapshot_version,
        keep=config.snapshot.keep,
        ladder=config.snapshot.ladder,
        on_result=on_result,
        on_warning=on_warning,
        revive=revive,
    )
    publisher.start()
    return publisher
