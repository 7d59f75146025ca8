"""A stream that one rank has opened: its view of it, memory for batches, and readers that fill it."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from stream.config import CropConfig, ReaderConfig
from stream.cursor import Cursor
from stream.errors import StreamMismatch, StreamPruned
from stream.lanes import Position
from stream.loader.plan import ReadPlan, plan_of
from stream.loader.pool import Lost, Pool, Requests, open_pool
from stream.loader.shared_memory import FrameLayout, SharedBuffer, SharedBytes
from stream.loader.tasks import availability_from
from stream.source import Source, SourceSpec

PoolOpener = Callable[[SourceSpec, Source, ReadPlan, SharedBuffer, int, Lost], Pool]

SAMPLES_OF_A_REQUEST = 32
"""So many small images make a request long enough (about 5 ms at 32 pixels) that asking costs little."""
_REQUESTS_A_READER = 2
"""Each step gives each reader at least so many requests, if there is enough, so that they finish together."""


def _check_same_stream(source: Source, cursor: Cursor) -> None:
    """Refuse a cursor of another stream."""
    identity = source.identity()
    if dict(cursor.source) != identity or cursor.lanes != source.lanes:
        raise StreamMismatch(
            f"the cursor is of {dict(cursor.source)}, {cursor.lanes} lanes, but the stream is {identity}, "
            f"{source.lanes} lanes: give the stream that the run began with, or begin a new run"
        )


def _check_kept(source: Source, positions: Iterable[Position], pass_number: int) -> None:
    """Refuse before anything is read when records of any lane have been pruned; says how many."""
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
    """Source, memory and readers for some lanes.

    Args:
        spec, cursor, crops, config, workers, pool: as for `Loader`.
        lanes: that are read, ascending.
        more_frames: memory for so many further batches, beyond those of reading ahead.
        images: where the encoded images of replays lie; None when they are read from the stream again.
        finished: nothing is read any more.

    Raises:
        StreamMismatch, StreamPruned, StreamError: as `Loader`.
    """

    def __init__(  # noqa: PLR0913  as `Loader`
        self,
        spec: SourceSpec,
        cursor: Cursor,
        lanes: Sequence[int],
        *,
        crops: Sequence[CropConfig],
        config: ReaderConfig,
        workers: int,
        more_frames: int = 0,
        images: SharedBytes | None = None,
        finished: bool = False,
        pool: PoolOpener = open_pool,
    ) -> None:
        self.lanes, self.config, self.workers = lanes, config, workers
        self.num_ahead = config.prefetch if workers else 1
        """Batches that are read ahead; in this process nothing is, so one frame is enough."""
        self.plan = plan_of(cursor, tuple(crops), config, lanes=len(lanes), images=images)
        layout = FrameLayout(crops=tuple(crops), thumbnail_px=config.thumbnail_px, columns=self.plan.columns)
        with ExitStack() as opened:
            self.source = spec.open()
            opened.callback(self.source.close)
            _check_same_stream(self.source, cursor)
            if not finished:
                _check_kept(self.source, self.positions(cursor), cursor.pass_number)
            buffer = SharedBuffer(layout, self.num_ahead + more_frames)
            opened.callback(buffer.close)
            self.frames = buffer.frames
            self.requests = Requests(lambda lost: pool(spec, self.source, self.plan, buffer, workers, lost))
            opened.callback(self.requests.close)
            self._opened = opened.pop_all()

    def positions(self, cursor: Cursor) -> list[Position]:
        """Where the lanes that are read stand."""
        return [cursor.positions[lane] for lane in self.lanes]

    def per_request(self, samples: int = 1) -> int:
        """How many parts of a step, of so many samples each, one request asks for."""
        by_reader = -(-self.plan.columns // samples // (_REQUESTS_A_READER * max(1, self.workers)))
        return min(by_reader, -(-SAMPLES_OF_A_REQUEST // samples))

    def unread(self, cursor: Cursor) -> dict[int, int]:
        """Records of each lane that a pass which has ended leaves unread."""
        self.source.refresh()  # a reader may have seen more of the stream than this process has
        return {p.lane: self.source.unread((p,), cursor.pass_number) for p in self.positions(cursor)}

    def close(self) -> None:
        """End the readers and let go of memory and files. May be called twice."""
        self.frames = ()
        self._opened.close()
