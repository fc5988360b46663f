"""SIGTERM and Ctrl-C, obeyed within seconds whatever the process is at.

The commands end where they are (`obey`): an exception, Python's own way, is lost
in what libraries call back, or crashes them in the midst of their import. Where
there is something to save first the signal is noted (`noted`), and whoever saves
looks at the note.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 0.5
"""What the main thread has to look at a signal, before it is taken to be busy outside of Python."""
EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""As shells have it: 128 and the number of the signal."""
_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar has hidden


class Stopped(Exception):
    """A signal was noted, and ends the block `stoppable`."""


class _State:
    """Of the process: signals reach all of it."""

    obeyed = False
    notes: list[int] | None = None
    """Signals that came in the block `noted`, within it."""
    doing = ""
    """What is done before the end."""
    stoppable = False
    undo: list[Callable[[], object]] = []
    """What is to be called before the process ends."""


def obey() -> None:
    """Has both signals end this process from here on. To be called once, by its main thread."""
    _State.obeyed = True
    for number in EXIT_CODES:
        signal.signal(number, _handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # gets a byte at once, whatever the main thread is at
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def end(code: int) -> NoReturn:
    """Ends the process at once. Python's own way would wait for what XLA compiles in other threads, or crash it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def undoing(undo: Callable[[], object]) -> Generator[None]:
    """Calls `undo` when the block ends, also where a signal ends the process within; then perhaps twice."""
    _State.undo.append(undo)
    try:
        yield
    finally:
        _State.undo.remove(undo)
        undo()


@contextlib.contextmanager
def noted(doing: str = "Saving") -> Generator[list[int]]:
    """Within the block signals are added to the list it gives, and nothing else; a second Ctrl-C ends all the same.

    In another thread than the main one, which signals never reach, nothing changes.

    Args:
      doing: what is done before the end, for who types Ctrl-C.
    """
    notes: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield notes
        return
    before = {number: signal.signal(number, _handle) for number in EXIT_CODES}
    _State.notes, _State.doing = notes, doing
    try:
        yield notes
    finally:
        _State.notes = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Generator[None]:
    """A block within `noted` that is worth less than the time it takes: after a signal, `look` raises in it."""
    _State.stoppable = True
    try:
        yield
    finally:
        _State.stoppable = False


def look() -> None:
    """Raises Stopped in a block that is `stoppable`, where a signal has come; for loops that take long."""
    if _State.stoppable and _State.notes:
        raise Stopped


def _handle(number: int, _: FrameType | None) -> None:
    if _State.notes is not None and not (number == signal.SIGINT and number in _State.notes):
        _State.notes.append(number)
        if number == signal.SIGINT:
            _say(f"\n{_State.doing}; Ctrl-C again ends at once.\n")
        return
    if _State.obeyed:
        _end(number)
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Ends the process where the main thread does not, unless signals are noted; after a second Ctrl-C all the same."""
    interrupts = 0
    while True:
        for number in os.read(reader, 64):
            interrupts += number == signal.SIGINT
            if number in EXIT_CODES:
                time.sleep(GRACE_SECONDS)
                if _State.notes is None or interrupts > 1:
                    _end(number)


def _end(number: int) -> NoReturn:
    for undo in reversed(_State.undo):
        with contextlib.suppress(Exception):
            undo()
    _say(f"{_SHOW_CURSOR if os.isatty(2) else ''}{_WORDS[number]}\n")
    end(EXIT_CODES[number])


def _say(words: str) -> None:
    """Writes past Python's buffers, which the main thread may be writing to."""
    with contextlib.suppress(OSError):
        os.write(2, words.encode())
