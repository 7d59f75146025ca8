"""Files of a stream in an object store, through fsspec.

`create` is a conditional put where the file system has one (s3fs, gcsfs, memory). fsspec's general fallback
looks first and writes then, and so it is done on a store that answers 501 to a conditional put: such a store
takes one writer at a time.
"""

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stream.errors import StreamError

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

        A put is not tried again after a lost answer: nobody could tell whose object it is then, and the
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
        """Put a finished local file under a name that nobody else uses."""
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
