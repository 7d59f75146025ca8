"""Where the files of a stream are: a local folder, or any fsspec URL.

A store knows whole small files by name, and promises three things about them: `create` makes a file that was
not there, whole and durable, or says that somebody else was first; `replace` makes it visible whole; a reader
never sees a part. Unfinished local files end in `.part`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from stream.errors import StreamError
from stream.local_store import LocalBytes, LocalStore
from stream.remote_store import RemoteBytes, RemoteStore, file_system
from stream.secrets import check_no_password, safe_url


class Bytes(Protocol):
    """One file open for reading at any place."""

    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Store(Protocol):
    """Files of one stream by name; names have forward slashes and no leading one."""

    url: str

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        ...

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the files that are there."""
        ...

    def open(self, name: str) -> Bytes:
        """Open for reading at any place. Raises FileNotFoundError."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, in no order; empty when there is none. For small folders only."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make the file whole and durable; False when it is there already."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Make the file whole and durable, over an older one."""
        ...

    def upload(self, finished: Path, name: str) -> None:
        """Take over a finished local file under a new name; raises FileExistsError when it is taken."""
        ...

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        ...


def open_store(url: str) -> Store:
    """Store for a path, a file:// URL, or any URL that fsspec knows.

    Raises:
        ValueError: an empty URL, a chain, one with a password, or a protocol that fsspec does not know.
    """
    return LocalStore(local) if (local := local_path(url)) is not None else RemoteStore(url)


def open_bytes(url: str) -> Bytes:
    """Open one file, wherever it is, for reading at any place. Raises FileNotFoundError, ValueError."""
    local = local_path(url)
    if local is not None:
        return LocalBytes(local)
    system, path = file_system(url)
    return RemoteBytes(system, path)


def local_path(url: str) -> Path | None:
    """The absolute path that a path or a file:// URL means; None for other URLs.

    Raises:
        ValueError: an empty URL, a chain, or one with a password.
    """
    if not url:
        raise ValueError("the address of a stream is empty: give a folder or a URL")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url).expanduser().absolute()
    check_no_password(url)
    if "::" in url:
        raise ValueError(f"chained URLs are not taken: {safe_url(url)!r}")
    return Path(rest).absolute() if scheme in {"file", "local"} else None


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the system or the object store refuses into a StreamError that says what was tried."""
    try:
        yield
    except OSError as error:
        raise StreamError(f"{doing}: {error.strerror or error}") from error
