"""Batches for several updates a step: the arriving one, and some of the latest samples in new views.

Each replay is drawn from a rolling window of the latest samples. The window holds names and places of
samples, no pixels. It is whole steps of all lanes, so it is a function of the data and of how far the run has
come, and it can be rebuilt by reading on from its start. What was read for replays is no more state than what
was read ahead: the cursor says where the window began, and a loader that goes on from it first reads that far
again.

L lanes of this rank   V lanes of the run   C samples that a lane gives to one step
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stream.config import CropConfig, ReaderConfig, ReplayConfig
from stream.cursor import Cursor, WindowStart
from stream.errors import StreamError, StreamMismatch
from stream.images.crops import unit_interval
from stream.lanes import LaneStats
from stream.loader.batch import Batch
from stream.loader.loader import AVAILABLE, TURN_S, Loader, Readiness
from stream.loader.shared_memory import BatchFrame
from stream.loader.tail import LoaderOptions, TailLoader
from stream.loader.tasks import Failed, ReadSamples, Reply, Request, Reread
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


@dataclass(frozen=True, slots=True)
class _Step:
    """The samples of one step."""

    start: WindowStart
    samples_LC3: NDArray[np.int64]
    """Number in the lane, unit, index."""


class ReplayWindow:
    """The samples of the latest steps of one rank.

    Args:
        lanes: of this rank, ascending.
        num_steps: that it holds; 0 holds none.
    """

    def __init__(self, lanes: tuple[int, ...], num_steps: int) -> None:
        self._lanes_L = np.array(lanes, dtype=np.int64)
        self._num_steps = num_steps
        self._steps: deque[_Step] = deque(maxlen=num_steps)

    def add(self, before: Cursor, seq_B: Tensor, refs_B2: Tensor) -> None:
        """Take in the step that begins at a cursor; the oldest one goes when the window is full.

        Args:
            before: the cursor before the step.
            seq_B: [B] int64, number of each sample in its lane; lanes ascending.
            refs_B2: [B, 2] int64, unit and index of each record.
        """
        start = WindowStart(pass_number=before.pass_number, steps=before.steps, positions=before.positions)
        samples_B3 = np.concatenate([seq_B.numpy()[:, None], refs_B2.numpy()], axis=1)
        self._steps.append(_Step(start, samples_B3.reshape(len(self._lanes_L), -1, 3)))

    def draw(self, cursor: Cursor, update: int) -> NDArray[np.int64]:
        """What one replay is made of, once the step that begins at `cursor` has been added.

        Returns:
            [L x C, 4] int64: lane, number in it, unit, index; lanes ascending.
        """
        held_LW3 = np.concatenate([step.samples_LC3 for step in self._steps], axis=1)
        picks_VC = choose(
            seed=cursor.seed,
            step=cursor.steps,
            update=update,
            lanes=cursor.lanes,
            chunk=cursor.chunk,
            held=held_LW3.shape[1],
        )
        picked_LC3 = np.take_along_axis(held_LW3, picks_VC[self._lanes_L][:, :, None], axis=1)
        lanes_LC1 = np.broadcast_to(self._lanes_L[:, None, None], (*picked_LC3.shape[:2], 1))
        return np.concatenate([lanes_LC1, picked_LC3], axis=2).reshape(-1, 4)

    def clear(self) -> None:
        """Forget all samples."""
        self._steps.clear()

    def marked(self, after: Cursor) -> Cursor:
        """The cursor with the start of what the next step's window will still hold of the past."""
        kept = self._num_steps - 1
        if kept < 1 or not self._steps:
            return replace(after, replay=None)
        start = self._steps[max(0, len(self._steps) - kept)].start
        ends = () if after.replay is None else after.replay.pass_ends
        passes = after.pass_number - start.pass_number
        return replace(after, replay=replace(start, pass_ends=ends[len(ends) - passes :]))


def with_pass_ended(cursor: Cursor) -> Cursor:
    """A cursor that has just gone to the next pass, with the end of the last one noted for its window."""
    if cursor.replay is None:
        return cursor
    ends = (*cursor.replay.pass_ends, cursor.steps)
    return replace(cursor, replay=replace(cursor.replay, pass_ends=ends))


_SAMPLES_OF_A_REQUEST = 32
_REQUESTS_A_READER = 2
_SMALLEST_CROP = CropConfig(count=1, size=8, scale_min=1.0, scale_max=1.0)
"""What is cut when only names are wanted: a reader cuts something."""


class ReplayOptions(LoaderOptions, total=False):
    """What else a `ReplayLoader` may be given."""

    tail: bool
    """Whether the remains of a pass are trained, see `TailLoader`."""


