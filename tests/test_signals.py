"""Signals sent to this process, and programs of their own where it must end."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from seq2seq_jax import signals

REPOSITORY = Path(__file__).resolve().parents[1]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def ends(program: str) -> tuple[int, str, str]:
    """Exit code and output of a program that signals itself, with little patience for what ignores it."""
    start = "import os, signal, sys, time; from seq2seq_jax import signals; signals.GRACE_SECONDS = 0.1\n"
    done = subprocess.run(
        [sys.executable, "-c", start + program], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_a_noted_signal_changes_nothing_else():
    before = signal.getsignal(signal.SIGTERM)
    with signals.noted() as notes:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert notes == [signal.SIGTERM, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_ends_what_noted_the_first(capfd):
    with pytest.raises(KeyboardInterrupt), signals.noted() as notes:
        send(signal.SIGINT)
        assert notes == [signal.SIGINT] and "Ctrl-C again ends at once" in capfd.readouterr().err
        send(signal.SIGINT)
    signals._state.raised = None


def test_a_block_that_may_be_stopped_is_stopped_once_by_a_signal_within_or_before_it():
    with signals.noted() as notes:
        with pytest.raises(signals.Stopped), signals.stoppable():
            send(signal.SIGTERM)
            pytest.fail("not stopped")
        send(signal.SIGTERM)
        with pytest.raises(signals.Stopped), signals.stoppable():
            pytest.fail("not stopped")
    assert len(notes) == 2


def test_another_thread_than_the_main_one_notes_nothing():
    found = []

    def run():
        with signals.noted() as notes:
            found.append(notes)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [[]]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_a_library_swallows_ends_the_process_all_the_same(name, code):
    """As imports do that have `except BaseException`, and code of C that returns to Python much later."""
    program = f"""
signals.obey()
try:
    os.kill(os.getpid(), signal.{name})
except BaseException:
    print("swallowed", flush=True)
time.sleep(300)
"""
    word = "interrupted" if name == "SIGINT" else "terminated"
    assert ends(program) == (code, "swallowed\n", f"{word}\n")


def test_a_signal_while_the_commands_are_imported_ends_the_program_by_its_code_without_a_traceback():
    program = """
class Importer:
    def find_spec(self, name, path, target=None):
        if name == "seq2seq_jax.cli":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ImportError("cannot import name") from error
sys.meta_path.insert(0, Importer())
from seq2seq_jax.__main__ import run
run(["--help"])
"""
    assert ends(program) == (130, "", "")


def test_after_a_signal_the_process_ends_without_pythons_own_ending():
    """XLA's threads would not survive it."""
    program = """
import atexit; from seq2seq_jax import cli; from seq2seq_jax.__main__ import run
atexit.register(print, "torn down"); cli.main = lambda *a, **k: print("printed") or {code}; run([])
"""
    found = [ends(program.format(code=code)) for code in (130, 143, 2)]
    assert found == [(130, "printed\n", ""), (143, "printed\n", ""), (2, "printed\ntorn down\n", "")]


def test_nothing_is_imported_before_signals_are_obeyed():
    program = "import seq2seq_jax.__main__; print(*sorted(name for name in sys.modules if 'seq2seq_jax' in name))"
    assert ends(program)[1].split() == ["seq2seq_jax", "seq2seq_jax.__main__", "seq2seq_jax.signals"]
