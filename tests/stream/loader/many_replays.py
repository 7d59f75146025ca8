"""Program: replay thousands of samples of each step with one reader that reads ahead; says how many came."""

import functools
import struct
import sys
import zlib
from dataclasses import dataclass

import torch

from stream.config import CropConfig, ReaderConfig, ReplayConfig
from stream.cursor import start_cursor
from stream.loader.loader import Loader
from tests.stream.fake_source import FakeSpec, picture
from tests.stream.loader.driving import steps_of

LANES, STEPS = 2, 2
KINDS = (CropConfig(count=1, size=8, scale_min=0.3, scale_max=1.0),)
ENCODED_BYTES = 4000
"""Of an image at least: those of a chunk of 64 are more than the buffer of a pipe holds."""


@functools.cache
def long_picture(number: int) -> bytes:
    """A small PNG, quickly decoded, that is made long by a chunk of private data before its end."""
    data = b"swAv" + bytes(ENCODED_BYTES)
    private = struct.pack(">I", ENCODED_BYTES) + data + struct.pack(">I", zlib.crc32(data))
    image = picture(number)
    return image[:-12] + private + image[-12:]


@dataclass(frozen=True, kw_only=True, slots=True)
class LongSpec(FakeSpec):
    def payload(self, number: int) -> bytes:
        return long_picture(2 * number)  # even ones are PNG


def main(policy: str, chunk: int, updates: int) -> None:
    batch = LANES * chunk
    spec = LongSpec(lanes=LANES, records=STEPS * batch)
    loader = Loader(
        spec,
        cursor=start_cursor(spec.open(), seed=5, chunk=chunk, window=spec.block),
        crops=KINDS,
        config=ReaderConfig(thumbnail_px=0),
        workers=1,
        passes=1,
        replay=ReplayConfig(updates=updates, window_samples=2 * batch, policy=policy),
    )
    with loader:
        steps, came = steps_of(loader), []
        for one in steps:
            replays = 0
            loader.learned(one.seq_B % 7)
            for again in steps.replays():
                assert torch.isfinite(again.crops[0]).all()
                loader.learned(again.seq_B % 7)
                replays += len(again.keys)
            came.append(replays)
    print(*came)  # noqa: T201  what the test looks at


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
