"""Program: load a fake stream with two readers, and wait to be killed or for two signals; never close."""

import signal
import sys
import time
from types import FrameType

from stream.config import CropConfig, ReaderConfig
from stream.cursor import start_cursor
from stream.loader.loader import Loader
from tests.stream.fake_source import FakeSpec
from tests.stream.loader.driving import KeptPools, steps_of

SPEC = FakeSpec(lanes=4, records=120, bad_every=7)
KINDS = (CropConfig(count=2, size=12, scale_min=0.3, scale_max=1.0),)


def main(what: str) -> None:
    signals: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    signal.signal(signal.SIGINT, keep)
    signal.signal(signal.SIGTERM, keep)
    cursor = start_cursor(SPEC.open(), seed=5, chunk=3, window=8)
    readers = KeptPools()
    loader = Loader(SPEC, cursor=cursor, crops=KINDS, config=ReaderConfig(), workers=2, pool=readers)
    steps = steps_of(loader)
    next(iter(steps))
    print(*readers.pids(), flush=True)  # noqa: T201  what the test waits for
    if what == "wait":
        sys.stdin.read()
    while len(signals) < 2:
        time.sleep(0.05)
    assert sum(1 for _ in steps) > 3
    assert loader.worker_restarts == 0


if __name__ == "__main__":
    main(sys.argv[1])
