"""Adopts foreign tars: makes a shard of a tar that another tool wrote, where it is, without copying an image.

What is in a tar is found as for copying (see tar_samples.py), with the same reasons. The index keeps a digest
of each image, for which every image is read once, and the labels that the tar itself does not hold.

An image is not taken again when it is in the stream: at the same place of the same tar, however its path is
spelled, or anywhere else with the same content.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from stream.errors import StreamError, StreamSealed
from stream.record import decode_sample
from stream.shards.commits import Accounts, Commit, NewCommit, is_absolute, new_shard_id
from stream.shards.index import DIGEST_BYTES, NO_DIGEST, IndexRow, decode_index, encode_index
from stream.shards.manifest import Manifest
from stream.storage import as_stream_error, local_path, open_bytes
from stream.tar import TarLoss, open_tar
from stream.tar_samples import LARGEST_IMAGE, TarEvent, TarImage, group_tar, run_through

Label = tuple[int | None, str | None, bool]
"""Class number, name of the class, and whether a label was stated or asked for that cannot be had."""


def label_in_tar(image: TarImage) -> Label:
    """The label that an image has by its .cls and .json members."""
    record = decode_sample(b"-", "", image.json, image.cls)  # the image itself has no say in its label
    return record.label, record.label_name, record.bad_label


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptOptions:
    """How a tar is adopted."""

    max_bytes: int = LARGEST_IMAGE
    """Images with more bytes are not taken."""
    digests: bool = True
    """Read every image and keep its digest; without, changed bytes and equal images are not found."""
    label: Callable[[TarImage], Label] = label_in_tar
    """The label of an image."""
    keep_labels: bool = False
    """Keep the labels in the index, because the tar does not hold them."""
    is_new: Callable[[str], bool] | None = None
    """Whether the stream has no image of this SHA-256; asked once an image. None: all are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """A tar that was read and can be committed."""

    uri: str
    tar_bytes: int
    rows: list[IndexRow]
    skipped: Counter[str]
    """By reason; see `stream.tar.TAR_REASONS`, and `duplicate`."""
    losses: list[TarLoss] = field(default_factory=list)
    """What `skipped` counts, in the order of the tar."""
    labels_lost: Counter[str] = field(default_factory=Counter)
    """By reason; see `stream.tar.LABEL_REASONS`."""


