"""Loaders driven as a run drives them, by `ops.train.sync.Steps`: alone, or several ranks in threads."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from ops.distributed.world import Rows, World
from ops.train.sync import Patience, Steps, StopVote
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.pool import Pool, open_pool
from stream.processes import Processes
from tests.waiting import LIMIT_S

NEVER = Patience(warn_s=10**6, fail_s=10**6)


def steps_of(
    loader: Loader, world: World | None = None, *, stop: Callable[[], bool] = lambda: False
) -> Steps:
    """Iterates over the batches of a loader, until `stop` is true: it is asked at least every 0.1 s."""
    return Steps(
        loader,
        World() if world is None else world,
        stop=lambda: StopVote.ASKED if stop() else StopVote.NO,
        on_wait=lambda _waiting: None,
        patience=NEVER,
        warn=print,
    )


def batches_of(loader: Loader, *, stop: Callable[[], bool] = lambda: False) -> list[Batch]:
    """All batches of a loader that replays nothing."""
    return list(steps_of(loader, stop=stop))


def with_replays(loader: Loader) -> list[list[Batch]]:
    """All batches of a loader, each followed by its replays."""
    steps = steps_of(loader)
    return [[batch, *steps.replays()] for batch in steps]


class Exchange:
    """What the ranks of one process hand in; the n-th call of one rank meets the n-th call of the others."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._handed: dict[tuple[str, int], dict[int, Any]] = {}
        self._changed = threading.Condition()

    def hand_in(self, key: tuple[str, int], rank: int, value: Any) -> None:
        with self._changed:
            self._handed.setdefault(key, {})[rank] = value
            self._changed.notify_all()

    def wait(self, key: tuple[str, int]) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._handed[key]) == self.ranks, LIMIT_S)
            return [self._handed[key][rank] for rank in range(self.ranks)]


class ThreadWorld(World):
    """One of several ranks, each in a thread of its own."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange, self.rank, self.world_size = exchange, rank, exchange.ranks
        self._calls = {"ints": 0, "objects": 0}

    def _hand_in(self, kind: str, value: Any) -> tuple[str, int]:
        self._calls[kind] += 1
        key = kind, self._calls[kind]
        self._exchange.hand_in(key, self.rank, value)
        return key

    def all_gather_ints(self, row: Sequence[int]) -> Callable[[], Rows]:
        key = self._hand_in("ints", list(row))
        return lambda: self._exchange.wait(key)

    def all_gather_objects(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self._exchange.wait(self._hand_in("objects", json.dumps(value)))]


def together(loaders: Sequence[Loader], most: int = 10**6) -> list[list[list[Batch]]]:
    """The first steps of some ranks: for each step and rank the batch and its replays. Closes the loaders."""
    exchange = Exchange(len(loaders))

    def lead(rank: int) -> list[list[Batch]]:
        steps = steps_of(loaders[rank], ThreadWorld(exchange, rank))
        return [[batch, *steps.replays()] for batch in islice(steps, most)]

    with ThreadPoolExecutor(len(loaders)) as threads:
        by_rank = list(threads.map(lead, range(len(loaders))))
    for loader in loaders:
        loader.close()
    return [list(step) for step in zip(*by_rank, strict=True)]


class KeptPools:
    """Opens the readers of loaders, and keeps them, so that a test can kill some."""

    def __init__(self) -> None:
        self.pools: list[Pool] = []

    def __call__(self, *arguments: Any) -> Pool:
        self.pools.append(open_pool(*arguments))
        return self.pools[-1]

    def pids(self) -> list[int]:
        return [pid for pool in self.pools if isinstance(pool, Processes) for pid in pool.pids()]
