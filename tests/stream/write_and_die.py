"""Program: a writer that is killed again and again. Arguments: folder, kills, seed.

One warm parent forks a writer, lets it go on from the last commit of its source, kills it after a random
time, and so on; the last writer is left to finish a source of 300 images, and seals. This is done for each
of a few sizes of shards; the stream is the folder that has the size as its name.
"""

import os
import random
import signal
import sys
import time

from stream.config import ShardConfig
from stream.shards.manifest import Manifest
from stream.shards.writer import ShardWriter
from tests.stream.make_shards import image_record

IMAGES = 300
SIZES = (4, 40)


def write(url: str, max_records: int, pause_s: float) -> None:
    """Write the rest of the source; every seventh image is skipped."""
    manifest = Manifest.open(url, create=True)
    last = manifest.last_of("images")
    if last is not None and last.source_position == IMAGES:
        manifest.seal()
        return
    start = 0 if last is None else last.source_position
    with ShardWriter(manifest, source_id="images", config=ShardConfig(max_records=max_records)) as writer:
        for number in range(start, IMAGES):
            time.sleep(pause_s)
            if number % 7 == 6:
                writer.skip("seventh", number + 1)
            else:
                writer.write(image_record(number), number + 1)
    manifest.seal()


def main(folder: str, kills: int, seed: int) -> None:
    """Fork, kill, and at last let one finish."""
    rng = random.Random(seed)
    for size in SIZES:
        for number in range(kills + 1):
            child = os.fork()
            if child == 0:
                write(f"{folder}/{size}", size, 0.0 if number == kills else 0.001)
                os._exit(0)
            if number < kills:
                time.sleep(rng.uniform(0.0, 0.1))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if status:
            sys.exit("the last writer failed")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
