"""What a corpus past memory takes before the first step: seconds and memory of preparing it and planning its batches.

    python -m benchmarks.corpora --config FILE --data.corpus files:DIR     (or --data.train-files SOURCE TARGET)

Takes every option of training, and its own. The corpus is prepared anew, in a folder that is removed afterwards. Then
the batches of `--planned` pairs of made-up lengths, which lie on disk, are planned. Memory is what the process has of
its own, at most, without the pages of files that the system keeps for it (Linux).
"""

import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.task import Experiment, parse_experiment
from seq2seq_jax.config import Config
from seq2seq_jax.data.batching import Batching
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.encoded import encode_split
from seq2seq_jax.data.vocabulary import build_vocabularies

_SAMPLED_EVERY = 0.02  # seconds


@dataclass(frozen=True)
class Arguments(Experiment):
    """Measures what comes before training."""

    planned: int = 100_000_000
    """Pairs of made-up lengths whose batches are planned."""
    output: Path = Path("benchmarks/results/corpora.json")
    """Where the tables are written."""


def main() -> None:
    arguments = parse_experiment(Arguments, "python -m benchmarks.corpora")
    about = measure.print_machine() | {"config": str(arguments.config)}
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "preparation": _prepare(arguments.settings, Path(folder)),
            "plan": _plan(arguments.settings, arguments.planned, Path(folder)),
        }
    for name, rows in tables.items():
        print(f"\n{name[0].upper()}{name[1:]}\n")
        measure.print_table(rows)
    measure.write_json(arguments.output, tables, about)


def _prepare(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Text, vocabulary and ids of train."""
    rows: list[dict[str, Any]] = []
    corpus = _measured(rows, "text", lambda: load_corpus(replace(config.data, data_dir=str(folder))))
    train = corpus.split("train")
    vocabularies = _measured(rows, "vocabulary", lambda: build_vocabularies(config.data, train))
    _measured(rows, "ids", lambda: encode_split(train, vocabularies, folder, "train"))
    total = sum(row["s"] for row in rows)
    for row in rows:
        row["pairs/s"] = len(train) / row["s"]
    peak = max(row["peak MiB"] for row in rows)
    all_of_it = {"part": "all", "s": total, "CPU s": sum(row["CPU s"] for row in rows), "peak MiB": peak}
    return [*rows, all_of_it | {"pairs/s": len(train) / total}]


def _plan(config: Config, num_pairs: int, folder: Path) -> list[dict[str, Any]]:
    """The batches of pairs whose lengths are on disk."""
    lengths = np.lib.format.open_memmap(folder / "lengths.npy", "w+", np.int32, (2, num_pairs))
    random = np.random.default_rng(0)
    for start in range(0, num_pairs, 1 << 20):
        part = lengths[:, start : start + (1 << 20)]
        part[0] = random.integers(5, 90, part.shape[1])
        part[1] = np.clip(part[0] + random.integers(-5, 10, part.shape[1]), 2, 100)
    del lengths
    data, rows = config.data, []
    batching = _measured(
        rows,
        "shapes",
        lambda: Batching(
            *np.load(folder / "lengths.npy", mmap_mode="r"),
            max_length=data.max_length,
            num_shapes=data.num_shapes,
            batch_size=data.batch_size,
            batch_tokens=data.batch_tokens,
        ),
    )
    for epoch in range(2):
        _measured(rows, f"epoch {epoch + 1}", lambda epoch=epoch: batching.batch(epoch * batching.num_batches))
    return rows


def _measured(rows: list[dict[str, Any]], part: str, work: Callable[[], Any]) -> Any:
    """Returns what `work` returns, and adds a row with what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    with _peak_memory() as peak:
        result = work()
    seconds = {"s": time.perf_counter() - wall, "CPU s": time.process_time() - cpu}
    rows.append({"part": part} | seconds | {"peak MiB": peak[0] / 1024})
    return result


@contextlib.contextmanager
def _peak_memory() -> Generator[list[int]]:
    """Gives a list with the most KiB that the process has had during the block, once that has ended."""
    peak, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLED_EVERY):
            status = Path(f"/proc/{os.getpid()}/status").read_text()
            peak[0] = max(peak[0], sum(map(int, re.findall(r"Rss(?:Anon|Shmem):\s*(\d+)", status))))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
