"""Attention: the score of every source position, and their weighted sum.

Written over a `product` (see `recurrence.py`), so that one text serves a single
decoder step inside the time loop, all steps at once after it, and the beams of
a search. Which of them is meant is said by the axes of the query: "b", "tb" or
"bk". The encoder's memory is held once per sentence in every case.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from seq2seq_jax.config import Attention
from seq2seq_jax.recurrence import Product


class Memory(NamedTuple):
    """What the decoder sees of the source.

    `keys` are the encoder's outputs as the scores want them: projected once per
    sentence, before the loop.
    """

    keys: Float[Array, "B S A"]
    values: Float[Array, "B S E"]
    mask: Bool[Array, "B S"]
    """True at real tokens."""


def attention_specs(kind: Attention, axes: str) -> dict[str, str]:
    """Products that `attend` takes, as einsum specifications; queries have the axes `axes`."""
    specs = {"values": f"{axes}s,bse->{axes}e"}
    if kind == "additive":
        return specs | {"query": f"{axes}h,ha->{axes}a"}
    return specs | {"keys": f"{axes}a,bsa->{axes}s"}


def attend(
    product: Product,
    query: Float[Array, "... H"],
    mask: Bool[Array, "... S"],
    additive: tuple[Float[Array, "... S A"], Float[Array, "... A"]] | None = None,
) -> tuple[Float[Array, "... E"], Float[Array, "... S"]]:
    """Attends from decoder states to all source positions.

    dot and general (Luong et al. 2015, equation 8): `q . k`, the keys being the
    encoder's outputs, for general times W_a. Additive (Bahdanau et al. 2015,
    appendix A.1.2): `v . tanh(W q + U m)`, the keys being `U m`.

    Args:
      product: takes "keys" and "values", or "query" and "values" for additive.
      query: decoder states.
      mask: True at real source tokens, broadcast against the scores.
      additive: keys, broadcast against [..., S, A], and v, against [..., A]; None
        for a score by dot product.

    Returns:
      The context, and the attention weights: rows sum to 1 and are exactly 0
      where `mask` is False. A row with no True gets all zeros.
    """
    if additive is None:
        scores = product("keys", query)
    else:
        keys, v = additive
        scores = additive_scores(product("query", query), keys, v)
    weights = masked_softmax(scores, mask)
    return product("values", weights), weights


def masked_softmax(scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
    """Softmax over the True positions, in float32; exactly 0 elsewhere, also where a row has no True."""
    lowest = jnp.finfo(jnp.float32).min
    scores32 = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = jax.nn.softmax(jnp.where(mask, scores32, lowest), axis=-1)
    return jnp.where(mask, weights, 0).astype(scores.dtype)


@jax.custom_vjp
def additive_scores(
    query: Float[Array, "*Q A"], keys: Float[Array, "*K S A"], v: Float[Array, "*V A"]
) -> Float[Array, "*Q S"]:
    """`v . tanh(query + key)` for every source position.

    The sum under the tanh, by far the largest array here, is formed again in the
    backward pass and never kept over the time loop.
    """
    return (_squashed(query, keys) * v[..., None, :]).sum(-1)


def _squashed(query: Array, keys: Array) -> Array:
    return jnp.tanh(query[..., None, :] + keys)


def _additive_forward(query: Array, keys: Array, v: Array):
    return additive_scores(query, keys, v), (query, keys, v)


def _additive_backward(residuals, d_scores):
    query, keys, v = residuals
    squashed = _squashed(query, keys)
    d_sum = d_scores[..., None] * v[..., None, :] * (1 - squashed * squashed)
    d_v = (d_scores[..., None] * squashed).sum(-2)
    return d_sum.sum(-2), _unbroadcast(d_sum, keys.shape), _unbroadcast(d_v, v.shape)


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sums the gradient of a broadcast array back to its own shape."""
    gradient = gradient.sum(range(gradient.ndim - len(shape)))
    axes = [axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis] != 1]
    return gradient.sum(axes, keepdims=True)


additive_scores.defvjp(_additive_forward, _additive_backward)
