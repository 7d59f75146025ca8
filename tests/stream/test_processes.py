"""Supervised processes: which are taken to hang, and what becomes of the jobs of one that is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stream.processes import (
    DEATHS_OF_ONE_RECORD,
    FAILED_STARTS,
    MOST_DEATHS_OF_ONE_JOB,
    InFlightRecord,
    Job,
    Loss,
    NoStart,
    Processes,
)
from tests.waiting import LIMIT_S, freeze

Request = tuple[str, float]


def open_obedient(in_flight: InFlightRecord, tag: str) -> Callable[[Request], str]:
    """Answers by doing what is asked for."""

    def answer(request: Request) -> str:
        what, seconds = request
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "die at a record":
            in_flight.set(3, 4)
            os.kill(os.getpid(), signal.SIGKILL)
        if what.startswith("large"):
            return what
        if what == "go on":
            for record in range(20):
                in_flight.set(0, record)
                time.sleep(seconds / 20)
            in_flight.clear()
        return f"{tag} {what}"

    return answer


def open_never(in_flight: InFlightRecord) -> Callable[[Request], str]:
    os._exit(5)


@contextmanager
def processes(
    lost: Callable[[Job[Request, str], Loss], str | None] = lambda _job, _loss: None, **more: Any
) -> Iterator[Processes[Request, str]]:
    given: dict[str, Any] = {"count": 1, "silence_s": 60.0, "name": "test", **more}
    pool = Processes[Request, str](f"{__name__}:open_obedient", ("yes",), lost=lost, **given)
    try:
        yield pool
    finally:
        pool.close()


def answers(pool: Processes[Request, str]) -> list[str | None]:
    """Of all that was asked, in the order in which they come."""
    deadline, found = time.monotonic() + LIMIT_S, list[str | None]()
    while pool.pending:
        assert time.monotonic() < deadline
        found += [job.reply for job in pool.collect(0.1)]
    return found


def test_jobs_are_answered_in_the_order_in_which_they_were_asked_of_a_process() -> None:
    with processes() as pool:
        pool.submit([Job(("a", 0.0)), Job(("b", 0.0))])
        pool.submit([Job(("c", 0.0))])
        assert not pool.idle
        assert answers(pool) == ["yes a", "yes b", "yes c"]
        assert pool.idle
        assert (pool.pending, pool.restarts) == (0, 0)


def test_what_a_lost_process_had_not_answered_is_asked_again_and_the_first_is_the_suspect() -> None:
    losses: list[tuple[Request, bool, int | None]] = []

    def lost(job: Job[Request, str], loss: Loss) -> str | None:
        losses.append((job.request, loss.hung, loss.exit_code))
        return "given up" if len(job.deaths) == 2 else None

    with processes(lost) as pool:
        pool.submit([Job((what, 0.0)) for what in ("a", "die", "b")])
        assert answers(pool) == ["yes a", "given up", "yes b"]
        assert losses == [(("die", 0.0), False, -9)] * 2
        assert pool.restarts == 2


def test_a_job_that_is_asked_again_may_be_another() -> None:
    def lost(job: Job[Request, str], _loss: Loss) -> str | None:
        job.request = ("a", 0.0)
        return None

    with processes(lost) as pool:
        pool.submit([Job(("die", 0.0))])
        assert answers(pool) == ["yes a"]


def test_a_process_that_does_not_get_on_is_replaced() -> None:
    with processes(lambda _job, loss: "hung" if loss.hung else None, silence_s=0.5) as pool:
        pool.submit([Job(("stop", 0.0)), Job(("a", 0.0))])
        assert answers(pool) == ["hung", "yes a"]


def test_a_process_that_begins_another_record_gets_on() -> None:
    with processes(silence_s=2.0) as pool:
        pool.submit([Job(("go on", 4.0))])
        assert answers(pool) == ["yes go on"]
        assert pool.restarts == 0


def test_time_in_which_the_program_does_not_wait_is_no_silence() -> None:
    with processes(silence_s=1.0) as pool:
        pool.submit([Job(("a", 0.0))])
        answers(pool)
        pool.submit([Job(("stop", 0.0))])
        time.sleep(2.0)
        assert pool.collect(0.01) == []
        assert pool.restarts == 0


def test_more_is_asked_and_answered_than_a_connection_holds() -> None:
    """The process waits until its answer is read, and reads nothing: handing over does not wait for it."""
    large = [f"large {number} " + "x" * 2**20 for number in range(6)]
    with processes() as pool:
        for what in large:
            pool.submit([Job((what, 0.0))])
        assert pool.pending == len(large)
        assert answers(pool) == large
        assert pool.restarts == 0


def test_what_a_process_had_not_taken_in_when_it_was_lost_is_asked_of_the_next() -> None:
    with processes() as pool:
        pool.submit([Job(("a", 0.0))])
        answers(pool)
        freeze(pool.pids()[0])
        large = [f"large {number} " + "x" * 2**20 for number in range(3)]
        for what in large:
            pool.submit([Job((what, 0.0))])
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert answers(pool) == large
        assert pool.restarts == 1


def test_a_record_is_blamed_when_processes_in_a_row_are_lost_at_it_and_a_job_after_many_losses() -> None:
    job = Job[Request, str](("a", 0.0))
    job.deaths += [None, (3, 4), None, *[(3, 4)] * (DEATHS_OF_ONE_RECORD - 1)]
    assert job.record_to_blame is None
    job.deaths.append((3, 4))
    assert job.record_to_blame == (3, 4)
    job.deaths[:] = [None] * (MOST_DEATHS_OF_ONE_JOB - 1)
    assert (job.record_to_blame, job.hopeless) == (None, False)
    job.deaths.append(None)
    assert (job.record_to_blame, job.hopeless) == (None, True)


def test_the_record_that_a_process_was_at_is_known() -> None:
    with processes(lambda job, _loss: "given up" if job.record_to_blame else None) as pool:
        job = Job[Request, str](("die at a record", 0.0))
        pool.submit([job])
        assert answers(pool) == ["given up"]
        assert job.deaths == [(3, 4)] * DEATHS_OF_ONE_RECORD


def test_processes_that_never_begin_are_an_error_and_no_job_is_to_blame() -> None:
    def lost(_job: Job[Request, str], _loss: Loss) -> str | None:
        raise AssertionError("no job was begun")

    pool = Processes[Request, str](
        f"{__name__}:open_never", (), count=2, silence_s=60.0, lost=lost, name="test"
    )
    pool.submit([Job(("a", 0.0))])
    with pytest.raises(NoStart, match=f"{FAILED_STARTS} died as they started, the last with exit code 5"):
        answers(pool)
    pool.close()


def test_closing_ends_also_what_hangs() -> None:
    with processes() as pool:
        pool.submit([Job(("stop", 0.0))])
        while not (pids := pool.pids(busy=True)):
            pool.collect(0.1)
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
