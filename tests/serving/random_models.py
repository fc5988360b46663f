"""Translators of random weights: they are there at once, and write anything."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from seq2seq_jax.build import abstract_params
from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.ensemble import together
from seq2seq_jax.translator import Translator, vocab_sizes


class _Pairs:
    def __init__(self, sources: Sequence[str], targets: Sequence[str]):
        self.sides = sources, targets

    def __len__(self) -> int:
        return len(self.sides[0])

    def read(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        sources, targets = (list(side[start:stop]) for side in self.sides)
        return sources, targets


def random_translator(
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    data: dict[str, Any],
    model: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    seeds: tuple[int, ...] = (1,),
) -> Translator:
    """Its vocabularies are of these lines; several seeds make an ensemble."""
    config = Config(
        model=ModelConfig(**{"hidden_size": 8, "embed_size": 8} | (model or {})),
        data=DataConfig(**{"joint_vocabulary": False} | data),
        decode=DecodeConfig(**{"beam_size": 1, "length_penalty": 0.7, "batch_size": 8} | (decode or {})),
    )
    vocabularies = replace(build_vocabularies(config.data, _Pairs(sources, targets)), copy=config.model.copy)
    shapes, params = abstract_params(config.model, vocab_sizes(vocabularies)), []
    for draw in map(np.random.default_rng, seeds):
        leaves, tree = jax.tree.flatten(shapes)
        params.append(tree.unflatten([draw.uniform(-1, 1, leaf.shape).astype(leaf.dtype) for leaf in leaves]))
    if len(seeds) == 1:
        return Translator(config, vocabularies, params[0])
    return Translator(config, vocabularies, together(params), ensemble=[config.model] * len(seeds))
