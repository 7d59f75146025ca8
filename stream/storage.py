"""Where the files of a stream are: a local folder, or any fsspec URL.

A store knows whole small files by name, and promises three things about them: `create` makes a file that was
not there, whole and durable, or says that it was there; `replace` makes it visible whole; a reader never sees
a part. Unfinished local files end in `.part`.

In an object store `create` is a conditional put where the file system has one (s3fs, gcsfs, memory). fsspec's
general fallback looks first and writes then, and so it is done on a store that answers 501 to a conditional
put: such a store takes one writer at a time.

Local files are replaced whole by `whole_file`, and locked by `try_lock`, by all packages.

The file is long because every rule about a whole file, its locks and its stores stands in it.
"""

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from stream.errors import StreamError
from stream.secrets import check_no_password, safe_url

PART = ".part"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a disk, quota or file size that is used up."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def sync_path(path: Path) -> None:
    """Make the content of a file durable, or the new and removed names of a folder."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that no reader knows yet, and make its content durable; its name is not."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def part_of(path: Path) -> Path:
    """The hidden name beside a file under which its only writer writes it before the rename."""
    return path.with_name(f".{path.name}{PART}")


@contextlib.contextmanager
def whole_file(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Replace a file by one that the body writes under another name: readers see the old or the new one.

    Afterwards content and name are durable. When the body or the disk fails, the unfinished file is removed.

    Args:
        path: the file.
        part: the other name, in the same folder; needed where two processes may write the file at once.

    Yields:
        The name to write to.
    """
    part = part or part_of(path)
    try:
        yield part
        sync_path(part)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_path(path.parent)


def write_whole(path: Path, content: bytes, part: Path | None = None) -> None:
    """Write a small file by `whole_file`."""
    with whole_file(path, part) as unfinished:
        unfinished.write_bytes(content)


def try_lock(file: int | IO[bytes], *, shared: bool = False) -> bool | None:
    """Lock an open file at once; the lock lasts until every copy of the descriptor is closed.

    Returns:
        True: locked. False: another process has it. None: this file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def open_lock(path: Path) -> int:
    """A descriptor of a lock file, which is made when it is missing; its rights are those of the umask."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of a file; False where the file or the locks are missing."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        return try_lock(file) is False
    return False


