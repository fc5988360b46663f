"""Encoder, attention decoder, and the two together.

Time-major inside the recurrence, batch-major at the edges. Modules hold
parameters only; random keys are passed in, and without them nothing is dropped.
Every row of a batch has a key of its own, so what is dropped in a row does not
depend on the rows beside it, nor on the device that computes it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from seq2seq_jax.attention import Memory, attend, attention_specs
from seq2seq_jax.cells import lstm_cell
from seq2seq_jax.config import ModelConfig
from seq2seq_jax.recurrence import Engine, Product, direct_product, in_segments, matmul, scan
from seq2seq_jax.symbols import BOS, PAD

Keys = Key[Array, " B"]
"""Random keys, one for each row of a batch."""
State = tuple[Array, Array]
"""(c, h) of one layer; c is float32 (or wider), h has the compute dtype."""


class DecoderCarry(NamedTuple):
    """What the decoder hands from one step to the next; `feed` is the attentional vector or None."""

    states: tuple[State, ...]
    feed: Array | None


class Encoded(NamedTuple):
    """A batch of sources, encoded: what attention looks at and where the decoder starts."""

    memory: Memory
    carry: DecoderCarry


class SearchTables(NamedTuple):
    """What every step of a search uses and depends on the parameters only: computed once for all sentences.

    Attributes:
      first_gates: of each target token, what it gives to the gates of the first decoder layer, bias included; G = 4H
        numbers for each, 524 MB in float32 for 32,000 tokens and H = 1,024.
      output_kernel: laid out so that a few rows can be multiplied with it as it is.
    """

    first_gates: Float[Array, "V G"]
    output_kernel: Float[Array, "A V"]


class LSTMLayer(nnx.Module):
    """Parameters of an LSTM over a sequence, one set for each of `num_directions`.

    Kernels act from the right, and are cut where the time loop cuts the work:
    `input_kernel` meets the `input_size` features that are known before the loop
    (absent if there are none), `recurrent_kernel` those known only inside it,
    `fed_size` others and then the layer's own state.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        num_directions: int = 1,
        fed_size: int = 0,
    ):
        if input_size:
            shape = (num_directions, input_size, 4 * hidden_size)
            self.input_kernel = nnx.Param(_matrix(config, rngs.params(), shape))
        recurrent = _recurrent(config, rngs.params(), num_directions, hidden_size)
        fed = _matrix(config, rngs.params(), (num_directions, fed_size, 4 * hidden_size))
        self.recurrent_kernel = nnx.Param(jnp.concatenate([fed, recurrent], axis=1))
        bias = jnp.zeros((num_directions, 4, hidden_size)).at[:, 1].set(config.forget_bias)
        self.bias = nnx.Param(bias.reshape(num_directions, 4 * hidden_size))


