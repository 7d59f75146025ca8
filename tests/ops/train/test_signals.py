"""Stop requests: the first signal asks, a second Ctrl-C insists."""

import os
import signal
from collections.abc import Iterator

import pytest

from ops.train.signals import StopRequest
from tests.waiting import LIMIT_S


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """As in a terminal, also where the tests run under nohup, which ignores the terminal's end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_becomes_a_request_with_its_exit_code(number: int, code: int) -> None:
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.wait(LIMIT_S)
    assert stop.requested()
    assert stop.exit_code == code


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_of_a_scheduler_asks_for_a_save_and_nothing_else(number: int) -> None:
    with StopRequest() as stop:
        assert not stop.take_save()
        os.kill(os.getpid(), number)
        assert stop.take_save()
        assert not stop.take_save(), "once"
        assert not stop.requested()
    assert stop.exit_code == 0


def test_a_warning_asks_for_the_end_where_that_is_set() -> None:
    with StopRequest() as stop:
        stop.warned_by(usr1="save", usr2="end")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.take_save()
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.wait(LIMIT_S)
    assert stop.exit_code == 143
    with StopRequest(on_warning="end") as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.wait(LIMIT_S)


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(LIMIT_S)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_is_ignored_where_it_was_ignored_before() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.wait(0.05)


def test_asking_without_a_signal_is_a_good_end() -> None:
    stop = StopRequest()
    stop.ask()
    assert stop.requested()
    assert stop.exit_code == 0


def test_handlers_are_given_back_however_deep_it_was_entered() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop:
        with stop:
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
