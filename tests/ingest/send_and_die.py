"""Program: an ingest into a topic that is killed again and again. Arguments: folder, URL,
kills, seed, state folder (may be empty).

One warm parent forks an ingest, lets it go on from what it finds on the topic, kills it with SIGKILL after a
random time, and so on; the last one is left to finish, and its accounts are printed.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import asdict

from ingest.kafka_destination import TopicDestination
from ingest.sources import open_source
from ingest.worker import run_ingest
from stream.config import TopicWriterConfig
from tests.ingest.made import settings

PAUSE_S = 0.003


def send(folder: str, url: str, state: str, pause_s: float) -> None:
    """One life of the ingest."""

    def pause() -> bool:
        time.sleep(pause_s)
        return False

    # Small batches, so that partitions are acknowledged at different times.
    config = settings(topic=TopicWriterConfig(batch_bytes=4000, linger_s=0.03, budget_bytes=60_000))
    source = open_source(folder)
    destination = TopicDestination(url, source.source_id, config, state=state)
    report = run_ingest(source, url, config, destination=destination, stop=pause)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    sys.stdout.flush()


def main(folder: str, url: str, kills: int, seed: int, state: str) -> None:
    """Fork, kill, and at last let one finish."""
    rng = random.Random(seed)
    for number in range(kills + 1):
        child = os.fork()
        if child == 0:
            send(folder, url, state, 0.0 if number == kills else PAUSE_S)
            os._exit(0)
        if number < kills:
            time.sleep(rng.uniform(0.1, 1.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if status:
        sys.exit("the last ingest failed")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