class Encoder(nnx.Module):
    """Stacked LSTM over the embedded source, in one or both directions per layer.

    Both directions run in one loop, side by side; the second reads the sequence
    from its padded end, where masked steps leave its zero state untouched.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        num_directions = 2 if config.bidirectional else 1
        size = config.hidden_size // num_directions
        inputs = [config.embed_size] + [config.hidden_size] * (config.num_layers - 1)
        self.layers = nnx.List([LSTMLayer(n, size, config, rngs, num_directions=num_directions) for n in inputs])

    def __call__(
        self, embedded: Float[Array, "S B D"], mask: Bool[Array, "S B"], keys: list, engine: Engine, segment: int = 0
    ) -> tuple[Float[Array, "S B E"], list[State]]:
        """Returns the top layer's outputs and every layer's last state, directions joined along features.

        `segment`: positions of a piece, see `recurrence.in_segments`.
        """
        outputs, states = embedded, []
        for depth, layer in enumerate(self.layers):
            if depth:
                outputs = dropout(outputs, self.config.dropout_rate, keys[depth])
            outputs, state = _run_layer(layer, outputs, mask, engine, segment)
            states.append(state)
        return outputs, states


def _run_layer(
    layer: LSTMLayer, inputs: Float[Array, "S B D"], mask: Bool[Array, "S B"], engine: Engine, segment: int
) -> tuple[Float[Array, "S B E"], State]:
    dtype = inputs.dtype
    input_kernel = layer.input_kernel[...].astype(dtype)
    recurrent_kernel = layer.recurrent_kernel[...].astype(dtype)
    bias = layer.bias[...].astype(dtype)
    num_directions, size = recurrent_kernel.shape[:2]

    def step(product: Product, _: Any, carry: State, mask: Array) -> tuple[State, Array]:
        cell, hidden = lstm_cell(product("recurrent", carry[1]), carry[0])
        cell, hidden = (jnp.where(mask[..., None], new, old) for new, old in zip((cell, hidden), carry, strict=True))
        return (cell, hidden), hidden

    def run(carry: State, xs: tuple[list[Array], list[Array]]) -> tuple[State, Array]:
        inputs, masks = xs
        # One product for all steps, before the loop.
        gates = jnp.stack([matmul(x, input_kernel[z], bias[z]) for z, x in enumerate(inputs)], axis=1)
        specs, operands = {"recurrent": "zbh,zhg->zbg"}, {"recurrent": recurrent_kernel}
        masks = jnp.stack(masks, axis=1)
        return scan(step, specs, operands, (), carry, {"recurrent": gates}, masks, engine=engine)

    start = _zero_state((num_directions, inputs.shape[1], size), dtype)
    # The second direction's copy runs from the end.
    xs = tuple([x, *(jnp.flip(x, 0) for _ in range(num_directions - 1))] for x in (inputs, mask))
    (cell, hidden), ys = in_segments(run, start, xs, segment)
    outputs = jnp.concatenate([ys[:, 0], *(jnp.flip(ys[:, z], 0) for z in range(1, num_directions))], axis=-1)
    return outputs, (jnp.concatenate(list(cell), axis=-1), jnp.concatenate(list(hidden), axis=-1))


class Decoder(nnx.Module):
    """Stacked LSTM with attention on top (Luong et al. 2015).

    The attentional vector is `tanh(W [context; h])` (equation 5). With input
    feeding it joins the embedding as the next step's input, and the whole step
    runs in the loop; without, the layers run one after another over the whole
    sequence, and attention follows for all steps at once. The vector is as wide
    as the output layer wants it: hidden_size, or embed_size where that layer is
    the embedding table.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        hidden, self.vector_size = config.hidden_size, vector_size(config)
        deeper = [(0, hidden) if config.input_feeding else (hidden, 0)] * (config.num_layers - 1)
        sizes = [(config.embed_size, self.vector_size if config.input_feeding else 0), *deeper]
        self.layers = nnx.List([LSTMLayer(size, hidden, config, rngs, fed_size=fed) for size, fed in sizes])
        context = 0 if config.attention == "none" else hidden
        self.combine_kernel = nnx.Param(_matrix(config, rngs.params(), (context + hidden, self.vector_size)))
        if config.attention in ("general", "additive"):
            self.key_kernel = nnx.Param(_matrix(config, rngs.params(), (hidden, hidden)))
        if config.attention == "additive":
            self.query_kernel = nnx.Param(_matrix(config, rngs.params(), (hidden, hidden)))
            self.score_kernel = nnx.Param(_matrix(config, rngs.params(), (hidden, 1)))

    def memory(self, outputs: Float[Array, "S B E"], mask: Bool[Array, "B S"]) -> Memory:
        """Lays the encoder's outputs out for attention: done once per sentence."""
        values = jnp.swapaxes(outputs, 0, 1)
        keys = matmul(values, self.key_kernel[...].astype(values.dtype)) if hasattr(self, "key_kernel") else values
        return Memory(keys, values, mask)

    def start(self, states: list[State]) -> DecoderCarry:
        """First carry: the given states and a zero attentional vector."""
        batch, dtype = states[0][1].shape[0], states[0][1].dtype
        feed = jnp.zeros((batch, self.vector_size), dtype) if self.config.input_feeding else None
        return DecoderCarry(tuple(states), feed)

    def __call__(
        self,
        embedded: Float[Array, "T B D"],
        memory: Memory,
        carry: DecoderCarry,
        keys: list,
        engine: Engine,
    ) -> tuple[DecoderCarry, tuple[Float[Array, "T B A"], Float[Array, "T B S"] | None]]:
        """Teacher forcing: the last carry, and attentional vectors and attention weights of all steps.

        `keys` are two, for dropout between layers and at the output, or None twice.
        """
        run = self._fed_steps if self.config.input_feeding else self._unfed_steps
        return run(embedded, memory, carry, *keys, engine)

    def step(
        self, first_gates: Float[Array, "B K G"], memory: Memory, carry: DecoderCarry
    ) -> tuple[DecoderCarry, Float[Array, "B K A"]]:
        """One step of a search: K hypotheses a sentence, the memory held once for all of them.

        `first_gates` are what the last tokens give to the gates of the first layer.
        """
        operands, beams = self._operands(memory), Memory(memory.keys[:, None], memory.values, memory.mask[:, None])
        if not self.config.input_feeding:  # in a search no layer's input is known beforehand but the first one's
            deeper = {
                f"layer{depth}": _joined(layer, first_gates.dtype) for depth, layer in enumerate(self.layers) if depth
            }
            operands |= deeper
        product = direct_product(self._specs("bk"), operands, {"layer0": first_gates})
        carry, (vector, _) = self._step(product, self._shared(beams), carry, (None, None))
        return carry, vector

    def _fed_steps(
        self,
        embedded: Array,
        memory: Memory,
        carry: DecoderCarry,
        between: Array | None,
        last: Array | None,
        engine: Engine,
    ):
        rate = self.config.dropout_rate
        steps, batch = embedded.shape[:2]
        hidden_shape = (steps, len(self.layers) - 1, batch, self.config.hidden_size)
        keeps = _keep_mask(between, rate, hidden_shape), _keep_mask(last, rate, (steps, batch, self.vector_size))
        specs, operands, added = (
            self._specs("b"),
            self._operands(memory),
            {"layer0": _projected(self.layers[0], embedded)},
        )
        return scan(self._step, specs, operands, self._shared(memory), carry, added, keeps, engine=engine)

    def _unfed_steps(
        self,
        embedded: Array,
        memory: Memory,
        carry: DecoderCarry,
        between: Array | None,
        last: Array | None,
        engine: Engine,
    ):
        keys = _split(between, len(self.layers))
        hidden, states = embedded, []
        for depth, layer in enumerate(self.layers):
            if depth:
                hidden = dropout(hidden, self.config.dropout_rate, keys[depth])
            state, hidden = _run_decoder_layer(layer, hidden, carry.states[depth], engine)
            states.append(state)
        vectors, weights = self._attend_all(hidden, memory, engine)
        return DecoderCarry(tuple(states), None), (dropout(vectors, self.config.dropout_rate, last), weights)

    def _attend_all(self, hidden: Float[Array, "T B H"], memory: Memory, engine: Engine):
        if self.config.attention != "additive":
            operands = self._operands(memory)
            return self._vector(direct_product(self._specs("tb"), operands), self._shared(memory), hidden)
        # All steps at once would need [T, B, S, H] under the tanh; a loop needs one step of it.

        def step(product: Product, shared: Any, carry: None, hidden: Array):
            return carry, self._vector(product, shared, hidden)

        specs = attention_specs("additive", "b") | {"combine": self._specs("b")["combine"]}
        operands = {name: operand for name, operand in self._operands(memory).items() if name in specs}
        return scan(step, specs, operands, self._shared(memory), None, {}, hidden, engine=engine)[1]

    def _step(self, product: Product, shared: Any, carry: DecoderCarry, x: Any):
        """One step: every layer, attention, attentional vector."""
        keep_between, keep_vector = x
        states: list[State] = []
        for depth, (cell, hidden) in enumerate(carry.states):
            inputs = [carry.feed] if carry.feed is not None else []
            if depth:
                kept = None if keep_between is None else keep_between[depth - 1]
                inputs = [_drop(states[-1][1], self.config.dropout_rate, kept)]
            gates = product(f"layer{depth}", jnp.concatenate([*inputs, hidden], axis=-1))
            states.append(lstm_cell(gates + shared["biases"][depth - 1] if depth else gates, cell))
        vector, weights = self._vector(product, shared, states[-1][1])
        vector = _drop(vector, self.config.dropout_rate, keep_vector)
        feed = vector if self.config.input_feeding else None
        return DecoderCarry(tuple(states), feed), (vector, weights)

    def _vector(self, product: Product, shared: Any, hidden: Array) -> tuple[Array, Array | None]:
        if self.config.attention == "none":
            return jnp.tanh(product("combine", hidden)), None
        context, weights = attend(product, hidden, shared["mask"], shared.get("additive"))
        return jnp.tanh(product("combine", jnp.concatenate([context, hidden], axis=-1))), weights

    def _specs(self, axes: str) -> dict[str, str]:
        specs = {f"layer{depth}": f"{axes}i,ig->{axes}g" for depth in range(len(self.layers))}
        specs |= {"combine": f"{axes}i,io->{axes}o"}
        return specs | (attention_specs(self.config.attention, axes) if self.config.attention != "none" else {})

    def _operands(self, memory: Memory) -> dict[str, Array]:
        """Right sides of the products of a step in the loop."""
        dtype = memory.values.dtype
        operands = {"combine": self.combine_kernel[...].astype(dtype)}
        operands |= {f"layer{depth}": _of(layer.recurrent_kernel, dtype) for depth, layer in enumerate(self.layers)}
        if self.config.attention == "additive":
            operands |= {"query": self.query_kernel[...].astype(dtype), "values": memory.values}
        elif self.config.attention != "none":
            operands |= {"keys": memory.keys, "values": memory.values}
        return operands

    def _shared(self, memory: Memory) -> dict[str, Any]:
        """What else a step reads. Parameters come once for every row of the batch: a loop sums their gradients so."""
        dtype, rows = memory.values.dtype, memory.mask.shape[:-1]

        def for_rows(param: Array) -> Array:
            return jnp.broadcast_to(param.astype(dtype), (*rows, *param.shape))

        shared: dict[str, Any] = {
            "mask": memory.mask,
            "biases": [for_rows(layer.bias[...][0]) for layer in self.layers[1:]],
        }
        if self.config.attention == "additive":
            shared["additive"] = memory.keys, for_rows(self.score_kernel[...][:, 0])
        return shared


