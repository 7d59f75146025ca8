"""Reads shards lane by lane, window after window; window_walk.py says in which order the records of one come.

A window of W commits can be read once all of them exist or the stream is sealed, so the order never depends
on when a reader looked. W = 0 is one window of all commits of a sealed stream. A position names the window by
its first commit, and a place in it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stream.errors import StreamMismatch, StreamPruned
from stream.lanes import Bounds, Position
from stream.order import LARGEST_SEED, ORDERS, SHARD, WINDOW, lane_total
from stream.shards.files import ShardFiles
from stream.shards.manifest import Manifest
from stream.shards.window_walk import Place, ShardWalk, Walk, Window, WindowWalk
from stream.source import Availability, Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """Where shards are and how they are read; small and picklable (implements source.SourceSpec)."""

    url: str
    """Folder or fsspec URL of the stream."""
    lanes: int
    """V; >= 1."""
    window: int
    """W, commits that are shuffled together; 1 gives the least delay on a growing stream, 0 means all commits
    of a sealed one."""
    seed: int
    """Of the order; 0 .. 2^63-1."""
    order: str = WINDOW
    """window: a lane's records of a window in one permutation. shard: one shard after the other, where random
    reads are dear."""
    verify: bool = True
    """Compare the SHA-256 of each image with what index and record state."""
    max_record_bytes: int = 128 * 1024 * 1024
    """Larger encoded images are skipped with reason too_large; >= 1."""

    def __post_init__(self) -> None:
        for name, least in (("lanes", 1), ("window", 0), ("max_record_bytes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be {' or '.join(ORDERS)}, got {self.order!r}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be in 0..2^63-1, got {self.seed}")

    def open(self) -> "ShardSource":
        """Open the stream in this process.

        Raises:
            StreamNotFound, StreamDamaged, StreamError: as `Manifest.open`.
            StreamMismatch: the window is all of a stream that is still open.
        """
        manifest = Manifest.open(self.url)
        if self.window == 0 and not manifest.sealed:
            manifest.close()
            raise StreamMismatch(
                f"window = 0 shuffles all commits of a sealed stream together, and the stream at {self.url} "
                f"is still open: seal it when no more comes (`swavstream seal {self.url}`), or set window to "
                "a number of commits"
            )
        return ShardSource(self, manifest)


class ShardSource:
    """A stream of shards being read (implements source.Source); one per process, not thread-safe.

    `refresh`, `availability` and `read` may block on disk or network, never on records that are
    still to come. After an exception the source can be asked again.
    """

    def __init__(self, spec: ShardSpec, manifest: Manifest) -> None:
        self.lanes = spec.lanes
        self.manifest = manifest
        self._spec = spec
        self._files = ShardFiles(
            manifest,
            verify=spec.verify,
            max_record_bytes=spec.max_record_bytes,
            scattered=spec.order == WINDOW,
        )
        walk = ShardWalk if spec.order == SHARD else WindowWalk
        self._walk: Walk = walk(manifest, lanes=spec.lanes, seed=spec.seed)

    def records(self, begin: int = 0) -> int:
        """Records committed from a commit on, as of the last refresh."""
        return self.manifest.records - self.manifest.before(min(begin, len(self.manifest)))

    @property
    def begin(self) -> int:
        """First commit of the first window of which nothing is pruned: where a new run begins."""
        width = max(1, self._spec.window)
        return -(-self.manifest.floor.first // width) * width

    def identity(self) -> dict[str, str]:
        """What a cursor is bound to: the stream's uuid, wherever the stream is."""
        return {"kind": "shards", "uuid": self.manifest.uuid}

    def bounds(self) -> Bounds:
        """None: lanes begin and end with the stream."""
        return ()

    def refresh(self) -> bool:
        """Look for new commits; True when the stream grew or was sealed."""
        return self.manifest.refresh()

    def sealed(self) -> bool:
        """Whether the stream has its end."""
        return self.manifest.sealed

    def availability(self, position: Position, pass_number: int) -> Availability:
        """Unread records of the lane in windows that can be read, and whether that is all there will be.

        Raises:
            StreamMismatch: the position is not one of this stream with these lanes and this window.
            StreamPruned: records after the position are gone.
        """
        self._check_kept(position, pass_number)
        total = lane_total(self.manifest.before(self._readable()), self.lanes, position.lane)
        available = max(total - self._used(position, pass_number), 0)
        return Availability(available=available, ended=self.manifest.sealed)

    def unread(self, positions: Iterable[Position], pass_number: int = 0) -> int:
        """Committed records after these positions, also those of windows that cannot be read yet."""
        return sum(
            lane_total(self.manifest.records, self.lanes, position.lane) - self._used(position, pass_number)
            for position in positions
        )

    def read(self, position: Position, pass_number: int) -> Iterator[tuple[Entry, Position]]:
        """Entries from `position` on, each with the position after it; ends where nothing more may be read.

        Bytes are read when the entry is asked for. `seq` stays as it is in `position`.

        Raises:
            StreamMismatch: as `availability`.
            StreamDamaged: a shard or its index is gone or cannot be trusted.
            StreamError: it cannot be read.
        """
        for place, after in self.places(position, pass_number):
            yield self._files.entry(place.number, place.record), after

    def places(self, position: Position, pass_number: int) -> Iterator[tuple[Place, Position]]:
        """As `read`, but no record is read: only where each is, and the position after it.

        Raises:
            StreamMismatch: as `availability`.
        """
        lane, unit, base, idx = position.lane, position.unit, position.base, position.idx
        while count := self._window(position, unit):
            window = Window(lane, pass_number, unit, count)
            if self._walk.done(window, base, idx) is None:
                raise self._misfit(position)
            following = unit + (self._spec.window or count)
            for place in self._walk.places(window, base, idx):
                at = (following, 0, 0) if place.base == count else (unit, place.base, place.idx)
                yield place, Position(lane=lane, unit=at[0], base=at[1], idx=at[2], seq=position.seq)
            unit, base, idx = following, 0, 0

    def entry(self, unit: int, index: int) -> Entry:
        """Read one record again.

        Raises:
            StreamMismatch: no such record is committed.
            StreamDamaged, StreamError: as `read`.
        """
        if unit >= len(self.manifest):
            self.manifest.refresh()  # another process has seen more
        if not (0 <= unit < len(self.manifest) and 0 <= index < self.manifest.n(unit)):
            raise StreamMismatch(f"no record {index} of commit {unit} in the stream at {self.manifest.url}")
        return self._files.entry(unit, index)

    def label(self, unit: int, index: int) -> int | str | None:
        """The label of a record, without reading its image; None = none that can be used."""
        return self._files.label(unit, index)

    def close(self) -> None:
        """Let go of files. May be called twice."""
        self._files.close()
        self.manifest.close()

    def _readable(self) -> int:
        """Commits that may be read: those of whole windows, all of a sealed stream."""
        size, width = len(self.manifest), self._spec.window
        if self.manifest.sealed:
            return size
        return size - size % width if width else 0

    def _window(self, position: Position, unit: int) -> int:
        """Commits of the window at `unit`; 0 when it cannot be read."""
        readable = self._readable()
        width = self._spec.window or max(readable - unit, 1)
        whole = unit % self._spec.window == 0 if self._spec.window else unit <= readable
        fits = 0 <= position.lane < self.lanes and whole and 0 <= unit < max(readable, self.begin) + width
        if not fits:
            raise self._misfit(position)
        return max(min(readable - unit, width), 0)

    def _used(self, position: Position, pass_number: int) -> int:
        """Records of the lane before a position."""
        count = self._window(position, position.unit)
        if count == 0:
            # Nothing here can be read yet: only the beginning of this window can be meant, or the end of all.
            if position.base or position.idx:
                raise self._misfit(position)
            before = self.manifest.before(min(position.unit, len(self.manifest)))
            return lane_total(before, self.lanes, position.lane)
        window = Window(position.lane, pass_number, position.unit, count)
        done = self._walk.done(window, position.base, position.idx)
        if done is None:
            raise self._misfit(position)
        return lane_total(self.manifest.before(position.unit), self.lanes, position.lane) + done

    def _check_kept(self, position: Position, pass_number: int) -> None:
        """See that nothing after a position is pruned."""
        floor = self.manifest.floor
        if position.unit >= floor.first:
            return
        missed, count = 0, self._window(position, position.unit)
        if count:
            window = Window(position.lane, pass_number, position.unit, count)
            if self._walk.done(window, position.base, position.idx) is None:
                raise self._misfit(position)
            missed = self._walk.pruned(window, position.base, position.idx, floor.first)
        later = min(position.unit + count, floor.first)
        missed += lane_total(floor.records, self.lanes, position.lane)
        missed -= lane_total(self.manifest.before(later), self.lanes, position.lane)
        if missed > 0:
            raise StreamPruned(
                f"lane {position.lane}: the next {missed} records were pruned from the stream at "
                f"{self.manifest.url}, which keeps commits from {floor.first} on",
                missed=missed,
            )

    def _misfit(self, position: Position) -> StreamMismatch:
        return StreamMismatch(
            f"{position} is no place in the stream at {self.manifest.url}, which has {len(self.manifest)} "
            f"commits and is read by {self.lanes} lanes in windows of {self._spec.window or 'all commits'} "
            f"(order = {self._spec.order}): the cursor is of another stream, number of lanes, window or order"
        )
