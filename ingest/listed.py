"""Files of a source by the list of what was taken: new ones whatever their names, none twice, in one order.

A file is its path, size and time. What is found and not listed is added to the list of the stream, and only
then taken; the position of the source is an index in its part of the list. So names decide nothing: a file
that comes later is behind all that are listed. Another spelling of the same files, and another source that
has them too, find them listed. A file that changed is taken again, and what the stream has of it by content
is a duplicate.

What another source has listed and not finished is left to it while it is at work, and taken over when it is
not. That a process is at work is known by a lock, so in local folders only: elsewhere, sources that overlap
must not be ingested at the same time.

The file is long because walking, comparing with the list and taking are one pass over the source.
"""

import hashlib
import os
import stat
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ingest.errors import IngestError, SourceBusy, SourceUnreadable
from ingest.listing import Unit, absolute, looked_at, not_listed
from ingest.names import shown
from ingest.sources import WHOLE, FileSource, Found, Position, read_place
from stream.errors import StreamDamaged, StreamError
from stream.file_types import kind_by_name
from stream.shards.taken import (
    BEGUN,
    CHANGED,
    KEY_BYTES,
    MOST_FILES,
    Keys,
    KeySet,
    PathSet,
    Segment,
    TakenFile,
    TakenList,
    decode_file,
    encode_file,
    key_of,
    keys_from,
)

LOOK = 1024
"""Files that are looked up at once."""
FIRST_CLAIM = 256
"""Files that are listed before the first of them is taken; then four times as many, and so on."""
QUIET_S = 0.5
"""A source that finds nothing new says so this often."""
NOT_A_FILE_SIZE, UNKNOWN_SIZE, FOLDER_SIZE = -1, -2, -3
"""Of what has none: no plain file, a file that an old position may or may not speak of, a folder that cannot
be listed."""

_New = tuple[TakenFile, bytes]


class Listing(Protocol):
    """What a destination knows of the sources that are listed beside it."""

    def place_of(self, source_id: str) -> Any:
        """The position of a source after what is safe; None when there is none."""
        ...

    def at_work(self, source_id: str) -> bool:
        """Whether another process ingests this source now."""
        ...

    def as_ingest_error(self) -> AbstractContextManager[None]:
        """Turns what a store refuses into an error for people."""
        ...


@dataclass(frozen=True, slots=True)
class _Own:
    """A segment of this source."""

    number: int
    first: int
    count: int
    pending: Keys
    """Keys of its last files, which are not done."""


