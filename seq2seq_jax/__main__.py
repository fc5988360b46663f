"""The programs: `python -m seq2seq_jax`, `seq2seq-jax`, and train.py's own end.

Nothing slow is imported before signals are obeyed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from seq2seq_jax import signals


def run(arguments: Sequence[str] | None = None, *, repository: Path | None = None) -> NoReturn:
    """Runs one command, see `cli.main`, and ends the process. After a signal that one decides on the exit code."""
    signals.obey()
    code: int | None = None
    try:
        from seq2seq_jax import cli

        code = cli.main(arguments, repository=repository)
    except BaseException:  # also what libraries make of an exception in the midst of their import
        if signals.exit_code() is None:
            raise
    code = signals.exit_code() or code
    if code is not None and code in signals.EXIT_CODES.values():
        signals.end(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
