"""Who reads a stream: each run leaves a small file in it, so that pruning knows what must stay.

    readers/<run>.json    version, run, where, folder, first, begin, used, waiting, seen

A run writes its own file and no other; a run that is over, or is forgotten by hand, has none. The file
says from which commit on the oldest checkpoint that the run still keeps would have to read. A copy of a run
directory has the uuid of its original and an entry of its own: <run>-<number of the directory>.json.
"""

import re
import time
from dataclasses import asdict, dataclass

from stream.errors import StreamDamaged
from stream.json_values import whole
from stream.shards.commits import decode_checked, encode_checked
from stream.storage import Store, as_stream_error

READER_VERSION = 1
FOLDER = "readers"
_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LARGEST = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderRecord:
    """A run that reads a stream."""

    run: str
    """uuid of the run, of a copy with the number of its directory: letters, digits, - and _."""
    where: str = ""
    """Host and run directory."""
    folder: int = 0
    """Number (inode) of the run directory, which a move on one file system keeps; 0 = not known."""
    first: int = 0
    """Commits from this one on must stay."""
    begin: int = 0
    """First commit of the run's first pass."""
    used: int = 0
    """Records from there on that the run has used or skipped."""
    waiting: bool = False
    """The run has nothing to do before further records arrive."""
    seen: float = 0.0
    """When the run last wrote this, seconds since 1970 by its own clock."""

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise ValueError(
                f"a run's name is letters, digits, - and _, at most 64 of them; got {self.run!r}"
            )
        for name in ("folder", "first", "begin", "used"):
            if not 0 <= getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} of run {self.run} must be in 0..2^62, got {getattr(self, name)}")


def write_reader(store: Store, reader: ReaderRecord) -> None:
    """Register a run, or bring its entry up to date. Raises StreamError when it cannot be written."""
    with as_stream_error(f"cannot register run {reader.run} with the stream at {store.url}"):
        store.replace(_name(reader.run), encode_reader(reader))


def forget_reader(store: Store, run: str) -> bool:
    """Take a run out of the register; whether it was in. Raises StreamError."""
    with as_stream_error(f"cannot forget run {run} at {store.url}"):
        there = store.exists(_name(run))
        if there:  # a read-only mount refuses to remove even what is not there
            store.delete(_name(run))
    return there


def read_reader(store: Store, run: str) -> ReaderRecord | None:
    """One entry; None when there is none. Raises StreamDamaged, StreamError."""
    with as_stream_error(f"cannot read who reads the stream at {store.url}"):
        data = store.read_many([_name(run)]).get(_name(run)) if store.exists(_name(run)) else None
    return None if data is None else decode_reader(data, name=run)


def read_readers(store: Store) -> list[ReaderRecord]:
    """All runs that are registered, by name.

    Raises:
        StreamDamaged: an entry cannot be trusted; nothing may be pruned then.
        StreamError: the store does not answer.
    """
    with as_stream_error(f"cannot read who reads the stream at {store.url}"):
        names = [name for name in store.names(FOLDER) if name.endswith(".json")]
        found = store.read_many([f"{FOLDER}/{name}" for name in names])
    return [
        decode_reader(data, name=name.removesuffix(".json"))
        for name in sorted(names)
        if (data := found.get(f"{FOLDER}/{name}")) is not None
    ]


def encode_reader(reader: ReaderRecord) -> bytes:
    """The JSON of an entry."""
    return encode_checked({"version": READER_VERSION, **asdict(reader)})


def decode_reader(data: bytes, *, name: str) -> ReaderRecord:
    """Read what `encode_reader` wrote. Raises StreamDamaged."""
    try:
        body = decode_checked(data)
        if body["version"] != READER_VERSION:
            raise StreamDamaged(
                f"the entry of reader {name} has version {body['version']!r}; this program reads "
                f"{READER_VERSION}"
            )
        reader = ReaderRecord(
            run=str(body["run"]),
            where=str(body["where"]),
            folder=whole(body.get("folder", 0)),
            first=whole(body["first"], least=-1),
            begin=whole(body["begin"]),
            used=whole(body["used"]),
            waiting=body["waiting"] is True,
            seen=float(body["seen"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise StreamDamaged(
            f"the entry of reader {name} cannot be read ({error!r}): its run writes it again while it "
            f"learns; `swavstream stream prune STREAM --forget {name}` takes it out"
        ) from error
    if reader.run != name:
        raise StreamDamaged(f"the entry of reader {name} says that it is of run {reader.run}")
    return reader


def seen_ago(reader: ReaderRecord) -> float:
    """Seconds since the run wrote its entry, as far as clocks agree."""
    return max(0.0, time.time() - reader.seen)


def _name(run: str) -> str:
    if not _RUN.fullmatch(run):
        raise ValueError(f"a run's name is letters, digits, - and _, at most 64 of them; got {run!r}")
    return f"{FOLDER}/{run}.json"
