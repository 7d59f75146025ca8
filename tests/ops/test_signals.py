"""Stop requests: the first signal asks, a second Ctrl-C insists."""

import os
import signal

import pytest

from ops.signals import StopRequest


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_becomes_a_request_with_its_exit_code(number: int, code: int) -> None:
    with StopRequest() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert stop.asked()
    assert stop.exit_code == code


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_is_ignored_where_it_was_ignored_before() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_asking_without_a_signal_is_a_good_end() -> None:
    stop = StopRequest()
    stop.ask()
    assert stop.asked()
    assert stop.exit_code == 0


def test_handlers_are_given_back_however_deep_it_was_entered() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop:
        with stop:
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
