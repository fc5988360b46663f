"""Encoder, bridge, decoder, embeddings and output layer, as one model.

Time-major inside the recurrence, batch-major at the edges. Modules hold
parameters only; random keys, one for each row, are passed in, and without them
nothing is dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax import vocabulary_parts
from seq2seq_jax.bridges import Bridge
from seq2seq_jax.decoders import Decoder, Features
from seq2seq_jax.dropout import NO_DROPOUT, Dropout, Keys, drop, piece_keys, repeat_keys, split_keys
from seq2seq_jax.encoders import Apart, Layers
from seq2seq_jax.outputs import Copying, Given, Predicted, Softmax, scores
from seq2seq_jax.padded import Padded
from seq2seq_jax.recurrence import Plan, in_pieces, plan, prepare, resume, scan
from seq2seq_jax.symbols import BOS, PAD, UNK


class Encoded(NamedTuple):
    """A batch of sources, encoded: what attention looks at and where the decoder starts."""

    memory: Any
    """As the decoder's `memory` lays it out."""
    state: Any
    """The decoder's, with leaves [B, ...]."""
    copies: Int[Array, "B S"] | None = None
    """What a copy of each position is, see `outputs.Copying`; None where nothing is copied."""


class SearchTables(NamedTuple):
    """What every step of a search uses and depends on the parameters only: computed once for all sentences.

    Attributes:
      first: of each target token, [V, ...], what a step makes of it alone: for an
        LSTM what it gives to the lowest layer's gates, 524 MB in float32 for 32,000
        tokens and H = 1,024.
      output_kernel: laid out so that a few rows can be multiplied with it as it is.
    """

    first: list[Array]
    output_kernel: Float[Array, "A V"] | None


