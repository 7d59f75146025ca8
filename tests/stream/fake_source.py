"""A small stream in memory: deterministic images, dealt to lanes in turn, shuffled in blocks.

It holds real encoded images, some of them unusable, and implements `stream.source.Source`. A growing one
reads its length from a file, so that other processes see it grow.
"""

import functools
import hashlib
import io
import json
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from stream.lanes import Bounds, Position
from stream.record import Record
from stream.source import Availability, Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeSpec:
    lanes: int
    records: int = 0
    seed: int = 0
    block: int = 8
    bad_every: int = 0
    """Every so many records one is unusable, each time in another way; 0 = none."""
    first_bad: int = 10**9
    """From this record on all are unusable."""
    growth: str = ""
    """File of a growing stream: {"records": n, "sealed": bool}; empty = sealed, of `records`."""
    kill_at: int = -1
    """Reading this record kills the process while the file `kill_while` exists."""
    kill_while: str = ""
    kill_with: int = signal.SIGKILL
    kill_once: bool = True
    """The file is removed first."""
    deadly: tuple[int, ...] = ()
    """Decoding one of these records kills the process."""
    broken: tuple[int, ...] = ()
    """These records are no images."""
    fail_at: int = -1
    """Reading this record raises OSError."""
    fault_at: int = -1
    """Reading this record raises what no source should."""

    def open(self) -> "FakeSource":
        return FakeSource(self)

    def bad(self, number: int) -> str:
        """Why a record is unusable; empty when it is good."""
        if number in self.broken:
            return "undecodable"
        if number >= self.first_bad or (self.bad_every and number % self.bad_every == self.bad_every - 1):
            return ("undecodable", "bad_checksum", "truncated", "empty")[number % 4]
        return ""

    def payload(self, number: int) -> bytes:
        reason = self.bad(number)
        if reason == "empty":
            return b""
        image = picture(number)
        if reason == "truncated":
            return image[: len(image) * 2 // 3]
        return b"no image" if reason else image


class Deadly:
    """A record whose bytes kill whoever looks at them, as a crash of a decoder does."""

    @property
    def payload(self) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


@functools.cache
def picture(number: int) -> bytes:
    """A small image that differs from all others; JPEG or PNG, of several sizes."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (12 + number % 5, 16 - number % 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG" if number % 2 else "PNG")
    return file.getvalue()


def grow(path: Path, records: int, *, sealed: bool = False) -> None:
    """Let the growing stream at `path` hold so many records."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"records": records, "sealed": sealed}))
    aside.replace(path)


class FakeSource:
    def __init__(self, spec: FakeSpec) -> None:
        self.spec = spec
        self.lanes = spec.lanes
        self._records, self._sealed = (0, False) if spec.growth else (spec.records, True)
        self.refresh()

    def identity(self) -> dict[str, str]:
        return {"kind": "fake", "uuid": str(self.spec.seed)}

    def bounds(self) -> Bounds:
        return ()

    def refresh(self) -> bool:
        before = self._records, self._sealed
        if self.spec.growth:
            state = json.loads(Path(self.spec.growth).read_text())
            self._records, self._sealed = state["records"], state["sealed"]
        return before != (self._records, self._sealed)

    def sealed(self) -> bool:
        return self._sealed

    def availability(self, position: Position, pass_number: int) -> Availability:
        return Availability(
            available=max(0, self._readable(position.lane) - position.base - position.idx),
            ended=self._sealed,
        )

    def unread(self, positions: Iterable[Position], pass_number: int = 0) -> int:
        return sum(self._length(p.lane) - p.base - p.idx for p in positions)

    def read(self, position: Position, pass_number: int) -> Iterator[tuple[Entry, Position]]:
        lane, base, idx = position.lane, position.base, position.idx
        readable = self._readable(lane)
        while base + idx < readable:
            order = self._order(lane, base, pass_number, min(self.spec.block, readable - base))
            for place in order[idx:]:
                idx += 1
                at = (base + len(order), 0) if idx == len(order) else (base, idx)
                after = Position(lane=lane, base=at[0], idx=at[1], seq=position.seq)
                yield self._entry((base + int(place)) * self.lanes + lane), after
            base, idx = base + len(order), 0

    def entry(self, unit: int, index: int) -> Entry:
        return self._entry(100 * unit + index)

    def close(self) -> None:
        pass

    def _entry(self, number: int) -> Entry:
        spec = self.spec
        if number == spec.kill_at and Path(spec.kill_while).exists():
            if spec.kill_once:
                Path(spec.kill_while).unlink()
            os.kill(os.getpid(), spec.kill_with)
        if number == spec.fail_at:
            raise OSError(5, f"record {number} cannot be reached")
        if number == spec.fault_at:
            raise ValueError("a fault of the program")
        if spec.bad(number) == "bad_checksum":
            return Entry(unit=number // 100, index=number % 100, record=None, reason="bad_checksum", size=7)
        payload = spec.payload(number)
        if number in spec.deadly:
            return Entry(unit=number // 100, index=number % 100, record=cast("Record", Deadly()), size=1)
        record = Record(
            payload=payload, sha256=hashlib.sha256(payload).hexdigest(), media_type="application/octet-stream"
        )
        return Entry(unit=number // 100, index=number % 100, record=record, size=len(payload))

    def _length(self, lane: int) -> int:
        return max(0, self._records - lane + self.lanes - 1) // self.lanes

    def _readable(self, lane: int) -> int:
        length = self._length(lane)
        return length if self._sealed else length // self.spec.block * self.spec.block

    def _order(self, lane: int, base: int, pass_number: int, n: int) -> list[int]:
        counter = [0, base, lane, pass_number]
        generator = np.random.Generator(np.random.Philox(key=self.spec.seed, counter=counter))
        order: list[int] = generator.permutation(n).tolist()
        return order
