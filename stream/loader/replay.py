"""Batches for several updates a step: the arriving one, and some samples of the past in new views.

Which samples those are is a policy. The one here draws each replay from a rolling window of the latest
samples (`prototype_memory` has another). The window holds names and places of samples, no pixels. It is whole
steps of all lanes, so it is a function of the data and of how far the run has come, and it can be rebuilt by
reading on from its start. What was read for replays is no more state than what was read ahead: the cursor
says where the window began, and a loader that goes on from it first reads that far again.

L lanes of this rank   V lanes of the run   C samples that a lane gives to one step
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor, WindowStart
from stream.errors import StreamMismatch
from stream.images.crops import unit_interval
from stream.lanes import LaneStats
from stream.loader.open_stream import OpenStream, PoolOpener
from stream.loader.prefetch import ChunkSource
from stream.loader.step import Readiness, Step
from stream.loader.tasks import Failed, ReadSamples, Reply, Reread, Sample, Task
from stream.source import SourceSpec

_PURPOSE = int.from_bytes(b"replay")
"""Second half of the Philox key: keeps these numbers apart from others that are drawn with the run's seed."""


def choose(*, seed: int, step: int, update: int, lanes: int, chunk: int, held: int) -> NDArray[np.int64]:
    """Which samples of each lane's window one replay is made of: C of them, each at most once.

    The first C places of a shuffle (Fisher and Yates), with Philox 4x64 of key (seed, "replay") and counter
    (block, update, step, 0). All lanes' numbers are drawn for every rank, so the choice of a lane does not
    depend on the number of ranks.

    Args:
        seed: of the run; 0 .. 2^63 - 1.
        step: steps that the run had done before this one.
        update: number of the update within the step; the first replay is 1.
        lanes: V.
        chunk: C.
        held: samples that the window of each lane holds; >= C.

    Returns:
        [V, C] int64 in 0 .. held - 1, 0 the oldest.
    """
    key, counter = np.array([[seed, _PURPOSE, 0, 0], [0, update, step, 0]], dtype=np.uint64)
    words = np.random.Philox(key=key[:2], counter=counter).random_raw(lanes * chunk)
    floats_VC = unit_interval(words).reshape(lanes, chunk)
    order_Vh = np.tile(np.arange(held), (lanes, 1))
    rows_V = np.arange(lanes)
    for place in range(chunk):
        other_V = place + (floats_VC[:, place] * (held - place)).astype(np.int64)
        here_V = order_Vh[:, place].copy()
        order_Vh[:, place] = order_Vh[rows_V, other_V]
        order_Vh[rows_V, other_V] = here_V
    return order_Vh[:, :chunk]


class ReplayPolicy(Protocol):
    """Which samples of the past a step is repeated with, and what is kept of them; called between steps.

    `FifoWindow` keeps the names of the latest steps. Another policy may keep other samples, or encoded bytes:
    its tasks then lay those out instead of reading the stream again.
    """

    def begin(self, cursor: Cursor) -> WindowStart | None:
        """Where steps must be read again, and be given to `add`, before the run goes on; None = nowhere."""
        ...

    def add(self, before: Cursor, step: Step) -> None:
        """Take in the step that begins at a cursor: a chunk of each lane of this rank, lanes ascending."""
        ...

    def tasks(self, before: Cursor, update: int, frame: int) -> Sequence[Task]:
        """What readers do for one replay of the step that was added last.

        Args:
            before: the cursor before the step.
            update: number of the update within the step; the first replay is 1.
            frame: number of the frame in which the replay is laid out, lanes ascending.
        """
        ...

    def learned(self, assigned_N: Tensor) -> None:
        """An update was done: that of the step that was added last, then its replays in order.

        Args:
            assigned_N: [N] int64 on the CPU, the prototype of each sample of all ranks, one rank after the
                other.
        """
        ...

    def after(self, after: Cursor) -> Cursor:
        """The cursor after the step that was added last, with all that `begin` needs there."""
        ...

    def not_added(self) -> None:
        """A step has come that was not added, nor will it be replayed."""
        ...


@dataclass(frozen=True, slots=True)
class _Step:
    """The samples of one step."""

    start: WindowStart
    samples_LC3: NDArray[np.int64]
    """Number in the lane, unit, index."""


