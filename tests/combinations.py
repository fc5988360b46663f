"""Choices of `ModelConfig` that go together, in models drawn by chance."""

import itertools
import random
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from seq2seq_jax.config import Attention, Cell, ModelConfig, Ties
from seq2seq_jax.errors import UserError
from tests.models import tiny_config

CHOICES: dict[str, tuple[Any, ...]] = {
    "cell": get_args(Cell),
    "decoder_cell": (None, "gru", "lstm", "slstm"),
    "attention": get_args(Attention),
    "decoder": ("luong", "bahdanau", "gnmt", "plain", "cho"),
    "attention_window": ("all", "local_m", "local_p"),
    "attention_heads": (1, 2),
    "alignment_order": (0, 1),
    "coverage": (False, True),
    "copy": (False, True),
    "input_feeding": (False, True),
    "context_feedback": (False, True),
    "bridge": ("copy", "dense", "mean", "zero"),
    "output": ("luong", "linear", "deep"),
    "bidirectional": ("none", "first", "all"),
    "direction_size": (None, 4),
    "residual_from": (0, 1, 2),
    "reverse_source": (False, True),
    "features": ("prepend", "shared", "separate", "linear"),
    "num_layers": (1, 2),
    "decoder_layers": (None, 2),
    "tied_embeddings": get_args(Ties),
}
REGULARIZERS: dict[str, tuple[Any, ...]] = {
    "layer_dropout_rate": (None, 0.25),
    "state_dropout_rate": (0.0, 0.25),
    "recurrent_dropout_rate": (0.0, 0.25),
    "word_dropout_rate": (0.0, 0.25),
    "variational_dropout": (False, True),
    "zoneout_cell_rate": (0.0, 0.25),
    "zoneout_hidden_rate": (0.0, 0.25),
    "weight_dropout_rate": (0.0, 0.25),
}
SIZES = {"hidden_size": 6, "embed_size": 6, "window_size": 1, "attention_positions": 3}


def model(settings: dict[str, Any]) -> ModelConfig | None:
    """A small model, or None where the settings do not go together."""
    try:
        return tiny_config(**SIZES | settings)
    except UserError:
        return None


@cache
def drawn(number: int) -> list[dict[str, Any]]:
    """Settings of as many models, by chance, in which the choices of every field take turns."""
    draw, draw_regularizers, found = random.Random(0), random.Random(1), []
    turns = {name: _turns(values, draw) for name, values in CHOICES.items()}
    while len(found) < number:
        names = draw.sample(list(CHOICES), 4)  # these have their turn; the others are chosen to go with them
        wanted = {name: next(turns[name]) for name in names}
        for _ in range(40):
            settings = {name: draw.choice(values) for name, values in CHOICES.items()} | wanted
            if model(settings):
                found.append(settings | _regularizers(settings, draw_regularizers))
                break
    return found


def _regularizers(settings: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Some that go with a model, and with each other."""
    chosen: dict[str, Any] = {}
    for name, values in REGULARIZERS.items():
        value = draw.choice(values)
        if model(settings | chosen | {name: value}):
            chosen[name] = value
    return chosen


def _turns(values: tuple[Any, ...], draw: random.Random) -> Iterator[Any]:
    while True:
        yield from draw.sample(values, len(values))


def pairs(settings: dict[str, Any]) -> set[frozenset]:
    """All pairs of choices of a model."""
    return {frozenset(pair) for pair in itertools.combinations(settings.items(), 2)}
