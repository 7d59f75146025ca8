"""The loader with real reader processes: killed, interrupted, orphaned."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stream.errors import WorkerFailed
from stream.loader.batch import Batch
from stream.loader.loader import Loader
from stream.loader.pool import open_pool
from stream.processes import MOST_DEATHS_OF_ONE_JOB
from tests.stream.fake_source import FakeSpec, grow
from tests.stream.loader.driving import KeptPools, batches_of, steps_of
from tests.stream.loader.test_loader import CONFIG, KINDS, SPEC, begin, growing, load, same, until_error
from tests.waiting import LIMIT_S, wait_for


def pooled(spec: FakeSpec, workers: int = 2, **more: Any) -> Loader:
    given: dict[str, Any] = {"cursor": begin(spec), "config": CONFIG, **more}
    return Loader(spec, crops=KINDS, workers=workers, **given)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def gone(pids: list[int]) -> bool:
    wait_for(lambda: not any(map(alive, pids)), "the end of the readers")
    return True


def equal(got: list[Batch], wanted: list[Batch]) -> bool:
    return len(got) == len(wanted) and all(map(same, got, wanted))


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_the_batches_that_one_process_gives(workers: int) -> None:
    assert equal(load(SPEC, workers=workers, passes=2), load(SPEC, passes=2))


def test_killed_readers_are_replaced_and_nothing_is_lost_or_repeated() -> None:
    rng = random.Random(3)
    got, readers = [], KeptPools()
    with pooled(SPEC, workers=3, passes=3, pool=readers) as loader:
        for batch in steps_of(loader):
            got.append(batch)
            for pid in rng.sample(readers.pids(), rng.randint(0, 2)):
                os.kill(pid, signal.SIGKILL)
        assert loader.worker_restarts >= 3
    assert equal(got, load(SPEC, passes=3))


def test_readers_killed_one_after_the_other_before_they_begin_are_replaced_too() -> None:
    """As by an operator, or by a machine short of memory: no record is to blame, so three are not the end."""
    readers = KeptPools()
    with pooled(SPEC, workers=1, pool=readers) as loader:
        for deaths in range(5):
            os.kill(readers.pids()[0], signal.SIGKILL)
            while loader.worker_restarts <= deaths:
                loader.ready(0.0)
        assert equal(batches_of(loader), load(SPEC))


def test_a_reader_killed_in_the_middle_of_a_chunk_is_replaced(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    spec = replace(SPEC, kill_at=70, kill_while=str(trap))
    with pooled(spec) as loader:
        assert equal(batches_of(loader), load(SPEC))
        assert loader.worker_restarts == 1


def test_a_reader_that_hangs_is_replaced(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    spec = replace(SPEC, kill_at=70, kill_while=str(trap), kill_with=signal.SIGSTOP)
    with pooled(spec, pool=partial(open_pool, silence_s=3.0)) as loader:
        assert equal(batches_of(loader), load(SPEC))
        assert loader.worker_restarts >= 1


def test_a_record_that_kills_every_reader_is_named_after_the_batches_before_it(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    spec = replace(SPEC, kill_at=70, kill_while=str(trap), kill_once=False)
    step, lane = next(
        (step, lane)
        for step, batch in enumerate(load(SPEC))
        for (unit, index), lane in zip(batch.refs_B2.tolist(), batch.lane_B.tolist(), strict=True)
        if 100 * unit + index == 70
    )
    with pooled(spec) as loader:
        got, message = until_error(loader, WorkerFailed)
    assert equal(got, load(SPEC)[:step])
    assert f"lane {lane} at unit" in message
    assert f"{MOST_DEATHS_OF_ONE_JOB} reader processes" in message
    assert "-9" in message


def spoiled(spec: FakeSpec, *numbers: int) -> FakeSpec:
    """The stream in which these records can never be decoded."""
    return replace(spec, deadly=numbers)


def seen(batches: list[Batch]) -> list[list[list[int]]]:
    return [batch.refs_B2.tolist() for batch in batches]


def test_a_record_that_kills_its_decoder_is_left_out_counted_and_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pooled(spoiled(SPEC, 70, 33)) as loader:
        got = batches_of(loader)
        assert loader.worker_restarts == 6
        end = loader.cursor
    assert end.deadly == ((0, 33), (0, 70))
    assert end.skipped["kills_decoder"] == 2
    assert end.samples + sum(end.skipped.values()) + end.left_over == SPEC.records
    assert "unit 0, record 70" in caplog.text
    # Exactly as if the two had been unreadable bytes.
    plain = load(replace(SPEC, broken=(70, 33)))
    assert seen(got) == seen(plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_life_leaves_out_the_same_record_and_no_reader_dies_of_it_again(workers: int) -> None:
    spec = spoiled(SPEC, 70)
    with pooled(spec) as loader:
        whole = batches_of(loader)
    first = next(step for step, batch in enumerate(whole) if batch.cursor.deadly)
    cursor = type(whole[0].cursor).from_json(whole[first].cursor.to_json())
    assert cursor == whole[first].cursor
    with pooled(spec, workers, cursor=cursor, passes=2) as loader:
        tail = batches_of(loader)
        assert loader.worker_restarts == 0
    assert equal(tail[: len(whole) - first - 1], whole[first + 1 :])
    assert tail[-1].cursor.skipped["kills_decoder"] == 2, "once a pass"


def test_what_is_known_of_deadly_records_does_not_depend_on_looking_ahead() -> None:
    spec = spoiled(SPEC, 70)
    runs = []
    for prefetch in (1, 4):
        config = replace(CONFIG, prefetch=prefetch)
        with pooled(spec, config=config) as loader:
            runs.append([batch.cursor for batch in steps_of(loader)])
    assert runs[0] == runs[1]


def test_when_too_many_records_kill_it_is_not_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.loader.pool.MOST_DEADLY", 1)
    with pooled(spoiled(SPEC, 33, 70)) as loader:
        _, message = until_error(loader, WorkerFailed)
    assert "record that crashes its decoder" in message


def test_an_error_of_the_source_in_a_reader_reaches_the_run_with_its_traceback() -> None:
    spec = replace(SPEC, fail_at=70)
    reference = load(SPEC)
    step = next(n for n, b in enumerate(reference) if [0, 70] in b.refs_B2.tolist())
    with pooled(spec) as loader:
        got, message = until_error(loader, OSError)
    assert equal(got, reference[:step])
    assert "record 70 cannot be reached" in message


def test_readers_leave_ctrl_c_and_sigterm_to_the_run() -> None:
    got, readers = [], KeptPools()
    with pooled(SPEC, pool=readers) as loader:
        for batch in steps_of(loader):
            got.append(batch)
            for pid in readers.pids():
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)
        assert loader.worker_restarts == 0
    assert equal(got, load(SPEC))


def test_closing_ends_the_readers() -> None:
    readers = KeptPools()
    loader = pooled(SPEC, pool=readers)
    next(iter(steps_of(loader)))
    pids = readers.pids()
    assert all(map(alive, pids))
    loader.close()
    loader.close()
    assert gone(pids)


def test_readers_of_an_open_stream_wait_idle_and_see_it_grow(tmp_path: Path) -> None:
    spec = growing(tmp_path / "growth.json", 0)
    deadline = time.monotonic() + LIMIT_S
    looks = iter(range(10**9))

    def look() -> bool:
        if loader.waiting and next(looks) == 12:
            grow(tmp_path / "growth.json", 40, sealed=True)
        return time.monotonic() > deadline

    readers = KeptPools()
    with pooled(spec, pool=readers) as loader:
        got = batches_of(loader, stop=look)
        ticks = sum(used_ticks(pid) for pid in readers.pids())
    assert equal_content(got, load(FakeSpec(lanes=2, records=40, block=4, bad_every=9)))
    assert ticks < 3 * os.sysconf("SC_CLK_TCK")  # starting is most of it; spinning would be far more


def used_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def equal_content(got: list[Batch], wanted: list[Batch]) -> bool:
    """As `equal`, where the streams are equal but not the same."""
    return [batch.keys for batch in got] == [batch.keys for batch in wanted]


@contextlib.contextmanager
def started(what: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program that loads with two readers, in a process group of its own, and the ids of the readers."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("load_and_leave.py"), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("policy", "chunk", "updates"),
    [("prototypes", 64, 33), pytest.param("fifo", 2, 401, marks=pytest.mark.slow)],
)
def test_reader_and_learner_do_not_wait_for_each_other(policy: str, chunk: int, updates: int) -> None:
    """One reader: requests, or replies with images of chunks, are more than the buffer of a pipe holds."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("many_replays.py"), policy, str(chunk), str(updates)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [str(2 * chunk * (updates - 1))] * 2


def test_a_killed_run_leaves_no_reader_behind() -> None:
    with started("wait") as (process, pids):
        assert len(pids) == 2
        process.kill()
        process.wait()
        assert gone(pids)


def test_after_signals_to_the_whole_group_the_run_comes_to_its_end_even_when_it_forgets_to_close() -> None:
    with started("signals") as (process, pids):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=LIMIT_S) == ("", "")
        assert process.returncode == 0
        assert gone(pids)
