"""Bridges: from the encoder's outputs and last states to the decoder's first ones."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax.cells import State
from seq2seq_jax.encoders import Read
from seq2seq_jax.linear import Linear, Weights

Bridge = Callable[[Read, Sequence[State]], Sequence[State]]
"""From what the encoder read and the decoder's states before anything is known, layer by layer, to its first ones."""


def copy(read: Read, starts: Sequence[State]) -> Sequence[State]:
    """The decoder goes on where the encoder ends (Sutskever et al. 2014)."""
    return read.states


def zero(read: Read, starts: Sequence[State]) -> Sequence[State]:
    """The decoder starts as any cell does: attention is all it has of the source."""
    return starts


class Dense(nnx.Module):
    """`tanh(W s)` of the encoder's last states, with weights of its own for every part of every layer's state.

    Where the decoder's cell is another than the encoder's, s is the hidden state for each part.

    Args:
      sizes: features of the encoder's layers.
      num_parts: of a state of the decoder's cell.
      size: features of each.
      weights: draws first values.
    """

    def __init__(self, sizes: Sequence[int], num_parts: int, size: int, weights: Weights) -> None:
        make = lambda given: Linear([given], weights.matrix(given, size))  # noqa: E731
        self.layers = nnx.List([nnx.List([make(given) for _ in range(num_parts)]) for given in sizes])

    def __call__(self, read: Read, starts: Sequence[State]) -> Sequence[State]:
        def layer(maps: Sequence[Linear], state: State) -> State:
            parts = state if len(state) == len(maps) else state[-1:] * len(maps)
            return tuple(jnp.tanh(linear(part)) for linear, part in zip(maps, parts, strict=True))

        return [layer(maps, state) for maps, state in zip(self.layers, read.states, strict=True)]


class Mean(nnx.Module):
    """`tanh(W m)`, m being the mean of the encoder's outputs, for each layer's hidden state (Sennrich et al. 2017)."""

    def __init__(self, num_layers: int, memory_size: int, size: int, weights: Weights) -> None:
        self.layers = nnx.List([Linear([memory_size], weights.matrix(memory_size, size)) for _ in range(num_layers)])

    def __call__(self, read: Read, starts: Sequence[State]) -> Sequence[State]:
        mean = masked_mean(read.outputs, read.mask)
        hidden = (jnp.tanh(linear(mean)) for linear in self.layers)
        return [(*start[:-1], first) for start, first in zip(starts, hidden, strict=True)]


def masked_mean(outputs: Float[Array, "S B E"], mask: Bool[Array, "S B"]) -> Float[Array, "B E"]:
    """Mean of the outputs at real positions; zeros where there are none."""
    total = jnp.where(mask[..., None], outputs, 0).sum(0)
    return total / jnp.maximum(mask.sum(0), 1)[:, None].astype(total.dtype)
