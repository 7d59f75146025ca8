"""The progress line: one line that renews itself on a terminal, one now and then in a log."""

import io

from ops.train.progress import LOG_S, ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def show(line: ProgressLine, samples: int) -> None:
    line.show(samples=samples, loss=2.5, over_ln_k=0.9, usage=41.2, k=64, lag=1234)


def test_the_line_has_samples_rate_loss_usage_and_lag() -> None:
    out, clock = io.StringIO(), Clock()
    line = ProgressLine(out, total=10_000, clock=clock)
    assert line.due(0)
    clock.now += 10
    assert line.due(5_000)
    show(line, 5_000)
    assert out.getvalue() == (
        "5,000 of 10,000 (50 %) samples  500/s  loss 2.500 (0.900 of ln K)  usage 41 of 64  lag 1,234\n"
    )


def test_a_run_without_a_known_end_shows_no_share() -> None:
    out = io.StringIO()
    show(ProgressLine(out, total=None), 5_000)
    assert out.getvalue().startswith("5,000 samples  ")


def test_a_log_gets_a_line_every_few_seconds_and_no_more() -> None:
    out, clock = io.StringIO(), Clock()
    line = ProgressLine(out, total=None, clock=clock)
    for step in range(100):
        clock.now += LOG_S / 10
        if line.due(step):
            show(line, step)
    assert out.getvalue().count("\n") == 10
    assert "\r" not in out.getvalue()


def test_a_terminal_gets_one_line_that_covers_what_stood_there() -> None:
    out = Terminal()
    line = ProgressLine(out, total=None)
    line.say("a long line of text")
    line.say("short")
    line.end()
    line.note("a line that stays")
    assert out.getvalue() == "\ra long line of text\rshort".ljust(len("\ra long line of text\r") + 19) + (
        "\na line that stays\n"
    )
