"""From ids on disk to batches on the devices: how fast, how padded, and how long a training step waits for them.

    python -m benchmarks.pipeline --config configs/multi30k_de_en.py --data.corpus files:DIR

Takes every option of training, and its own. First batches alone, whose ids come by memory map from files that are in
the system's cache by then. Then training as a run does it, where steps are issued ahead of their
execution: a step has waited for its batch, for as long as that took at most, if the one before it has ended by the time
the batch is on the devices. Nothing may be compiled in these steps; if anything is, that is an error.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from benchmarks import measure
from benchmarks.task import Experiment, parse_experiment
from seq2seq_jax.config import Config
from seq2seq_jax.cpu import keep_freed_memory, run_in_calling_thread
from seq2seq_jax.data.pipeline import Batch, training_batches
from seq2seq_jax.sharding import by_rows, make_mesh, replicated
from seq2seq_jax.training.setup import Material, arrange_batches, compile_steps, prepare
from seq2seq_jax.training.step import TrainState, TrainStep, abstract_state, empty_window, initial_state
from seq2seq_jax.translator import vocab_sizes


@dataclass(frozen=True)
class Arguments(Experiment):
    """Measures the input of a training run."""

    batches: int = 1_000
    """Batches made and placed without training."""
    warmup: int = 10
    """Training steps before the first timed one."""
    steps: int = 60
    """Timed training steps."""
    num_shapes: tuple[int, ...] = (4, 8, 10, 12, 16)
    """Numbers of shapes whose padding is told."""
    output: Path = Path("benchmarks/results/pipeline.json")
    """Where the tables are written."""


def main() -> None:
    arguments = parse_experiment(Arguments, "python -m benchmarks.pipeline")
    run_in_calling_thread()  # as the command line does
    about = measure.print_machine()
    config, mesh = arguments.settings, make_mesh(arguments.settings.mesh)
    material = prepare(config, mesh.size)
    tables = {
        "input alone": [_input_alone(material, mesh, arguments.batches)],
        "training": [_training(config, material, mesh, arguments.warmup, arguments.steps)],
        "padding": [_padding(config, material, mesh, num_shapes) for num_shapes in arguments.num_shapes],
    }
    for name, rows in tables.items():
        print(f"\n{name[0].upper()}{name[1:]}\n")
        measure.print_table(rows)
    measure.write_json(arguments.output, tables, about | {"config": str(arguments.config)})
    if compilations := tables["training"][0]["compilations"]:
        raise SystemExit(f"error: {compilations} programs were compiled after the first {arguments.warmup} steps.")


def _input_alone(material: Material, mesh: Mesh, num_batches: int) -> dict[str, Any]:
    """Batches one after another onto the devices, with nothing else to do."""
    sharding = by_rows(mesh)
    start = time.perf_counter()
    for batch in training_batches(material.train, material.batching, 0, num_batches):
        jax.block_until_ready(jax.device_put(tuple(batch), sharding))
    seconds = time.perf_counter() - start
    indices = [material.batching.batch(step)[1] for step in range(num_batches)]
    return {
        "batches": num_batches,
        "ms/batch": 1000 * seconds / num_batches,
        "sentences/s": sum(map(len, indices)) / seconds,
        "target tokens/s": sum(int(material.train.target_lengths[rows].sum()) for rows in indices) / seconds,
    }


def _training(config: Config, material: Material, mesh: Mesh, warmup: int, num_steps: int) -> dict[str, Any]:
    """Steps of training; those of the warm-up are not counted."""
    sizes = vocab_sizes(material.vocabularies)
    compiled = compile_steps(config, material, mesh, abstract_state(config, sizes, mesh), print)
    keep_freed_memory()  # as training does
    updates = {(step.shape.source, step.shape.target): step.update for step in compiled}
    batches = training_batches(material.train, material.batching, 0, warmup + num_steps)
    state, *_ = _loop(islice(batches, warmup), updates, initial_state(config, sizes, mesh), mesh, warmup)
    with measure.compilations() as compilations:
        start = time.perf_counter()
        _, fetching, waiting = _loop(batches, updates, state, mesh, config.train.log_every)
        total = time.perf_counter() - start
    return {
        "steps": num_steps,
        "ms/step": 1000 * total / num_steps,
        "ms fetching": 1000 * fetching / num_steps,
        "ms waiting": 1000 * waiting / num_steps,
        "share waiting": waiting / total,
        "compilations": len(compilations),
    }


def _loop(
    batches: Iterator[Batch],
    updates: Mapping[tuple[int, int], TrainStep],
    state: TrainState,
    mesh: Mesh,
    log_every: int,
) -> tuple[TrainState, float, float]:
    """The loop of `training.loop` without evaluation; also returns seconds of fetching, and of waiting at most."""
    fetching = waiting = 0.0
    for step in count(1):
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        seconds = time.perf_counter() - start
        fetching += seconds
        waiting += seconds * state.step.is_ready()  # ty: ignore[missing-attribute] - an array that was computed has it
        state = updates[batch.source.values.shape[1], batch.target.values.shape[1]](state, *batch)
        if step % log_every == 0:
            jax.device_get(state.window)
            state = state._replace(window=jax.device_put(empty_window(), replicated(mesh)))
    return jax.block_until_ready(state), fetching, waiting


def _padding(config: Config, material: Material, mesh: Mesh, num_shapes: int) -> dict[str, Any]:
    data = replace(config.data, num_shapes=num_shapes)
    start = time.perf_counter()
    batching = arrange_batches(replace(config, data=data), material.train, mesh.size)
    return {
        "shapes allowed": num_shapes,
        "shapes": len(batching.shapes),
        "batches an epoch": batching.num_batches,
        "padded share": batching.padded_share,
        "seconds to arrange": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
