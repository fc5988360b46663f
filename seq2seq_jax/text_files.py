"""Lines of text from and to files and pipes, as they come: UTF-8, gzip where the name ends in .gz.

Corpora are read by `data.corpora`; here is what flows through `translate`.
"""

import codecs
import contextlib
import gzip
import os
import re
import stat
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, cast, runtime_checkable

from seq2seq_jax import console
from seq2seq_jax.cache import whole_file
from seq2seq_jax.errors import UserError, did_you_mean

_OPEN_ALREADY = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")
CHUNK = 1 << 17  # bytes: some 1,500 sentences, enough to batch by length, few enough to answer in seconds


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes that can tell what has arrived: a buffered file, a pipe, a gzip file."""

    def read1(self, size: int, /) -> bytes: ...

    def fileno(self) -> int: ...


@contextlib.contextmanager
def open_input(path: Path | None) -> Generator[Readable]:
    """Opens a file for `chunks`; None is standard input.

    Raises:
      UserError: there is no such file (the nearest name in its folder is told), or standard input is closed.
    """
    if path is None:
        console.check_input()
        yield cast(Readable, sys.stdin.buffer)
        return
    check_exists(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield file


def check_exists(path: Path) -> None:
    """Raises UserError where `path` is not a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file of text.")
    if not path.exists():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"There is no file {path}.{did_you_mean(path.name, names)}")


@contextlib.contextmanager
def open_output(path: Path | None) -> Generator[BinaryIO]:
    """Opens a file that appears whole when the block ends well, and not at all otherwise; None is standard output.

    Raises:
      UserError: it cannot be written, or standard output is closed.
    """
    with contextlib.ExitStack() as stack:
        if path is None:
            yield stack.enter_context(_standard_output())
            return
        try:
            file = stack.enter_context(_open_to_write(path))
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror}.") from error
        yield file


def _standard_output() -> AbstractContextManager[BinaryIO]:
    console.check_output()
    sys.stdout.flush()
    # Not sys.stdout.buffer: under PYTHONUNBUFFERED that one may write a part and say nothing.
    return open(sys.stdout.fileno(), "wb", closefd=False)


def _open_to_write(path: Path) -> AbstractContextManager[BinaryIO]:
    number = _descriptor(path)
    if number is not None:
        return _standard_output() if number == 1 else open(number, "wb", closefd=False)
    if path.is_dir():
        raise UserError(f"Cannot write {path}: it is a folder.")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise UserError(f"Cannot write {path}: there is no folder {folder}.")
    # A device or a pipe must not be replaced.
    return path.open("wb") if path.exists() and not path.is_file() else whole_file(path)


def _descriptor(path: Path) -> int | None:
    """Returns the number of a file that is open already, as /dev/stdout or a shell's >(...) names it, or None."""
    name = os.path.abspath(path)
    number = {"/dev/stdout": 1, "/dev/stderr": 2}.get(name)
    return int(found[1]) if (found := _OPEN_ALREADY.fullmatch(name)) else number


def check_apart(source: Readable, target: BinaryIO, output: Path | None) -> None:
    """Raises UserError where what is read and what is written are one file, which would be lost.

    Args:
      source: from `open_input`.
      target: from `open_output(output)`.
      output: its path.
    """
    with contextlib.suppress(OSError):  # not a file of the system, or not there yet
        read = os.fstat(source.fileno())
        written = os.stat(output) if output else os.fstat(target.fileno())
        if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
            raise UserError(f"{output or 'standard output'} is what is read; write to another file.")


def chunks(stream: Readable, name: str) -> Iterator[list[str]]:
    """Yields the lines of a stream as they arrive, many at a time where many are there.

    A line ends at a newline and nowhere else, so the lines are those of every
    other tool. A carriage return before it and a byte order mark at the very
    start are no part of the text.

    Args:
      stream: standard input or an opened file.
      name: what the messages call it.

    Raises:
      UserError: a line is not UTF-8, after the lines before it have been yielded;
        or the file is not what gzip wrote.
    """
    number, rest = 0, b""
    while piece := _read(stream, name):
        *lines, rest = (rest + piece).split(b"\n")
        yield from _decode(lines, name, number)
        number += len(lines)
    if rest:
        yield from _decode([rest], name, number)


def _read(stream: Readable, name: str) -> bytes:
    try:
        return stream.read1(CHUNK)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{name} is not a whole gzip file: {error}.") from None


def _decode(lines: list[bytes], name: str, number: int) -> Iterator[list[str]]:
    decoded: list[str] = []
    for index, line in enumerate(lines):
        try:
            line = line.removeprefix(codecs.BOM_UTF8) if number + index == 0 else line
            decoded.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            yield decoded
            raise not_utf8(name, number + index + 1, error) from None
    if decoded:
        yield decoded


def not_utf8(name: object, number: int, error: UnicodeDecodeError) -> UserError:
    """Returns what to say of a line that could not be decoded."""
    return UserError(
        f"{name}, line {number:,}: not UTF-8 (byte {error.object[error.start]:#04x} at column {error.start + 1});"
        " convert it with iconv -f YOUR-ENCODING -t utf-8."
    )
