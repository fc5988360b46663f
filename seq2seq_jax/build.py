"""From a configuration to a model: the only reader of `ModelConfig`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from seq2seq_jax import attention, bridges, cells, linear
from seq2seq_jax.config import ModelConfig
from seq2seq_jax.decoders import Luong
from seq2seq_jax.encoders import Layers
from seq2seq_jax.outputs import Softmax
from seq2seq_jax.seq2seq import Seq2Seq

CELLS = {
    "rnn": cells.RNN,
    "gru": cells.GRU,
    "gru_v2": cells.GRUv2,
    "lstm": cells.LSTM,
    "layer_norm_lstm": cells.LayerNormLSTM,
    "layer_norm_gru": cells.LayerNormGRU,
    "min_lstm": cells.MinLSTM,
    "min_gru": cells.MinGRU,
    "slstm": cells.SLSTM,
}
BRIDGES = {"copy": bridges.copy, "zero": bridges.zero}  # and "dense", which has weights
ATTENTIONS = {"dot": attention.Dot, "general": attention.General, "additive": attention.Additive}


def build_model(config: ModelConfig, vocab_sizes: tuple[int, int], key: Key[Array, ""]) -> Seq2Seq:
    """The model with its first parameters; source and target vocabulary sizes."""
    make, ties = _Maker(config, key), config.tied_embeddings
    target_table = source_table = output_table = make.embedding(vocab_sizes[1])
    if ties not in ("source_target", "all"):
        source_table = make.embedding(vocab_sizes[0])
    if ties not in ("target_output", "all"):
        output_table = nnx.Param(make.weights.matrix(vocab_sizes[1], config.hidden_size))
    encoder = make.encoder()
    bridge = make.bridge(num_parts=len(encoder.layers[0][0].start(1, jnp.float32)))
    decoder = make.decoder(vector_size=output_table.shape[1])
    dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
    sides = source_table, target_table, encoder, bridge, decoder, Softmax(output_table)
    return Seq2Seq(*sides, dropout_rate=config.dropout_rate, dtype=dtype)


class _Maker:
    """Parts of a model, with first values from one stream of keys."""

    def __init__(self, config: ModelConfig, key: Key[Array, ""]) -> None:
        self.config, rngs = config, nnx.Rngs(params=key)
        uniform = config.initializer == "uniform"
        self.weights = linear.uniform(config.init_scale, rngs) if uniform else linear.orthogonal(rngs)

    def embedding(self, vocab_size: int) -> nnx.Param:
        return nnx.Param(self.weights.embedding(vocab_size, self.config.embed_size))

    def cell(self, input_sizes: Sequence[int], size: int) -> cells.Cell:
        return CELLS[self.config.cell](input_sizes, size, self.weights, self.config.forget_bias)

    def encoder(self) -> Layers:
        config, num_directions = self.config, 2 if self.config.bidirectional else 1
        inputs = [config.embed_size, *[config.hidden_size] * (config.num_layers - 1)]
        layers = [[self.cell([n], config.hidden_size // num_directions) for _ in range(num_directions)] for n in inputs]
        return Layers(layers, config.dropout_rate)

    def bridge(self, num_parts: int) -> bridges.Bridge:
        config = self.config
        if config.bridge == "dense":
            return bridges.Dense(config.num_layers, num_parts, config.hidden_size, self.weights)
        return BRIDGES[config.bridge]

    def decoder(self, vector_size: int) -> Luong:
        config, size = self.config, self.config.hidden_size
        lowest = [config.embed_size, *([vector_size] if config.input_feeding else [])]
        inputs = [lowest, *[[size]] * (config.num_layers - 1)]
        stack = cells.Stack([self.cell(sizes, size) for sizes in inputs], config.dropout_rate)
        attends = config.attention != "none"
        score = ATTENTIONS[config.attention](size, size, self.weights) if attends else None
        parts = [size, size] if attends else [size]
        combine = linear.Linear(parts, self.weights.matrix(sum(parts), vector_size))
        return Luong(stack, score, combine, config.input_feeding, config.dropout_rate)


def model_graph(config: ModelConfig, vocab_sizes: tuple[int, int]) -> nnx.GraphDef:
    """The model's structure without any array, for `nnx.merge` with a dict of parameters."""
    return nnx.graphdef(nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0))))


def abstract_params(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, Any]:
    """Shapes and dtypes of the parameters."""
    model = nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