class FifoWindow:
    """The samples of the latest steps of one rank, each as likely as the others (implements ReplayPolicy).

    Each replay is, for every lane, C samples drawn without replacement from the lane's part of the window:
    its latest `window_samples / V` samples, those of the arriving batch included, or all there are yet. When
    these are just C, they come in another order. Views are new at each draw.

    Args:
        lanes: of this rank, ascending.
        num_steps: that it holds.
        updates: of each step, its own among them.
        samples_at_once: that one task lays out.
    """

    def __init__(self, lanes: Sequence[int], *, num_steps: int, updates: int, samples_at_once: int) -> None:
        self._lanes_L = np.array(lanes, dtype=np.int64)
        self._num_steps, self._updates, self._samples_at_once = num_steps, updates, samples_at_once
        self._steps: deque[_Step] = deque(maxlen=num_steps)

    def begin(self, cursor: Cursor) -> WindowStart | None:
        """See ReplayPolicy."""
        return cursor.replay if self._num_steps > 1 else None

    def add(self, before: Cursor, step: Step) -> None:
        """Take in a step; the oldest one goes when the window is full."""
        frame = step.frame
        start = WindowStart(pass_number=before.pass_number, steps=before.steps, positions=before.positions)
        samples_B3 = np.concatenate([frame.seq_B.numpy()[:, None], frame.refs_B2.numpy()], axis=1)
        self._steps.append(_Step(start, samples_B3.reshape(len(self._lanes_L), -1, 3)))

    def tasks(self, before: Cursor, update: int, frame: int) -> Sequence[Task]:
        """See ReplayPolicy."""
        samples: list[Sample] = [(*row,) for row in self._draw(before, update).tolist()]
        draw, at_once = before.steps * self._updates + update, self._samples_at_once
        return [
            ReadSamples(tuple(samples[column : column + at_once]), draw, frame, column)
            for column in range(0, len(samples), at_once)
        ]

    def after(self, after: Cursor) -> Cursor:
        """The cursor with the start of what the next step's window will still hold of the past."""
        kept = self._num_steps - 1
        if kept < 1 or not self._steps:
            return replace(after, replay=None)
        start = self._steps[max(0, len(self._steps) - kept)].start
        ends = () if after.replay is None else after.replay.pass_ends
        passes = after.pass_number - start.pass_number
        return replace(after, replay=replace(start, pass_ends=ends[len(ends) - passes :]))

    def learned(self, assigned_N: Tensor) -> None:
        """See ReplayPolicy; the window does not depend on what is learned."""

    def not_added(self) -> None:
        """See ReplayPolicy; a window is steps that follow each other, so it is empty now."""
        self._steps.clear()

    def _draw(self, before: Cursor, update: int) -> NDArray[np.int64]:
        """What one replay is made of.

        Returns:
            [L x C, 4] int64: lane, number in it, unit, index; lanes ascending.
        """
        held_LW3 = np.concatenate([step.samples_LC3 for step in self._steps], axis=1)
        picks_VC = choose(
            seed=before.seed,
            step=before.steps,
            update=update,
            lanes=before.lanes,
            chunk=before.chunk,
            held=held_LW3.shape[1],
        )
        picked_LC3 = np.take_along_axis(held_LW3, picks_VC[self._lanes_L][:, :, None], axis=1)
        lanes_LC1 = np.broadcast_to(self._lanes_L[:, None, None], (*picked_LC3.shape[:2], 1))
        return np.concatenate([lanes_LC1, picked_LC3], axis=2).reshape(-1, 4)


@dataclass(slots=True)
class _Replay:
    """One batch that is being read again."""

    frame: int
    missing: int = 0
    """Requests without a reply."""
    stats: LaneStats = field(default_factory=LaneStats)
    failure: Exception | None = None

    def take_in(self, results: Reply) -> None:
        """Take in the results of one request."""
        self.missing -= 1
        for result in results:
            if isinstance(result, Failed):
                self.failure = self.failure or result.error
            elif isinstance(result, Reread):
                self.stats += result.stats


