"""Adopts foreign tars: makes a shard of a tar that another tool wrote, where it is, without copying an image.

Members are put together as WebDataset does it: the key is the path up to the first dot of the file name, what
follows is the extension, in any case. Unlike there, members of a sample need not be neighbours, and one bad
member costs its sample only. Each key gives one record; hidden files and macOS leftovers are no files.

Reasons in the accounts: empty (an image without bytes), duplicate_key (the same member again), extra_image (a
second image under one key; an extension without further dots wins), too_large (4 GiB or more), and for the
tar itself truncated, damaged_tar, after_end and odd_member (see tars.py), each counted once where what it
cost is not known.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from stream.commits import Accounts, Commit, NewCommit, is_absolute, new_shard_id
from stream.errors import StreamError, StreamSealed
from stream.index import LARGEST_MEMBER, IndexRow, Member, decode_index, encode_index
from stream.manifest import Manifest
from stream.record import IMAGE_EXTENSIONS
from stream.store import explained, local_path, open_bytes
from stream.tars import TarDamage, TarFile, walk_tar


def adopt_tar(
    manifest: Manifest,
    tar_url: str,
    *,
    source_id: str,
    source_position: Any = None,
    known: Collection[Member] = (),
) -> Commit:
    """Index a foreign plain tar where it is and commit it.

    Args:
        manifest: of the stream that the tar becomes part of.
        tar_url: path or URL; it must stay there, unchanged, as long as the stream is read.
        source_id: names the source, for going on later.
        source_position: JSON value: the position in the source after this tar.
        known: images of this tar that the stream has; they are skipped with reason `duplicate`.

    Returns:
        The commit. Its n may be 0; its accounts say what was found, adopted and skipped.

    Raises:
        StreamSealed: the stream has its end.
        StreamError: not a plain tar (a compressed one must be copied), or it cannot be read.
    """
    if manifest.sealed:
        raise StreamSealed(f"the stream at {manifest.url} is sealed: adopt into another one")
    local = local_path(tar_url)
    uri = tar_url if local is None else str(local)
    with explained(f"cannot read {uri}"):
        file = open_bytes(uri)
        try:
            rows, skipped = index_tar(walk_tar(file, uri))
            size = file.size
        finally:
            file.close()
    if known:
        skipped["duplicate"] = sum(row.image in known for row in rows)
        rows = [row for row in rows if row.image not in known]
        skipped += Counter()  # drops a count of 0
    new = {
        "source_id": source_id,
        "source_position": source_position,
        "accounts": Accounts(
            written=len(rows), skipped=dict(sorted(skipped.items())), bytes=sum(r.image.size for r in rows)
        ),
    }
    if not rows:
        return manifest.commit(NewCommit(n=0, **new))
    index_uri = f"index/{new_shard_id()}.idx"
    with explained(f"cannot write an index of the stream at {manifest.url}"):
        if not manifest.store.create(index_uri, encode_index(rows, tar_bytes=size, adopted=True)):
            raise StreamError(f"{index_uri} of the stream at {manifest.url} is there already")
    try:
        return manifest.commit(NewCommit(n=len(rows), uri=uri, index_uri=index_uri, bytes=size, **new))
    except StreamSealed:
        manifest.store.delete(index_uri)
        raise


class AdoptedTars:
    """Which images of which tars a stream has by reference, whoever adopted them; not thread-safe.

    A record of an adopted tar is a place in it, so the same place again would be the same image again, also
    when the tar has grown, or was written anew.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._seen = 0
        self._commits: dict[str, list[int]] = {}

    def images_of(self, tar_url: str) -> set[Member]:
        """The images of a tar that are in the stream; looks at commits that came since too.

        Raises:
            StreamDamaged: an index cannot be trusted.
            StreamError: the stream cannot be read.
        """
        manifest = self._manifest
        manifest.refresh()
        for number in range(self._seen, len(manifest)):
            if manifest.n(number) and is_absolute(uri := manifest.entry(number).uri):
                self._commits.setdefault(_resolved(uri), []).append(number)
        self._seen = len(manifest)
        images: set[Member] = set()
        for number in self._commits.get(_resolved(tar_url), ()):
            commit = manifest.entry(number)
            try:
                with explained(f"cannot read {commit.index_uri} of the stream at {manifest.url}"):
                    data = manifest.store.read(commit.index_uri)
            except StreamError as error:
                if isinstance(error.__cause__, FileNotFoundError) and number < manifest.floor.first:
                    continue  # pruned: nothing says any more which images it had
                raise
            index = decode_index(data, name=commit.index_uri, n=commit.n)
            images.update(index.row(row).image for row in range(commit.n))
        return images


def _resolved(tar_url: str) -> str:
    local = local_path(tar_url)
    return tar_url if local is None else os.path.realpath(local)


@dataclass(slots=True)
class _Sample:
    """Members of one key, as far as they were met."""

    image: Member | None = None
    extension: str = ""
    json: Member | None = None
    cls: Member | None = None


def index_tar(entries: Iterable[TarFile | TarDamage]) -> tuple[list[IndexRow], Counter[str]]:
    """Put the files of a tar together to records.

    Returns:
        Rows in the order in which their keys were first met, and what was skipped, by reason.
    """
    samples: dict[str, _Sample] = {}
    skipped: Counter[str] = Counter()
    for entry in entries:
        if isinstance(entry, TarDamage):
            skipped[entry.reason] += 1
            continue
        parts = _key_and_extension(entry.name)
        if parts is None:
            continue
        key, extension = parts
        sample = samples.setdefault(key, _Sample())
        member = Member(entry.offset, entry.size)
        if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            if reason := _take_image(sample, member, extension):
                skipped[reason] += 1
        elif extension == "json" and entry.size <= LARGEST_MEMBER:
            sample.json = sample.json or member
        elif extension == "cls" and entry.size <= LARGEST_MEMBER:
            sample.cls = sample.cls or member
    rows = [
        IndexRow(image=own.image, extension=own.extension.rpartition(".")[2], json=own.json, cls=own.cls)
        for own in samples.values()
        if own.image is not None
    ]
    return rows, skipped


def _take_image(sample: _Sample, member: Member, extension: str) -> str:
    """Give a sample its image; the reason of whatever is skipped by that, or an empty string."""
    if member.size == 0:
        return "empty"
    if member.size > LARGEST_MEMBER:
        return "too_large"
    if sample.image is None:
        sample.image, sample.extension = member, extension
        return ""
    if extension == sample.extension:
        return "duplicate_key"
    if "." in sample.extension and "." not in extension:
        sample.image, sample.extension = member, extension
    return "extra_image"


def _key_and_extension(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension of a member; None for what is no file of a data set."""
    folder, slash, file_name = name.rpartition("/")
    stem, _, extension = file_name.partition(".")
    if not stem or not extension or "__MACOSX" in folder.split("/"):
        return None
    return f"{folder}{slash}{stem}", extension.lower()