class Seq2Seq(nnx.Module):
    """A model of target sequences given source sequences.

    Args:
      source_table, target_table: embeddings, [V, D]; they may be one parameter. Where devices share a
        vocabulary, parameters with fewer rows take their place, see `vocabulary_parts`.
      encoder, bridge, decoder, output: see their modules.
      dropout: of features of embeddings.
      word_dropout: of whole embeddings (Sennrich et al. 2016, section 3), also scaled up;
        once for a sequence all places of a word are dropped (Gal and Ghahramani
        2016, section 4.2).
      first_tag: the first source id of a tag; they are the last ones of the vocabulary.
      reverse_source: whether the source is read from its last token to its first
        (Sutskever et al. 2014, section 3.3); its end mark stays at the end.
      dtype: of products and activations; None for that of the parameters.
    """

    def __init__(
        self,
        source_table: nnx.Param,
        target_table: nnx.Param,
        encoder: Layers | Apart,
        bridge: Bridge,
        decoder: Decoder,
        output: Softmax | Given,
        *,
        dropout: Dropout = NO_DROPOUT,
        word_dropout: Dropout = NO_DROPOUT,
        first_tag: int = 0,
        reverse_source: bool = False,
        dtype: Any = None,
    ) -> None:
        self.source_table, self.target_table = source_table, target_table
        self.source_size, self.target_size = len(source_table[...]), len(target_table[...])
        self.encoder, self.bridge, self.decoder, self.output = encoder, bridge, decoder, output
        self.dropout, self.word_dropout = dropout, word_dropout
        self.first_tag = first_tag
        self.reverse_source, self.dtype = reverse_source, dtype

    def encode(self, source: Padded, *, keys: Keys | None = None, piece: int = 0) -> Encoded:
        """Reads the source, ids [B, S]."""
        first, rest = split_keys(keys, 2)
        tokens = reverse(source).values if self.reverse_source else source.values
        embedded, mask = self._embed(self.source_table, self.source_size, tokens.T, first), source.mask.T
        if isinstance(self.encoder, Apart):
            read = self.encoder(embedded, mask, self._is_tag(tokens.T) & mask, rest, piece)
        else:
            read = self.encoder(embedded, mask, rest, piece)
        if self.reverse_source:  # what is looked at lies as the source does
            outputs = reverse(Padded(jnp.swapaxes(read.outputs, 0, 1), source.lengths)).values
            read = read._replace(outputs=jnp.swapaxes(outputs, 0, 1))
        memory = self.decoder.memory(read)
        states = self.bridge(read, self.decoder.empty(source.lengths.shape[0], self._dtype))
        copies = jnp.where(self._is_tag(source.values), PAD, source.values) if self.copies else None
        return Encoded(memory, self.decoder.start(states, memory), copies)

    def _is_tag(self, tokens: Int[Array, "*N"]) -> Bool[Array, "*N"]:
        return (tokens >= self.first_tag) & (tokens < self.source_size)

    def __call__(self, source: Padded, target: Int[Array, "B T"], *, keys: Keys | None = None) -> Features:
        """Teacher forcing: step t sees the tokens before target position t. Features of all steps, [T, B, ...].

        Raises:
          ValueError: the numbers of sources and targets differ.
        """
        _check_pairs(source.values, target)
        encoder_keys, decoder_keys = split_keys(keys, 2)
        return self.decode(self.encode(source, keys=encoder_keys), target, keys=decoder_keys)

    def decode(self, encoded: Encoded, target: Int[Array, "B T"], *, keys: Keys | None = None) -> Features:
        """Teacher forcing, from what `encode` returns. Features of all steps, [T, B, ...]."""
        return self._decode(encoded.memory, encoded.state, _inputs(target), keys)[1]

    def each(
        self, read: Callable[[Predicted, Int[Array, " B"], Array], Any], source: Padded, target: Padded
    ) -> tuple[Any, Float[Array, "T B S"] | None]:
        """What `read` makes of every position by teacher forcing, leaves [T, ...], and the attention weights.

        Scores, which are as wide as the vocabulary, are there for one position at a time.

        Args:
          read: as of `total`, of one position.
          source, target: ids.
        """
        encoded = self.encode(source)
        features = self.decode(encoded, target.values)

        def look(position: tuple[Features, Array, Array]) -> Any:
            now, labels, mask = position
            return read(self.predict(jax.tree.map(lambda leaf: leaf[None], now), encoded.copies), labels, mask)

        return jax.lax.map(look, (features, target.values.T, target.mask.T)), features.weights

    def total(
        self,
        read: Callable[..., Any],
        source: Padded,
        target: Padded,
        *,
        keys: Keys | None = None,
        piece: int = 0,
        inputs: Int[Array, "R T"] | None = None,
        beside: Any = (),
    ) -> Any:
        """Sum over the target, by teacher forcing, of what `read` makes of some positions.

        Args:
          read: a function of what is predicted, of the tokens that belong there, [N], and of
            a mask of those that count, for all rows of some positions, position by
            position (N is a multiple of B). What it makes of all positions is the
            sum of what it makes of parts: an array or a tree of them.
          source, target: ids; of a target a source each, or the same number of targets, one
            after another, for each source, which is then read once.
          keys: for dropout, of each source.
          piece: positions decoded and read at once, and kept for the backward
            pass, see `recurrence.in_pieces`; 0 for all.
          inputs: the token that each position is given, by default the one before it in the target.
          beside: what `read` is given further of each position, leaves [R, T, ...].

        Raises:
          ValueError: there are not as many targets for one source as for another.
        """
        each, left = divmod(target.lengths.shape[0], source.lengths.shape[0])
        if left:
            raise ValueError(f"{target.lengths.shape[0]} targets for {source.lengths.shape[0]} sources.")
        encoder_keys, decoder_keys = split_keys(keys, 2)
        encoded = self.encode(source, keys=encoder_keys, piece=piece)
        if each > 1:
            encoded = jax.tree.map(lambda leaf: jnp.repeat(leaf, each, axis=0), encoded)
            if isinstance(decoder_keys, jax.Array):
                decoder_keys = repeat_keys(decoder_keys, each)

        def look(state: Any, keys: Keys | None, inputs: Array, *of_positions: Any) -> tuple[Any, Any]:
            state, features = self._decode(encoded.memory, state, inputs, keys)
            return state, read(self.predict(features, encoded.copies), *jax.tree.map(_flat, of_positions))

        def run(carry: Any, xs: tuple[Array, ...]) -> tuple[Any, None]:
            state, keys, sums = carry
            keys, now = piece_keys(keys, decoder_keys) if piece else (keys, keys)
            state, found = look(state, now, *xs)
            return (state, keys, jax.tree.map(jnp.add, sums, found) if piece else found), None

        given = _inputs(target.values) if inputs is None else inputs.T
        xs = given, target.values.T, target.mask.T, *jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), beside)
        sums = None
        if piece:
            like = jax.eval_shape(look, encoded.state, decoder_keys, *jax.tree.map(lambda x: x[:1], xs))[1]
            sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return in_pieces(run, (encoded.state, decoder_keys, sums), xs, piece)[0][2]

    def predict(self, features: Features, copies: Int[Array, "B S"] | None) -> Predicted:
        """What the features of some positions, [T, B, ...], say of the next tokens.

        Rows and positions are one axis from here on: two would have the compiler write
        the gradient of the logits twice, in two shapes.
        """
        copying = jax.tree.map(_flat, _copying(features, copies))
        return Predicted(self.output(_flat(features.vector)), copying, jax.tree.map(_flat, features.repeated))

    def _decode(self, memory: Any, state: Any, inputs: Int[Array, "T B"], keys: Keys | None) -> tuple[Any, Features]:
        return scan(partial(self._decoder_step, memory), state, self._decoder_inputs(inputs, keys))

    def _decoder_step(self, memory: Any, state: Any, x: tuple[Any, Any]) -> tuple[Any, Features]:
        return self.decoder.step(memory, state, *x)

    def _decoder_inputs(self, inputs: Int[Array, "T B"], keys: Keys | None) -> tuple[Any, Any]:
        first, rest = split_keys(keys, 2)
        return self._token_before(inputs, first), self.decoder.keep(rest, inputs.shape[0])

    def _token_before(self, tokens: Int[Array, "*N"], keys: Keys | None = None) -> Any:
        """What a step of the decoder is given of the token before."""
        embedded = self._embed(self.target_table, self.target_size, tokens, keys)
        return (embedded, tokens) if self.decoder.reads_tokens else embedded

    def plan(self, source: Padded, target: Padded) -> Plan:
        """Says what of a decoder's step runs where, for batches like these."""
        encoded = self.encode(source)
        inputs = self._decoder_inputs(_inputs(target.values), None)
        return plan(partial(self._decoder_step, encoded.memory), encoded.state, inputs)

    def _embed(
        self, table: nnx.Param, vocab_size: int, tokens: Int[Array, "*N"], keys: Keys | None
    ) -> Float[Array, "*N D"]:
        if self.copies:  # what the vocabulary lacks is read as unknown
            tokens = jnp.where(tokens < vocab_size, tokens, UNK)
        of_words = None
        if self.word_dropout.rate:
            keys, of_words = split_keys(keys, 2)
        if len(table[...]) < vocab_size:
            rows = vocabulary_parts.embed(table[...], tokens, self._dtype)
        else:
            rows = table[...][tokens].astype(self._dtype)
        return self.dropout(drop(rows, self.word_dropout.draw_words(of_words, tokens)), keys)

    @property
    def copies(self) -> bool:
        """Whether tokens of the source may be copied."""
        return self.decoder.pointer is not None

    @property
    def _dtype(self) -> Any:
        return self.target_table[...].dtype if self.dtype is None else self.dtype

    # ---- search

    def search_tables(self) -> SearchTables:
        """Returns what `search_step` needs besides a sentence's own state."""
        vocab_size = self.output.vocab_size
        source = Padded(jnp.zeros((vocab_size, 1), jnp.int32), jnp.ones(vocab_size, jnp.int32))
        encoded = jax.eval_shape(partial(self.encode, source))
        first = prepare(self._step, encoded, self._token_before(jnp.arange(vocab_size)))
        return SearchTables(first, self.output.kernel(self._dtype))

    def search_step(
        self, tables: SearchTables | None, encoded: Encoded, state: Any, tokens: Int[Array, "B K"]
    ) -> tuple[Any, Float[Array, "B K W"]]:
        """Scores of what can come next for K hypotheses a sentence, as `outputs.scores` has them; and the new state."""
        return self.attending_step(tables, encoded, state, tokens)[:2]

    def attending_step(
        self, tables: SearchTables | None, encoded: Encoded, state: Any, tokens: Int[Array, "B K"]
    ) -> tuple[Any, Float[Array, "B K W"], Float[Array, "B K S"] | None]:
        """As `search_step`, and the attention weights, where there are any.

        Args:
          tables: see `search_tables`; None where a few steps would not pay for them.
          encoded: what `encode` returns; its state is not looked at.
          state: the decoder's, leaves [B, K, ...].
          tokens: that come before.
        """
        x = jax.eval_shape(self._token_before, tokens[:, 0])

        def step(state: Any, *first: Array) -> tuple[Any, Features]:
            return resume(self._step, Encoded(encoded.memory, state), x, first)

        def whole_step(state: Any, tokens: Array) -> tuple[Any, Features]:
            return self._step(Encoded(encoded.memory, state), self._token_before(tokens))

        if self.copies:
            tokens = jnp.where(tokens < self.output.vocab_size, tokens, UNK)
        if tables is None:
            state, features = jax.vmap(whole_step, in_axes=1, out_axes=1)(state, tokens)
            logits = self.output(features.vector)
        else:
            first = [table[tokens] for table in tables.first]
            state, features = jax.vmap(step, in_axes=1, out_axes=1)(state, *first)
            logits = self.output(features.vector, tables.output_kernel)
        copies = None if encoded.copies is None else encoded.copies[:, None]
        return state, scores(Predicted(logits, _copying(features, copies))), features.weights

    def _step(self, encoded: Encoded, x: Any) -> tuple[Any, Features]:
        return self.decoder.step(encoded.memory, encoded.state, x, self.decoder.keep(None, 1))


