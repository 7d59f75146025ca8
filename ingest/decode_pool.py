"""Processes that prepare images, with a limit on time and memory for each; results come in the order asked.

An image from outside can hang a decoder, exhaust the memory or crash the process; none of that may stop an
ingest or cost another image. A process that dies or hangs is replaced. An image that hangs a process is given
up with a reason. One at which a process died is given up if that happens again and again, since the process
may have been killed for another's sake.

This module imports nothing heavy, and no decoder comes into the process that only hands out the work: that
would take seconds and memory. The decoders are imported once, by the process that the others are forked from.
"""

import importlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ingest.config import IngestConfig
from ingest.errors import DecodePoolFailed
from ingest.sources import Found
from stream.errors import BadRecord
from stream.fork_server import fork_server
from stream.machine import cores
from stream.processes import Job, Loss, NoStart, Processes


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as it is stored."""

    payload: bytes
    sha256: str
    """Hex digest of `payload`."""
    media_type: str
    width: int
    """Pixels, upright."""
    height: int


Result = Prepared | BadRecord


DECODERS = "ingest.decode_worker"


def begin_imports() -> None:
    """Start the process that others are forked from, so that it imports while this one does other things."""
    fork_server([DECODERS])


def attempt(found: Found, config: IngestConfig) -> Result:
    """Prepare one image in this process, see `ingest.decode_worker.attempt`."""
    result: Result = importlib.import_module(DECODERS).attempt(found, config)
    return result


BATCH_IMAGES = 32
"""Images sent to a process at once."""
BATCH_BYTES = 2 * 1024 * 1024
BATCH_AGE_S = 0.05
"""An idle process does not wait longer for a full batch."""
AHEAD_IMAGES = 4 * BATCH_IMAGES
"""Images, per process, that may be read before the first of them is given out."""
AHEAD_BYTES = 64 * 1024 * 1024
MOST_CPUS = 4
TICK_S = 0.2
FAILED_IN_A_ROW = 20
"""Images that crash or hang one after the other until something else must be wrong."""


Reply = Prepared | tuple[str, str] | BadRecord
"""Of a process: the image, or reason and detail; of the pool: why it was given up."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Image(Job[tuple[bytes, str], Reply]):
    found: Found

    @property
    def result(self) -> Result | None:
        """None while there is none."""
        return BadRecord(*self.reply) if isinstance(self.reply, tuple) else self.reply


def count_of(config: IngestConfig) -> int:
    """Processes that a setting of `workers` means on this machine."""
    if config.workers >= 0:
        return config.workers
    return min(MOST_CPUS, cores())


class DecodePool:
    """A pool for one ingest; used from one thread. With no workers it prepares in this process, unguarded."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._count = count_of(config)
        self._processes: Processes[tuple[bytes, str], Reply] | None = None
        self._order: deque[_Image] = deque()
        self._batches: deque[list[_Image]] = deque()
        self._filling: list[_Image] = []
        self._filling_since = 0.0
        self._filling_bytes = 0
        self._ahead_bytes = 0
        self._failed_in_a_row = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, items: Iterator[Found | None]) -> Iterator[tuple[Found, Result] | None]:
        """Each item with what became of it, in order; None now and then while nothing is ready or comes.

        Raises:
            DecodePoolFailed: processes do not start, or every image brings one down.
        """
        if self._count == 0:
            for found in items:
                if found is None:
                    yield None
                else:
                    yield found, nothing_to_do(found) or attempt(found, self._config)
            return
        if self._processes is None:
            self._processes = Processes(
                f"{DECODERS}:open_decoder",
                (self._config,),
                count=self._count,
                silence_s=self._config.timeout_s,
                lost=_give_up,
                name="swavstream-decoder",
            )
        more = True
        while more or self._order:
            more = more and self._fill(items)
            self._dispatch(self._processes, flush=not more)
            if self._order and self._order[0].result is None:
                self._listen(self._processes)
            if not self._order or self._order[0].result is None:
                yield None
            while self._order and (result := self._order[0].result) is not None:
                found = self._order.popleft().found
                self._ahead_bytes -= len(found.payload)
                yield found, result

    def close(self) -> None:
        """End the processes; what they are at is dropped. May be called twice."""
        if self._processes is not None:
            self._processes.close()

    @property
    def replaced(self) -> int:
        """Processes that died or hung and were replaced."""
        return self._processes.restarts if self._processes is not None else 0

    def busy(self) -> list[int]:
        """Process ids of those that are at work on an image."""
        return self._processes.pids(busy=True) if self._processes is not None else []

    def _fill(self, items: Iterator[Found | None]) -> bool:
        """Read on until enough is on its way, or a result can be given out; False at the end of the items."""
        while len(self._order) < AHEAD_IMAGES * self._count and self._ahead_bytes < AHEAD_BYTES:
            try:
                found = next(items)
            except StopIteration:
                return False
            if found is None:  # nothing comes now: let the results out
                break
            image = _Image((found.payload, found.path), nothing_to_do(found), found=found)
            self._order.append(image)
            self._ahead_bytes += len(found.payload)
            if image.reply is None:
                self._add(image)
            if self._order[0].result is not None or self._has_waited():
                break
        return True

    def _add(self, image: _Image) -> None:
        if not self._filling:
            self._filling_since = time.monotonic()
            self._filling_bytes = 0
        self._filling.append(image)
        self._filling_bytes += len(image.found.payload)
        if len(self._filling) >= BATCH_IMAGES or self._filling_bytes >= BATCH_BYTES:
            self._batches.append(self._filling)
            self._filling = []

    def _has_waited(self) -> bool:
        return bool(self._filling) and time.monotonic() - self._filling_since > BATCH_AGE_S

    def _dispatch(self, processes: Processes[tuple[bytes, str], Reply], *, flush: bool) -> None:
        """Give work to idle processes; they are reading, so that they have all of it at once."""
        if self._filling and (flush or self._has_waited()):
            self._batches.append(self._filling)
            self._filling = []
        while self._batches and processes.idle:
            processes.submit(self._batches.popleft())

    def _listen(self, processes: Processes[tuple[bytes, str], Reply]) -> None:
        """Take the answers; too many images in a row that bring their process down end the ingest."""
        try:
            answered = processes.collect(TICK_S)
        except NoStart as error:
            raise DecodePoolFailed(
                f"of the processes that decode images {error}; `--set workers=0` decodes without them and "
                "shows why"
            ) from error
        for image in answered:
            assert isinstance(image, _Image)
            given_up = image.reply
            self._failed_in_a_row = self._failed_in_a_row + 1 if isinstance(given_up, BadRecord) else 0
            if isinstance(given_up, BadRecord) and self._failed_in_a_row >= FAILED_IN_A_ROW:
                raise DecodePoolFailed(
                    f"{FAILED_IN_A_ROW} images in a row crashed or hung the decoder ({given_up.reason}), the "
                    f"last is {image.found.name}; see whether memory_bytes ({self._config.memory_bytes}) and "
                    f"timeout_s ({self._config.timeout_s:g}) fit this machine"
                )


def _give_up(image: Job[tuple[bytes, str], Reply], loss: Loss) -> BadRecord | None:
    """Why an image at which a process was lost is given up; None when it is tried again."""
    if loss.hung:
        return BadRecord("decode_timeout")
    return BadRecord("decoder_crashed") if image.record_to_blame or image.hopeless else None


def nothing_to_do(found: Found) -> BadRecord | None:
    """The result of something that holds no image to prepare; None when there is one."""
    return BadRecord(found.loss, found.detail) if found.loss or found.tar else None