def _run_decoder_layer(
    layer: LSTMLayer, inputs: Float[Array, "T B D"], start: State, engine: Engine
) -> tuple[State, Float[Array, "T B H"]]:
    """An LSTM over the target: no mask, for nothing that counts comes after a padded step."""

    def step(product: Product, _: Any, carry: State, x: None) -> tuple[State, Array]:
        carry = lstm_cell(product("recurrent", carry[1]), carry[0])
        return carry, carry[1]

    specs, operands = {"recurrent": "bh,hg->bg"}, {"recurrent": _of(layer.recurrent_kernel, inputs.dtype)}
    return scan(step, specs, operands, (), start, {"recurrent": _projected(layer, inputs)}, None, engine=engine)


def _projected(layer: LSTMLayer, inputs: Float[Array, "*N D"]) -> Float[Array, "*N G"]:
    """What the inputs known before the loop give to the gates of a decoder layer, bias included."""
    return matmul(inputs, _of(layer.input_kernel, inputs.dtype), _of(layer.bias, inputs.dtype))


def _joined(layer: LSTMLayer, dtype: Any) -> Float[Array, "_ G"]:
    """One kernel for inputs and state together."""
    return jnp.concatenate([_of(layer.input_kernel, dtype), _of(layer.recurrent_kernel, dtype)])


