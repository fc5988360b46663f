"""Trains, evaluates and reports: `python train.py [--config FILE] [--workdir DIR] [--section.field value ...]`."""

import sys
from pathlib import Path

try:
    from seq2seq_jax.__main__ import run
except ModuleNotFoundError as error:
    print(
        f"error: {error.name} is not installed in this Python ({sys.executable}). Activate the environment that has it,"
        " or run: pip install .",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    run(["train", *sys.argv[1:]], repository=Path(__file__).resolve().parent)
