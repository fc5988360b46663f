"""Every cell in the same attention model, parameters matched, on six small tasks: one table.

    python -m benchmarks.cells --corpora DIR [--num-seeds 5] [--cells lstm gru ...] [--tasks parity ...]

DIR holds the folders of CORPORA below, and has none of its own for what is generated or comes through TFDS. The model
is Bahdanau et al. 2015's: an encoder in both directions, additive attention, which the previous state asks, and a
linear output layer. Each cell has the width with which all parameters are closest in number to those of the LSTM.
Everything else, the learning rate too, is the same, and was chosen for none of them. Tested are the parameters that
were best on validation. The same command again resumes; `cells.md` in --workdir is the table.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax

from seq2seq_jax.build import abstract_params
from seq2seq_jax.config import (
    Cell,
    Config,
    DataConfig,
    DecodeConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from seq2seq_jax.cpu import share_cores
from seq2seq_jax.training.setup import prepare
from seq2seq_jax.training.sweep import sweep
from seq2seq_jax.training.verdict import Summary
from seq2seq_jax.translator import vocab_sizes

MODEL = ModelConfig(
    cell="lstm",
    hidden_size=128,
    embed_size=64,
    decoder="bahdanau",
    attention="additive",
    input_feeding=False,
    bridge="mean",
    output="linear",
    initializer="orthogonal",
    forget_bias=1.0,
    dropout_rate=0.2,
)
WIDTHS = range(32, 513, 4)


class Task(NamedTuple):
    """A corpus and what is asked of it."""

    data: DataConfig
    num_steps: int
    split: str
    score: str
    max_length_ratio: float = 2.0


def tasks(corpora: Path) -> dict[str, Task]:
    """The six, by name."""
    words = DataConfig(vocabulary="words", joint_vocabulary=False, batch_size=64, num_shapes=4)
    inflection = replace(
        words,
        corpus=f"files:{corpora}/sigmorphon2017-task1/turkish",
        train_split="train-medium",
        columns=("lemma", "form", "tags"),
        source="lemma",
        target="form",
        features="tags",
        vocabulary="characters",
        joint_vocabulary=True,
    )
    spelling = replace(
        words,
        corpus=f"files:{corpora}/sigmorphon2020-g2p/hun",
        columns=("word", "phones"),
        source="word",
        target="phones",
        vocabulary="characters",
        target_vocabulary="words",
    )
    tanaka = replace(words, corpus=f"files:{corpora}/tanaka10k-ja-en", source="ja", target="en", min_frequency=2)
    return {
        "parity": Task(replace(words, corpus="formal/parity"), 1_500, "test_41_100", "exact_match"),
        "reverse": Task(replace(words, corpus="formal/reverse"), 1_500, "test_1_40", "exact_match"),
        "SCAN length": Task(replace(words, corpus="scan/length"), 1_500, "test", "exact_match", 8.0),
        "Turkish, 1,000": Task(inflection, 1_000, "test", "exact_match"),
        "Hungarian phones": Task(spelling, 1_000, "test", "exact_match"),
        "Tanaka": Task(tanaka, 1_500, "test", "bleu"),
    }


def config_of(task: Task, cell: str, width: int) -> Config:
    """One experiment."""
    return Config(
        model=replace(MODEL, cell=cell, hidden_size=width),
        data=task.data,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=100),
        train=TrainConfig(
            num_steps=task.num_steps,
            evaluate_every=task.num_steps // 5,
            checkpoint_every=task.num_steps // 5,
            label_smoothing=0.1,
        ),
        decode=DecodeConfig(beam_size=1, max_length_ratio=task.max_length_ratio),
        bleu_tokenizer="none",
    )


def num_parameters(config: Config, sizes: tuple[int, ...]) -> int:
    """Of the whole model."""
    return sum(param.size for param in jax.tree.leaves(abstract_params(config.model, sizes)))


def matched(task: Task, cell: str, wanted: int, sizes: tuple[int, ...]) -> int:
    """The width with which the model has the number of parameters that is closest to the one wanted."""
    return min(WIDTHS, key=lambda width: abs(num_parameters(config_of(task, cell, width), sizes) - wanted))


def shown(score: Mapping[str, Any]) -> str:
    """Mean and standard deviation over the seeds."""
    return str(Summary(score["mean"], score["standard_deviation"], score["seeds"]))


def table(results: dict[str, dict[str, str]], all_tasks: dict[str, Task]) -> str:
    """Markdown, a row a cell."""
    heads = [f"{name} ({all_tasks[name].score}, {all_tasks[name].split})" for name in results]
    lines = [["cell", *heads], ["---"] * (len(heads) + 1)]
    for cell in next(iter(results.values())):
        lines.append([cell, *(results[name][cell] for name in results)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the sweeps, task by task, and writes the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--workdir", type=Path, default=Path("runs/cells"))
    parser.add_argument("--cells", nargs="+", choices=get_args(Cell), default=get_args(Cell))
    parser.add_argument("--tasks", nargs="+")
    given = parser.parse_args(arguments)
    share_cores(given.num_seeds)
    all_tasks = tasks(given.corpora.absolute())
    results: dict[str, dict[str, str]] = {}
    for name in given.tasks or all_tasks:
        task = all_tasks[name]
        sizes = vocab_sizes(prepare(config_of(task, "lstm", MODEL.hidden_size), 1).vocabularies)
        wanted = num_parameters(config_of(task, "lstm", MODEL.hidden_size), sizes)
        configs = [config_of(task, cell, matched(task, cell, wanted, sizes)) for cell in given.cells]
        folder = given.workdir / name.replace(" ", "-").replace(",", "")
        if sweep(("model.cell", "model.hidden_size"), configs, given.num_seeds, folder) != "done":
            return
        points = json.loads((folder / "sweep.json").read_text())["points"]
        results[name] = {
            point["values"]["model.cell"]: point["trouble"] or shown(point["splits"][task.split][task.score])
            for point in points
        }
        (given.workdir / "cells.md").write_text(table(results, all_tasks))
    print(table(results, all_tasks))


if __name__ == "__main__":
    main()