class Seq2Seq(nnx.Module):
    """Encoder, bridge, decoder, embeddings and output layer.

    Args:
      config: sizes and choices.
      source_vocab_size, target_vocab_size: entries of the vocabularies.
      rngs: stream `params` gives the initial values.
      engine: how recurrences run, "fast" or "reference" (`recurrence.scan`).
    """

    def __init__(
        self,
        config: ModelConfig,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        rngs: nnx.Rngs,
        engine: Engine = "fast",
    ):
        self.config, self.engine = config, engine
        self.vocab_size = target_vocab_size
        self.target_embedding = nnx.Param(_embedding(config, rngs.params(), target_vocab_size))
        if config.tied_embeddings not in ("source_target", "all"):
            self.source_embedding = nnx.Param(_embedding(config, rngs.params(), source_vocab_size))
        if config.tied_embeddings not in ("target_output", "all"):
            self.output_kernel = nnx.Param(_matrix(config, rngs.params(), (target_vocab_size, config.hidden_size)))
        self.output_bias = nnx.Param(jnp.zeros(target_vocab_size))
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        if config.bridge == "dense":
            shape = (config.num_layers, 2, config.hidden_size, config.hidden_size)
            self.bridge_kernel = nnx.Param(_matrix(config, rngs.params(), shape))

    def encode(self, source: Int[Array, "B S"], *, keys: Keys | None = None) -> Encoded:
        """Reads the source; 0 is padding."""
        return self._encode(source, _split(keys, self.config.num_layers))

    def _encode(self, source: Int[Array, "B S"], keys: list, segment: int = 0) -> Encoded:
        """`encode` with the keys of each layer's input."""
        mask = source != PAD
        table = self.source_embedding if hasattr(self, "source_embedding") else self.target_embedding
        embedded = self._embed(table, source.T, keys[0])
        outputs, states = self.encoder(embedded, mask.T, keys, self.engine, segment)
        return Encoded(self.decoder.memory(outputs, mask), self.decoder.start(self._bridge(states)))

    def __call__(
        self, source: Int[Array, "B S"], target: Int[Array, "B T"], *, keys: Keys | None = None
    ) -> tuple[Float[Array, "T B A"], Float[Array, "T B S"] | None]:
        """Teacher forcing: step t sees the tokens before target position t.

        Returns:
          Attentional vectors, for `logits`, and attention weights (None without attention).
        """
        *encoder_keys, decoder_keys = _split(keys, self.config.num_layers + 1)
        encoded = self._encode(source, encoder_keys)
        return self._decode(encoded.memory, encoded.carry, _inputs(target), decoder_keys)[1]

    def total(
        self,
        read: Callable[[Float[Array, "N V"], Int[Array, " N"]], Any],
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        *,
        keys: Keys | None = None,
        segment: int = 0,
    ) -> Any:
        """Sum over the target, by teacher forcing, of what `read` makes of the logits and labels of some positions.

        Args:
          read: a function of logits and of the tokens that belong there, for all
            rows of some positions, position by position (N is a multiple of B).
            What it makes of all positions is the sum of what it makes of parts:
            an array or a pytree of them.
          source, target: ids; 0 is padding.
          keys: for dropout.
          segment: positions decoded and read at once, and kept for the backward
            pass, see `recurrence.in_segments`; 0 for all.
        """
        *encoder_keys, decoder_keys = _split(keys, self.config.num_layers + 1)
        encoded = self._encode(source, encoder_keys, segment)

        def run(carry: Any, xs: tuple[Array, Array]) -> tuple[Any, None]:
            decoder_carry, keys, sums = carry
            inputs, labels = xs
            keys, now = _split(keys, 2) if segment else (keys, keys)
            decoder_carry, (vectors, _) = self._decode(encoded.memory, decoder_carry, inputs, now)
            # Rows and positions are one axis from here on: two would have the compiler write the gradient of the
            # logits twice, in two shapes.
            found = read(self.logits(vectors.reshape(-1, vectors.shape[-1])), labels.reshape(-1))
            return (decoder_carry, keys, jax.tree.map(jnp.add, sums, found) if segment else found), None

        xs = _inputs(target), target.T
        sums = None
        if segment:
            logits = jax.ShapeDtypeStruct((len(target), self.vocab_size), encoded.memory.values.dtype)
            sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(read, logits, xs[1][0]))
        return in_segments(run, (encoded.carry, decoder_keys, sums), xs, segment)[0][2]

    def _decode(
        self, memory: Memory, carry: DecoderCarry, inputs: Int[Array, "T B"], keys: Keys | None
    ) -> tuple[DecoderCarry, tuple[Float[Array, "T B A"], Float[Array, "T B S"] | None]]:
        embedding_keys, *decoder_keys = _split(keys, 3)
        embedded = self._embed(self.target_embedding, inputs, embedding_keys)
        return self.decoder(embedded, memory, carry, decoder_keys, self.engine)

    def search_tables(self) -> SearchTables:
        """Returns what `decode_step` needs besides a sentence's own state."""
        tokens = jnp.arange(self.vocab_size)
        embedded = self._embed(self.target_embedding, tokens, None)
        return SearchTables(_projected(self.decoder.layers[0], embedded), self._output_kernel(embedded.dtype))

    def decode_step(
        self, tables: SearchTables, memory: Memory, carry: DecoderCarry, tokens: Int[Array, "B K"]
    ) -> tuple[DecoderCarry, Float[Array, "B K V"]]:
        """Logits of the next token for K hypotheses a sentence; leaves of the carry are [B, K, ...]."""
        carry, vectors = self.decoder.step(tables.first_gates[tokens], memory, carry)
        return carry, self._logits(vectors, tables.output_kernel)

    def logits(self, vectors: Float[Array, "*N A"]) -> Float[Array, "*N V"]:
        """Unnormalised log-probabilities over the target vocabulary."""
        return self._logits(vectors, self._output_kernel(vectors.dtype))

    def _logits(self, vectors: Float[Array, "*N A"], kernel: Float[Array, "A V"]) -> Float[Array, "*N V"]:
        return matmul(vectors, kernel, self.output_bias[...].astype(vectors.dtype))

    def _output_kernel(self, dtype: Any) -> Float[Array, "A V"]:
        param = self.output_kernel if hasattr(self, "output_kernel") else self.target_embedding
        return param[...].astype(dtype).T

    def _embed(self, table: nnx.Param, tokens: Int[Array, "*N"], keys: Keys | None) -> Float[Array, "*N D"]:
        embedded = table[...][tokens]
        if self.config.compute_dtype == "bfloat16":  # everything after follows; else the parameters' own dtype
            embedded = embedded.astype(jnp.bfloat16)
        return dropout(embedded, self.config.dropout_rate, keys)

    def _bridge(self, states: list[State]) -> list[State]:
        if self.config.bridge == "copy":
            return states
        if self.config.bridge == "zero":
            return [(jnp.zeros_like(cell), jnp.zeros_like(hidden)) for cell, hidden in states]
        kernels = self.bridge_kernel[...]
        return [
            (
                jnp.tanh(cell @ kernels[depth, 0].astype(cell.dtype)),
                jnp.tanh(hidden @ kernels[depth, 1].astype(hidden.dtype)),
            )
            for depth, (cell, hidden) in enumerate(states)
        ]


