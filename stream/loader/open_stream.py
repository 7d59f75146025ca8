"""A stream that one rank has opened: its view of it, memory for batches, and readers that fill it ahead."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor
from stream.errors import StreamMismatch, StreamPruned
from stream.lanes import Position
from stream.loader.plan import ReadPlan, plan_of
from stream.loader.pool import Pool, Requests, open_pool
from stream.loader.prefetch import ArrivalOrder, ChunkSource, LaneOrder
from stream.loader.shared_memory import FrameLayout, SharedBuffer
from stream.loader.tasks import availability_from
from stream.source import Source, SourceSpec

STRICT, AVAILABLE = "strict", "available"
PoolOpener = Callable[[SourceSpec, Source, ReadPlan, SharedBuffer, int], Pool]


def check_same_stream(source: Source, cursor: Cursor) -> None:
    """Refuse a cursor of another stream.

    Raises:
        StreamMismatch: names both.
    """
    identity = source.identity()
    if dict(cursor.source) != identity or cursor.lanes != source.lanes:
        raise StreamMismatch(
            f"the cursor is of {dict(cursor.source)}, {cursor.lanes} lanes, but the stream is {identity}, "
            f"{source.lanes} lanes: give the stream that the run began with, or begin a new run"
        )


def check_kept(source: Source, positions: Iterable[Position], pass_number: int) -> None:
    """Refuse before anything is read when records of any lane have been pruned.

    Raises:
        StreamPruned: says how many were missed.
    """
    missed, pruned = 0, None
    for position in positions:
        try:
            availability_from(source, position, pass_number)
        except StreamPruned as error:
            missed, pruned = missed + error.missed, error
    if pruned is not None:
        raise StreamPruned(
            f"{missed:,} records that come next for this run were pruned from its stream ({pruned}): "
            "a new run begins at the first that is kept",
            missed=missed,
        ) from pruned


class OpenStream:
    """Source, readers, and the chunks that these read ahead.

    Args:
        spec: opens the stream, here and in each reader process.
        cursor: of the run; reading begins there.
        lanes: that are read, ascending.
        crops: kinds of crops.
        config: how records become batches.
        workers: reader processes; 0 reads in this process.
        mode: STRICT or AVAILABLE.
        more_frames: memory for so many further batches, beyond those of reading ahead.
        finished: nothing is read any more.
        pool: opens the readers.

    Raises:
        StreamMismatch: the cursor is of another stream or number of lanes.
        StreamPruned: records that come next are gone.
        StreamError: the stream cannot be opened, or memory for the batches is missing.
    """

    def __init__(  # noqa: PLR0913  as of the loader
        self,
        spec: SourceSpec,
        *,
        cursor: Cursor,
        lanes: Sequence[int],
        crops: Sequence[CropConfig],
        config: ReaderConfig,
        workers: int,
        mode: str = STRICT,
        more_frames: int = 0,
        finished: bool = False,
        pool: PoolOpener = open_pool,
    ) -> None:
        self.lanes, self.workers = tuple(lanes), workers
        self.plan = plan_of(cursor, tuple(crops), config, lanes=len(lanes))
        layout = FrameLayout(crops=tuple(crops), thumbnail_px=config.thumbnail_px, columns=self.plan.columns)
        with ExitStack() as opened:
            self.source = spec.open()
            opened.callback(self.source.close)
            check_same_stream(self.source, cursor)
            if not finished:
                check_kept(self.source, self.positions(cursor), cursor.pass_number)
            # In this process nothing is read ahead, so one frame is enough.
            num_frames = config.prefetch if workers else 1
            buffer = SharedBuffer(layout, num_frames + more_frames)
            opened.callback(buffer.close)
            self.frames = buffer.frames
            readers = pool(spec, self.source, self.plan, buffer, workers)
            opened.callback(readers.close)
            self._opened = opened.pop_all()
        self.requests = Requests(readers)
        by_lane = mode == STRICT
        order = LaneOrder(num_frames) if by_lane else ArrivalOrder(num_frames, cursor.chunk)
        self.chunks = ChunkSource(
            self.source,
            self.requests,
            self.frames,
            order,
            plan=self.plan,
            workers=workers,
            poll_s=config.poll_s,
        )
        self.begin(cursor)

    def begin(self, cursor: Cursor) -> None:
        """Forget what was read ahead, and read on from there."""
        self.chunks.begin(self.positions(cursor), cursor.pass_number)

    def positions(self, cursor: Cursor) -> list[Position]:
        """Where the lanes that are read stand."""
        return [cursor.positions[lane] for lane in self.lanes]

    def unread(self, cursor: Cursor) -> dict[int, int]:
        """Records of each lane that a pass which has ended leaves unread."""
        self.source.refresh()  # a reader may have seen more of the stream than this process has
        return {p.lane: self.source.unread((p,), cursor.pass_number) for p in self.positions(cursor)}

    def close(self) -> None:
        """End the readers and let go of memory and files. May be called twice."""
        self.frames = ()
        self._opened.close()
