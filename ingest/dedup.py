"""Exact duplicates: content that a stream has already, whoever wrote it and whenever."""

from stream.digests import DigestSet, known_digests
from stream.index import read_digests
from stream.manifest import Manifest
from stream.store import explained


class Duplicates:
    """What the stream has, by the digest of the stored bytes; one per ingest, not thread-safe.

    Shards that other writers commit meanwhile are taken in by `catch_up`. Two writers that bring the same
    image within one shard's time both write it: neither can know.
    """

    def __init__(self, manifest: Manifest, *, source_id: str) -> None:
        """Read the digests of everything that is committed: 16 bytes a record."""
        self._manifest = manifest
        self._source_id = source_id
        self._known: DigestSet = known_digests(manifest)
        self._seen_commits = len(manifest)

    def add(self, sha256: str) -> bool:
        """Whether this content is new; it is known from now on."""
        digest = bytes.fromhex(sha256)
        if digest in self._known:
            return False
        self._known.add(digest)
        return True

    def catch_up(self) -> None:
        """Take in what others committed since; reads their index sidecars. Raises StreamError."""
        manifest = self._manifest
        for number in range(self._seen_commits, len(manifest)):
            commit = manifest.entry(number)
            if commit.n == 0 or commit.source_id == self._source_id:
                continue
            with explained(f"cannot read {commit.index_uri} of the stream at {manifest.url}"):
                file = manifest.store.open(commit.index_uri)
                try:
                    self._known.add_many(read_digests(file, name=commit.index_uri, n=commit.n))
                finally:
                    file.close()
        self._seen_commits = len(manifest)