class AdoptedTars:
    """The commits of a stream that lie in tars of others, by resolved place; follows the manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._commits: dict[str, list[int]] = {}
        self._seen = 0

    def images_in(self, uri: str) -> dict[tuple[int, int], bytes]:
        """Images of a tar that are in the stream: (offset, size) -> first bytes of the digest.

        Raises:
            StreamError: an index cannot be read.
        """
        self._manifest.refresh()
        for number in range(self._seen, len(self._manifest)):
            if self._manifest.n(number) and is_absolute(other := self._manifest.entry(number).uri):
                self._commits.setdefault(_resolved(other), []).append(number)
        self._seen = len(self._manifest)
        images: dict[tuple[int, int], bytes] = {}
        for number in self._commits.get(_resolved(uri), ()):
            commit = self._manifest.entry(number)
            try:
                with as_stream_error(f"cannot read {commit.index_uri} of the stream at {self._manifest.url}"):
                    data = self._manifest.store.read(commit.index_uri)
            except StreamError as error:
                if isinstance(error.__cause__, FileNotFoundError) and number < self._manifest.floor.first:
                    continue  # pruned: nothing says any more which images it had
                raise
            index = decode_index(data, name=commit.index_uri, n=commit.n)
            if index.without_digest and index.tar_bytes > _size(uri):
                continue  # another file has come in its place, and what was there is not known
            for row in map(index.row, range(len(index))):
                images[row.image.offset, row.image.size] = row.digest
        return images


def adopt_tar(
    manifest: Manifest,
    tar_url: str,
    *,
    source_id: str,
    source_position: Any = None,
    options: AdoptOptions | None = None,
) -> Commit:
    """Index a foreign plain tar where it is and commit it.

    Args:
        manifest: of the stream that the tar becomes part of.
        tar_url: path or URL; it must stay there, unchanged, as long as the stream is read.
        source_id: names the source, for going on later.
        source_position: JSON value: the position in the source after this tar.
        options: what is taken, and what is kept of it.

    Returns:
        The commit. Its n may be 0; its accounts say what was found, adopted and skipped.

    Raises:
        StreamSealed: the stream has its end.
        StreamError: a compressed tar (it must be copied), or it cannot be read.
    """
    adoption = index_tar(manifest, tar_url, options or AdoptOptions(), AdoptedTars(manifest))
    return commit_tar(manifest, adoption, source_id=source_id, source_position=source_position)


def index_tar(manifest: Manifest, tar_url: str, options: AdoptOptions, adopted: AdoptedTars) -> Adoption:
    """Read a tar, to be committed by `commit_tar`. Raises as `adopt_tar`."""
    if manifest.sealed:
        raise StreamSealed(f"the stream at {manifest.url} is sealed: adopt into another one")
    local = local_path(tar_url)
    uri = tar_url if local is None else str(local)
    known = adopted.images_in(uri)
    with as_stream_error(f"cannot read {uri}"):
        file = open_bytes(uri)
        try:
            data = open_tar(file, uri)
            events = run_through(group_tar(data, max_bytes=options.max_bytes, digests=options.digests))
            size = file.size
        finally:
            file.close()
    return _adoption(uri, size, events, options, known)


def _adoption(
    uri: str,
    size: int,
    events: list[TarEvent],
    options: AdoptOptions,
    known: dict[tuple[int, int], bytes],
) -> Adoption:
    found = Adoption(uri=uri, tar_bytes=size, rows=[], skipped=Counter())
    for event in events:
        if isinstance(event, TarLoss):
            if event.label_only:
                found.labels_lost[event.reason] += 1
            else:
                found.losses.append(event)
        elif _is_here(event, known) or not _is_new(event, options):
            found.losses.append(TarLoss("duplicate", event.name))
        else:
            label, label_name, bad = options.label(event)
            row = IndexRow(
                image=event.place,
                extension=event.extension,
                json=event.json_at,
                cls=event.cls_at,
                digest=event.digest[:DIGEST_BYTES] or NO_DIGEST,
            )
            if options.keep_labels:
                row = replace(row, label=label, label_name=label_name)
            found.rows.append(row)
            if bad:
                found.labels_lost["bad_label"] += 1
    found.skipped.update(loss.reason for loss in found.losses)
    return found


def commit_tar(manifest: Manifest, adoption: Adoption, *, source_id: str, source_position: Any) -> Commit:
    """Write the index of a tar that was read, and commit it. Raises as `adopt_tar`."""
    rows = adoption.rows
    new = {
        "source_id": source_id,
        "source_position": source_position,
        "accounts": Accounts(
            written=len(rows),
            skipped=dict(sorted(adoption.skipped.items())),
            bytes=sum(row.image.size for row in rows),
        ),
    }
    if not rows:
        return manifest.commit(NewCommit(n=0, **new))
    index_uri = f"index/{new_shard_id()}.idx"
    with as_stream_error(f"cannot write an index of the stream at {manifest.url}"):
        data = encode_index(rows, tar_bytes=adoption.tar_bytes, adopted=True)
        if not manifest.store.create(index_uri, data):
            raise StreamError(f"{index_uri} of the stream at {manifest.url} is there already")
    try:
        return manifest.commit(
            NewCommit(n=len(rows), uri=adoption.uri, index_uri=index_uri, bytes=adoption.tar_bytes, **new)
        )
    except StreamSealed:
        manifest.store.delete(index_uri)
        raise


def _is_here(image: TarImage, known: dict[tuple[int, int], bytes]) -> bool:
    """Whether the stream has this very place; where a digest is not known, place and size decide."""
    digest = known.get((image.place.offset, image.place.size))
    if digest is None:
        return False
    return NO_DIGEST in (digest, image.digest or NO_DIGEST) or image.digest[:DIGEST_BYTES] == digest


def _is_new(image: TarImage, options: AdoptOptions) -> bool:
    return options.is_new is None or not image.digest or options.is_new(image.digest.hex())


def _resolved(uri: str) -> str:
    local = local_path(uri)
    return uri if local is None else str(local.resolve())


def _size(uri: str) -> int:
    """Bytes of a tar; -1 when it cannot be opened, which is reported when it is read."""
    try:
        file = open_bytes(uri)
    except (OSError, StreamError):
        return -1
    file.close()
    return file.size
