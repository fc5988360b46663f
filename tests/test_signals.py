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


def test_a_block_that_may_be_stopped_is_stopped_where_it_looks_and_no_other_is():
    with signals.noted():
        send(signal.SIGTERM)
        signals.look()
        with pytest.raises(signals.Stopped), signals.stoppable():
            signals.look()
        signals.look()
    with signals.noted(), signals.stoppable():
        signals.look()


def test_another_thread_than_the_main_one_notes_nothing():
    found = []

    def run():
        with signals.noted() as notes:
            found.append(notes)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [[]]


@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_ends_a_process_that_obeys_and_leaves_nothing_half_done(name, code, word, tmp_path):
    program = f"""
from pathlib import Path; from seq2seq_jax import cache, run_directory
signals.obey()
folder = Path({str(tmp_path)!r})
with run_directory.locked(folder / "run"), cache.whole_file(folder / "file"), cache.whole_directory(folder / "folder"):
    print(len(list(folder.iterdir())), flush=True)
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException:
        print("swallowed", flush=True)
    time.sleep(300)
"""
    assert ends(program) == (code, "3\n", f"{word}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_a_process_that_is_busy_outside_of_python():
    program = "signals.obey(); signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); time.sleep(0.1)\n"
    program += "os.write(signal.set_wakeup_fd(-1), bytes([signal.SIGTERM])); time.sleep(300)"
    assert ends(program) == (143, "", "terminated\n")


def test_a_noted_signal_leaves_the_process_to_end_by_itself_and_a_second_ctrl_c_does_not():
    program = "signals.obey()\nwith signals.noted(): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.3); print(1)"
    assert ends(program)[:2] == (0, "1\n")
    program = program.replace("print(1)", "os.kill(os.getpid(), signal.SIGINT); print(1)")
    assert ends(program)[:2] == (130, "")


def test_what_was_undone_once_is_not_again():
    calls = []
    with pytest.raises(ZeroDivisionError), signals.undoing(lambda: calls.append(1)):
        raise ZeroDivisionError
    assert calls == [1] and signals._State.undo == []


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
    names = ("", ".__main__", ".console", ".errors", ".signals")
    assert ends(program)[1].split() == [f"seq2seq_jax{name}" for name in names]
