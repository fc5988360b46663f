"""From a configuration to a model: the only reader of `ModelConfig`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from seq2seq_jax import attention, bridges, cells, decoders, linear, outputs
from seq2seq_jax.config import STATE_PARTS, Mixture, ModelConfig, encoder_sizes, linear_size, reads_both_ways
from seq2seq_jax.decoders import Decoder
from seq2seq_jax.dropout import Dropout
from seq2seq_jax.encoders import Apart, Layers, Pointwise
from seq2seq_jax.ensemble import Ensemble
from seq2seq_jax.linear import Linear
from seq2seq_jax.outputs import Given, Softmax
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
ATTENTIONS = {
    "dot": attention.Dot,
    "scaled_dot": attention.ScaledDot,
    "general": attention.General,
    "concat": attention.Concat,
    "additive": attention.Additive,
    "normed_additive": attention.NormedAdditive,
    "location": attention.Location,
}
DECODERS = {
    "luong": decoders.Luong,
    "bahdanau": decoders.Bahdanau,
    "gnmt": decoders.GNMT,
    "plain": decoders.Plain,
    "cho": decoders.Cho,
}
HEADS = {"dot": attention.Heads, "scaled_dot": attention.ScaledHeads, "additive": attention.AdditiveHeads}
"""Of scores that may have several."""


def build_model(config: ModelConfig, vocab_sizes: tuple[int, ...], key: Key[Array, ""]) -> Seq2Seq:
    """The model with its first parameters.

    Args:
      config: what it looks like.
      vocab_sizes: of source and target; and how many of the source's entries, the last ones, are tags.
      key: of the first parameters.
    """
    make, ties = _Maker(config, key), config.tied_embeddings
    source_size, target_size, num_tags = (*vocab_sizes, 0)[:3]
    target_table = source_table = output_table = make.embedding(target_size)
    if ties not in ("source_target", "all"):
        source_table = make.embedding(source_size)
    if ties not in ("target_output", "all"):
        size = linear_size(config) if config.output == "linear" else config.hidden_size
        output_table = nnx.Param(make.weights.matrix(target_size, size))
    encoder = make.encoder() if config.features == "prepend" else make.encoder_apart()
    bridge = make.bridge()
    output: Softmax | Given = Softmax(output_table)
    decoder = make.decoder(output)
    if config.attention == "hard_monotonic":
        output = Given(target_size)
    dtype = jnp.bfloat16 if config.compute_dtype == "bfloat16" else None
    return Seq2Seq(
        source_table,
        target_table,
        encoder,
        bridge,
        decoder,
        output,
        dropout=make.dropout(config.embedding_dropout_rate),
        word_dropout=make.dropout(config.word_dropout_rate),
        first_tag=source_size - num_tags,
        reverse_source=config.reverse_source,
        dtype=dtype,
    )


class _Maker:
    """Parts of a model, with first values from one stream of keys."""

    def __init__(self, config: ModelConfig, key: Key[Array, ""]) -> None:
        self.config, rngs = config, nnx.Rngs(params=key)
        uniform = config.initializer == "uniform"
        self.weights = linear.uniform(config.init_scale, rngs) if uniform else linear.orthogonal(rngs)
        self.attends, self.memory_size = config.attention != "none", encoder_sizes(config)[-1]
        self.decoder_layers = config.decoder_layers or config.num_layers

    def residual(self, num_layers: int) -> list[bool]:
        """Of every layer whether its input is added to its output."""
        return [0 < self.config.residual_from <= depth + 1 for depth in range(num_layers)]

    def dropout(self, rate: float | None) -> Dropout:
        """At one place; None for the common rate."""
        return Dropout(self.config.dropout_rate if rate is None else rate, self.config.variational_dropout)

    def regularizers(self) -> cells.Regularizers:
        config = self.config
        return cells.Regularizers(
            inputs=self.dropout(config.layer_dropout_rate),
            state=self.dropout(config.state_dropout_rate),
            candidate=self.dropout(config.recurrent_dropout_rate),
            zoneout_cell=config.zoneout_cell_rate,
            zoneout_hidden=config.zoneout_hidden_rate,
        )

    def embedding(self, vocab_size: int) -> nnx.Param:
        return nnx.Param(self.weights.embedding(vocab_size, self.config.embed_size))

    def cell(self, kind: str, input_sizes: Sequence[int], size: int) -> cells.Cell:
        return CELLS[kind](input_sizes, size, self.weights, self.config.forget_bias)

    def encoder(self) -> Layers:
        config, layers, inputs = self.config, [], self.config.embed_size
        for depth, size in enumerate(encoder_sizes(config)):
            directions = 2 if reads_both_ways(config, depth) else 1
            layers.append([self.cell(config.cell, [inputs], size // directions) for _ in range(directions)])
            inputs = size
        return Layers(layers, self.regularizers(), self.residual(config.num_layers))

    def encoder_apart(self) -> Apart:
        """An encoder that reads tags by themselves."""
        text = self.encoder()
        match self.config.features:
            case "shared":
                return Apart(text, text)
            case "separate":
                return Apart(text, self.encoder())
            case _:
                size, results = self.config.embed_size, self.memory_size
                return Apart(text, Pointwise(Linear([size], self.weights.matrix(size, results), jnp.zeros(results))))

    def bridge(self) -> bridges.Bridge:
        config = self.config
        num_parts = len(STATE_PARTS[config.decoder_cell or config.cell])
        match config.bridge:
            case "copy":
                return bridges.copy
            case "zero":
                return bridges.zero
            case "dense":
                return bridges.Dense(encoder_sizes(config), num_parts, config.hidden_size, self.weights)
            case "mean":
                return bridges.Mean(self.decoder_layers, self.memory_size, config.hidden_size, self.weights)

    def decoder(self, output: Softmax) -> Decoder:
        config, vector_size = self.config, output.table.shape[1]
        dropout = self.dropout(config.output_dropout_rate)
        if config.attention == "hard_monotonic":
            return self.hard_monotonic(output, dropout)
        parts = self.stack(vector_size), self.score(), self.combine(vector_size), vector_size, dropout
        decoder = DECODERS[config.decoder](*parts, feedback=config.input_feeding or config.context_feedback)
        if config.copy:
            sizes = [self.memory_size, config.hidden_size, config.embed_size]
            decoder.pointer = Linear(sizes, self.weights.matrix(sum(sizes), 1), jnp.zeros(1))
        return decoder

    def hard_monotonic(self, output: Softmax, dropout: Dropout) -> Decoder:
        config, size, vector_size = self.config, self.config.hidden_size, output.table.shape[1]
        stack, combine = self.stack(vector_size), self.combine(vector_size)
        assert not isinstance(combine, outputs.Pass)  # the config refuses it
        keys, jumps = Linear([self.memory_size], self.weights.matrix(self.memory_size, size)), None
        if config.alignment_order:
            num_jumps = config.window_size + 1
            jumps = Linear([size, size], self.weights.matrix(2 * size, num_jumps), jnp.zeros(num_jumps))
        return decoders.HardMonotonic(stack, combine, vector_size, dropout, output, keys, jumps)

    def stack(self, vector_size: int) -> cells.Stack:
        """The decoder's layers: every decoder has inputs of its own."""
        config, size = self.config, self.config.hidden_size
        lowest, above = [config.embed_size], [size]
        if config.input_feeding:
            lowest.append(vector_size)
        if config.decoder in ("bahdanau", "cho") or config.context_feedback:
            lowest.append(self.memory_size)
        if config.decoder == "gnmt":
            above.append(self.memory_size)
        inputs = [lowest, *[above] * (self.decoder_layers - 1)]
        layers = [self.cell(config.decoder_cell or config.cell, sizes, size) for sizes in inputs]
        return cells.Stack(layers, self.regularizers(), self.residual(self.decoder_layers))

    def score(self) -> attention.Dot | None:
        config, size = self.config, self.config.hidden_size
        if not self.attends:
            return None
        window, options = self.window(), {}
        kind: Any = ATTENTIONS[config.attention]
        if config.attention_heads > 1:
            kind, options = HEADS[config.attention], {"num_heads": config.attention_heads}
        elif config.attention == "location":
            options = {"num_positions": config.attention_positions}
        elif config.coverage:
            options = {"coverage": True}
        score = kind(size, self.memory_size, self.weights, **options)
        score.window = window
        return score

    def window(self) -> attention.Window:
        config = self.config
        match config.attention_window:
            case "all":
                return attention.Window()
            case "local_m":
                return attention.LocalM(config.window_size)
            case "local_p":
                return attention.LocalP(config.hidden_size, self.weights, config.window_size)

    def combine(self, vector_size: int) -> outputs.Combine | outputs.Maxout | outputs.Pass:
        config, size = self.config, self.config.hidden_size
        context = [self.memory_size] if self.attends or config.decoder == "cho" else []
        match config.output:
            case "luong":
                parts = [*context, size]
                return outputs.Combine(parts, self.weights.matrix(sum(parts), vector_size))
            case "deep":
                parts = [size, config.embed_size, *context]
                return outputs.Maxout(
                    parts, self.weights.matrix(sum(parts), 2 * vector_size), jnp.zeros(2 * vector_size)
                )
            case "linear":
                return outputs.Pass(with_context=config.decoder == "luong")


def frozen(config: ModelConfig) -> frozenset[str]:
    """Names of the parameters that are not trained: tables that `freeze_vectors` keeps as they are at the start."""
    if not config.freeze_vectors:
        return frozenset()
    if config.tied_embeddings == "source_target":
        return frozenset({"source_table"})  # the name of the one that is both
    files = {"source_table": config.source_vectors, "target_table": config.target_vectors}
    return frozenset(name for name, file in files.items() if file)


def model_graph(config: ModelConfig, vocab_sizes: tuple[int, ...]) -> nnx.GraphDef:
    """The model's structure without any array, for `nnx.merge` with a dict of parameters."""
    return nnx.graphdef(nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0))))


def ensemble_graph(configs: Sequence[ModelConfig], vocab_sizes: tuple[int, ...], kind: Mixture) -> nnx.GraphDef:
    """As `model_graph`, of several models as one; their parameters are joined by `ensemble.together`."""

    def build() -> Ensemble:
        return Ensemble([build_model(config, vocab_sizes, jax.random.key(0)) for config in configs], kind)

    return nnx.graphdef(nnx.eval_shape(build))


def abstract_params(config: ModelConfig, vocab_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Shapes and dtypes of the parameters."""
    model = nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