def _flat(x: Array) -> Array:
    """Rows and positions as one axis."""
    return x.reshape(-1, *x.shape[2:])


def _copying(features: Features, copies: Int[Array, "*N S"] | None) -> Copying | None:
    if copies is None or features.gate is None or features.weights is None:
        return None
    # Tags are attended to, and not copied: the weights of the text take all of that probability.
    weights = jnp.where(copies == PAD, 0, features.weights)
    total = weights.sum(-1, keepdims=True)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0)
    return Copying(features.gate, weights, jnp.broadcast_to(copies, weights.shape))


def _check_pairs(source: Array, target: Array) -> None:
    if source.shape[0] != target.shape[0]:
        raise ValueError(f"{source.shape[0]} sources and {target.shape[0]} targets; there must be one for each.")


def reverse(source: Padded) -> Padded:
    """The source with its tokens the other way round, [B, S, ...]; end mark and padding stay where they are."""
    position = jnp.arange(source.values.shape[1])
    last = source.lengths[:, None] - 2
    places = jnp.where(position <= last, last - position, position)
    places = places.reshape(*places.shape, *(1,) * (source.values.ndim - 2))
    return Padded(jnp.take_along_axis(source.values, places, axis=1), source.lengths)


def _inputs(target: Int[Array, "B T"]) -> Int[Array, "T B"]:
    """What the decoder is given at every step: the token before."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS).T
