"""The process's own streams: any text can be shown on them, and where one is closed nothing breaks."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Generator
from typing import Any

from seq2seq_jax.errors import UserError

# What a console's encoding lacks is shown by its number; what is typed in another one keeps its bytes.
_ERRORS = {"stdin": "surrogateescape", "stdout": "backslashreplace", "stderr": "backslashreplace"}

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


@contextlib.contextmanager
def ready_streams() -> Generator[None]:
    """For the block, no text fails to be shown, and what is written to a closed stream goes nowhere.

    A process may begin with any of the three closed (`>&-`). Their numbers are
    taken here, lest the next file that is opened get what is meant for them.
    """
    _take_closed_descriptors()
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                stack.enter_context(_replaced(name))
        for name, errors in _ERRORS.items():
            if isinstance(stream := getattr(sys, name), io.TextIOWrapper) and not stream.closed:
                stack.enter_context(_reconfigured(stream, errors))
        yield


def is_closed(stream: Any) -> bool:
    """Whether the process began without this stream, or has closed it."""
    # One that was only sent to the null device has the name of the stream.
    return stream is None or stream.closed or getattr(stream, "name", None) == os.devnull


def is_terminal(stream: Any) -> bool:
    """Whether somebody may be sitting at the other end."""
    return stream is not None and not stream.closed and stream.isatty()


def check_output() -> None:
    """Raises UserError where standard output is closed: for what has no other place to go."""
    if is_closed(sys.stdout):
        raise UserError("Standard output is closed; send it to a file, as in > FILE.")


def check_input() -> None:
    """Raises UserError where standard input is closed."""
    if is_closed(sys.stdin):
        raise UserError("Standard input is closed; name a file with --input FILE.")


def harmless(text: str) -> str:
    """Returns text that cannot steer a terminal: its control characters are shown by their numbers."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def complain(message: str) -> int:
    """Prints what is wrong on standard error, and returns the exit code of a mistake that the user can mend."""
    tell(f"error: {message}")
    return 2


def tell(line: str) -> None:
    """Prints a line on standard error; where nobody can read it, the exit code still tells."""
    with contextlib.suppress(OSError):
        print(harmless(line), file=sys.stderr)


def typed(line: str) -> str:
    """Returns a line from standard input as the text it is: UTF-8 where the console's encoding did not fit.

    Raises:
      UnicodeDecodeError: nor does UTF-8.
    """
    try:
        line.encode()
    except UnicodeEncodeError:  # it holds bytes that were kept
        return line.encode(sys.stdin.encoding, "surrogateescape").decode("utf-8")
    return line


def _take_closed_descriptors() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


@contextlib.contextmanager
def _replaced(name: str) -> Generator[None]:
    with open(os.devnull, "w") as nowhere:
        setattr(sys, name, nowhere)
        try:
            yield
        finally:
            setattr(sys, name, None)


@contextlib.contextmanager
def _reconfigured(stream: io.TextIOWrapper, errors: str) -> Generator[None]:
    before = stream.errors
    stream.reconfigure(errors=errors)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # it may have been closed, or its reader have gone
            stream.reconfigure(errors=before)