def _inputs(target: Int[Array, "B T"]) -> Int[Array, "T B"]:
    """What the decoder is given at every step: the token before."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS).T


def build_model(config: ModelConfig, vocab_sizes: tuple[int, int], key: Key[Array, ""]) -> Seq2Seq:
    """The model with its first parameters; source and target vocabulary sizes."""
    return Seq2Seq(config, *vocab_sizes, rngs=nnx.Rngs(params=key))


def model_graph(config: ModelConfig, vocab_sizes: tuple[int, int]) -> nnx.GraphDef:
    """The model's structure without any array, for `nnx.merge` with a dict of parameters."""
    return nnx.graphdef(nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0))))


def abstract_params(config: ModelConfig, vocab_sizes: tuple[int, int]) -> dict[str, Any]:
    """Shapes and dtypes of the parameters."""
    return nnx.to_pure_dict(
        nnx.state(nnx.eval_shape(lambda: build_model(config, vocab_sizes, jax.random.key(0))), nnx.Param)
    )


def vector_size(config: ModelConfig) -> int:
    """Features of the attentional vector: as many as the output layer takes."""
    return config.embed_size if config.tied_embeddings in ("target_output", "all") else config.hidden_size


def dropout(x: Float[Array, "... B D"], rate: float, keys: Keys | None) -> Float[Array, "... B D"]:
    """Sets features to zero with probability `rate` and scales the rest up; the identity without keys."""
    return _drop(x, rate, _keep_mask(keys, rate, x.shape))


