"""Decoders: one step each, as its paper writes it. Training scans it, a search calls it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from seq2seq_jax import cells
from seq2seq_jax.attention import Attended, Dot, Memory, Past
from seq2seq_jax.cells import Stack
from seq2seq_jax.dropout import NO_DROPOUT, Dropout, Keys, Mask, drop, split_keys
from seq2seq_jax.encoders import Read
from seq2seq_jax.linear import Linear
from seq2seq_jax.outputs import LEAST, Combine, Maxout, Pass, Softmax


class State(NamedTuple):
    """What a decoder hands from one step to the next; None for what the next step does not want."""

    cells: tuple[cells.State, ...]
    vector: Float[Array, "B A"] | None = None
    """The attentional vector."""
    past: Past | None = None
    """Of attention."""


class Features(NamedTuple):
    """What a step gives to the output layer, to the objective and to people."""

    vector: Float[Array, "B A"]
    weights: Float[Array, "B S"] | None = None
    """Of attention; None without it."""
    repeated: Float[Array, " B"] | None = None
    """Attention to what has had it before; None without coverage."""
    gate: Float[Array, " B"] | None = None
    """Logit of the probability of writing and not copying; None where nothing is copied."""


class Keep(NamedTuple):
    """What dropout leaves, of one step or of all."""

    between: list[cells.Keep]
    """Of every layer: of what comes from below, and within it."""
    vector: Mask | None
    """None for everything."""


class Decoder(nnx.Module):
    """What a model asks of its decoder. B rows, or one row for each of K beams by `jax.vmap`."""

    reads_tokens = False
    """Whether a step is given the token before, and not only its embedding."""
    pointer: Linear | None = None
    """What decides between writing and copying; None where nothing is copied."""

    def memory(self, read: Read) -> Any:
        """Lays out what the encoder read for the steps: done once per sentence."""
        raise NotImplementedError

    def empty(self, batch: int, dtype: Any) -> list[cells.State]:
        """The states of the layers before anything is known, for the bridge."""
        raise NotImplementedError

    def start(self, states: Sequence[cells.State], memory: Any) -> Any:
        """The state before the first step, from what the bridge gives of every layer."""
        raise NotImplementedError

    def keep(self, keys: Keys | None, num_steps: int) -> Any:
        """Draws what dropout leaves, at all steps, [T, ...]."""
        raise NotImplementedError

    def step(self, memory: Any, state: Any, x: Any, keep: Any) -> tuple[Any, Features]:
        """One step: the next state, and what the output layer reads.

        x is the embedding of the token before, [B, D]; where `reads_tokens` says so,
        that and the token itself, [B].
        """
        raise NotImplementedError


class Recurrent(Decoder):
    """What the classic decoders have in common: layers, attention, and a vector for the output layer.

    Args:
      stack: the recurrent layers.
      attention: a score, or None for no attention.
      combine: makes the vector, see `outputs`.
      vector_size: its features.
      dropout: of the vector.
      feedback: whether what was attended to is an input of the lowest layer, where
        a decoder leaves that open.

    Attributes:
      pointer: the map of context, state and embedding to the logit of p_gen (See et
        al. 2017, equation 8); None where nothing is copied.
    """

    def __init__(
        self,
        stack: Stack,
        attention: Dot | None,
        combine: Combine | Maxout | Pass,
        vector_size: int,
        dropout: Dropout = NO_DROPOUT,
        feedback: bool = False,
    ) -> None:
        self.stack, self.attention, self.combine = stack, attention, combine
        self.vector_size, self.dropout, self.feedback = vector_size, dropout, feedback
        self.pointer = nnx.data(None)

    def memory(self, read: Read) -> Any:
        if self.attention is None:
            return None
        return self.attention.memory(jnp.swapaxes(read.outputs, 0, 1), read.mask.T)

    def empty(self, batch: int, dtype: Any) -> list[cells.State]:
        return self.stack.start(batch, dtype)

    def start(self, states: Sequence[cells.State], memory: Any) -> Any:
        return State(tuple(states), None, None if self.attention is None else self.attention.start(memory.mask))

    def keep(self, keys: Keys | None, num_steps: int) -> Keep:
        between, last = split_keys(keys, 2)
        vector = self.dropout.draw(last, (num_steps, self.vector_size))
        return Keep(self.stack.keep(between, num_steps), vector)

    def attend(self, query: Float[Array, "B H"], memory: Any, past: Any) -> Attended:
        """Context and weights; nothing without attention."""
        return Attended() if self.attention is None else self.attention(query, memory, past)

    def features(self, hidden: Float[Array, "B H"], attended: Attended, x: Float[Array, "B D"], keep: Keep) -> Features:
        """What the output layer reads, from the top state, the context and the embedding of the token before."""
        vector = drop(self.combine.vector(hidden, attended.context, x), keep.vector)
        gate = None if self.pointer is None else self.pointer(attended.context, hidden, x)[:, 0]
        return Features(vector, attended.weights, attended.repeated, gate)


class Luong(Recurrent):
    """Luong et al. 2015, section 3: the new state asks; with input feeding (figure 4) the next step has the vector.

    With `feedback` the vector is the second input of the lowest layer.
    """

    def start(self, states: Sequence[cells.State], memory: Any) -> Any:
        hidden = states[-1][-1]
        vector = jnp.zeros((hidden.shape[0], self.vector_size), hidden.dtype) if self.feedback else None
        return super().start(states, memory)._replace(vector=vector)

    def step(self, memory: Any, state: State, x: Float[Array, "B D"], keep: Keep) -> tuple[State, Features]:
        inputs = (x,) if state.vector is None else (x, state.vector)
        states, top = self.stack(state.cells, *inputs, keep=keep.between)
        attended = self.attend(top, memory, state.past)
        features = self.features(top, attended, x, keep)
        return State(states, features.vector if self.feedback else None, attended.past), features


class Plain(Recurrent):
    """Sutskever et al. 2014: the source is known by the first state alone."""

    def step(self, memory: Any, state: State, x: Float[Array, "B D"], keep: Keep) -> tuple[State, Features]:
        states, top = self.stack(state.cells, x, keep=keep.between)
        return State(states), self.features(top, self.attend(top, None, None), x, keep)


class Bahdanau(Recurrent):
    """Bahdanau et al. 2015, section 3.1: the state before asks, and the context is an input of the lowest layer."""

    def step(self, memory: Any, state: State, x: Float[Array, "B D"], keep: Keep) -> tuple[State, Features]:
        attended = self.attend(state.cells[-1][-1], memory, state.past)
        states, top = self.stack(state.cells, x, attended.context, keep=keep.between)
        return State(states, None, attended.past), self.features(top, attended, x, keep)


class Cho(Bahdanau):
    """Cho et al. 2014, section 2.2: the summary of the source, its last state, is an input of every step.

    With attention the context takes the place of the summary.
    """

    def memory(self, read: Read) -> Any:
        return read.states[-1][-1] if self.attention is None else super().memory(read)

    def attend(self, query: Float[Array, "B H"], memory: Any, past: Any) -> Attended:
        return Attended(context=memory) if self.attention is None else super().attend(query, memory, past)


class GNMT(Recurrent):
    """Wu et al. 2016, section 3: the lowest layer asks, and the context is an input of the layers above.

    With `feedback`, as in the paper (equation 4), the lowest layer's output of the
    step before asks, and its context is an input of the lowest layer too. Without it
    the output of this step asks: nothing of attention is then handed on, and only the
    cells are loops (NVIDIA's second version).
    """

    def step(self, memory: Any, state: State, x: Float[Array, "B D"], keep: Keep) -> tuple[State, Features]:
        first, rest = state.cells[:1], state.cells[1:]
        if self.feedback:
            attended = self.attend(first[0][-1], memory, state.past)
            first, lowest = self.stack(first, x, attended.context, keep=keep.between)
        else:
            first, lowest = self.stack(first, x, keep=keep.between)
            attended = self.attend(lowest, memory, state.past)
        rest, top = self.stack(rest, lowest, keep=keep.between, first=1, shared=[attended.context])
        return State((*first, *rest), None, attended.past), self.features(top, attended, x, keep)


class Aligned(NamedTuple):
    """What a decoder with hard attention hands from one step to the next."""

    cells: tuple[cells.State, ...]
    positions: Float[Array, "B S"]
    """Log-probability of each source position, before the token of this step is known."""
    tokens: Float[Array, "B S V"]
    """Log-probabilities of the token of this step, where a position is the right one."""


class HardMonotonic(Recurrent):
    """Exact hard monotonic attention, Wu and Cotterell 2019: every step has one position, never before the last one's.

    The alignment a is a latent variable, and all alignments are summed over by the
    forward algorithm, step by step: with what is known of a_t-1 from the tokens up to
    y_t-1, `p(y_t) = sum over i, j of p(a_t-1 = i) p(a_t = j | i) p(y_t | j)`. The cells
    do not see the alignment, so only the sum over i is a loop. What a step puts out
    are log-probabilities of the vocabulary.

    Of order 0 is `p(j | i)` the softmax of scores of j over the positions from i on. Of
    order 1 it depends on i: a softmax of `U [h; W m_i]` over the jumps j - i from 0 to D.

    Args:
      stack, combine, vector_size, dropout: as of `Recurrent`; a vector is made for every position.
      output: the output layer.
      keys: W, from the encoder's outputs to H features.
      jumps: U, from both to scores of D + 1 jumps; None for order 0.
    """

    reads_tokens = True

    def __init__(
        self,
        stack: Stack,
        combine: Combine | Maxout,
        vector_size: int,
        dropout: Dropout,
        output: Softmax,
        keys: Linear,
        jumps: Linear | None,
    ) -> None:
        super().__init__(stack, None, combine, vector_size, dropout)
        self.output, self.keys, self.jumps = output, keys, nnx.data(jumps)

    def memory(self, read: Read) -> Memory:
        outputs = jnp.swapaxes(read.outputs, 0, 1)
        return Memory(self.keys(outputs), outputs, read.mask.T)

    def start(self, states: Sequence[cells.State], memory: Memory) -> Aligned:
        """Before the first step the alignment stands at the first position."""
        batch, length = memory.mask.shape
        first = jnp.where(jnp.arange(length) == 0, 0.0, LEAST)
        tokens = jnp.zeros((batch, length, self.output.vocab_size))
        return Aligned(tuple(states), jnp.broadcast_to(first, memory.mask.shape), tokens)

    def step(
        self, memory: Memory, state: Aligned, x: tuple[Float[Array, "B D"], Int[Array, " B"]], keep: Keep
    ) -> tuple[Aligned, Features]:
        embedded, token = x
        states, hidden = self.stack(state.cells, embedded, keep=keep.between)
        likelihood = jnp.take_along_axis(state.tokens, token[:, None, None], axis=-1)[..., 0]
        known = jax.nn.log_softmax(state.positions + likelihood)
        positions = self.move(known, hidden, memory)
        vector = self.combine.vector(hidden[:, None], memory.values, embedded[:, None])
        mask = None if keep.vector is None else Mask(keep.vector.keep[:, None], keep.vector.rate)
        logits = self.output(drop(vector, mask))
        tokens = jax.nn.log_softmax(logits.astype(positions.dtype))
        mixture = jax.nn.logsumexp(positions[..., None] + tokens, axis=1)
        return Aligned(states, positions, tokens), Features(mixture, jnp.exp(positions))

    def move(self, known: Float[Array, "B S"], hidden: Float[Array, "B H"], memory: Memory) -> Float[Array, "B S"]:
        """Log-probabilities of the positions of this step, from those of the one before."""
        if self.jumps is None:
            scores = jnp.einsum("bh,bsh->bs", hidden, memory.keys).astype(known.dtype)
            scores = jnp.where(memory.mask, scores, LEAST)
            from_here = jax.lax.cumlogsumexp(scores, axis=1, reverse=True)
            share = jnp.where(memory.mask, known - from_here, LEAST)
            return jnp.where(memory.mask, scores + jax.lax.cumlogsumexp(share, axis=1), LEAST)
        scores = self.jumps(hidden[:, None], memory.keys).astype(known.dtype)
        num_jumps = scores.shape[-1]
        inside = jnp.stack([_shifted(memory.mask, -jump, False) for jump in range(num_jumps)], axis=-1)
        jumps = jax.nn.log_softmax(jnp.where(inside, scores, LEAST))
        ways = [_shifted(known + jumps[..., jump], jump, LEAST) for jump in range(num_jumps)]
        return jnp.where(memory.mask, jax.nn.logsumexp(jnp.stack(ways), axis=0), LEAST)


def _shifted(x: Array, by: int, fill: Any) -> Array:
    """[B, S] moved by some places to the right, or to the left where that is negative."""
    if by == 0:
        return x
    wide = jnp.pad(x, ((0, 0), (max(by, 0), max(-by, 0))), constant_values=fill)
    return wide[:, : x.shape[1]] if by > 0 else wide[:, -x.shape[1] :]
