"""A tiny task for tests of whole runs: words to the same words in upper case, by a model of a few hundred weights."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig

WORDS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


def sentences(count: int, seed: int) -> list[str]:
    """Returns lines of 1 to 5 words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(count)]


def write_pairs(folder: Path, split: str, sources: Sequence[str]) -> tuple[str, str]:
    """Writes `SPLIT.low` and `SPLIT.up` and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{split}.low", folder / f"{split}.up"
    files[0].write_text("".join(f"{line}\n" for line in sources))
    files[1].write_text("".join(f"{line.upper()}\n" for line in sources))
    return str(files[0]), str(files[1])


def tiny_config(folder: Path, **changes: dict[str, Any]) -> Config:
    """A run of seconds on files that it writes in `folder`.

    Args:
      folder: of the corpus.
      changes: fields by section, such as `train={"num_steps": 3}`.
    """
    config = Config(
        model=ModelConfig(hidden_size=16, embed_size=16, dropout_rate=0.1, init_scale=0.3),
        data=DataConfig(
            train_files=write_pairs(folder, "train", sentences(200, seed=1)),
            validation_files=write_pairs(folder, "validation", sentences(12, seed=2)),
            test_files=write_pairs(folder, "test", sentences(12, seed=3)),
            vocabulary="words",
            joint_vocabulary=False,
            max_length=8,
            batch_size=8,
            num_shapes=1,
        ),
        optimizer=OptimizerConfig(learning_rate=0.02),
        train=TrainConfig(num_steps=12, evaluate_every=6, checkpoint_every=4, log_every=2, num_samples=1),
        decode=DecodeConfig(beam_size=2, batch_size=8),
    )
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in changes.items()})


def rows(workdir: Path, *, timed: bool = False) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl, without what a clock says unless `timed`."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clocks = () if timed else ("seconds", "target_tokens_per_second")
    return [{name: value for name, value in row.items() if name not in clocks} for row in found]