def _drop(x: Array, rate: float, keep: Array | None) -> Array:
    return x if keep is None else jnp.where(keep, x / (_kept_of_256(rate) / 256), 0)


def _keep_mask(keys: Keys | None, rate: float, shape: tuple[int, ...]) -> Bool[Array, "... B D"] | None:
    """Random booleans in an array [..., B, D], True with probability 1 - rate (to the nearest 1/256).

    One random byte decides a feature: a quarter of the random bits, which cost
    as much as the products they sit between.
    """
    if keys is None or rate == 0.0:
        return None
    num_features = shape[-1]
    of_row = partial(jax.random.bits, shape=(*shape[:-2], -(-num_features // 4)), dtype=jnp.uint32)
    words = jax.vmap(of_row, out_axes=-2)(keys)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], 4 * words.shape[-1])
    return octets[..., :num_features] < _kept_of_256(rate)


def _kept_of_256(rate: float) -> int:
    return max(1, round(256 * (1 - rate)))


def _split(keys: Keys | None, num: int) -> list[Keys] | list[None]:
    """New keys for every row, `num` times."""
    if keys is None:
        return [None] * num
    return list(jax.vmap(partial(jax.random.split, num=num), out_axes=1)(keys))


def _zero_state(shape: tuple[int, ...], dtype: Any) -> State:
    # The cell state sums over all steps: in bfloat16 small additions would vanish.
    return jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)), jnp.zeros(shape, dtype)