class ListedFiles:
    """Implements sources.Source over a FileSource; not thread-safe.

    Args:
        source: finds and reads the files.
        taken: the list.
        listing: the destination.
        seed: take new files in a random order of this seed; None = in the order of names.
        read_only: list nothing; what is new still comes.
    """

    def __init__(
        self,
        source: FileSource,
        taken: TakenList,
        listing: Listing,
        *,
        seed: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.source_id = source.source_id
        self._source = source
        self._list = taken
        self._listing = listing
        self._seed = seed
        self._read_only = read_only
        self._done, self._claimed, self._left, self._busy = KeySet(), KeySet(), KeySet(), KeySet()
        self._paths = PathSet()
        self._own: list[_Own] = []
        self._listed: dict[str, int] = {}
        self._notes: dict[str, int] = {}
        self._trouble: IngestError | None = None
        self._changed: list[str] = []
        self._changed_count = 0
        self._converted = ""
        self.known = 0
        """Files that were found and are in the stream already."""
        self.busy = 0
        """Files that were found and left to another ingest, which is at work on them."""

    def warnings(self) -> list[str]:
        """See Source."""
        found = self._source.warnings()
        if self._converted:
            found.append(self._converted)
        elif self._changed_count:
            more = ", ..." if self._changed_count > len(self._changed) else ""
            files = "1 file has" if self._changed_count == 1 else f"{self._changed_count} files have"
            found.append(
                f"{', '.join(self._changed)}{more}: {files} another size or time than when taken; the images "
                "in them are taken, those that the stream has already count as duplicate"
            )
        if self.busy:
            found.append(
                f"{self.busy} files are left to another ingest that is at work on them: run this again when "
                "it has ended, for what it may leave"
            )
        if self.known and not self._listed.get(self.source_id):
            found.append(
                f"{self.known} files of this source are in the stream already, taken by an ingest of "
                "another name or spelling"
            )
        return found

    def items(self, after: Position | None = None, *, whole_tars: bool = False) -> Iterator[Found | None]:
        """See Source: what is listed and not done, and then what is found and not listed."""
        self._source.start()
        index, taken = self._load(after)
        for own in self._own:
            yield from self._rest_of(own, index, taken, whole_tars)
        for claimed in self._claims():
            if claimed is None:
                yield None
            else:
                for number, file in enumerate(claimed[1], claimed[0]):
                    yield from self._items(number, file, 0, whole_tars)
        if self._trouble is not None:
            raise self._trouble

    def finished(self) -> None:
        """Note that everything listed is done; to be called when all of it is safe."""
        total = self._listed.get(self.source_id, 0)
        while not self._read_only and total > self._notes.get(self.source_id, 0):
            if self._append(first=total, upto=total):
                self._notes[self.source_id] = total
            else:
                self._look_again()

    def _load(self, after: Position | None) -> tuple[int, int]:
        """Read the list; the place in this source's part of it."""
        with self._listing.as_ingest_error():
            segments = self._list.refresh()
        for segment in segments:
            self._count(segment)
        old = after is not None and "index" not in after
        index, taken = (0, 0) if after is None or old else _place(after)
        # Not by the note of this source: what was skipped behind the last record of a topic is safe nowhere.
        done = {self.source_id: index + (taken == WHOLE)}
        for segment in segments:
            if segment.count and segment.source not in done:
                done[segment.source] = self._done_of(segment.source)
        for segment in segments:
            self._take_in(segment, done.get(segment.source, 0))
        if old and after is not None and self.source_id not in self._notes:
            self._convert(after)
        return index, taken

    def _done_of(self, source: str) -> int:
        """How many files of another source are done."""
        noted = self._notes.get(source, 0)
        if noted >= self._listed[source]:
            return noted
        place = self._listing.place_of(source)
        if not isinstance(place, Mapping) or "index" not in place:
            return noted
        index, taken = _place(place)
        return max(noted, index + (taken == WHOLE))

    def _count(self, segment: Segment) -> None:
        listed = self._listed.get(segment.source, 0)
        if segment.first != listed:
            raise StreamDamaged(
                f"the list of what was taken of {self._list.store.url}: segment {segment.number} begins at "
                f"file {segment.first} of {segment.source}, where {listed} are listed"
            )
        self._listed[segment.source] = listed + segment.count
        if segment.upto >= 0:
            self._notes[segment.source] = max(self._notes.get(segment.source, 0), segment.upto)

    def _take_in(self, segment: Segment, done: int) -> None:
        if not segment.count:
            return
        whole = segment.count if segment.settled else min(max(done - segment.first, 0), segment.count)
        pending = segment.keys[whole:].copy()
        self._paths.add(segment.keys)
        self._done.add(segment.keys[:whole])
        if segment.source == self.source_id:
            self._claimed.add(pending)
            self._own.append(_Own(segment.number, segment.first, segment.count, pending))
        elif pending.size and self._listing.at_work(segment.source):
            self._busy.add(pending)
        else:
            self._left.add(pending)

    def _append(self, **segment: Any) -> bool:
        with self._listing.as_ingest_error():
            return self._list.append(self.source_id, **segment)

    def _look_again(self) -> list[Segment]:
        """What others have listed since. Raises SourceBusy when it is of this very source."""
        with self._listing.as_ingest_error():
            segments = self._list.refresh()
        if not segments:
            raise StreamError(
                f"the list of what was taken of {self._list.store.url} takes no new segment, and shows none"
            )
        for segment in segments:
            if segment.source == self.source_id:
                raise SourceBusy(
                    f"another ingest of the same source ({self.source_id}) lists files beside "
                    f"{self._list.store.url}: wait for it"
                )
            self._count(segment)
            self._take_in(segment, self._notes.get(segment.source, 0))
        return segments

    def _rest_of(self, own: _Own, index: int, taken: int, whole_tars: bool) -> Iterator[Found | None]:
        """What is not done of a segment of this source."""
        if not own.pending.size:
            return
        elsewhere = self._done.has(own.pending)  # another source took it over meanwhile
        with self._listing.as_ingest_error():
            files = self._list.files(own.number)
        start = own.count - own.pending.size
        for offset, file in enumerate(files[start:]):
            number = own.first + start + offset
            if not elsewhere[offset]:
                self._tell_changed(file)
                yield from self._items(number, file, taken if number == index else 0, whole_tars)

    def _items(self, index: int, file: TakenFile, skip: int, whole_tars: bool) -> Iterator[Found | None]:
        path = self._source.spelled(file.path)
        folder = path.rpartition("/")[0]
        cls, body = (f"{folder}/{name}" if folder and name else name for name in (file.cls, file.json))
        unsure = not file.archive and kind_by_name(path) is None
        unit = Unit((0, ()), path, file.archive, cls, body, unsure)
        if file.size == FOLDER_SIZE:
            detail = not_listed(path)
            if not detail:  # what is in it is found like everything else
                return
            unit = replace(unit, unsure=False, loss="unreadable_folder", detail=detail)
        last: Found | None = None
        skip = skip or file.begun
        for found in self._source.of(looked_at(unit), {"index": index}, skip, whole_tars=whole_tars):
            if found is None:
                yield None
                continue
            if found.loss == "unreadable":
                self._source.check_there(file.path)
            if last is not None:
                yield replace(last, again=bool(file.again))
            last = found
        if last is not None:  # with it the whole file is done
            yield replace(last, again=bool(file.again), position={"index": index, "taken": WHOLE})
        self._source.passed(file.size)

    def _claims(self) -> Iterator[tuple[int, list[TakenFile]] | None]:
        """What is found and not listed: listed now, with the index of its first file; None now and then."""
        new: list[_New] = []
        limit, said = FIRST_CLAIM, time.monotonic()
        found = self._unlisted() if self._seed is None else self._shuffled(self._seed)
        for some in found:
            new += some
            while len(new) >= limit:
                yield self._claim(new[:limit])
                del new[:limit]
                limit, said = min(4 * limit, MOST_FILES), time.monotonic()
            if time.monotonic() - said > QUIET_S:
                yield None
                said = time.monotonic()
        if new:
            yield self._claim(new)

    def _claim(self, new: list[_New]) -> tuple[int, list[TakenFile]]:
        first = self._listed.get(self.source_id, 0)
        while new:
            keys = keys_from([key for _, key in new])
            files = [file for file, _ in new]
            if self._read_only:
                return first, files
            if self._append(first=first, files=files, keys=keys):
                self._listed[self.source_id] = first + len(new)
                self._paths.add(keys)
                return first, files
            for segment in self._look_again():
                others = KeySet()
                if self._listing.at_work(segment.source):
                    others.add(segment.keys)
                theirs = others.has(keys_from([key for _, key in new]))
                self.busy += int(theirs.sum())
                new = [one for one, left in zip(new, theirs, strict=True) if not left]
        return first, []

    def _units(self) -> Iterator[list[Unit]]:
        """Units by the batch; an error waits until what was found before it is taken."""
        batch: list[Unit] = []
        try:
            for unit in self._source.walked():
                batch.append(unit)
                if len(batch) >= LOOK:
                    yield batch
                    batch = []
        except IngestError as error:
            self._trouble = error
        yield batch

    def _unlisted(self) -> Iterator[list[_New]]:
        """Of each batch of units those that are to be taken."""
        seen = _Seen()
        for units in self._units():
            states = [seen.state(unit) for unit in units]
            keys = keys_from([state.key for state in states])
            done, busy = self._done.has(keys), self._busy.has(keys)
            listed = done | busy | self._claimed.has(keys)
            self.known += int(done.sum())
            for number in np.flatnonzero(done | busy):
                self._source.passed(states[number].size)
            self.busy += int((busy & ~done).sum())
            if listed.all():
                yield []
                continue
            before, left = self._paths.has(keys), self._left.has(keys)
            new: dict[bytes, TakenFile] = {}
            for number in np.flatnonzero(~listed):
                file, key = states[number].new(units[number])
                if key not in new:
                    again = BEGUN if left[number] else CHANGED
                    new[key] = replace(file, again=again) if before[number] else file
                    self._tell_changed(new[key])
            self._claimed.add(keys_from(list(new)))
            yield [(file, key) for key, file in new.items()]

    def _shuffled(self, seed: int) -> Iterator[list[_New]]:
        """The same in an order of the names' digests: it does not depend on what was listed before a kill.

        All files have to be found first; they wait in a temporary file, at 16 bytes of memory each.
        """
        order, places = array("Q"), array("Q")
        with tempfile.TemporaryFile() as waiting:
            for some in self._unlisted():
                for file, key in some:
                    name = f"{seed} {self._source.inside(file.path)}".encode("utf-8", "surrogateescape")
                    order.append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
                    places.append(waiting.tell())
                    waiting.write(key + encode_file(file))
                yield []
            permutation = np.argsort(np.array(order, np.uint64), kind="stable")
            for start in range(0, len(order), LOOK):
                some = []
                for number in permutation[start : start + LOOK]:
                    waiting.seek(places[number])
                    key = waiting.read(KEY_BYTES)
                    some.append((decode_file(waiting.readline()), key))
                yield some

    def _tell_changed(self, file: TakenFile) -> None:
        if file.again == CHANGED:
            self._changed_count += 1
            if len(self._changed) < 3:
                self._changed.append(shown(file.path))

    def _convert(self, position: Position) -> None:
        """List what a position by names speaks of. Goes on where an earlier start was killed in it."""
        last = read_place(position)
        units = (unit for batch in self._units() for unit in batch)
        count = named = 0
        for unit in units:
            if unit.order >= last.order:
                break
            count += 1
            named += not unit.unsure and not unit.loss
        # Versions that went by names alone have neither counted nor taken the others.
        only_named = count != last.units == named
        sure = only_named or count == last.units
        if not sure:
            self._converted = (
                f"{count} files stand before the place where an earlier version of this program ended, then "
                f"it was {last.units}: all are looked at again, and what the stream has counts as duplicate"
            )
        settled: list[_New] = []
        begun: _New | None = None
        seen = _Seen()
        for batch in self._units():
            for unit in batch:
                if unit.order > last.order:
                    break
                if only_named and (unit.unsure or unit.loss):
                    continue
                state = seen.state(unit)
                if unit.order < last.order:
                    settled.append(state.new(unit) if sure else state.unknown(unit))
                elif unit.archive and last.taken != WHOLE:
                    file, key = state.new(unit)
                    begun = (replace(file, begun=last.taken), key)
                else:
                    settled.append(state.new(unit) if state.size == last.size else state.unknown(unit))
            self._settle(settled, whole=False)
        self._trouble = None
        self._settle(settled, whole=True)
        self._settle([begun] if begun else [], whole=True, settled=False)
        total = self._listed.get(self.source_id, 0)
        settled_total = total - sum(own.pending.size for own in self._own)
        while not self._append(first=total, upto=settled_total):
            self._look_again()
        self._notes[self.source_id] = settled_total

    def _settle(self, new: list[_New], *, whole: bool, settled: bool = True) -> None:
        """List files of an old position: as done, or as begun."""
        while len(new) >= (1 if whole else MOST_FILES):
            some, new[:MOST_FILES] = new[:MOST_FILES], []
            keys = keys_from([key for _, key in some])
            fresh = ~self._paths.has(keys)
            some = [one for one, wanted in zip(some, fresh, strict=True) if wanted]
            keys = keys[fresh]
            if not some:
                continue
            files = [file for file, _ in some]
            first = self._listed.get(self.source_id, 0)
            while not self._append(first=first, files=files, keys=keys, settled=settled):
                self._look_again()
            self._listed[self.source_id] = first + len(files)
            number = self._list.last
            self._take_in(Segment(number, self.source_id, first, len(files), settled, -1, keys), 0)


@dataclass(frozen=True, slots=True)
class _State:
    """A unit as it is now."""

    path: str
    identity: str
    size: int
    time_ns: int
    key: bytes

    def new(self, unit: Unit) -> _New:
        """As it goes into the list."""
        cls, body = (name.rpartition("/")[2] for name in (unit.cls, unit.json))
        return TakenFile(self.path, self.size, self.time_ns, unit.archive, cls, body), self.key

    def unknown(self, unit: Unit) -> _New:
        """The same in a state that no file has."""
        file = replace(self.new(unit)[0], size=UNKNOWN_SIZE, time_ns=0)
        return file, key_of(self.identity, UNKNOWN_SIZE, 0)


class _Seen:
    """Looks at files as they are now; remembers the folder that it was in."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._absolute = self._real = ""

    def state(self, unit: Unit) -> _State:
        """A unit as it is now. An archive is one whatever its name; an image may have several names."""
        folder, slash, name = unit.path.rpartition("/")
        if folder + slash != self._folder:
            self._folder = folder + slash
            self._absolute = absolute(self._folder or ".").rstrip("/")
            self._real = os.path.realpath(self._absolute or "/").rstrip("/")
        path = f"{self._absolute}/{name}"
        identity = os.path.realpath(path) if unit.archive else f"{self._real}/{name}"
        size, time_ns = FOLDER_SIZE if unit.loss == "unreadable_folder" else NOT_A_FILE_SIZE, 0
        try:
            found = os.stat(path)  # noqa: PTH116  a third of the time of Path.stat, for each file of each run
        except OSError:
            pass
        else:
            if stat.S_ISREG(found.st_mode):
                size, time_ns = found.st_size, found.st_mtime_ns
        return _State(path, identity, size, time_ns, key_of(identity, size, time_ns))


def _place(position: Mapping[str, Any]) -> tuple[int, int]:
    try:
        index, taken = int(position["index"]), int(position["taken"])
    except (KeyError, TypeError, ValueError) as error:
        raise SourceUnreadable(f"the stream's record of this source cannot be read: {position!r}") from error
    if index < 0 or taken < WHOLE:
        raise SourceUnreadable(f"the stream's record of this source cannot be read: {position!r}")
    return index, taken
