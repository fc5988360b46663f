"""A command in this process, watched: what every case at every door has to keep to."""

import contextlib
import faulthandler
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings

EXIT_CODES = {0, 2, 130, 141, 143}  # as the README lists them, without the 1 of a bug
SECONDS = 20  # that a case may take
TIMES = float(os.environ.get("SEQ2SEQ_JAX_CASES", "1"))

counts: Counter[str] = Counter()
"""Cases so far, by door."""


def cases(number: int) -> settings:
    """So many cases of a test, the same ones every time; SEQ2SEQ_JAX_CASES=10 makes them ten times as many."""
    return settings(
        max_examples=max(1, round(number * TIMES)),
        derandomize=True,
        database=None,
        deadline=None,  # that is SECONDS, and of the command alone
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


class Reached(BaseException):
    """Training would begin here: all that is read and prepared before has been. No `except Exception` holds it up."""

    def __init__(self, found: Any = None) -> None:
        super().__init__()
        self.found = found


class _TooSlow(BaseException):
    pass


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `reached` is what it had found where training would begin, or None."""

    code: int
    out: str
    err: str
    reached: Any = None

    @property
    def message(self) -> str:
        """What a refusal says."""
        return self.err.partition("error: ")[2]


@dataclass
class Doorway:
    """A folder for the cases, one after another, and what they must leave alone.

    Attributes:
      base: holds `case` (the current folder, new for every case), and beside it what no case may change.
      watched: folders that no command may change.
    """

    base: Path
    watched: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.case, self._home = self.base / "case", self.base / "home"
        self._home.mkdir(parents=True)
        (self.base / "neighbour").write_text("not yours")
        self._before: dict[str, Any] = {}

    @contextlib.contextmanager
    def room(self, door: str, cache: Path | None = None) -> Generator[Path]:
        """A new folder to be in, with a cache of its own unless one is named; what lies outside stays as it is."""
        counts[door] += 1
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        if not self._before:
            self._before = self._outside()
        environment = {"SEQ2SEQ_JAX_CACHE": str(cache or self.case / "cache"), "HOME": str(self._home)}
        with mock.patch.dict(os.environ, environment), contextlib.chdir(self.case):
            yield self.case
        before, self._before = self._before, self._outside()
        changed = sorted(path for path, _ in before.items() ^ self._before.items())
        assert not changed, f"changed outside the case's folder: {changed}"
        for folder in (self.case, *([cache] if cache else [])):
            left = [entry.path for entry in _walk(folder) if entry.name.endswith((".tmp", ".partial"))]
            assert not left, f"left half-written: {left}"

    def _outside(self) -> dict[str, Any]:
        found = {entry.path: _stamp(entry) for entry in os.scandir(self.base) if entry.is_file()}
        for folder in (self._home, *self.watched):
            found |= {entry.path: _stamp(entry) for entry in _walk(folder) if "/evaluations" not in entry.path}
        return found


def enter(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
    """Gives a command; whatever it is, it must end in time, by a documented exit code, a refusal in one message."""
    from seq2seq_jax import cli

    words = [str(argument) for argument in arguments]
    with _streams(stdin) as read, _time_limit(), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", ResourceWarning)
        code, reached = _code_of(lambda: cli.main(words))
        out, err = read()
    outcome = Outcome(code, out, err, reached)
    _check(outcome, words)
    return outcome


def _check(outcome: Outcome, words: Sequence[str]) -> None:
    assert outcome.code in EXIT_CODES, f"exit code {outcome.code}"
    assert "Traceback (most recent call last)" not in outcome.out + outcome.err
    if outcome.code == 2 and words:  # without a command, the overview
        messages = [line for line in outcome.err.split("\n") if line.startswith("error: ")]
        assert len(messages) == 1 and messages[0].removeprefix("error: ").strip(), f"not one message: {outcome.err!r}"


def _code_of(command: Callable[[], int]) -> tuple[int, Any]:
    try:
        return command(), None
    except SystemExit as error:
        return (error.code if isinstance(error.code, int) else 1 if error.code else 0), None
    except Reached as reached:
        return 0, reached.found or True
    except _TooSlow as slow:
        place = traceback.extract_tb(slow.__traceback__)
        ours = [frame for frame in place if "seq2seq_jax" in frame.filename][-1]
        raise AssertionError(f"no answer in {SECONDS} s, at {ours.name}") from None
    except Exception:
        raise  # a traceback, for whoever looks at the test
    except BaseException as error:  # which would end the tests
        raise AssertionError(f"{type(error).__name__} is not caught") from error


@contextlib.contextmanager
def _time_limit() -> Generator[None]:
    def ring(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # where no Python runs that could be interrupted
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _streams(stdin: bytes) -> Generator[Callable[[], tuple[str, str]]]:
    """Standard input from bytes; the other two to real files, for `translate` writes to the descriptor."""
    with tempfile.TemporaryFile() as out_file, tempfile.TemporaryFile() as err_file:
        out = io.TextIOWrapper(open(out_file.fileno(), "wb", closefd=False), "utf-8", write_through=True)
        err = io.TextIOWrapper(
            open(err_file.fileno(), "wb", closefd=False), "utf-8", errors="backslashreplace", write_through=True
        )

        def read() -> tuple[str, str]:
            out.flush(), err.flush()
            return _content(out_file), _content(err_file)

        with (
            out,
            err,
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
            mock.patch.object(sys, "stdout", out),
            mock.patch.object(sys, "stderr", err),
        ):
            yield read


def _content(file: Any) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "surrogateescape")


def _walk(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def _stamp(entry: os.DirEntry[str]) -> tuple[int, ...]:
    status = entry.stat(follow_symlinks=False)
    return (status.st_mode, status.st_size, 0 if entry.is_dir(follow_symlinks=False) else status.st_mtime_ns)
