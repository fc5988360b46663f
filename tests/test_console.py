import io
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq_jax.config import Config
from seq2seq_jax.console import check_input, check_output, harmless, is_closed, ready_streams, typed
from seq2seq_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]


def narrow(content: bytes = b"", encoding: str = "ascii") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_a_console_cannot_show_is_shown_by_its_number(monkeypatch, name):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, name, stream)
    with ready_streams():
        print("本 ä \ud800", file=stream, flush=True)
    assert written.getvalue() == rb"\u672c \xe4 \ud800" + b"\n"
    assert stream.errors == "strict"


def test_what_is_typed_in_utf8_is_read_whatever_the_console_is_said_to_be(monkeypatch):
    monkeypatch.setattr(sys, "stdin", narrow("本 ä\n".encode() + b"\xe4\nplain\n"))
    with ready_streams():
        assert typed(sys.stdin.readline()) == "本 ä\n"
        with pytest.raises(UnicodeDecodeError):
            typed(sys.stdin.readline())
        assert typed(sys.stdin.readline()) == "plain\n"


def test_what_is_typed_in_the_consoles_encoding_is_read_by_it(monkeypatch):
    monkeypatch.setattr(sys, "stdin", narrow(b"\xe4\n", "latin-1"))
    with ready_streams():
        assert typed(sys.stdin.readline()) == "ä\n"


def test_closed_streams_take_what_is_written_and_are_known_for_closed(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with ready_streams():
        print("nowhere", file=sys.stdout)
        print("nowhere", file=sys.stderr, flush=True)
        assert is_closed(sys.stdin) and is_closed(sys.stdout) and is_closed(sys.stderr)
        with pytest.raises(UserError, match="Standard output is closed"):
            check_output()
        with pytest.raises(UserError, match="Standard input is closed; name a file with --input FILE"):
            check_input()
    assert (sys.stdout, sys.stderr) == (None, None)


def in_process(program: str, redirection: str) -> int:
    """The exit code of a program with its streams so."""
    command = ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, program]
    return subprocess.run(command, cwd=REPOSITORY, timeout=300).returncode


def test_the_null_device_is_not_a_closed_stream():
    program = "import sys; from seq2seq_jax.console import *\nwith ready_streams(): sys.exit(is_closed(sys.stdout))"
    assert [in_process(program, redirection) for redirection in (">/dev/null", ">&-")] == [0, 1]


def test_no_file_takes_the_number_of_a_closed_stream():
    program = "import os, sys; {}\nwith {}: sys.exit(os.open(os.devnull, os.O_RDONLY))"
    ready = program.format("from seq2seq_jax.console import *", "ready_streams()")
    assert in_process(ready, "<&- >&- 2>&-") > 2
    assert in_process(program.format("from contextlib import *", "suppress()"), "<&- >&- 2>&-") <= 2


def test_training_called_from_python_shows_anything_too(monkeypatch, tmp_path):
    from seq2seq_jax.training import loop

    def prepare(*_):
        print("本")
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "prepare", prepare)
    monkeypatch.setattr(sys, "stdout", narrow())
    with pytest.raises(ZeroDivisionError):
        loop.train(Config(), tmp_path)


def test_text_cannot_steer_a_terminal():
    assert harmless("a\tb\nc 本 \u3000") == "a\tb\nc 本 \u3000"
    assert harmless("\x1b[2J\r\x00\x9b") == r"\x1b[2J\x0d\x00\x9b"