def link_new(part: Path, final: Path) -> bool:
    """Give a finished file its final name unless it is taken; False then. The part keeps its own name.

    Where the file system has no hard links the part is renamed under a lock that dies with the process.
    """
    try:
        os.link(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _locked(final.parent):
            if final.exists():
                return False
            part.rename(final)
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class LocalBytes:
    """A local file, read with pread: no position, so any number of readers may share it."""

    def __init__(self, path: Path) -> None:
        # A manifest from elsewhere may name a pipe or a device; opening one must not block.
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        self.size = found.st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        pieces: list[bytes] = []
        while length > 0:
            # A length beyond the file must not make a buffer of that size.
            piece = os.pread(self._handle, min(length, max(self.size - offset, 0), 1 << 30), offset)
            if not piece:
                break
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class LocalStore:
    """A folder of this machine (or of a shared file system)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def path(self, name: str) -> Path:
        """Where a file of this name is."""
        return self.root / name

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return self.path(name).read_bytes()

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the files that are there."""
        found: dict[str, bytes] = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[name] = self.path(name).read_bytes()
        return found

    def open(self, name: str) -> LocalBytes:
        """Open for reading at any place. Raises FileNotFoundError."""
        return LocalBytes(self.path(name))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return self.path(name).exists()

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, in no order; empty when there is none. For small folders only."""
        try:
            return [entry.name for entry in self.path(folder).iterdir()]
        except FileNotFoundError:
            return []

    def create(self, name: str, data: bytes) -> bool:
        """Make the file whole and durable; False when it is there already."""
        part = self._new_part(name)
        try:
            write_synced(part, data)
            made = link_new(part, self.path(name))
        finally:
            part.unlink(missing_ok=True)
        sync_path(part.parent)
        return made

    def replace(self, name: str, data: bytes) -> None:
        """Make the file whole and durable, over an older one."""
        write_whole(self.path(name), data, self._new_part(name))

    def upload(self, finished: Path, name: str) -> None:
        """Give a file that was written inside this folder its final name; the part stays (see `link_new`)."""
        final = self.path(name)
        self.make_folder(final.parent)
        if not link_new(finished, final):
            raise FileExistsError(errno.EEXIST, "the name is taken", str(final))
        sync_path(final.parent)

    def delete(self, name: str) -> None:
        """Remove the file if it is there."""
        self.path(name).unlink(missing_ok=True)

    def make_folder(self, folder: Path) -> None:
        """Make a folder of the stream, durably: a file in it is only as safe as its name."""
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for parent in (
                self.root.parent,
                *(one for one in folder.parents if one.is_relative_to(self.root)),
            ):
                sync_path(parent)

    def _new_part(self, name: str) -> Path:
        final = self.path(name)
        self.make_folder(final.parent)
        return final.with_name(f"{final.name}.{uuid.uuid4().hex}{PART}")


TRIES = 5
"""Attempts at one request; the waits between them are 0.2, 0.4, 0.8 and 1.6 seconds."""
CONFLICT = 409
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class RemoteBytes:
    """An object of an fsspec file system, read by ranges."""

    def __init__(self, system: Any, path: str) -> None:
        self._system = system
        self._path = path
        size = _retried(lambda: system.size(path))
        if size is None:
            raise StreamError(f"the store does not tell the size of {path}: it cannot be read by ranges")
        self.size = int(size)

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the object."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        data = _retried(lambda: self._system.cat_file(self._path, start=offset, end=end))
        return bytes(data)

    def close(self) -> None:
        """Nothing is held."""


class RemoteStore:
    """A prefix of an fsspec file system."""

    def __init__(self, url: str) -> None:
        self._system, self._root = file_system(url.rstrip("/"))
        self.url = url.rstrip("/")
        self._conditional = True

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        return bytes(_retried(lambda: self._system.cat_file(self._path(name))))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the objects that are there; asked for all at once where the file system can."""
        if not names:
            return {}
        by_path = {self._path(name): name for name in names}
        if len(by_path) == 1:
            try:
                return {name: self.read(name) for name in names}
            except FileNotFoundError:
                return {}
        answers = self._system.cat(list(by_path), on_error="return", recursive=False)
        found: dict[str, bytes] = {}
        for path, answer in answers.items():
            name = by_path[path]
            if isinstance(answer, FileNotFoundError):
                continue
            # Asked again, with patience, after another error; what still fails is raised.
            found[name] = self.read(name) if isinstance(answer, Exception) else bytes(answer)
        return found

    def open(self, name: str) -> RemoteBytes:
        """Open for reading at any place. Raises FileNotFoundError."""
        return RemoteBytes(self._system, self._path(name))

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        return bool(_retried(lambda: self._system.exists(self._path(name))))

    def names(self, folder: str) -> list[str]:
        """Names of the objects in a folder, in no order; empty when there is none. For small folders only."""
        try:
            paths = _retried(lambda: self._system.ls(self._path(folder), detail=False))
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def create(self, name: str, data: bytes) -> bool:
        """Put the object unless it is there.

        A put is not tried again after a lost answer: no writer could tell whose object it is then, and the
        manifest reads back what it finds. It is tried again when the store says that it did nothing because
        another request was under way. A store without conditional puts takes one writer at a time.
        """
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        for attempt in range(TRIES):
            try:
                return self._put_new(path, data)
            except FileExistsError:
                return False
            except OSError as error:
                if not _is_conflict(error) or attempt == TRIES - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _put_new(self, path: str, data: bytes) -> bool:
        if self._conditional:
            try:
                self._system.pipe_file(path, data, mode="create")
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                self._conditional = False
                _log.warning("%s has no conditional puts: let one writer at a time write there", self.url)
            else:
                return True
        if _retried(lambda: self._system.exists(path)):
            return False
        self._system.pipe_file(path, data)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Put the object, over an older one."""
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        _retried(lambda: self._system.pipe_file(path, data))

    def upload(self, finished: Path, name: str) -> None:
        """Put a finished local file under a name that nothing else uses."""
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        _retried(lambda: self._system.put_file(str(finished), path))

    def delete(self, name: str) -> None:
        """Remove the object if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path on it. Raises ValueError where fsspec has none."""
    import fsspec  # noqa: PLC0415 - a quarter of a second that only remote streams pay

    try:
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except TypeError:  # a file system that keeps no listings and takes no such setting
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}") from error
    return system, str(path).rstrip("/")


def _is_conflict(error: OSError) -> bool:
    """Whether a store did nothing since another request for the same object was under way (HTTP 409)."""
    response = getattr(error.__cause__, "response", None)  # of botocore, beneath s3fs
    if isinstance(response, Mapping):
        return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == CONFLICT)
    return getattr(error, "status", None) == CONFLICT


def _retried(request: Callable[[], _T]) -> _T:
    """The answer, after waiting out what may pass; a missing file or a refusal is raised at once."""
    for attempt in range(TRIES):
        try:
            return request()
        except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError):
            raise
        except OSError:
            if attempt == TRIES - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


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
def as_stream_error(doing: str) -> Iterator[None]:
    """Turn what the system or the object store refuses into a StreamError that says what was tried."""
    try:
        yield
    except OSError as error:
        raise StreamError(f"{doing}: {error.strerror or error}") from error