def _of(param: nnx.Param, dtype: Any) -> Array:
    """The only direction of a decoder layer's parameter, in the compute dtype."""
    return param[...][0].astype(dtype)


def _matrix(config: ModelConfig, key: Array, shape: tuple[int, ...]) -> Array:
    if config.initializer == "uniform":
        return jax.random.uniform(key, shape, minval=-config.init_scale, maxval=config.init_scale)
    if 0 in shape:  # rows of features that are not fed in; glorot_uniform would divide by their number
        return jnp.zeros(shape)
    batch_axis = tuple(range(len(shape) - 2))
    return nnx.initializers.glorot_uniform(batch_axis=batch_axis)(key, shape)


def _embedding(config: ModelConfig, key: Array, num: int) -> Array:
    if config.initializer == "uniform":
        return _matrix(config, key, (num, config.embed_size))
    return jax.random.normal(key, (num, config.embed_size)) * config.embed_size**-0.5


def _recurrent(config: ModelConfig, key: Array, num_directions: int, size: int) -> Array:
    """Four [size, size] blocks side by side; orthogonal means each of them is."""
    if config.initializer == "uniform":
        return _matrix(config, key, (num_directions, size, 4 * size))
    blocks = nnx.initializers.orthogonal()
    keys = jax.random.split(key, (num_directions, 4))
    return jnp.stack([jnp.concatenate([blocks(k, (size, size)) for k in row], axis=1) for row in keys])
