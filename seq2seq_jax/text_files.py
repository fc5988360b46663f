"""Lines of text from and to files and pipes: UTF-8, gzip where the name ends in .gz.

A line ends at a newline and nowhere else, so the lines are those of every other
tool. A carriage return before the newline and a byte order mark at the start of
a line (of a file, or where files were put together) are no part of the text;
carriage returns and marks anywhere else are. What is no such text is refused by
file and line: another encoding, NUL bytes, a line of more than `LONGEST_LINE`
bytes, a file whose lines end in carriage returns alone. Whatever comes, no more
than one line and one piece of the stream are held.
"""

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
from seq2seq_jax.cache import naming, whole_file
from seq2seq_jax.errors import UserError, did_you_mean

_OPEN_ALREADY = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")
CHUNK = 1 << 17  # bytes: some 1,500 sentences, enough to batch by length, few enough to answer in seconds
# Bytes, and some 170,000 words: a hundred times what recurrent models read. Most
# files with a longer line have no lines at all.
LONGEST_LINE = 1 << 20

_BYTE_ORDER_MARK = "\ufeff"
_BEGINNINGS = {  # how a file begins that is no UTF-8 -> what it is, and the way out
    b"\x1f\x8b": "gzip without .gz at the end of its name; rename it",
    b"\xff\xfe\0\0": "UTF-32; convert it with iconv -f utf-32 -t utf-8",
    b"\0\0\xfe\xff": "UTF-32; convert it with iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "UTF-16; convert it with iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "UTF-16; convert it with iconv -f utf-16 -t utf-8",
}
_NOT_WHOLE = (gzip.BadGzipFile, zlib.error, EOFError)


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes that can tell what has arrived: a buffered file, a pipe, a gzip file."""

    def read1(self, size: int, /) -> bytes:
        """What has arrived, `size` bytes at most; at least one, unless it is the end."""
        ...

    def fileno(self) -> int:
        """The descriptor."""
        ...


@contextlib.contextmanager
def open_input(path: Path | None) -> Generator[Readable]:
    """Opens a file or a pipe for `chunks`; None is standard input.

    Raises:
      UserError: there is no such file (the nearest name in its folder is told),
        it may not be read, or standard input is closed.
    """
    if path is None:
        console.check_input()
        yield cast(Readable, sys.stdin.buffer)
        return
    check_exists(path)
    try:
        file = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        yield file


def check_exists(path: Path) -> None:
    """Raises UserError where nothing at `path` can be read as text; a pipe or a device can."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name a file of text.")
    if not os.path.exists(path):
        raise UserError(f"There is no file {path}.{did_you_mean(path.name, names_beside(path))}")


def check_ends(path: Path) -> None:
    """Raises UserError where `path` may never begin or end, as a device or a pipe that waits for a writer.

    A pipe that is open already, as a shell's <(...) and /dev/stdin are, has no
    name of its own, and somebody to write to it.
    """
    check_exists(path)
    if not stat.S_ISREG(path.stat().st_mode) and os.path.lexists(os.path.realpath(path)):
        raise UserError(f"{path} is a pipe or a device; write its text into a file first.")


def read_lines(path: Path) -> Generator[str]:
    """Yields the lines of a text file, plain or gzip, without their ends; who stops early closes it.

    Raises:
      UserError: as `check_ends`, `open_input` and `chunks` say.
    """
    check_ends(path)
    with open_input(path) as stream:
        for lines in chunks(stream, str(path)):
            yield from lines


