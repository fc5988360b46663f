"""A progress bar that appears only where somebody waits and watches."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator

ProgressCallback = Callable[[str, int, int | None], None]
"""Called now and then with what is done, how many of it, and of how many (None: not known yet)."""


def silent(what: str, done: int, total: int | None) -> None:
    """A `ProgressCallback` that nobody watches."""


_PATIENCE = 2.0  # seconds before a bar is worth its line


@contextlib.contextmanager
def progress_bar() -> Generator[ProgressCallback]:
    """Gives a `ProgressCallback` that draws on standard error, if that is a terminal and it takes over two seconds."""
    if not sys.stderr.isatty():
        yield silent
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()


class _Bar:
    """One line of rich progress, made when patience ends."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._line = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if time.monotonic() - self._begin < _PATIENCE:
            return
        if self._line is None:
            self._line, self._task = self._open()
        if what != self._what:
            self._what = what
            self._line.reset(self._task, description=what, total=total)
        self._line.update(self._task, completed=done, total=total)

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
            progress.TimeRemainingColumn(),
        )
        bar = progress.Progress(*columns, console=console.Console(stderr=True), transient=True)
        bar.start()
        return bar, bar.add_task("", total=None)
