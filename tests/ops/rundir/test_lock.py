"""The lock of a run directory: one learner, told who holds it; a dead one leaves nothing stale."""

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from ops.errors import RunLocked
from ops.rundir.lock import RunLock, holder_of
from tests.waiting import LIMIT_S, wait_for

FORK = multiprocessing.get_context("fork")


def hold(run_dir: Path, ready: Event, end: Event) -> None:
    with RunLock(run_dir):
        ready.set()
        end.wait(LIMIT_S)


def test_a_second_learner_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    ready, end = FORK.Event(), FORK.Event()
    other = FORK.Process(target=hold, args=(tmp_path, ready, end))
    other.start()
    assert ready.wait(LIMIT_S)
    with pytest.raises(RunLocked, match=rf"in use by process {other.pid} on .*, seen \d+ s ago"):
        RunLock(tmp_path).acquire()
    holder = holder_of(tmp_path)
    assert holder is not None
    assert holder.pid == other.pid
    end.set()
    other.join(LIMIT_S)
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        pass


def test_a_second_lock_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(RunLocked, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready, end = FORK.Event(), FORK.Event()
    other = FORK.Process(target=hold, args=(tmp_path, ready, end))
    other.start()
    assert ready.wait(LIMIT_S)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join(LIMIT_S)
    assert holder_of(tmp_path) is None
    with caplog.at_level(logging.WARNING), RunLock(tmp_path):
        assert f"left locked by process {other.pid}" in caplog.text


def test_a_lock_held_on_another_host_counts_while_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 0.0}))
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.05):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(RunLocked, match="process 7 on elsewhere"):
        RunLock(tmp_path, stale_s=5.0).acquire()
    assert holder_of(tmp_path) is not None
    end.set()
    heart.join()


def test_a_lock_left_by_another_host_is_taken_over_once_its_heart_has_stopped(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 0.0}))
    with RunLock(tmp_path, stale_s=0.3):
        holder = holder_of(tmp_path)
        assert holder is not None
        assert holder.pid == os.getpid()


def test_a_lock_of_another_host_whose_clock_is_ahead_is_not_waited_on_for_longer(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 0.0}))
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    with RunLock(tmp_path, stale_s=0.3):
        pass  # else it waits until the clock of this machine is there too: longer than a test may take


def test_the_heart_beats_while_the_lock_is_held(tmp_path: Path) -> None:
    with RunLock(tmp_path, heartbeat_s=0.02) as lock:
        first = lock.path.stat().st_mtime_ns
        wait_for(lambda: lock.path.stat().st_mtime_ns > first, "the next beat")


def test_releasing_twice_is_harmless(tmp_path: Path) -> None:
    lock = RunLock(tmp_path).acquire()
    lock.release()
    lock.release()


def test_a_damaged_lock_file_that_no_process_holds_keeps_none_out(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff{")
    with RunLock(tmp_path):
        pass
