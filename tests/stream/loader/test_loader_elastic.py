"""The batches do not depend on ranks, readers, look-ahead or crashes: random sequences of them."""

import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.cursor import joined
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.open_stream import PoolOpener
from stream.loader.plan import ReadPlan
from stream.loader.pool import Lost, Pool, ReaderJob, open_pool
from stream.loader.shared_memory import BatchFrame, SharedBuffer
from stream.loader.tasks import handle
from stream.source import Source, SourceSpec
from tests.stream.loader.driving import batches_of, together
from tests.stream.loader.test_loader import CONFIG, KINDS, SPEC, begin, load


class ScrambledPool:
    """Answers in a random order, and sometimes dies with what it has read, as reader processes do."""

    def __init__(
        self, spec: SourceSpec, plan: ReadPlan, frames: Sequence[BatchFrame], rng: random.Random
    ) -> None:
        self.restarts = 0
        self._spec, self._plan, self._frames, self._rng = spec, plan, frames, rng
        self._source = spec.open()
        self._jobs: list[ReaderJob] = []

    @property
    def pending(self) -> int:
        return len(self._jobs)

    def submit(self, jobs: Sequence[ReaderJob]) -> None:
        self._jobs += jobs

    def collect(self, timeout_s: float) -> list[ReaderJob]:
        answered = []
        for _ in range(self._rng.randint(0, len(self._jobs))):
            job = self._rng.choice(self._jobs)
            reply = handle(self._source, self._plan, self._frames, job.request)
            if self._rng.random() < 0.2:
                self._source = self._spec.open()
                self.restarts += 1
            else:
                self._jobs.remove(job)
                job.reply = reply
                answered.append(job)
        return answered

    def close(self) -> None:
        self._jobs.clear()


def scrambled(rng: random.Random) -> PoolOpener:
    """Opens such readers, where there are any."""

    def opened(
        spec: SourceSpec, source: Source, plan: ReadPlan, buffer: SharedBuffer, workers: int, lost: Lost
    ) -> Pool:
        if not workers:
            return open_pool(spec, source, plan, buffer, 0, lost)
        return ScrambledPool(spec, plan, buffer.frames, rng)

    return opened


def samples(batches: Sequence[Batch]) -> list[tuple[int, int, str, bytes]]:
    """All samples of one step over some ranks, by name: record, and every byte of its views."""
    found = []
    for batch in batches:
        for column, key in enumerate(batch.keys):
            views = b"".join(kind[:, column].numpy().tobytes() for kind in batch.crops)
            views += batch.uniforms[:, column].numpy().tobytes()
            found.append((int(batch.lane_B[column]), int(batch.seq_B[column]), key, views))
    return sorted(found)


@settings(max_examples=10)
@given(
    segments=st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(1, 3), st.integers(0, 6)),
        min_size=1,
        max_size=5,
    ),
    chaos=st.integers(0, 2**32),
)
def test_the_batches_do_not_depend_on_ranks_readers_look_ahead_or_crashes(
    segments: list[tuple[int, int, int, int]], chaos: int
) -> None:
    """Each segment is a run of (ranks, readers, look-ahead, steps) that ends in a crash."""
    reference = [samples([batch]) for batch in load(SPEC, passes=2)]
    cursor, got = begin(SPEC), []
    pool = scrambled(random.Random(chaos))
    for ranks, workers, prefetch, steps in [*segments, (1, 0, 1, 10**6)]:
        config = replace(CONFIG, prefetch=prefetch)
        loaders = [
            Loader(
                SPEC,
                cursor=cursor,
                crops=KINDS,
                config=config,
                workers=workers,
                ranks=ranks,
                rank=rank,
                passes=2,
                pool=pool,
            )
            for rank in range(ranks)
        ]
        got += [samples([batch for (batch,) in step]) for step in together(loaders, steps)]
        cursor = joined([loader.cursor for loader in loaders])
    assert got == reference
    with Loader(SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0, passes=2) as alone:
        batches_of(alone)
        assert cursor == alone.cursor
    assert cursor.samples + sum(cursor.skipped.values()) + cursor.left_over == 2 * SPEC.records
