"""A store that fails at chosen requests: how crashes, full disks and lost answers look from above."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from stream.storage import Bytes, Store


class FailingStore:
    """Passes everything on to a real store; counts the requests that change it, and fails some of them.

    `before` names requests (by their count, from 0) that fail without having done anything, `after` those
    that are done but whose answer is lost. From `dead_from` on every change fails, as for a process that is
    gone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url
        self.changes = 0
        self.before: set[int] = set()
        self.after: set[int] = set()
        self.twice: set[int] = set()
        self.dead_from = 10**9

    def read(self, name: str) -> bytes:
        return self._store.read(name)

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        return self._store.read_many(names)

    def open(self, name: str) -> Bytes:
        return self._store.open(name)

    def exists(self, name: str) -> bool:
        return self._store.exists(name)

    def names(self, folder: str) -> list[str]:
        return self._store.names(folder)

    def create(self, name: str, data: bytes) -> bool:
        number = self._begin()
        made = self._store.create(name, data)
        if number in self.twice:  # a client library that asks again after a lost answer
            made = self._store.create(name, data)
        self._end(number)
        return made

    def replace(self, name: str, data: bytes) -> None:
        number = self._begin()
        self._store.replace(name, data)
        self._end(number)

    def upload(self, finished: Path, name: str) -> None:
        number = self._begin()
        self._store.upload(finished, name)
        self._end(number)

    def delete(self, name: str) -> None:
        number = self._begin()
        self._store.delete(name)
        self._end(number)

    def _begin(self) -> int:
        number = self.changes
        self.changes += 1
        if number in self.before or number >= self.dead_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return number

    def _end(self, number: int) -> None:
        if number in self.after:
            raise ConnectionError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
