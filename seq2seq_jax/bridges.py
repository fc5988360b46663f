"""Bridges: from the encoder's last states, layer by layer, to the decoder's first ones."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from seq2seq_jax.cells import State
from seq2seq_jax.linear import Linear, Weights

Bridge = Callable[[Sequence[State]], Sequence[State]]


def copy(states: Sequence[State]) -> Sequence[State]:
    """The decoder goes on where the encoder ends (Sutskever et al. 2014)."""
    return states


def zero(states: Sequence[State]) -> Sequence[State]:
    """The decoder starts from zeros: attention is all it has of the source."""
    return jax.tree.map(jnp.zeros_like, states)


class Dense(nnx.Module):
    """`tanh(W s)`, with weights of its own for every part of every layer's state."""

    def __init__(self, num_layers: int, num_parts: int, size: int, weights: Weights) -> None:
        make = lambda: Linear([size], weights.matrix(size, size))  # noqa: E731
        self.layers = nnx.List([nnx.List([make() for _ in range(num_parts)]) for _ in range(num_layers)])

    def __call__(self, states: Sequence[State]) -> Sequence[State]:
        pairs = (zip(maps, state, strict=True) for maps, state in zip(self.layers, states, strict=True))
        return [tuple(jnp.tanh(linear(part)) for linear, part in layer) for layer in pairs]
