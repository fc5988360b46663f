import io
import sys

import pytest

import seq2seq_jax.data.progress as module
from seq2seq_jax.data.progress import progress_bar


class Screen(io.StringIO):
    """A terminal that remembers."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def work(progress, clock):
    """Reads 1,000 in half a minute, then prepares 40 a second for 100 seconds."""
    for second in range(31):
        clock[0] = second
        progress("reading train", min(second * 34, 1_000), None)
    for second in range(0, 101, 10):
        clock[0] = 31 + second
        progress("preparing train", second * 40, 4_000)


def test_a_log_has_a_line_every_half_minute_with_the_speed(clock, capfd):
    with progress_bar(logged=True) as progress:
        work(progress, clock)
    assert capfd.readouterr().err.splitlines() == [
        "reading train: 1,000, 33 a second",
        "preparing train: 1,200 of 4,000, 40 a second",
        "preparing train: 2,400 of 4,000, 40 a second",
        "preparing train: 3,600 of 4,000, 40 a second",
    ]


def test_nothing_is_said_where_no_log_is_wanted(clock, capfd):
    with progress_bar() as progress:
        work(progress, clock)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_bar_with_the_speed(clock, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(logged=True) as progress:
        work(progress, clock)
        assert isinstance(progress, module._Bar) and progress._line is not None
        progress._line.refresh()
        shown = screen.getvalue()
    assert "preparing train" in shown and "40/s" in shown and "a second" not in shown


@pytest.mark.parametrize("logged", [True, False])
def test_quick_work_draws_nothing(monkeypatch, capfd, logged):
    with progress_bar(logged=logged) as progress:
        progress("reading train", 5, 5)
    assert capfd.readouterr() == ("", "")
