"""Trains, evaluates and reports: `python train.py [--config FILE] [--workdir DIR] [--section.field value ...]`."""

import sys
from pathlib import Path

from seq2seq_jax.__main__ import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]], repository=Path(__file__).resolve().parent)
