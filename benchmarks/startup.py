"""From launch to the first step, of a new run and of the same run again; and what each batch shape takes to compile.

    python -m benchmarks.startup
    python -m benchmarks.startup --config configs/multi30k_de_en.py --data.corpus files:DIR

Takes every option of training, and its own. A run is launched in a process and a run directory of its own, cold with an
empty cache folder and then warm with what the cold one left there: encoded text and compiled programs. It is watched
from outside: the lines it prints, and the row that it writes after its first step (train.log_every is 1), whereupon it
is asked to stop. A corpus to be downloaded is downloaded in each cold run, unless --data.data-dir names its place.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure
from benchmarks.task import Experiment, parse_experiment
from seq2seq_jax.arguments import read
from seq2seq_jax.config import Config

COMMAND = Path(__file__).resolve().parents[1] / "train.py"
TERMINATED = 143  # how training exits after SIGTERM


@dataclass(frozen=True)
class Arguments(Experiment):
    """Measures how long a training run takes to start."""

    repeats: int = 3
    """Cold and warm launches; medians are told."""
    output: Path = Path("benchmarks/results/startup.json")
    """Where the tables are written."""


class Launch(NamedTuple):
    """Seconds from the start of the process."""

    described: float
    """To the line about the corpus: everything is imported, and the text is in batches."""
    compiled: float
    """To the line that says so."""
    stepped: float
    """To the first row of metrics.jsonl."""


def main() -> None:
    arguments = parse_experiment(Arguments, "python -m benchmarks.startup")
    given = [option for option in read(Arguments, sys.argv[1:]) if option.name not in ("repeats", "output")]
    options = [token for option in given for token in (f"--{option.name}", *option.values)]
    about = measure.print_machine()
    launches: dict[str, list[Launch]] = {"cold": [], "warm": []}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, found in launches.items():
                found.append(_launch(options, Path(folder) / name, Path(folder) / "cache"))
    tables = {
        "launches": [_row(name, found) for name, found in launches.items()],
        "compilation": _compilation(arguments.settings),
    }
    for rows in tables.values():
        print()
        measure.print_table(rows)
    measure.write_json(arguments.output, tables, about | {"config": str(arguments.config)})


def _launch(options: list[str], workdir: Path, cache: Path) -> Launch:
    """Runs training up to its first step."""
    command = [sys.executable, str(COMMAND), *options, "--workdir", str(workdir), "--train.log-every", "1"]
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(
        command,
        env=os.environ | {"SEQ2SEQ_JAX_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def listen() -> None:
        lines.extend((time.perf_counter() - start, line) for line in process.stdout or ())

    listener = threading.Thread(target=listen)
    listener.start()
    rows = workdir / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.005)
    stepped = time.perf_counter() - start
    process.send_signal(signal.SIGTERM)
    listener.join()
    if process.wait() != TERMINATED:
        raise SystemExit("error: training ended before its first step:\n" + "".join(line for _, line in lines))
    described, compiled = (
        next(seconds for seconds, line in lines if line.startswith(word)) for word in ("Corpus", "Compiled")
    )
    return Launch(described, compiled, stepped)


def _row(name: str, launches: list[Launch]) -> dict[str, Any]:
    described, compiled, stepped = (statistics.median(column) for column in zip(*launches, strict=True))
    return {
        "launch": name,
        "s to batches": described,
        "s to compiled": compiled,
        "s to first step": stepped,
        "fastest": min(launch.stepped for launch in launches),
        "slowest": max(launch.stepped for launch in launches),
    }


def _compilation(config: Config) -> list[dict[str, Any]]:
    """The training step compiled for each shape, one after another, by a process that keeps no compiled programs."""
    from seq2seq_jax.sharding import make_mesh
    from seq2seq_jax.training.setup import compile_step, prepare
    from seq2seq_jax.training.step import abstract_state, jit_train_step
    from seq2seq_jax.translator import vocab_sizes

    mesh = make_mesh(config.mesh)
    material = prepare(config, mesh.size)
    sizes = vocab_sizes(material.vocabularies)
    step, abstract = jit_train_step(config, sizes, mesh), abstract_state(config, sizes, mesh)
    rows: list[dict[str, Any]] = [
        {
            "shape": f"{shape.batch}x{shape.source}x{shape.target}",
            "s": compile_step(step, abstract, shape, mesh).seconds,
        }
        for shape in material.batching.shapes
    ]
    return [*rows, {"shape": "all", "s": sum(row["s"] for row in rows)}]


if __name__ == "__main__":
    main()
