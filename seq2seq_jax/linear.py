"""Linear maps, and the first values of their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Initializer = Callable[[Any, tuple[int, ...]], Array]
"""From a random key and a shape to values, float32."""


@dataclass(frozen=True)
class Weights:
    """First values of weights, by their kind, drawn one after another from the stream `params` of `rngs`."""

    rngs: nnx.Rngs
    of_matrix: Initializer
    of_recurrent: Initializer
    of_embedding: Initializer

    def matrix(self, size: int, results: int) -> Float[Array, "I O"]:
        """From `size` features to others."""
        return self.of_matrix(self.rngs.params(), (size, results))

    def recurrent(self, size: int, num_gates: int = 1) -> Float[Array, "H G"]:
        """From a state to blocks of the same size, one for every gate, each drawn by itself."""
        blocks = [self.of_recurrent(self.rngs.params(), (size, size)) for _ in range(num_gates)]
        return jnp.concatenate(blocks, axis=1)

    def embedding(self, vocab_size: int, size: int) -> Float[Array, "V D"]:
        """A vector for every entry of a vocabulary."""
        return self.of_embedding(self.rngs.params(), (vocab_size, size))


def uniform(scale: float, rngs: nnx.Rngs) -> Weights:
    """Every weight from ±scale."""
    initializer = lambda key, shape: jax.random.uniform(key, shape, minval=-scale, maxval=scale)  # noqa: E731
    return Weights(rngs, initializer, initializer, initializer)


def orthogonal(rngs: nnx.Rngs) -> Weights:
    """Recurrent matrices orthogonal per gate, others Glorot uniform, embeddings of length 1 in the mean."""
    embedding = lambda key, shape: jax.random.normal(key, shape) * shape[-1] ** -0.5  # noqa: E731
    return Weights(rngs, nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal(), embedding)


class Linear(nnx.Module):
    """A linear map of the concatenation of several parts, of which each has a kernel of its own.

    So what is known of some parts before a loop can be multiplied before it.

    Args:
      sizes: features of the parts.
      kernel: the whole kernel, [sum of sizes, O].
      bias: its first values, [O]; None for no bias.

    Raises:
      ValueError: the kernel has other rows than the parts have features.
    """

    def __init__(self, sizes: Sequence[int], kernel: Array, bias: Array | None = None) -> None:
        if sum(sizes) != len(kernel):
            raise ValueError(
                f"A linear map of parts with {list(sizes)} features was given a kernel of {len(kernel)} rows."
            )
        cuts = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
        self.kernels = nnx.List([nnx.Param(part) for part in jnp.split(kernel, cuts)])
        self.bias = None if bias is None else nnx.Param(bias)

    def __call__(self, *parts: Float[Array, "*#N _"]) -> Float[Array, "*#N O"]:
        """Raises ValueError where the parts are others than the map was made for."""
        sizes, given = [kernel.shape[0] for kernel in self.kernels], [part.shape[-1] for part in parts]
        if sizes != given:
            raise ValueError(f"A linear map of parts with {sizes} features was given {given}.")
        dtype = parts[0].dtype
        products = [part @ kernel[...].astype(dtype) for part, kernel in zip(parts, self.kernels, strict=True)]
        total = products[0] if self.bias is None else products[0] + self.bias[...].astype(dtype)
        return sum(products[1:], total)
