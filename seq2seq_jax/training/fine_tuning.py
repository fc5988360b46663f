"""A run that starts from the parameters of another: on other text, with more steps, with a grown vocabulary."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax import run_directory
from seq2seq_jax.checkpoint import restore_params
from seq2seq_jax.config import Config, differences
from seq2seq_jax.data.vocabulary import LinePairs, Vocabularies, build_vocabularies, load_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.sharding import is_by_word, local_mesh
from seq2seq_jax.symbols import NUM_SPECIAL
from seq2seq_jax.training.step import TrainState
from seq2seq_jax.translator import origin, params_on

_MAY_DIFFER = ("variational_dropout", "initializer", "init_scale", "forget_bias", "compute_dtype")
"""Fields of `model`, beside rates of dropout and the like, that say how it is trained and not what it is."""
_OF_TEXT = (
    "vocabulary",
    "target_vocabulary",
    "joint_vocabulary",
    "lowercase",
    "features_separator",
    "context_turns",
)
"""Fields of `data` that say how text becomes ids, whatever the text is."""


def check_start(config: Config) -> None:
    """Refuses a run to start from that has another model, or makes other ids of text.

    Raises:
      UserError: with the fields that differ; or it is not a run directory.
    """
    kept = run_directory.read_config(_run(config))
    fields = {name for name in vars(config.model) if not name.endswith("_rate") and "vectors" not in name}
    model = {name: getattr(kept.model, name) for name in fields - set(_MAY_DIFFER)}
    data = {name: getattr(kept.data, name) for name in _OF_TEXT}
    data |= {} if bool(kept.data.features) == bool(config.data.features) else {"features": kept.data.features}
    as_there = _with(_with(config, "model", model), "data", data)
    if changed := differences(as_there, config):
        listed = "\n  ".join(changed)
        raise UserError(
            f"train.init_from {_run(config)} has another model or other text (there -> here):\n  {listed}\n"
            "Set these fields as they are there."
        )


def _run(config: Config) -> Path:
    assert config.train.init_from is not None
    return Path(config.train.init_from)


def _with(config: Config, section: str, fields: dict[str, Any]) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **fields)})


def start_vocabularies(config: Config, train: LinePairs) -> Vocabularies:
    """The vocabularies of the run to start from; with `train.grow_vocabulary`, what text here has beside them.

    Raises:
      UserError: they cannot be read, or consist of pieces of words, which do not grow.
    """
    check_start(config)
    kept = load_vocabularies(_run(config) / run_directory.VOCABULARY, copy=config.model.copy)
    if not config.train.grow_vocabulary:
        return kept
    new = build_vocabularies(config.data, train)
    source = kept.source.grown(new.source)
    return Vocabularies(source, source if kept.joint else kept.target.grown(new.target), config.model.copy)


def start_from(state: TrainState, config: Config, vocabularies: Vocabularies, mesh: Mesh) -> tuple[TrainState, int]:
    """The first state with the best parameters of the run to start from, and the step that those are of.

    Rows of words that the other run's vocabularies lack are the mean of its rows
    of words.

    Args:
      state: of this run before its first step.
      config, vocabularies, mesh: of this run.

    Raises:
      UserError: no checkpoint there, or a damaged one.
    """
    run = _run(config)
    kept = run_directory.read_config(run)
    theirs = load_vocabularies(run / run_directory.VOCABULARY, copy=kept.model.copy)
    belongs = origin(kept, theirs, run_directory.read_fingerprint(run))
    found, step = restore_params(run, params_on(local_mesh(mesh), kept, theirs), belongs)
    rows = {
        "source_table": vocabularies.source.ids_in(theirs.source),
        "target_table": vocabularies.target.ids_in(theirs.target),
    }

    def taken(path: Any, own: jax.Array, other: jax.Array) -> jax.Array:
        values = np.asarray(other)
        if is_by_word(path):
            name = path[0].key if path[0].key in rows else "target_table"
            values = _by_word(values, rows[name])
        return jax.make_array_from_callback(own.shape, own.sharding, lambda index: values[index].astype(own.dtype))

    params = jax.tree.map_with_path(taken, state.params, found)
    average = None if state.average is None else jax.tree.map_with_path(taken, state.average, found)
    return state._replace(params=params, average=average), step


def _by_word(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The row of each id; where there is none, -1, the mean of those of words."""
    mean = values[NUM_SPECIAL:].mean(0, dtype=np.float64).astype(values.dtype)
    return np.where((ids >= 0).reshape(-1, *(1,) * (values.ndim - 1)), values[np.maximum(ids, 0)], mean)
