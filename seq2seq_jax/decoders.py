"""Decoders: one step each, as its paper writes it. Training scans it, a search calls it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax import cells
from seq2seq_jax.attention import Dot, Memory
from seq2seq_jax.cells import Stack
from seq2seq_jax.dropout import Keys, drop, keep_mask, split_keys
from seq2seq_jax.linear import Linear


class State(NamedTuple):
    """What a decoder hands from one step to the next."""

    cells: tuple[cells.State, ...]
    vector: Float[Array, "B A"] | None
    """The attentional vector, where the next step wants it."""


class Features(NamedTuple):
    """What a step gives to the output layer and to people."""

    vector: Float[Array, "B A"]
    weights: Float[Array, "B S"] | None
    """Of attention; None without it."""


class Keep(NamedTuple):
    """What dropout leaves, of one step or of all; None where nothing is dropped."""

    between: list[Bool[Array, "B H"] | None]
    vector: Bool[Array, "B A"] | None


class Decoder(nnx.Module):
    """What a model asks of its decoder. B rows, or one row for each of K beams by `jax.vmap`."""

    def memory(self, outputs: Float[Array, "S B E"], mask: Bool[Array, "B S"]) -> Any:
        """Lays the encoder's outputs out for the steps: done once per sentence."""
        raise NotImplementedError

    def start(self, states: Sequence[cells.State]) -> Any:
        """The state before the first step, from what the bridge gives of every layer."""
        raise NotImplementedError

    def keep(self, keys: Keys | None, num_steps: int) -> Any:
        """Draws what dropout leaves, at all steps, [T, ...]."""
        raise NotImplementedError

    def step(self, memory: Any, state: Any, x: Float[Array, "B D"], keep: Any) -> tuple[Any, Features]:
        """One step: the next state, and what the output layer reads; x is the embedding of the token before."""
        raise NotImplementedError


class Luong(Decoder):
    """Luong et al. 2015, section 3; with input feeding figure 4.

    The attentional vector is `tanh(W [context; h])` (equation 5). Without
    attention it is `tanh(W h)`.

    Args:
      stack: the recurrent layers. With input feeding the lowest takes the vector as its second input.
      attention: a score, or None for no attention.
      combine: to the vector, from context (with attention) and top hidden state.
      input_feeding: whether the vector is an input of the next step.
      dropout_rate: of the vector.
    """

    def __init__(
        self, stack: Stack, attention: Dot | None, combine: Linear, input_feeding: bool, dropout_rate: float
    ) -> None:
        self.stack, self.attention, self.combine = stack, attention, combine
        self.input_feeding, self.dropout_rate = input_feeding, dropout_rate
        self.vector_size = combine.kernels[0].shape[1]

    def memory(self, outputs: Float[Array, "S B E"], mask: Bool[Array, "B S"]) -> Memory:
        values = jnp.swapaxes(outputs, 0, 1)
        return Memory(values if self.attention is None else self.attention.keys(values), values, mask)

    def start(self, states: Sequence[cells.State]) -> State:
        hidden = states[-1][-1]
        vector = jnp.zeros((len(hidden), self.vector_size), hidden.dtype) if self.input_feeding else None
        return State(tuple(states), vector)

    def keep(self, keys: Keys | None, num_steps: int) -> Keep:
        between, last = split_keys(keys, 2)
        batch = 0 if keys is None else len(keys)
        vector = keep_mask(last, self.dropout_rate, (num_steps, batch, self.vector_size))
        return Keep(self.stack.keep(between, num_steps), vector)

    def step(self, memory: Memory, state: State, x: Float[Array, "B D"], keep: Keep) -> tuple[State, Features]:
        inputs = (x,) if state.vector is None else (x, state.vector)
        states, top = self.stack(state.cells, *inputs, keep=keep.between)
        if self.attention is None:
            vector, weights = jnp.tanh(self.combine(top)), None
        else:
            context, weights = self.attention(top, memory)
            vector = jnp.tanh(self.combine(context, top))
        vector = drop(vector, self.dropout_rate, keep.vector)
        return State(states, vector if self.input_feeding else None), Features(vector, weights)
