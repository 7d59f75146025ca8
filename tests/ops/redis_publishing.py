"""A learner's publisher against a server, and how long it ever held the learner up."""

import time
from collections.abc import Callable
from pathlib import Path

from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.publisher import Publisher
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import PublishResult, SnapshotTaken
from tests.ops import synthetic
from tests.waiting import wait_for

HELD_UP_S = 2.0
"""A learner that waited for a server of these tests would wait longer; a busy machine does not make it so."""


class Publishing:
    """A learner's publisher, as it runs beside the loop."""

    def __init__(self, url: str, folder: Path) -> None:
        self.results: list[PublishResult] = []
        self.warnings: list[str] = []
        self.client = connect(url)
        self.store = SnapshotStore(self.client, "run-1")
        self.files = EncoderFiles(folder)
        self.longest_s = 0.0
        self.publisher = Publisher(
            self.store,
            self.files,
            on_result=self.results.append,
            on_warning=self.warnings.append,
            retry_s=(0.05, 0.2),
        )
        self.publisher.start()

    def publish(self, number: int) -> None:
        """As the learner's thread does; notes how long that held it up."""
        shot = synthetic.snapshot(number)
        began = time.monotonic()
        self.publisher.publish(SnapshotTaken(shot, 100 * number, number))
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def published(self, number: int) -> PublishResult:
        self.publish(number)
        wait_for(lambda: self.standing(number) is not None)
        found = self.standing(number)
        assert found is not None
        return found

    def standing(self, number: int) -> PublishResult | None:
        return next((one for one in self.results if one.samples == 100 * number and one.version), None)

    def failed(self, number: int) -> bool:
        return any(one.samples == 100 * number and one.result == "error" for one in self.results)

    def close(self) -> bool:
        done = self.publisher.close(1)
        self.client.close()
        return done


Make = Callable[[str], Publishing]
"""Begins one, given a URL; see the fixture `publishing`."""
