"""Linear maps, and the first values of their weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Initializer = Callable[[Any, tuple[int, ...]], Array]
"""From a random key and a shape to values, float32."""


class Initializers(NamedTuple):
    """First values by the kind of weight: matrices [I, O], recurrent ones [H, H], tables of embeddings [V, D]."""

    matrix: Initializer
    recurrent: Initializer
    embedding: Initializer


def uniform(scale: float) -> Initializers:
    """Every weight from ±scale."""
    initializer = lambda key, shape: jax.random.uniform(key, shape, minval=-scale, maxval=scale)  # noqa: E731
    return Initializers(initializer, initializer, initializer)


def orthogonal() -> Initializers:
    """Recurrent matrices orthogonal per gate, others Glorot uniform, embeddings of length 1 in the mean."""
    embedding = lambda key, shape: jax.random.normal(key, shape) * shape[-1] ** -0.5  # noqa: E731
    return Initializers(nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal(), embedding)


class Linear(nnx.Module):
    """A linear map of the concatenation of several parts, of which each has a kernel of its own.

    So what is known of some parts before a loop can be multiplied before it.

    Args:
      sizes: features of the parts.
      kernel: the whole kernel, [sum of sizes, O].
      bias: its first values, [O]; None for no bias.
    """

    def __init__(self, sizes: Sequence[int], kernel: Array, bias: Array | None = None) -> None:
        cuts = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
        self.kernels = nnx.List([nnx.Param(part) for part in jnp.split(kernel, cuts)])
        self.bias = None if bias is None else nnx.Param(bias)

    def __call__(self, *parts: Float[Array, "*N _"]) -> Float[Array, "*N O"]:
        """Raises ValueError where the parts are others than the map was made for."""
        sizes, given = [kernel.shape[0] for kernel in self.kernels], [part.shape[-1] for part in parts]
        if sizes != given:
            raise ValueError(f"A linear map of parts with {sizes} features was given {given}.")
        dtype = parts[0].dtype
        products = [part @ kernel[...].astype(dtype) for part, kernel in zip(parts, self.kernels, strict=True)]
        total = products[0] if self.bias is None else products[0] + self.bias[...].astype(dtype)
        return sum(products[1:], total)