@contextlib.contextmanager
def open_output(path: Path | None) -> Generator[BinaryIO]:
    """Opens a file that appears whole when the block ends well, and not at all otherwise; None is standard output.

    Raises:
      UserError: it cannot be written, or standard output is closed.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(path or "standard output"))
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

    Args:
      stream: standard input or an opened file.
      name: what the messages call it.

    Raises:
      UserError: a line is refused, after the lines before it have been yielded;
        or the stream cannot be read, or is not what gzip wrote.
    """
    number, rest = 0, bytearray()
    while len(rest) <= LONGEST_LINE and (piece := _read(stream, name, number)):
        whole, newline, begun = piece.rpartition(b"\n")
        if newline:
            rest += whole
            yield from _lines(bytes(rest), name, number)
            number, rest = number + rest.count(b"\n") + 1, bytearray()
        rest += begun
    if rest:
        if not number and b"\r" in rest[:-1] and b"\0" not in rest:
            raise UserError(
                f"{name} has no newline: its lines end in carriage returns alone. Convert it with tr '\\r' '\\n'."
            )
        yield from _lines(bytes(rest), name, number)


def _read(stream: Readable, name: str, number: int) -> bytes:
    try:
        return stream.read1(CHUNK)
    except _NOT_WHOLE as error:
        raise UserError(f"{name} is not a whole gzip file: damaged after line {number:,} ({error}).") from error
    except OSError as error:
        raise _unreadable(name, error) from error


def _lines(block: bytes, name: str, number: int) -> Iterator[list[str]]:
    """Yields the lines of `block`, the first of which comes after line `number`, up to one that is refused."""
    lines, refused = _decode(block, name, number)
    if lines:
        yield lines
    if refused:
        raise refused


def _decode(block: bytes, name: str, number: int) -> tuple[list[str], UserError | None]:
    """Returns the lines of `block` up to the first that is refused, and what to say of that one."""
    if len(block) <= LONGEST_LINE and b"\0" not in block:
        with contextlib.suppress(UnicodeDecodeError):
            return _split(block.decode()), None  # all at once is three times as fast
    lines: list[str] = []
    for place, line in enumerate(block.split(b"\n"), number + 1):
        if found := refusal(line, name, place):
            return lines, found
        lines += _split(line.decode())
    return lines, None


def _split(text: str) -> list[str]:
    """Returns the lines of `text` without what is no part of them."""
    lines = text.split("\n")
    if "\r" in text:
        lines = [line.removesuffix("\r") for line in lines]
    if _BYTE_ORDER_MARK in text:
        lines = [line.removeprefix(_BYTE_ORDER_MARK) for line in lines]
    return lines


def refusal(line: bytes, name: str, number: int) -> UserError | None:
    """Returns what to say of a line that is no text, or None where it is."""
    if number == 1 and (kind := _other_kind(line)):
        return UserError(f"{name} is not UTF-8 but {kind}.")
    where = f"{name}, line {number:,}"
    if (column := line.find(b"\0") + 1) > 0:
        return UserError(f"{where}: a NUL byte at column {column:,}, which no text has; remove it with tr -d '\\0'.")
    if len(line) > LONGEST_LINE:
        return UserError(f"{where} has more than {LONGEST_LINE:,} bytes. Is it text, a sentence a line? Split it.")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return UserError(
            f"{where}: not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1});"
            " convert it with iconv -f YOUR-ENCODING -t utf-8."
        )
    return None


def _other_kind(line: bytes) -> str | None:
    """Returns what a file with this first line is, if that can be told, and the way out."""
    for beginning, kind in _BEGINNINGS.items():
        if line.startswith(beginning):
            return kind
    zeros = line[:1000:2].count(0), line[1:1000:2].count(0)
    if len(line) >= 4 and min(zeros) == 0 and max(zeros) > len(line[:1000]) // 4:
        order = "be" if zeros[0] else "le"  # every other byte of Western text is zero
        return f"UTF-16; convert it with iconv -f utf-16{order} -t utf-8"
    return None


def _unreadable(name: object, error: OSError) -> UserError:
    return UserError(f"Cannot read {name}: {error.strerror or error}.")


def names_beside(path: Path) -> list[str]:
    """Returns the names in the folder of `path`, for a suggestion; none where it cannot be read."""
    with contextlib.suppress(OSError):
        return os.listdir(path.parent)
    return []
