"""Output layers: from a decoder's features to a distribution."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from seq2seq_jax.products import matmul


class Softmax(nnx.Module):
    """Logits over a vocabulary, `W v + b`.

    Args:
      table: W, [V, A]; it may be a table of embeddings, too (Press and Wolf 2017).
    """

    def __init__(self, table: nnx.Param) -> None:
        self.table, self.bias = table, nnx.Param(jnp.zeros(table.shape[0]))
        self.vocab_size = table.shape[0]

    def __call__(
        self, vectors: Float[Array, "*N A"], kernel: Float[Array, "A V"] | None = None
    ) -> Float[Array, "*N V"]:
        """Unnormalised log-probabilities; `kernel` is what `kernel()` gives, where it is kept."""
        kernel = self.kernel(vectors.dtype) if kernel is None else kernel
        return matmul(vectors, kernel, self.bias[...].astype(vectors.dtype))

    def kernel(self, dtype: Any) -> Float[Array, "A V"]:
        """The table laid out so that a few vectors can be multiplied with it as it is."""
        return self.table[...].astype(dtype).T