@dataclass(slots=True)
class _Replay:
    """One batch that is being read again."""

    frame: int
    missing: set[int] = field(default_factory=set)
    """Ids of requests without a reply."""
    stats: LaneStats = field(default_factory=LaneStats)
    failure: Exception | None = None


class ReplayLoader(TailLoader):
    """A loader that also gives `updates - 1` batches of replays after each batch that it gives.

    Each replay is, for every lane, C samples drawn without replacement from the lane's part of the window:
    its latest `window_samples / V` samples, those of the batch itself included, or all there are yet. When
    these are just C, they come in another order. Views are new at each draw. As for batches, which samples
    and views these are does not depend on ranks, readers, crashes or where a run was resumed.

    A tail gets its own update and no replay, and the window is empty behind it: a replay is whole chunks of
    every lane, and the samples of a tail are none.

    The readers are asked for all replays of a step when its batch is taken. Until the window of a cursor has
    been read again, `ready` answers WAITING.

    Args:
        replay: how many updates, and the window; `updates = 1` is a plain loader.
        spec, cursor, crops, config, workers, options: as for `TailLoader`.

    Raises:
        ValueError, StreamMismatch, StreamError: as `Loader`, and for a window that is not whole batches.
    """

    def __init__(
        self,
        spec: SourceSpec,
        *,
        replay: ReplayConfig,
        cursor: Cursor,
        crops: Sequence[CropConfig],
        config: ReaderConfig,
        workers: int,
        **options: Unpack[ReplayOptions],
    ) -> None:
        if replay.updates > 1 and options.get("mode") == AVAILABLE:
            raise ValueError(
                "replay.updates > 1 needs mode = strict: what a replay is drawn from is a function of the "
                "data only when every lane gives one chunk a step"
            )
        num_steps = replay.window_steps(cursor.lanes * cursor.chunk)
        self._updates = replay.updates
        self._replays: deque[_Replay] = deque()
        self._request_id = 0
        self._past: Loader | None = None
        self._past_restarts = 0
        super().__init__(
            spec,
            cursor=cursor,
            crops=crops,
            config=config,
            workers=workers,
            more_frames=self._updates - 1,
            **options,
        )
        self._window = ReplayWindow(self._lanes, num_steps)
        by_reader = -(-self._plan.columns // (_REQUESTS_A_READER * max(1, workers)))
        self._samples_at_once = min(by_reader, _SAMPLES_OF_A_REQUEST)
        if cursor.replay is not None and num_steps > 1 and not self.finished:
            try:
                self._past = self._open_past(cursor.replay, spec, config, workers, options)
            except StreamError:
                self.close()
                raise
            self._pass_ends = deque(cursor.replay.pass_ends)

    @property
    def worker_restarts(self) -> int:
        """Reader processes that died and were replaced."""
        return super().worker_restarts + self._past_restarts

    def ready(self, timeout_s: float) -> Readiness:
        """As `Loader.ready`; WAITING while the window is read again.

        Raises:
            StreamMismatch: the records of the window are not what they were.
        """
        if self._past is not None:
            self._read_past(self._past, timeout_s)
            return Readiness.WAITING
        return super().ready(timeout_s)

    def replays(self) -> Iterator[Batch]:
        """The replays of the step whose batch was taken last, in order.

        Blocks while readers are at it. A step is done as a whole, so `should_stop` is ignored;
        it is asked all the same, as a sign of life.

        Their `cursor` is that of the batch, `thumbs` is None, `stats` counts bytes and seconds but no record.

        Raises:
            StreamDamaged: a record of the window can no longer be used.
            WorkerFailed, StreamError: as `ready`.
        """
        while self._replays:
            self._await(self._replays[0])
            yield self.take_replay()

    @property
    def rebuilding(self) -> bool:
        """Whether the window of a cursor is being read again; no batch comes before that is done."""
        return self._past is not None

    @property
    def replays_left(self) -> int:
        """Replays of the step whose batch was taken last that have not been taken."""
        return len(self._replays)

    def replay_ready(self, timeout_s: float) -> bool:
        """Whether `take_replay` can give the next replay; blocks so long at most until it can.

        Raises:
            StreamDamaged: a record of the window can no longer be used.
            WorkerFailed, StreamError: as `ready`.
        """
        replay = self._replays[0]
        if replay.missing:
            self._collect(timeout_s)
        if replay.missing:
            return False
        if replay.failure is not None:
            raise replay.failure
        return True

    @property
    def upcoming_replay(self) -> LaneStats:
        """ReadStats of this rank's part of the replay that is ready."""
        return self._replays[0].stats

    def take_replay(self, of_all: LaneStats | None = None) -> Batch:
        """The replay that is ready, as `replays` gives it.

        Args:
            of_all: `upcoming_replay` of all ranks, added up; None when there is one rank.
        """
        replay = self._replays.popleft()
        if replay.failure is not None:
            raise replay.failure
        stats = replay.stats if of_all is None else of_all
        return self._batch(self._frames[replay.frame], stats, thumbs=False)

    def begin_tail(self, unread: Mapping[int, int]) -> bool:
        """As `TailLoader.begin_tail`."""
        began = super().begin_tail(unread)
        if began:
            self._replays.clear()  # if they were not wanted; readers have been waited for
        return began

    def end_pass(self, unread: int | None = None, unusable: Mapping[str, int] | None = None) -> None:
        """As `Loader.end_pass`; the window goes on over it."""
        super().end_pass(unread, unusable)
        self._replays.clear()  # if they were not wanted; readers have been waited for
        self.cursor = with_pass_ended(self.cursor)

    def close(self) -> None:
        """End the readers and let go of memory and files. May be called twice."""
        if self._past is not None:
            self._past.close()
        super().close()

    def _moved(self, after: Cursor, frame: BatchFrame) -> Cursor:
        if self._updates == 1:
            return after
        while self._replays:  # they were not wanted, but readers still write into their frames
            self._await(self._replays[0])
            self._replays.popleft()
        before = self.cursor
        self._window.add(before, frame.seq_B, frame.refs_B2)
        for update in range(1, self._updates):
            self._ask_replay(before, update)
        return self._window.marked(after)

    def _after_tail(self, after: Cursor) -> Cursor:
        self._window.clear()
        return replace(after, replay=None)

    def _ask_replay(self, before: Cursor, update: int) -> None:
        """Ask for the samples of one replay, in pieces that all readers can work at."""
        samples = [tuple(row) for row in self._window.draw(before, update).tolist()]
        draw = before.steps * self._updates + update
        replay = _Replay(frame=len(self._frames) - self._updates + update)
        for column in range(0, len(samples), self._samples_at_once):
            some = tuple(samples[column : column + self._samples_at_once])
            self._request_id -= 1  # below zero: requests of looking ahead are counted upwards
            replay.missing.add(self._request_id)
            self._pool.submit(Request(self._request_id, (ReadSamples(some, draw, replay.frame, column),)))
        self._replays.append(replay)

    def _await(self, replay: _Replay) -> None:
        while replay.missing:
            self._should_stop()
            self._collect(TURN_S)

    def _take_in(self, reply: Reply) -> None:
        if reply.request_id > 0:
            super()._take_in(reply)
            return
        replay = next(replay for replay in self._replays if reply.request_id in replay.missing)
        replay.missing.remove(reply.request_id)
        for result in reply.results:
            if isinstance(result, Failed):
                replay.failure = replay.failure or result.error
            elif isinstance(result, Reread):
                replay.stats += result.stats

    def _open_past(
        self, start: WindowStart, spec: SourceSpec, config: ReaderConfig, workers: int, options: ReplayOptions
    ) -> Loader:
        """A loader that finds again what the window held: which records were good takes decoding them."""
        cursor = replace(
            self.cursor,
            pass_number=start.pass_number,
            steps=start.steps,
            positions=start.positions,
            replay=None,
        )
        return Loader(
            spec,
            cursor=cursor,
            crops=(_SMALLEST_CROP,),
            # The budget of bad records was kept when they came.
            config=replace(config, thumbnail_px=0, max_bad_fraction=1.0),
            workers=workers,
            ranks=options.get("ranks", 1),
            rank=options.get("rank", 0),
            passes=self.cursor.pass_number + 1,
        )

    def _read_past(self, past: Loader, timeout_s: float) -> None:
        """Go on with reading the window again: to the cursor, ending passes where they ended then."""
        while self._pass_ends and past.cursor.steps == self._pass_ends[0]:
            self._pass_ends.popleft()
            past.end_pass()
        if past.cursor.steps < self.cursor.steps:
            state = past.ready(timeout_s)
            if state is Readiness.READY:
                before = past.cursor
                batch = past.take()
                self._window.add(before, batch.seq_B, batch.refs_B2)
            elif state is not Readiness.WAITING:
                raise self._changed()
            return
        self._past, self._past_restarts = None, past.worker_restarts
        past.close()
        if any(past.cursor.positions[lane] != self.cursor.positions[lane] for lane in self._lanes):
            raise self._changed()

    def _changed(self) -> StreamMismatch:
        return StreamMismatch(
            "the latest samples, read again for replay, do not end where the run stood: records of the "
            "stream have changed, or reader.max_pixels has; put them back, or begin a new run"
        )
