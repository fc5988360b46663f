"""How far a long task is: a bar that appears only where somebody waits and watches, or lines for a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator

ProgressCallback = Callable[[str, int, int | None], None]
"""Called now and then with what is done, how many of it, and of how many (None: not known yet)."""


def silent(what: str, done: int, total: int | None) -> None:
    """A `ProgressCallback` that nobody watches."""


_PATIENCE = 2.0  # seconds before a bar is worth its line
_LOGGED_EVERY = 30.0  # seconds


@contextlib.contextmanager
def progress_bar(*, logged: bool = False) -> Generator[ProgressCallback]:
    """Gives a `ProgressCallback` that draws on standard error, if that is a terminal and it takes over two seconds.

    Args:
      logged: whether standard error gets a line every half minute where it is no terminal.
    """
    if not sys.stderr.isatty():
        yield _Log() if logged else silent
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()


class _Speed:
    """How many are done a second, of what is being done."""

    def __init__(self) -> None:
        self._what, self._begin, self._first = "", 0.0, 0

    def __call__(self, what: str, done: int) -> float:
        now = time.monotonic()
        if what != self._what:
            self._what, self._begin, self._first = what, now, done
        return (done - self._first) / max(now - self._begin, 1e-9)


class _Log:
    """A line now and then, which says how far it is."""

    def __init__(self) -> None:
        self._said = time.monotonic()
        self._speed = _Speed()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        speed = self._speed(what, done)
        if time.monotonic() - self._said < _LOGGED_EVERY:
            return
        self._said = time.monotonic()
        of_all = "" if total is None else f" of {total:,}"
        print(f"{what}: {done:,}{of_all}, {speed:,.0f} a second", file=sys.stderr, flush=True)


class _Bar:
    """One line of rich progress, made when patience ends."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._line = None
        self._what = ""
        self._speed = _Speed()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        speed = self._speed(what, done)
        if time.monotonic() - self._begin < _PATIENCE:
            return
        if self._line is None:
            self._line, self._task = self._open()
        if what != self._what:
            self._what = what
            self._line.reset(self._task, description=what, total=total)
        shown = f"{speed:,.0f}/s" if speed >= 1 else ""
        self._line.update(self._task, completed=done, total=total, speed=shown)

    def close(self) -> None:
        """Removes the line."""
        if self._line is not None:
            self._line.stop()

    def _open(self):  # untyped: rich takes a tenth of a second to import, and most runs need no bar
        from rich import console, progress

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,.0f}"),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(),
        )
        bar = progress.Progress(*columns, console=console.Console(stderr=True), transient=True)
        bar.start()
        return bar, bar.add_task("", total=None, speed="")
