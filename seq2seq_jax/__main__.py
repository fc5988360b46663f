"""The programs: `python -m seq2seq_jax`, `seq2seq-jax`, and train.py's own end.

Nothing slow is imported before signals are obeyed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from seq2seq_jax import console, signals


def run(arguments: Sequence[str] | None = None, *, repository: Path | None = None) -> NoReturn:
    """Runs one command, see `cli.main`, and ends the process."""
    with console.ready_streams():  # before anything is opened, which would take the number of a closed one
        signals.obey()
        try:
            from seq2seq_jax import cli
        except ModuleNotFoundError as error:
            print(
                f"error: {error.name} is not installed in this Python ({sys.executable}). Activate the environment that"
                " has it, or run: pip install .",
                file=sys.stderr,
            )
            sys.exit(2)

        code = cli.main(arguments, repository=repository)
        if code in signals.EXIT_CODES.values():
            signals.end(code)
        sys.exit(code)


if __name__ == "__main__":
    run()
