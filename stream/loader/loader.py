"""Batches for the learner: one chunk of every lane, in lane order, and the cursor after them.

The loader alone knows where lanes stand; what readers have read ahead is simply forgotten at the end or in a
crash. So the sequence of batches is a function of (seed, V, C, data), whatever the number of ranks and
readers and whatever dies.

It is made of a source of chunks (`prefetch`), a policy for what these leave of a pass (`tail`), and a policy
for replays (`replay`). It also says how far each lane is behind the end of the stream, and stops a run when
too many of the newest records are unusable.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from stream.config import PROTOTYPES, CropConfig, ReaderConfig, ReplayConfig
from stream.cursor import Cursor
from stream.lanes import BadRecordRef, LaneLag, LaneStats, Position, add_counts, owned_lanes
from stream.loader.assemble import Met
from stream.loader.batch import Batch, copied
from stream.loader.budget import charged
from stream.loader.open_stream import OpenStream, PoolOpener
from stream.loader.pool import open_pool
from stream.loader.prefetch import AVAILABLE, STRICT, ChunkSource
from stream.loader.prototype_memory import Members, PrototypeMemory
from stream.loader.replay import FifoWindow, Rebuild, ReplayPolicy, Replays
from stream.loader.shared_memory import SharedBytes
from stream.loader.step import Readiness, StepSource
from stream.loader.tail import PassPolicy, Tail, leave_over, train_tail
from stream.loader.tasks import Chunk, TailSamples
from stream.source import SourceSpec


def _behind(records: int, newest: float, now: float) -> float | None:
    """Age of the newest record that a lane got to, seconds; 0 when it has all, None when it is not known."""
    if newest == 0.0:  # shards do not say, nor has a topic before its first record
        return None
    return max(now - newest, 0.0) if records else 0.0


class Loader:
    """The batches of one rank, each followed by its replays; `ops.train.sync.Steps` iterates over them.

    `ready` says what comes next. On READY `take` gives it: the next batch of the pass, or, while
    `replays_left` is above 0, a replay of the batch before. At the end of the chunks of a pass, and in its
    tail, all ranks exchange what `pass_report` says and go on by `settle`. Ranks agree between `ready` and
    `take` or `settle`.

    A replay's cursor is that of its batch, `thumbs` is None, and its `stats` count bytes and seconds but no
    record. As for batches, which samples and views it holds does not depend on ranks, readers, crashes or
    where a run was resumed. A tail gets its own update and no replay, and the window of the latest samples is
    empty behind it. After each update `learned` is called.

    To be used by one thread; `waiting` and `worker_restarts` may be read by any. After an exception only
    `close` may be called.

    Args:
        spec: opens the stream, here and in each reader process.
        cursor: where to begin; of the whole run.
        crops: kinds of crops; at least one.
        config: how records become batches.
        workers: reader processes; 0 reads in this process.
        ranks: learners that share the lanes.
        rank: which of them this is.
        groups: of batch norm, by which lanes are dealt to ranks.
        passes: over a sealed stream; >= 1.
        mode: strict: each lane gives one chunk a step. available: as many chunks from lanes that are ready.
        tail: whether what the chunks of a pass leave is trained; else it is left over.
        replay: how many updates each batch gets, and from which samples.
        members: with the policy prototypes, where to begin; None has none yet.
        pin_memory: give batches in page-locked memory, for copying to a CUDA device.
        pool: opens the readers.

    Raises:
        ValueError: an argument out of range, or a window that is not whole batches.
        StreamMismatch: the cursor is of another stream or number of lanes.
        StreamPruned: records that come next are gone.
        StreamError: the stream cannot be opened, or memory for the batches is missing.
    """

    def __init__(  # noqa: PLR0913  what a run knows only when it is wired
        self,
        spec: SourceSpec,
        *,
        cursor: Cursor,
        crops: Sequence[CropConfig],
        config: ReaderConfig,
        workers: int,
        ranks: int = 1,
        rank: int = 0,
        groups: int = 1,
        passes: int = 1,
        mode: str = STRICT,
        tail: bool = False,
        replay: ReplayConfig = ReplayConfig(),  # noqa: B008  it is frozen
        members: Members | None = None,
        pin_memory: bool = False,
        pool: PoolOpener = open_pool,
    ) -> None:
        _check(mode, workers=workers, passes=passes, crops=crops, updates=replay.updates)
        self.lanes = owned_lanes(cursor.lanes, ranks, rank, groups)
        """Lanes of this rank, ascending."""
        self.cursor = cursor
        self._passes, self._pin_memory = passes, pin_memory
        with ExitStack() as opened:
            images = SharedBytes() if replay.policy == PROTOTYPES else None
            if images is not None:
                opened.callback(images.close)
            self._stream = stream = OpenStream(
                spec,
                cursor,
                self.lanes,
                crops=crops,
                config=config,
                workers=workers,
                more_frames=replay.updates - 1,
                images=images,
                finished=self.finished,
                pool=pool,
            )
            opened.callback(stream.close)
            num_steps, at_once = replay.window_steps(cursor.lanes * cursor.chunk), stream.per_request()
            self._memory = (
                None
                if images is None
                else PrototypeMemory(
                    [owned_lanes(cursor.lanes, ranks, number, groups) for number in range(ranks)],
                    rank,
                    most=num_steps * cursor.chunk,
                    updates=replay.updates,
                    samples_at_once=at_once,
                    images=images,
                    members=members,
                )
            )
            window: ReplayPolicy = self._memory or FifoWindow(
                self.lanes, num_steps=num_steps, updates=replay.updates, samples_at_once=at_once
            )
            start = None if self.finished else window.begin(cursor)
            self._rebuild: Rebuild | None = None
            if start is not None:
                self._rebuild = Rebuild(
                    window,
                    start,
                    cursor,
                    spec=spec,
                    lanes=self.lanes,
                    config=config,
                    workers=workers,
                    pool=pool,
                )
            self._opened = opened.pop_all()
        self._chunks = ChunkSource(stream, cursor, mode)
        self._replays = Replays(window, replay.updates, stream)
        self._pass_policy: PassPolicy = train_tail if tail else leave_over
        self._tail: Tail | None = None
        self._rebuild_restarts = 0
        self._newest: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether all passes are done."""
        return self.cursor.pass_number >= self._passes

    @property
    def waiting(self) -> bool:
        """Whether `ready` waits, or waited, for records to arrive."""
        return self._stream.requests.waiting

    @property
    def worker_restarts(self) -> int:
        """Reader processes that died and were replaced."""
        rebuilding = self._rebuild.restarts if self._rebuild is not None else self._rebuild_restarts
        return self._stream.requests.restarts + rebuilding

    @property
    def starving(self) -> tuple[int, ...]:
        """Lanes of which the next chunk cannot be read before records arrive."""
        return self._chunks.starving

    @property
    def rebuilding(self) -> bool:
        """Whether the window of a cursor is being read again; no batch comes before that is done."""
        return self._rebuild is not None

    @property
    def replays_left(self) -> int:
        """Replays of the batch that was taken last that have not been taken; they come next."""
        return self._replays.left

    @property
    def members(self) -> Members | None:
        """What is held for replays after the latest step whose updates are all done; None = a window."""
        return None if self._memory is None else self._memory.members

    def learned(self, assigned_N: Tensor) -> None:
        """An update from what was taken last is done.

        Args:
            assigned_N: as of `ReplayPolicy.learned`.
        """
        self._replays.learned(assigned_N)

    def lag(self) -> int:
        """Records of this rank's lanes, committed and not used yet. May block on I/O, not on arrivals."""
        self._chunks.look()
        return self._unread(*self._stream.positions(self.cursor))

    def lane_lags(self) -> tuple[LaneLag, ...]:
        """How far each lane of this rank is behind, in learning and in reading ahead. Quick: no I/O."""
        now = time.time()
        found = []
        for lane, (ahead, newest) in self._chunks.fetched().items():
            unlearned, unread = self._unread(self.cursor.positions[lane]), self._unread(ahead)
            found.append(
                LaneLag(
                    lane=lane,
                    trained_records=unlearned,
                    trained_s=_behind(unlearned, self._newest.get(lane, 0.0), now),
                    fetched_records=unread,
                    fetched_s=_behind(unread, newest, now),
                )
            )
        return tuple(found)

    def ready(self, timeout_s: float) -> Readiness:
        """What comes next, while the loader is not `finished`; blocks so long at most until that is known.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent.
            WorkerFailed: readers die of the same records again and again.
            StreamMismatch: the records of the window of replays are not what they were.
            StreamDamaged: a record of that window can no longer be used.
            StreamError: what the source raised in a reader.
        """
        if self._rebuild is not None:
            if self._rebuild.go_on(timeout_s):
                self._rebuild_restarts = self._rebuild.restarts
                self._end_rebuild()
            return Readiness.WAITING
        if self._stream.workers:
            self._stream.requests.take_replies()
        return self._stream.requests.wait_for(lambda: self._next().state(self.cursor), timeout_s)

    @property
    def upcoming(self) -> LaneStats:
        """Account of this rank's part of what is ready."""
        return self._next().stats()

    def take(self, stats: LaneStats) -> Batch:
        """What is ready, in memory of its own; the cursor is after it.

        Args:
            stats: `upcoming` of all ranks, added up, for samples, skips and the budget of unusable records
                are of the run and not of a rank.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent; on all ranks at the same step.
        """
        source = self._next()
        again = source is self._replays
        step = source.step()
        bad = tuple(ref for part in step.parts for ref in part.bad)
        if not again:
            before, after = self.cursor, self._after(step.parts, stats, bad)
            if source is self._tail:
                self.cursor = self._replays.tail_trained(after)
            else:
                self.cursor = self._replays.arrived(before, after, step)
        batch = copied(
            step.frame,
            lane_B=step.lane_B,
            dealt_B=step.dealt_B,
            bad=bad,
            cursor=self.cursor,
            stats=stats,
            thumbs=not again and self._stream.plan.thumbnail_px > 0,
            pin_memory=self._pin_memory,
        )
        source.advance()
        if source is self._tail:
            self._end_tail()
        return batch

    def pass_report(self) -> dict[str, Any]:
        """What this rank found where a pass has ended, or in its tail: a JSON value for `settle`.

        Raises:
            StreamError, OSError: the stream cannot be looked at.
        """
        unusable: dict[str, int] = reduce(add_counts, [part.stats.skipped for part in self._unfilled()], {})
        return {
            "unread": list(self._stream.unread(self.cursor).items()),
            "unusable": unusable,
            "samples": self._tail.samples if self._tail is not None else [],
        }

    @property
    def unusable_places(self) -> tuple[BadRecordRef, ...]:
        """Unusable records of this rank's lanes that were found for a step which the pass ends without."""
        return tuple(ref for part in self._unfilled() for ref in part.bad)

    def settle(self, reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Go on with what remains of the pass, or go to the start of the next one.

        Unusable records of a step that the pass ends without count as skipped, the rest as left over. In
        strict mode they are a function of the stream and of the cursor: each lane is read up to its chunk of
        that step or to its end.

        Args:
            reports: `pass_report` of all ranks.

        Returns:
            The unusable records of all ranks, by reason; empty when the pass goes on.
        """
        unread = {lane: records for report in reports for lane, records in report["unread"]}
        deadly = self._deadly(self._unfilled())
        if self._tail is None:
            self._chunks.begin(self.cursor)  # no reader writes into the frames any more
            self._tail = self._pass_policy(self._stream, self.cursor, unread)
            going_on = self._tail is not None
        else:
            going_on = self._tail.deal([(*sample,) for report in reports for sample in report["samples"]])
        if going_on:
            return {}
        unusable: dict[str, int] = reduce(add_counts, [report["unusable"] for report in reports], {})
        self.cursor = replace(
            self.cursor.next_pass(),
            skipped=add_counts(self.cursor.skipped, unusable),
            left_over=self.cursor.left_over + sum(unread.values()) - sum(unusable.values()),
            deadly=deadly,
        )
        self._end_tail()
        return unusable

    def close(self) -> None:
        """End the readers and let go of memory and files. May be called twice."""
        self._end_rebuild()
        self._opened.close()

    def _unread(self, *positions: Position) -> int:
        """Records after some positions; none once the last pass is done."""
        return 0 if self.finished else self._stream.source.unread(positions, self.cursor.pass_number)

    def _next(self) -> StepSource:
        """What gives the next batch."""
        if self._replays.left:
            return self._replays
        return self._chunks if self._tail is None else self._tail

    def _after(
        self, parts: Sequence[Chunk | TailSamples], stats: LaneStats, bad: Sequence[BadRecordRef]
    ) -> Cursor:
        """The cursor after a step of these parts of lanes.

        Raises:
            TooManyBadRecords: the budget of unusable records is spent.
        """
        cursor = self.cursor.advanced((part.after for part in parts), stats)
        cursor = charged(self.cursor, cursor, stats, bad, self._stream.plan)
        self._newest |= {part.after.lane: part.newest for part in parts}
        return replace(cursor, deadly=self._deadly(parts))

    def _deadly(self, parts: Sequence[Met]) -> tuple[tuple[int, int], ...]:
        return tuple(sorted({*self.cursor.deadly, *(ref for part in parts for ref in part.deadly)}))

    def _unfilled(self) -> Sequence[Met]:
        """What was read for a step that the pass ends without."""
        return self._chunks.unfilled() if self._tail is None else self._tail.parts()

    def _end_tail(self) -> None:
        """Read chunks from the cursor on."""
        self._tail = None
        self._chunks.begin(self.cursor)

    def _end_rebuild(self) -> None:
        if self._rebuild is not None:
            self._rebuild.close()
            self._rebuild = None


def _check(mode: str, *, workers: int, passes: int, crops: Sequence[CropConfig], updates: int) -> None:
    if mode not in {STRICT, AVAILABLE}:
        raise ValueError(f"mode must be {STRICT} or {AVAILABLE}, got {mode!r}")
    if workers < 0 or passes < 1 or not crops:
        raise ValueError(
            f"workers must be >= 0, passes >= 1, crops not empty; got {workers}, {passes}, {tuple(crops)}"
        )
    if updates > 1 and mode == AVAILABLE:
        raise ValueError(
            "replay.updates > 1 needs mode = strict: what a replay is drawn from is a function of the data "
            "only when every lane gives one chunk a step"
        )
