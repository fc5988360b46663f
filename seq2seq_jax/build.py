"""From a configuration to a model: the only reader of `ModelConfig`."""

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

CELLS = {"rnn": cells.RNN, "gru": cells.GRU, "lstm": cells.LSTM}
ATTENTIONS = {"dot": attention.Dot, "general": attention.General, "additive": attention.Additive}


def build_model(config: ModelConfig, vocab_sizes: tuple[int, int], key: Key[Array, ""]) -> Seq2Seq:
    """The model with its first parameters; source and target vocabulary sizes."""
    rngs, size, depth = nnx.Rngs(params=key), config.hidden_size, config.num_layers
    initializers = linear.uniform(config.init_scale) if config.initializer == "uniform" else linear.orthogonal()

    def cell(input_sizes: list[int], size: int) -> cells.Cell:
        return CELLS[config.cell](input_sizes, size, initializers, rngs, config.forget_bias)

    def table(vocab_size: int, size: int, initializer: linear.Initializer) -> nnx.Param:
        return nnx.Param(initializer(rngs.params(), (vocab_size, size)))

    target_table = table(vocab_sizes[1], config.embed_size, initializers.embedding)
    source_table = output_table = target_table
    if config.tied_embeddings not in ("source_target", "all"):
        source_table = table(vocab_sizes[0], config.embed_size, initializers.embedding)
    if config.tied_embeddings not in ("target_output", "all"):
        output_table = table(vocab_sizes[1], size, initializers.matrix)

    directions = 2 if config.bidirectional else 1
    below = [config.embed_size, *[size] * (depth - 1)]
    encoder = Layers([[cell([n], size // directions) for _ in range(directions)] for n in below], config.dropout_rate)
    bridge = getattr(bridges, config.bridge, None)
    if config.bridge == "dense":
        num_parts = len(encoder.layers[0][0].start(1, jnp.float32))
        bridge = bridges.Dense(depth, num_parts, size, initializers, rngs)

    vector_size = output_table.shape[1]
    fed = [vector_size] if config.input_feeding else []
    stack = cells.Stack(
        [cell([config.embed_size, *fed], size), *(cell([size], size) for _ in below[1:])], config.dropout_rate
    )
    score = None
    if config.attention != "none":
        score = ATTENTIONS[config.attention](size, size, initializers, rngs)
    parts = [size] if score is None else [size, size]
    combine = linear.Linear(parts, initializers.matrix(rngs.params(), (sum(parts), vector_size)))
    decoder = Luong(stack, score, combine, config.input_feeding, config.dropout_rate)
    dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
    return Seq2Seq(
        source_table,
        target_table,
        encoder,
        bridge,
        decoder,
        Softmax(output_table),
        dropout_rate=config.dropout_rate,
        dtype=dtype,
    )


def model_graph(config: ModelConfig, vocab_sizes: tuple[int, int]) -> nnx.GraphDef:
    """The model's structure without any array, for `nnx.merge` with a dict of parameters."""
    return nnx.graphdef(nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0))))


def abstract_params(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, Any]:
    """Shapes and dtypes of the parameters."""
    model = nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
