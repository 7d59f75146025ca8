"""Commits: the entries of a manifest, and their form as JSON with a checksum.

One commit is one JSON object: version, token (unique to the attempt, so that a writer whose answer was lost
can tell its own commit from another's), number, n, before, uri, index_uri, bytes, sha256, source_id,
source_position, accounts {found, written, skipped {reason: n}, bytes}, created, check. The seal takes the
number after the last commit and is {version, token, seal: true, number, before, created, check}. Version 1,
which is still read, had no checksum.

`check` is a checksum of the object itself: what was changed is never taken for what was written.
"""

import json
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream.errors import StreamDamaged
from stream.json_values import string, whole
from stream.lanes import add_counts

CHECK = "check"
_NOT_READ = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def encode_checked(body: Mapping[str, Any]) -> bytes:
    """The JSON of an object, and at its end the CRC-32 of the rest. Keys are text, all the way down."""
    text = _canonical(body)
    return f'{text[:-1]},"{CHECK}":{zlib.crc32(text.encode("ascii"))}}}'.encode("ascii")


def decode_checked(data: bytes) -> dict[str, Any]:
    """Read what `encode_checked` wrote, without the checksum.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        body: dict[str, Any] = json.loads(data)
        stated = body.pop(CHECK)
        found = zlib.crc32(_canonical(body).encode("ascii"))
    except _NOT_READ as error:
        raise ValueError(f"it cannot be read: {error!r}") from error
    if stated != found or isinstance(stated, bool):
        raise ValueError(f"its checksum is {stated!r}, its content has {found}")
    return body


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


COMMIT_VERSION = 2
MOST_RECORDS = 2**40
"""Records of one commit, and bytes of one shard, beyond which a number cannot be true."""
_BELOW_ROOT = re.compile(r"(shards|index)/[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounts:
    """What became of the files found in a source; adds up by construction: found = written + skipped."""

    written: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    bytes: int = 0
    """Encoded image bytes written."""

    @property
    def found(self) -> int:
        """Files found: written + skipped."""
        return self.written + sum(self.skipped.values())

    def __add__(self, other: "Accounts") -> "Accounts":
        return Accounts(
            written=self.written + other.written,
            skipped=add_counts(self.skipped, other.skipped),
            bytes=self.bytes + other.bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NewCommit:
    """What a writer wants to commit; the manifest adds number, before and created."""

    n: int
    """Records; 0 = accounts only."""
    uri: str = ""
    """Tar: name below the stream's root, or an absolute path or URL for adopted tars; empty when n = 0."""
    index_uri: str = ""
    """Index sidecar, below the stream's root; empty when n = 0."""
    bytes: int = 0
    """Size of the tar."""
    sha256: str = ""
    """Hex digest of the tar; empty for adopted tars."""
    source_id: str = ""
    """Names the source that the records come from, for resuming an ingest."""
    source_position: Any = None
    """JSON value: the position in the source after everything that this commit accounts for."""
    accounts: Accounts = field(default_factory=Accounts)
    """Since the previous commit of this source."""

    def __post_init__(self) -> None:
        if not 0 <= self.n <= MOST_RECORDS:
            raise ValueError(f"a commit's n must be in 0..2^40, got {self.n}")
        if self.n > 0 and not (self.uri and self.index_uri):
            raise ValueError(f"a commit of {self.n} records needs a tar and an index")
        for uri in (self.uri, self.index_uri):
            if uri and not _is_place(uri):
                raise ValueError(f"a commit's file must be shards/NAME, index/NAME or absolute, got {uri!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One entry of the manifest."""

    number: int
    """Place in the order of commits, from 0, without gaps."""
    n: int
    """Records; 0 = accounts only."""
    before: int
    """Records in all commits before this one."""
    uri: str
    """Tar: name below the stream's root, or an absolute path or URL for adopted tars; empty when n = 0."""
    index_uri: str
    """Index sidecar, below the stream's root; empty when n = 0."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Hex digest of the tar; empty for adopted tars."""
    source_id: str
    source_position: Any
    """JSON value: the position in the source after everything that this commit accounts for."""
    accounts: Accounts
    """Since the previous commit of this source."""
    created: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """The end of a stream: takes the number after the last commit."""

    number: int
    before: int
    """Records of the whole stream."""
    created: float


def new_shard_id() -> str:
    """A name that no other shard has: 16 random hex digits."""
    return secrets.token_hex(8)


def is_absolute(uri: str) -> bool:
    """Whether a commit's tar lies outside the stream's root: an adopted one."""
    return uri.startswith("/") or "://" in uri


def encode_commit(new: NewCommit, *, number: int, before: int, created: float, token: str) -> bytes:
    """The JSON of a commit."""
    accounts = new.accounts
    body = {
        "version": COMMIT_VERSION,
        "token": token,
        "number": number,
        "n": new.n,
        "before": before,
        "uri": new.uri,
        "index_uri": new.index_uri,
        "bytes": new.bytes,
        "sha256": new.sha256,
        "source_id": new.source_id,
        "source_position": new.source_position,
        "accounts": {
            "found": accounts.found,
            "written": accounts.written,
            "skipped": dict(accounts.skipped),
            "bytes": accounts.bytes,
        },
        "created": created,
    }
    return encode_checked(body)


def encode_seal(*, number: int, before: int, created: float, token: str) -> bytes:
    """The JSON of a seal."""
    body = {
        "version": COMMIT_VERSION,
        "token": token,
        "seal": True,
        "number": number,
        "before": before,
        "created": created,
    }
    return encode_checked(body)


def decode_commit(data: bytes, *, number: int, before: int) -> Commit | Seal:
    """Read what `encode_commit` or `encode_seal` wrote.

    Args:
        data: the JSON.
        number: which commit it must be.
        before: records that all commits before it have.

    Raises:
        StreamDamaged: not a commit, of another version, or one that does not fit where it stands.
    """
    try:
        body = json.loads(data)
        if body["version"] not in {1, COMMIT_VERSION}:
            raise StreamDamaged(
                f"commit {number} has version {body['version']!r}; this program reads {COMMIT_VERSION}"
            )
        if body["version"] == COMMIT_VERSION or CHECK in body:
            body = decode_checked(data)
        stated = (whole(body["number"], most=MOST_RECORDS), whole(body["before"], most=2**62))
        if stated != (number, before):
            raise StreamDamaged(
                f"commit {number} says that it is {stated[0]} after {stated[1]} records, not after {before}"
            )
        created = float(body["created"])
        if body.get("seal") is True:
            return Seal(number=number, before=before, created=created)
        return Commit(
            number=number,
            n=whole(body["n"], most=MOST_RECORDS),
            before=before,
            uri=_place(body["uri"]),
            index_uri=_place(body["index_uri"]),
            bytes=whole(body["bytes"], most=2**62),
            sha256=string(body["sha256"]),
            source_id=string(body["source_id"]),
            source_position=body["source_position"],
            accounts=decode_accounts(body["accounts"]),
            created=created,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise StreamDamaged(f"commit {number} of the manifest cannot be read: {error}") from error


def decode_accounts(body: Mapping[str, Any]) -> Accounts:
    """Accounts from their JSON object. Raises ValueError, TypeError or KeyError when they are none."""
    accounts = Accounts(
        written=whole(body["written"], most=2**62),
        skipped={string(reason): whole(n, most=2**62) for reason, n in body["skipped"].items()},
        bytes=whole(body["bytes"], most=2**62),
    )
    if body["found"] != accounts.found:
        raise ValueError(f"accounts do not add up: found {body['found']!r}, but {accounts.found} are told")
    return accounts


def _place(value: object) -> str:
    uri = string(value)
    if uri and not _is_place(uri):
        raise ValueError(f"expected shards/NAME, index/NAME or an absolute place, got {uri!r}")
    return uri


def _is_place(uri: str) -> bool:
    """A file of this stream, or an absolute one; never a way out of the stream's folder."""
    if is_absolute(uri):
        return "::" not in uri and "\x00" not in uri
    return _BELOW_ROOT.fullmatch(uri) is not None
