"""Attention: the score of every source position, and their weighted sum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax.linear import Linear, Weights
from seq2seq_jax.products import matmul


class Memory(NamedTuple):
    """What the decoder sees of the source; every sentence has it once, whatever looks at it."""

    keys: Float[Array, "B S A"]
    """The encoder's outputs as the scores want them."""
    values: Float[Array, "B S E"]
    mask: Bool[Array, "B S"]
    """True at real positions."""


class Dot(nnx.Module):
    """`q . m`, Luong et al. 2015, equation 8."""

    def __init__(self, query_size: int, memory_size: int, weights: Weights) -> None:
        """Every score is made from these; this one has no weights."""

    def keys(self, values: Float[Array, "B S E"]) -> Float[Array, "B S A"]:
        """The encoder's outputs as `scores` wants them: computed once for a sentence."""
        return values

    def scores(self, query: Float[Array, "B H"], keys: Float[Array, "B S A"]) -> Float[Array, "B S"]:
        """How well each source position fits."""
        return jnp.einsum("bh,bsh->bs", query, keys)

    def __call__(self, query: Float[Array, "B H"], memory: Memory) -> tuple[Float[Array, "B E"], Float[Array, "B S"]]:
        """Attends from one decoder state to all source positions.

        Returns:
          The context, and the attention weights: rows sum to 1 and are exactly 0
          where the mask is False. A row with no True gets all zeros.

        Raises:
          ValueError: there is no memory, or its keys are not for such queries.
        """
        name = type(self).__name__
        if memory is None:
            raise ValueError(f"{name} attention has no memory; give the decoder's step what its memory() returns.")
        if memory.keys.shape[-1] != query.shape[-1]:
            shapes = f"queries are {list(query.shape)} and keys {list(memory.keys.shape)}"
            raise ValueError(f"{name} attention: {shapes}; their last axes must be equal.")
        weights = masked_softmax(self.scores(query, memory.keys), memory.mask)
        return jnp.einsum("bs,bse->be", weights, memory.values), weights


class General(Dot):
    """`q . W m`, Luong et al. 2015, equation 8."""

    def __init__(self, query_size: int, memory_size: int, weights: Weights) -> None:
        self.key_kernel = nnx.Param(weights.matrix(memory_size, query_size))

    def keys(self, values: Float[Array, "B S E"]) -> Float[Array, "B S A"]:
        return matmul(values, self.key_kernel[...].astype(values.dtype))


class Additive(General):
    """`v . tanh(W q + U m)`, Bahdanau et al. 2015, appendix A.1.2."""

    def __init__(self, query_size: int, memory_size: int, weights: Weights) -> None:
        super().__init__(query_size, memory_size, weights)
        self.query = Linear([query_size], weights.matrix(query_size, query_size))
        self.score = nnx.Param(weights.matrix(query_size, 1)[:, 0])

    def scores(self, query: Float[Array, "B H"], keys: Float[Array, "B S A"]) -> Float[Array, "B S"]:
        # v comes once for every row, so that a loop adds up its gradients row by row.
        v = jnp.broadcast_to(self.score[...].astype(query.dtype), query.shape)
        return additive_scores(self.query(query), keys, v)


def masked_softmax(scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
    """Softmax over the True positions, in float32; exactly 0 elsewhere, also where a row has no True."""
    lowest = jnp.finfo(jnp.float32).min
    scores32 = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = jax.nn.softmax(jnp.where(mask, scores32, lowest), axis=-1)
    return jnp.where(mask, weights, 0).astype(scores.dtype)


@jax.custom_vjp
def additive_scores(
    query: Float[Array, "*B A"], keys: Float[Array, "*B S A"], v: Float[Array, "*B A"]
) -> Float[Array, "*B S"]:
    """`v . tanh(query + key)` for every source position.

    The sum under the tanh, by far the largest array here, is formed again in the
    backward pass and never kept over the time loop.
    """
    return (_squashed(query, keys) * v[..., None, :]).sum(-1)


def _squashed(query: Array, keys: Array) -> Array:
    return jnp.tanh(query[..., None, :] + keys)


def _additive_backward(residuals: tuple[Array, ...], d_scores: Array) -> tuple[Array, ...]:
    query, keys, v = residuals
    squashed = _squashed(query, keys)
    d_sum = d_scores[..., None] * v[..., None, :] * (1 - squashed * squashed)
    return d_sum.sum(-2), d_sum, (d_scores[..., None] * squashed).sum(-2)


additive_scores.defvjp(lambda *inputs: (additive_scores(*inputs), inputs), _additive_backward)
