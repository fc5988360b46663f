"""What a training step costs, in time and memory, as one size grows: straight lines, or an explanation.

    python -m benchmarks.scaling --factors length batch vocabulary depth

One size is varied at a time; the others stay as at the base, `--batch-size` sentences of `--length` tokens on both
sides for `--model`, but lengths are varied at `--length-batch-size`. To each series a line is fitted by least squares
of the relative deviations, the largest of which is told.

The length has three series. Without attention everything is linear in it. With attention every target position looks
at all source positions: those products and weights grow with the square of the length, so this series bends where they
outweigh the rest. Rematerialised it keeps the activations of few positions, and computes the others again.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import measure
from benchmarks.task import MODELS, Task
from seq2seq_jax.config import MeshConfig
from seq2seq_jax.cpu import keep_freed_memory, run_in_calling_thread
from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.sharding import by_rows, make_mesh
from seq2seq_jax.training.setup import compile_step
from seq2seq_jax.training.step import abstract_state, initial_state, jit_train_step

LENGTHS = (16, 64, 256, 1_024, 4_096)
BATCH_SIZES = (8, 16, 32, 64, 128, 256)
VOCAB_SIZES = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
DEPTHS = (1, 2, 3, 4)


class Point(NamedTuple):
    """What is measured, and the size that varies in its series."""

    series: str
    size: int
    task: Task
    rematerialize_every: int = 0


def main() -> None:
    arguments = _parse()
    run_in_calling_thread()  # as the command line does
    about = measure.print_machine()
    base = Task(MODELS[arguments.model], arguments.batch_size, arguments.length)
    costs, lines = [], []
    for factor in arguments.factors:
        for series in _series(factor, base, arguments.length_batch_size, arguments.rematerialize_every):
            print(f"Measuring {series[0].series} ...", flush=True)
            rows = _costs(series, arguments.steps, arguments.rounds)
            costs += rows
            lines.append(_line(rows))
    for rows in (costs, lines):
        print()
        measure.print_table(rows)
    about |= {name: getattr(arguments, name) for name in ("model", "batch_size", "length", "length_batch_size")}
    measure.write_json(arguments.output, {"costs": costs, "lines": lines}, about)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    factors = ["length", "batch", "vocabulary", "depth"]
    parser.add_argument("--factors", nargs="+", choices=factors, default=factors)
    parser.add_argument("--model", choices=MODELS, default="L256")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=32, help="tokens a sentence, source and target")
    parser.add_argument("--length-batch-size", type=int, default=4, help="sentences where the length varies")
    parser.add_argument("--rematerialize-every", type=int, default=64, help="of the third series of lengths")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds through the points of a series")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scaling.json"))
    return parser.parse_args()


def _series(factor: str, base: Task, length_batch_size: int, rematerialize_every: int) -> list[list[Point]]:
    model = base.model
    if factor == "batch":
        return [[Point(factor, size, replace(base, batch_size=size)) for size in BATCH_SIZES]]
    if factor == "vocabulary":
        return [[Point(factor, size, replace(base, model=replace(model, vocab_size=size))) for size in VOCAB_SIZES]]
    if factor == "depth":
        configs = {depth: replace(model.config, num_layers=depth) for depth in DEPTHS}
        return [[Point(factor, depth, replace(base, model=replace(model, config=configs[depth]))) for depth in DEPTHS]]
    deaf = replace(model, config=replace(model.config, attention="none", input_feeding=False))
    small = replace(base, batch_size=length_batch_size)
    return [
        [Point("length, no attention", size, replace(small, model=deaf, length=size)) for size in LENGTHS],
        [Point("length", size, replace(small, length=size)) for size in LENGTHS],
        [
            Point(f"length, pieces of {rematerialize_every}", size, replace(small, length=size), rematerialize_every)
            for size in LENGTHS
        ],
    ]


class _Step:
    """The training step of a point, compiled."""

    def __init__(self, point: Point) -> None:
        task, mesh = point.task, make_mesh(MeshConfig())
        config = task.train_config()
        config = replace(config, train=replace(config.train, rematerialize_every=point.rematerialize_every))
        step, abstract = jit_train_step(config, task.vocab_sizes, mesh), abstract_state(config, task.vocab_sizes, mesh)
        self._update = compile_step(step, abstract, BatchShape(task.batch_size, task.length, task.length), mesh).update
        memory = self._update.memory_analysis()
        assert memory is not None
        self.temporary_bytes, self.argument_bytes = memory.temp_size_in_bytes, memory.argument_size_in_bytes
        self._batch = jax.device_put(task.batch(), by_rows(mesh))
        self._state = initial_state(config, task.vocab_sizes, mesh)

    def seconds(self) -> float:
        """Takes a step."""
        start = time.perf_counter()
        self._state = jax.block_until_ready(self._update(self._state, *self._batch))
        return time.perf_counter() - start


def _costs(series: Sequence[Point], num_steps: int, rounds: int) -> list[dict[str, Any]]:
    """Times the points in turns, after a step of each, so that a machine that slows down slows all."""
    steps = [_Step(point) for point in series]
    keep_freed_memory()  # as training does, after compilation
    for step in steps:
        step.seconds()
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for found, step in zip(seconds, steps, strict=True):
            found += [step.seconds() for _ in range(num_steps)]
    return [
        {
            "series": point.series,
            "size": point.size,
            "ms/step": 1000 * statistics.median(found),
            "temporary MB": step.temporary_bytes / 1e6,
            "arguments MB": step.argument_bytes / 1e6,
        }
        for point, step, found in zip(series, steps, seconds, strict=True)
    ]


def _line(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The straight lines through a series: time and temporary memory at size zero, for each unit, and deviations."""
    line: dict[str, Any] = {"series": rows[0]["series"]}
    sizes = np.array([row["size"] for row in rows])
    for name, unit in (("ms/step", "ms"), ("temporary MB", "MB")):
        costs = np.array([row[name] for row in rows])
        terms = np.stack([np.ones(len(sizes)), sizes], axis=1)
        (start, slope), *_ = np.linalg.lstsq(terms / costs[:, None], np.ones(len(costs)), rcond=None)
        deviations = costs / (start + slope * sizes) - 1
        worst = int(np.argmax(np.abs(deviations)))
        line |= {
            f"{unit} at 0": float(start),
            f"{unit} each": float(slope),
            f"{unit} deviation": float(deviations[worst]),
            f"at size ({unit})": int(sizes[worst]),
        }
    return line


if __name__ == "__main__":
    main()