class Replays:
    """The replays of each step that arrives (implements StepSource); they are taken before the next arrives.

    Readers are asked for all of them when the step arrives. They count bytes and seconds, but no record.

    Args:
        policy: which samples they are.
        updates: of each step, its own among them; 1 replays nothing.
        stream: of this rank; its last `updates - 1` frames are for replays.
    """

    def __init__(self, policy: ReplayPolicy, updates: int, stream: OpenStream) -> None:
        self._policy, self._updates, self._stream = policy, updates, stream
        lanes = torch.tensor(stream.lanes)
        self._lane_B = lanes.repeat_interleave(stream.plan.chunk)
        self._replays: deque[_Replay] = deque()

    @property
    def left(self) -> int:
        """Replays of the latest step that have not been taken."""
        return len(self._replays)

    def arrived(self, before: Cursor, after: Cursor, step: Step) -> Cursor:
        """Ask for the replays of a step; its cursor with what it takes to go on from there."""
        if self._updates == 1:
            return after
        self._policy.add(before, step)
        for update in range(1, self._updates):
            replay = _Replay(frame=len(self._stream.frames) - self._updates + update)
            self._replays.append(replay)
            for task in self._policy.tasks(before, update, replay.frame):
                replay.missing += 1
                self._stream.requests.submit((task,), replay.take_in)
        return self._policy.after(after)

    def learned(self, assigned_N: Tensor) -> None:
        """See ReplayPolicy."""
        self._policy.learned(assigned_N)

    def tail_trained(self, after: Cursor) -> Cursor:
        """The cursor after a tail, which is not replayed: a replay is whole chunks of every lane."""
        self._policy.not_added()
        return replace(after, replay=None)

    def state(self, cursor: Cursor) -> Readiness:
        """See StepSource.

        Raises:
            StreamDamaged: a record of the window can no longer be used.
            WorkerFailed, StreamError: as StepSource.
        """
        replay = self._replays[0]
        if replay.missing:
            return Readiness.WAITING
        if replay.failure is not None:
            raise replay.failure
        return Readiness.READY

    def stats(self) -> LaneStats:
        """See StepSource."""
        return self._replays[0].stats

    def step(self) -> Step:
        """See StepSource."""
        frame = self._stream.frames[self._replays[0].frame]
        return Step(frame=frame, lane_B=self._lane_B, dealt_B=self._lane_B)

    def advance(self) -> None:
        """See StepSource."""
        self._replays.popleft()


_SMALLEST_CROP = CropConfig(count=1, size=8, scale_min=1.0, scale_max=1.0)
"""What is cut when only names are wanted: a reader cuts something."""


class Rebuild:
    """Reads again what a policy held when the run stopped: which records were good takes decoding them.

    Args:
        policy: is given the steps.
        start: where they begin.
        cursor: where the run goes on, and they end.
        spec, lanes, config, workers, pool: as for `OpenStream`.

    Raises:
        StreamMismatch, StreamPruned, StreamError: as `OpenStream`.
    """

    def __init__(
        self,
        policy: ReplayPolicy,
        start: WindowStart,
        cursor: Cursor,
        *,
        spec: SourceSpec,
        lanes: Sequence[int],
        config: ReaderConfig,
        workers: int,
        pool: PoolOpener,
    ) -> None:
        self._policy, self._end = policy, cursor
        self._pass_ends = deque(start.pass_ends)
        self._cursor = replace(
            cursor,
            pass_number=start.pass_number,
            steps=start.steps,
            positions=start.positions,
            replay=None,
        )
        self._stream = OpenStream(
            spec,
            self._cursor,
            lanes,
            crops=(_SMALLEST_CROP,),
            # The budget of bad records was kept when they came.
            config=replace(config, thumbnail_px=0, max_bad_fraction=1.0),
            workers=workers,
            pool=pool,
        )
        self._chunks = ChunkSource(self._stream, self._cursor)

    @property
    def restarts(self) -> int:
        """Reader processes that died and were replaced."""
        return self._stream.requests.restarts

    def go_on(self, timeout_s: float) -> bool:
        """Read one more step, for so long at most; whether all have been read.

        Raises:
            StreamMismatch: the records are not what they were.
        """
        while self._pass_ends and self._cursor.steps == self._pass_ends[0]:
            self._pass_ends.popleft()
            self._cursor = self._cursor.next_pass()
            self._chunks.begin(self._cursor)
        if self._cursor.steps == self._end.steps:
            if self._stream.positions(self._cursor) != self._stream.positions(self._end):
                raise _changed()
            return True
        chunks = self._chunks
        state = self._stream.requests.wait_for(lambda: chunks.state(self._cursor), timeout_s)
        if state is Readiness.READY:
            step = chunks.step()
            self._policy.add(self._cursor, step)
            self._cursor = self._cursor.advanced((part.after for part in step.parts), LaneStats())
            chunks.advance()
        elif state is not Readiness.WAITING:
            raise _changed()
        return False

    def close(self) -> None:
        """End its readers. May be called twice."""
        self._stream.close()


def _changed() -> StreamMismatch:
    return StreamMismatch(
        "the latest samples, read again for replay, do not end where the run stood: records of the "
        "stream have changed, or reader.max_pixels has; put them back, or begin a new run"
    )
