"""Reads shards lane by lane, in the order of order.py.

A window of W commits can be read once all of them exist or the stream is sealed, so the order never depends
on when somebody looked. A position names the window by its first commit, how many of the lane's slices there
are finished, and how many records of the current one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from stream.errors import StreamMismatch, StreamPruned
from stream.lanes import Bounds, Position
from stream.manifest import Manifest
from stream.order import LARGEST_SEED, lane_total, record_order, slice_bounds, window_order
from stream.shard_files import ShardFiles
from stream.source import Entry, Outlook

_KEPT_WINDOWS = 4
"""Windows of each lane whose order is kept in memory."""


class _Visit(NamedTuple):
    """A lane's slice of one commit."""

    number: int
    """Of the commit."""
    start: int
    """First record."""
    size: int
    """Records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """Where shards are and how they are read; small and picklable (implements source.SourceSpec)."""

    url: str
    """Folder or fsspec URL of the stream."""
    lanes: int
    """V; >= 1."""
    window: int
    """W, commits that are shuffled together; >= 1. 1 gives the least delay on a growing stream."""
    seed: int
    """Of the order; 0 .. 2^63-1."""
    verify: bool = True
    """Compare the SHA-256 of each image with what index and record state."""
    max_record_bytes: int = 128 * 1024 * 1024
    """Larger encoded images are skipped with reason too_large; >= 1."""

    def __post_init__(self) -> None:
        for name in ("lanes", "window", "max_record_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be in 0..2^63-1, got {self.seed}")

    def open(self) -> "ShardSource":
        """Open the stream in this process. Raises StreamNotFound, StreamDamaged, StreamError."""
        return ShardSource(self, Manifest.open(self.url))


class ShardSource:
    """A stream of shards being read (implements source.Source); one per process, not thread-safe.

    `refresh`, `outlook` and `read` may block on disk or network, never on records that are still to come.
    After an exception the source can be asked again.
    """

    def __init__(self, spec: ShardSpec, manifest: Manifest) -> None:
        self.lanes = spec.lanes
        self.manifest = manifest
        self._spec = spec
        self._files = ShardFiles(manifest, verify=spec.verify, max_record_bytes=spec.max_record_bytes)
        self._windows: dict[tuple[int, int, int, int], list[_Visit]] = {}

    def records(self, begin: int = 0) -> int:
        """Records committed from a commit on, as of the last refresh."""
        return self.manifest.records - self.manifest.before(min(begin, len(self.manifest)))

    @property
    def begin(self) -> int:
        """First commit of the first window of which nothing is pruned: where a new run begins."""
        return -(-self.manifest.floor.first // self._spec.window) * self._spec.window

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

    def outlook(self, position: Position, pass_number: int) -> Outlook:
        """Unread records of the lane in windows that can be read, and whether that is all there will be.

        Raises:
            StreamMismatch: the position is not one of this stream with these lanes and this window.
            StreamPruned: records after the position are gone.
        """
        self._check_kept(position, pass_number)
        total = lane_total(self.manifest.before(self._readable()), self.lanes, position.lane)
        available = max(total - self._used(position, pass_number), 0)
        return Outlook(available=available, ended=self.manifest.sealed)

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
            StreamMismatch: as `outlook`.
            StreamDamaged: a shard or its index is gone or cannot be trusted.
            StreamError: it cannot be read.
        """
        lane, unit, base, idx = position.lane, position.unit, position.base, position.idx
        while count := self._window(position, unit):
            visits = self._visits(lane, unit, count, pass_number)
            self._check_base(position, base, count)
            while base < count:
                number, start, size = visits[base]
                if idx > size:
                    raise self._misfit(position)
                for at in self._order(lane, number, size, pass_number)[idx:]:
                    idx += 1
                    entry = self._files.entry(number, start + at)
                    yield entry, self._after(position, unit, base, idx, size=size, count=count)
                base, idx = base + 1, 0
            unit, base = unit + self._spec.window, 0

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

    def close(self) -> None:
        """Let go of files. May be called twice."""
        self._files.close()
        self.manifest.close()

    def _readable(self) -> int:
        """Commits that may be read: those of whole windows, all of a sealed stream."""
        size = len(self.manifest)
        return size if self.manifest.sealed else size - size % self._spec.window

    def _window(self, position: Position, unit: int) -> int:
        """Commits of the window at `unit`; 0 when it cannot be read."""
        width, readable = self._spec.window, self._readable()
        fits = (
            0 <= position.lane < self.lanes
            and unit % width == 0
            and 0 <= unit < max(readable, self.begin) + width
        )
        if not fits:
            raise self._misfit(position)
        return max(min(readable - unit, width), 0)

    def _visits(self, lane: int, unit: int, count: int, pass_number: int) -> list[_Visit]:
        """The lane's slices of a window, in its order."""
        key = (lane, unit, count, pass_number)
        visits = self._windows.get(key)
        if visits is None:
            order = window_order(
                seed=self._spec.seed, pass_number=pass_number, lane=lane, first=unit, count=count
            )
            visits = []
            for number in (unit + order).tolist():
                n, before = self.manifest.n(number), self.manifest.before(number)
                start, stop = slice_bounds(n, before, self.lanes, lane)
                visits.append(_Visit(number, start, stop - start))
            if len(self._windows) >= _KEPT_WINDOWS * self.lanes:
                self._windows.clear()
            self._windows[key] = visits
        return visits

    def _order(self, lane: int, number: int, size: int, pass_number: int) -> list[int]:
        order: list[int] = record_order(
            seed=self._spec.seed, pass_number=pass_number, lane=lane, number=number, count=size
        ).tolist()
        return order

    def _used(self, position: Position, pass_number: int) -> int:
        """Records of the lane before a position."""
        count = self._window(position, position.unit)
        if count == 0:
            # Nothing here can be read yet: only the beginning of this window can be meant, or the end of all.
            if position.base or position.idx:
                raise self._misfit(position)
            before = self.manifest.before(min(position.unit, len(self.manifest)))
            return lane_total(before, self.lanes, position.lane)
        visits = self._visits(position.lane, position.unit, count, pass_number)
        self._check_base(position, position.base, count)
        if position.idx > (visits[position.base].size if position.base < count else 0):
            raise self._misfit(position)
        before = lane_total(self.manifest.before(position.unit), self.lanes, position.lane)
        return before + sum(visit.size for visit in visits[: position.base]) + position.idx

    def _check_kept(self, position: Position, pass_number: int) -> None:
        """See that nothing after a position is pruned."""
        floor = self.manifest.floor
        if position.unit >= floor.first:
            return
        count = self._window(position, position.unit)
        visits = self._visits(position.lane, position.unit, count, pass_number)[position.base :]
        missed = sum(visit.size for visit in visits if visit.number < floor.first)
        if visits and visits[0].number < floor.first:
            missed -= min(position.idx, visits[0].size)
        later = min(position.unit + count, floor.first)
        missed += lane_total(floor.records, self.lanes, position.lane)
        missed -= lane_total(self.manifest.before(later), self.lanes, position.lane)
        if missed > 0:
            raise StreamPruned(
                f"lane {position.lane}: the next {missed} records were pruned from the stream at "
                f"{self.manifest.url}, which keeps commits from {floor.first} on",
                missed=missed,
            )

    def _after(
        self, position: Position, unit: int, base: int, idx: int, *, size: int, count: int
    ) -> Position:
        """The position after a record; the last one of a slice or window leads to the next."""
        if idx == size:
            base, idx = base + 1, 0
        if base == count:
            unit, base = unit + self._spec.window, 0
        return Position(lane=position.lane, unit=unit, base=base, idx=idx, seq=position.seq)

    def _check_base(self, position: Position, base: int, count: int) -> None:
        if not 0 <= base <= count or position.idx < 0:
            raise self._misfit(position)

    def _misfit(self, position: Position) -> StreamMismatch:
        return StreamMismatch(
            f"{position} is no place in the stream at {self.manifest.url}, which has {len(self.manifest)} "
            f"commits and is read by {self.lanes} lanes in windows of {self._spec.window}: the cursor is of "
            "another stream, number of lanes or window"
        )
