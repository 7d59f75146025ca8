"""Source to stream: find, prepare, drop duplicates, write, and keep accounts that add up over restarts.

The place in the source travels with every record and comes back with the last commit, so an ingest that is
killed at any moment goes on from there: nothing twice, nothing missing. What is counted besides (seconds,
lost labels, shards) rides in the same position.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ingest.config import IngestConfig
from ingest.decode_pool import DecodePool, Prepared, Result
from ingest.errors import DecodePoolFailed, SourceEmpty, SourceNotFound, SourceUnreadable
from ingest.listed import ListedFiles
from ingest.names import shown
from ingest.rejects import Listed, Reject
from ingest.shard_destination import Destination, Resume, ShardDestination
from ingest.sources import FileSource, Found, Source, told_by_ending
from stream.errors import BadRecord, StreamSealed
from stream.file_types import ending_of
from stream.record import Record
from stream.shards.adopt import Adoption
from stream.shards.commits import Accounts
from stream.storage import local_path

logger = logging.getLogger(__name__)

PROGRESS_S = 0.5
HELD_UP_S = 0.1
"""Seconds between two looks whether an ingest that is held up may go on."""
MOST_ENDINGS = 20
"""Endings of unsupported names that are counted apart: they ride in every position."""
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestReport:
    """What an ingest of one source came to, over all its starts; found = written + sum of skipped."""

    found: int
    """Images, and places of archives where an image may be lost."""
    written: int
    skipped: Mapping[str, int]
    """By reason; the reasons are `ingest.transcode.REASONS`."""
    bytes: int
    """Encoded image bytes written."""
    shards: int
    seconds: float
    """Of work, until the last thing that was found."""
    status: str
    """finished, or stopped (the same call goes on); running while it runs, or why it waits."""
    sealed: bool
    """Whether the stream has its end."""
    unsupported_names: Mapping[str, int] = field(default_factory=dict)
    """Of those skipped as `unsupported_name`, how many have which ending; beyond MOST_ENDINGS: `other`."""
    labels_lost: Mapping[str, int] = field(default_factory=dict)
    """Labels lost while their images were kept, by reason (`ingest.transcode.LABEL_TROUBLES`)."""
    warnings: tuple[str, ...] = ()


def run_ingest(  # noqa: PLR0913  all but three have a default
    source: Source,
    manifest_url: str,
    config: IngestConfig,
    *,
    open_stream: bool = False,
    reference: bool = False,
    progress: Callable[[IngestReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    destination: Destination | None = None,
    rejected: Callable[[Reject], None] | None = None,
) -> IngestReport:
    """Bring a source into a stream, or go on doing so.

    Blocks until the source is at its end. After any exception, and after a kill, everything committed stays
    and the same call goes on from there; when all is done it does nothing and gives the same report.

    Args:
        source: what is brought in.
        manifest_url: folder or URL of the stream; made when it is not there.
        config: what is refused and changed.
        open_stream: leave the stream open for others at the end, instead of sealing it.
        reference: index plain tars where they are instead of copying their images.
        progress: called about twice a second with the state so far.
        stop: asked between images; True commits what is open and returns with status `stopped`.
        destination: what to write to instead of the shards at `manifest_url`.
        rejected: called with each thing that is found and not written.

    Raises:
        IngestError: see ingest/errors.py.
        StreamSealed: the stream has its end, and the source has something that is not in it.
        StreamError: the stream cannot be trusted or reached.
        ValueError: the stream lies inside the source, or `reference` with a source that has no files.
    """
    _check_apart(source, manifest_url)
    into: Destination = destination or ShardDestination(manifest_url, source.source_id, config)
    try:
        state = _State(into.resume())
        source = _by_list(source, into, config, state.place)
        if into.sealed:
            _check_complete(source, into, state)
            return state.report(FINISHED, into, source)
        try:
            ingest = _Ingest(source, into, state, config, reference=reference, rejected=rejected)
            status = ingest.run(progress, stop)
        except (SourceNotFound, SourceUnreadable, DecodePoolFailed):
            into.close()  # what came before the trouble is good
            raise
        into.close()
        if isinstance(source, ListedFiles) and status == FINISHED:
            source.finished()
        known, busy = (source.known, source.busy) if isinstance(source, ListedFiles) else (0, 0)
        if status == FINISHED and not known and not busy:
            _check_not_empty(state)
        if status == FINISHED and not open_stream and not busy:
            into.seal()
        return state.report(status, into, source)
    finally:
        into.abandon()


class _State:
    """The accounts of a source, its place, and what rides with it."""

    def __init__(self, resume: Resume) -> None:
        position: Mapping[str, Any] = resume.position or {}
        self.place = position.get("source")
        self.accounts = resume.accounts
        self.labels_lost: Counter[str] = Counter(position.get("labels_lost", {}))
        self.endings: Counter[str] = Counter(position.get("unsupported_names", {}))
        self.seconds = float(position.get("seconds", 0.0))
        self.shards_before = int(position.get("shards", 0)) + resume.ended_in_shard

    def position(self, place: Any, shards: int, listed: Listed | None) -> dict[str, Any]:
        """What is committed with the next thing."""
        return {
            "source": place,
            "labels_lost": dict(self.labels_lost),
            **({"unsupported_names": dict(self.endings)} if self.endings else {}),
            "seconds": round(self.seconds, 3),
            "shards": self.shards_before + shards,
            **({"rejects": asdict(listed)} if listed is not None else {}),
        }

    def report(self, status: str, into: Destination, source: Source) -> IngestReport:
        accounts, pending = self.accounts, into.pending
        return IngestReport(
            found=accounts.found - pending.written,
            written=accounts.written - pending.written,
            skipped=dict(sorted(accounts.skipped.items())),
            bytes=accounts.bytes - pending.bytes,
            shards=self.shards_before + into.shards,
            seconds=round(self.seconds, 3),
            status=status,
            sealed=into.sealed,
            unsupported_names=dict(sorted(self.endings.items())),
            labels_lost=dict(sorted(self.labels_lost.items())),
            warnings=(*source.warnings(), *self._warnings()),
        )

    def skip(self, reason: str, found: Found) -> None:
        """Count something that is not written."""
        self.accounts += Accounts(skipped={reason: 1})
        self.count_ending(reason, found.name)

    def count_ending(self, reason: str, name: str) -> None:
        """Count what is of no supported kind by its ending."""
        if reason == "unsupported_name":
            ending = ending_of(name.rpartition("#")[2] or name)
            known = ending in self.endings or len(self.endings) < MOST_ENDINGS
            self.endings[ending if known else "other"] += 1

    def _warnings(self) -> Iterator[str]:
        count = self.accounts.skipped.get("unsupported_name", 0)
        if count:
            yield (
                f"{count:,} {'file is' if count == 1 else 'files are'} neither image nor archive by name or "
                f"first bytes, or of a kind that is not read ({told_by_ending(self.endings)}): skipped as "
                "unsupported_name"
            )
        count = self.accounts.skipped.get("unreadable", 0)
        if count:
            yield f"{count:,} {'file' if count == 1 else 'files'} cannot be read: passed as unreadable"


class _Ingest:
    """One start of an ingest."""

    def __init__(
        self,
        source: Source,
        into: Destination,
        state: _State,
        config: IngestConfig,
        *,
        reference: bool,
        rejected: Callable[[Reject], None] | None,
    ) -> None:
        self._source = source
        self._into = into
        self._state = state
        self._config = config
        self._reference = reference
        self._rejected = rejected
        self._told = 0.0
        self._warned: set[str] = set()

    def run(self, progress: Callable[[IngestReport], None] | None, stop: Callable[[], bool] | None) -> str:
        """Take everything behind the place; the status."""
        begun = time.monotonic() - self._state.seconds
        items: Iterator[Found | None]
        if isinstance(self._source, FileSource):
            items = self._source.items(self._state.place, whole_tars=self._reference, refuse=True)
        elif isinstance(self._source, ListedFiles):
            items = self._source.items(self._state.place, whole_tars=self._reference)
        elif self._reference:
            raise ValueError("only tars in files can be adopted where they are; this source has no files")
        else:
            items = self._source.items(self._state.place)
        with DecodePool(self._config) as decoders:
            for step in decoders.run(items):
                if step is None:
                    self._into.tick()
                else:
                    self._state.seconds = time.monotonic() - begun
                    self._take(*step)
                held_up = self._into.held_up()
                while True:
                    self._tell(progress, f"waiting: {held_up}" if held_up else RUNNING)
                    if stop is not None and stop():
                        return STOPPED
                    if not held_up:
                        break
                    time.sleep(HELD_UP_S)
                    self._into.tick()
                    held_up = self._into.held_up()
        return FINISHED

    def _tell(self, progress: Callable[[IngestReport], None] | None, status: str) -> None:
        if progress is not None and time.monotonic() - self._told > PROGRESS_S:
            self._told = time.monotonic()
            progress(self._state.report(status, self._into, self._source))

    def _take(self, found: Found, result: Result) -> None:
        state, into = self._state, self._into
        if found.label_only:
            state.labels_lost[found.loss] += 1
        elif found.tar:
            into.flush()
            state.accounts += into.adopt(found.tar, partial(self._behind_tar, found))
        elif isinstance(result, BadRecord):
            self._skip(result, found)
        elif (found.again or not self._config.keep_duplicates) and not into.is_new(result.sha256):
            self._skip(BadRecord("duplicate"), found)
        else:
            self._write(found, result)

    def _behind_tar(self, found: Found, adoption: Adoption) -> dict[str, Any]:
        """The place behind a tar that is adopted, with what was lost in it."""
        self._state.labels_lost.update(adoption.labels_lost)
        for loss in adoption.losses:
            name = f"{found.name}#{shown(loss.name)}"
            self._reject(Reject(reason=loss.reason, source=name, path=found.tar))
            self._state.count_ending(loss.reason, name)
        return self._position(found)

    def _write(self, found: Found, image: Prepared) -> None:
        state, into = self._state, self._into
        if found.labels.bad:
            state.labels_lost["bad_label"] += 1
        try:
            into.write(_record(found, image), self._position(found))
        except BadRecord as bad:  # this destination does not take it
            self._warn_once(bad)
            self._skip(bad, found)
        else:
            state.accounts += Accounts(written=1, bytes=len(image.payload))

    def _warn_once(self, bad: BadRecord) -> None:
        if bad.reason not in self._warned:
            self._warned.add(bad.reason)
            logger.warning("%s; it is skipped, and others like it", bad)

    def _skip(self, bad: BadRecord, found: Found) -> None:
        reject = Reject(reason=bad.reason, source=found.name, detail=bad.detail, path=found.file)
        self._reject(reject)
        self._state.skip(bad.reason, found)
        self._into.skip(bad.reason, self._position(found))

    def _reject(self, reject: Reject) -> None:
        self._into.reject(reject)
        if self._rejected is not None:
            self._rejected(reject)

    def _position(self, found: Found) -> dict[str, Any]:
        return self._state.position(found.position, self._into.shards, self._into.listed)


def _record(found: Found, image: Prepared) -> Record:
    return Record(
        payload=image.payload,
        sha256=image.sha256,
        media_type=image.media_type,
        width=image.width,
        height=image.height,
        source=found.name,
        label=found.labels.label,
        label_name=found.labels.label_name,
    )


def _by_list(source: Source, into: Destination, config: IngestConfig, place: Any) -> Source:
    """The same source, by the list of what was taken where there is one."""
    if not isinstance(source, FileSource):
        if config.shuffle:
            raise ValueError("shuffle is for sources of files, and this one has none")
        return source
    if into.taken is None:
        if config.shuffle:
            raise ValueError(
                f"shuffle needs a list of what was taken, and {into.url} has no place for it: give --state "
                "DIR, a folder that stays"
            )
        return source
    if into.sealed and place is not None and "index" not in place:
        return source  # nothing can be listed any more; what it holds is said by names
    return ListedFiles(
        source, into.taken, into, seed=config.seed if config.shuffle else None, read_only=into.sealed
    )


def _check_not_empty(state: _State) -> None:
    """A source that has come to an end without one image is a mistake."""
    if state.accounts.found == 0:
        raise SourceEmpty("nothing to ingest: the archives of the source hold no image")
    if state.accounts.skipped == {"unsupported_name": state.accounts.found}:
        raise SourceEmpty(
            "nothing to ingest: the source holds no image by name or first bytes; there are "
            f"{told_by_ending(state.endings)}"
        )


def _check_complete(source: Source, into: Destination, state: _State) -> None:
    """A sealed stream is fine when it has all of the source."""
    none_of_it = StreamSealed(f"the stream at {into.url} is sealed: write to another one")
    if state.place is None and not isinstance(source, ListedFiles):
        raise none_of_it
    missing = (one for one in source.items(state.place) if one is not None and not one.label_only)
    more = next((one for one in missing if one.loss != "unsupported_name"), None)
    known = source.known if isinstance(source, ListedFiles) else 0
    if state.place is None and (more is not None or not known):
        raise none_of_it
    if more is not None:
        raise StreamSealed(
            f"the stream at {into.url} is sealed, and the source has more than is in it ({more.name}): write "
            "to another one"
        )


def _check_apart(source: Source, url: str) -> None:
    """A stream inside its own source would be read while it is written."""
    place = local_path(url)
    if place is None or not isinstance(source, FileSource):
        return
    for root in source.roots():
        if place.resolve().is_relative_to(Path(root).resolve()):
            raise ValueError(f"the stream {url} lies inside the source {root}: put it elsewhere")
