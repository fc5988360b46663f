"""SIGTERM and Ctrl-C, obeyed within seconds whatever the process is at.

Either raises an exception in the main thread: KeyboardInterrupt, or `Terminated`.
Python raises it between two of its own instructions only, and a library may
swallow it; so a thread of its own ends the process that is still there seconds
later (`obey`). Where there is something to save first, the signal is noted
instead (`noted`), and whoever saves looks at the note.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 2.0
"""What the process has to end by itself."""
EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""As shells have it: 128 and the number of the signal."""
_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(BaseException):
    """SIGTERM came, as KeyboardInterrupt says of Ctrl-C."""


class Stopped(BaseException):
    """A signal was noted, and ends the block `stoppable`."""


class _State:
    """What has come, and what is to become of it."""

    raised: int | None = None
    """The first signal that was not just noted."""
    notes: list[int] | None = None
    """Of the block `noted`, within it."""
    stoppable = False


_state = _State()


def obey() -> None:
    """Has both signals end this process from here on. To be called once, by its main thread."""
    for number in EXIT_CODES:
        signal.signal(number, _handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # gets a byte at once, whatever the main thread is at
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def exit_code() -> int | None:
    """Returns the exit code for the signal that has ended what the process was at, or None."""
    return None if _state.raised is None else EXIT_CODES[_state.raised]


def end(code: int) -> NoReturn:
    """Ends the process at once. Python's own way would wait for what XLA compiles in other threads, or crash it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def noted() -> Generator[list[int]]:
    """Within the block, signals are added to the list it gives, and nothing else; a second Ctrl-C ends all the same.

    In another thread than the main one, which signals never reach, nothing changes.
    """
    notes: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield notes
        return
    before = {number: signal.signal(number, _handle) for number in EXIT_CODES}
    _state.notes = notes
    try:
        yield notes
    finally:
        _state.notes = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Generator[None]:
    """A block within `noted` that a signal ends, by `Stopped`: it is worth less than the time it takes."""
    _state.stoppable = True
    try:
        if _state.notes:
            raise Stopped
        yield
    finally:
        _state.stoppable = False


def _handle(number: int, _: FrameType | None) -> None:
    notes = _state.notes
    if notes is None or (number == signal.SIGINT and number in notes):
        _state.raised = _state.raised or number
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated
    notes.append(number)
    if number == signal.SIGINT:
        _say("\nSaving; Ctrl-C again ends at once.")
    if _state.stoppable:
        _state.stoppable = False  # whatever it ends, it does so once
        raise Stopped


def _watch(reader: int) -> None:
    """Ends the process a while after a signal, unless it was noted; after a second Ctrl-C in any case."""
    interrupts = 0
    while True:
        for number in os.read(reader, 64):
            interrupts += number == signal.SIGINT
            if number in EXIT_CODES:
                time.sleep(GRACE_SECONDS)
                if _state.notes is None or interrupts > 1:
                    _say(_WORDS[number])
                    end(EXIT_CODES[number])


def _say(words: str) -> None:
    """Writes past Python's buffers, which the main thread may be writing to."""
    with contextlib.suppress(OSError):
        os.write(2, f"{words}\n".encode())
