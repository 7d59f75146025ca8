"""Files of a stream in a folder of this machine, or of a shared file system."""

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

PART = ".part"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def sync_folder(folder: Path) -> None:
    """Make new and removed names of a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_new(part: Path, final: Path) -> bool:
    """Give a finished file its final name unless somebody has it; False then. The part keeps its own name.

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
        part = self._written_aside(name, data)
        try:
            made = link_new(part, self.path(name))
        finally:
            part.unlink(missing_ok=True)
        sync_folder(part.parent)
        return made

    def replace(self, name: str, data: bytes) -> None:
        """Make the file whole and durable, over an older one."""
        part = self._written_aside(name, data)
        try:
            part.replace(self.path(name))
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sync_folder(part.parent)

    def upload(self, finished: Path, name: str) -> None:
        """Give a file that was written inside this folder its final name; the part stays (see `link_new`)."""
        final = self.path(name)
        self.make_folder(final.parent)
        if not link_new(finished, final):
            raise FileExistsError(errno.EEXIST, "the name is taken", str(final))
        sync_folder(final.parent)

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
                sync_folder(parent)

    def _written_aside(self, name: str, data: bytes) -> Path:
        final = self.path(name)
        self.make_folder(final.parent)
        part = final.with_name(f"{final.name}.{uuid.uuid4().hex}{PART}")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return part
