"""A vocabulary over several devices, each of which holds some rows of its tables (Shoeybi et al. 2019, section 3).

The devices along `MODEL` stand for these words, each for some. What is brought from
one to the others is ids and vectors of their tokens, never a table or logits. All
functions here are for the program of a device (`sharding.share_out`), and each
device gives its own tokens, as many as every other one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.products import wide
from seq2seq_jax.sharding import MODEL


def of_all(x: Array) -> Array:
    """The rows of all devices, one device after another, [M N, ...]; their gradients come back added up."""
    return jax.lax.all_gather(x, MODEL, tiled=True)


def embed(table: Float[Array, "P D"], tokens: Int[Array, "*N"], dtype: Any) -> Float[Array, "*N D"]:
    """Rows of a table, of which this device holds P, for its own tokens."""
    place = of_all(tokens.reshape(-1)) - jax.lax.axis_index(MODEL) * len(table)
    here = (place >= 0) & (place < len(table))
    rows = jnp.where(here[:, None], table[jnp.where(here, place, 0)].astype(dtype), 0)
    return jax.lax.psum_scatter(rows, MODEL, tiled=True).reshape(*tokens.shape, -1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy(
    logits: Float[Array, "A P"],
    labels: Int[Array, " N"],
    mask: Bool[Array, " N"],
    label_smoothing: float,
    vocab_size: int,
) -> Float[Array, ""]:
    """As `losses.cross_entropy`, of this device's tokens.

    Its gradient takes every device's cotangent to be the same, as it is where losses
    are added up.

    Args:
      logits: of this device's words, for the tokens of all devices.
      labels: the right tokens of this device's.
      mask: True at tokens that count, of this device's.
      label_smoothing: share of probability spread evenly over the vocabulary.
      vocab_size: words of all devices.
    """
    return _forward(logits, labels, mask, label_smoothing, vocab_size)[0]


def _forward(logits: Array, labels: Array, mask: Array, label_smoothing: float, vocab_size: int):
    logits32, (every, counts) = wide(logits), jax.tree.map(of_all, (labels, mask))
    largest = jax.lax.pmax(logits32.max(-1), MODEL)
    place = every - jax.lax.axis_index(MODEL) * logits.shape[-1]
    here = (place >= 0) & (place < logits.shape[-1])
    right = jnp.take_along_axis(logits32, jnp.where(here, place, 0)[:, None], axis=-1)[:, 0]
    sums = [jnp.exp(logits32 - largest[:, None]).sum(-1), jnp.where(here, right, 0)]
    if label_smoothing:
        sums.append(logits32.sum(-1))
    sums = jax.lax.psum(jnp.stack(sums), MODEL)
    log_normalizer = largest + jnp.log(sums[0])
    losses = log_normalizer - (1 - label_smoothing) * sums[1]
    if label_smoothing:
        losses -= label_smoothing / vocab_size * sums[2]
    own = jax.lax.dynamic_slice_in_dim(losses, jax.lax.axis_index(MODEL) * len(labels), len(labels))
    return jnp.sum(own, where=mask), (logits, log_normalizer, place, counts)


def _backward(label_smoothing: float, vocab_size: int, residuals: Any, cotangent: Array):
    logits, log_normalizer, place, counts = residuals
    probabilities = jnp.exp(wide(logits) - log_normalizer[:, None])
    onehot = place[:, None] == jnp.arange(logits.shape[-1])
    gradient = probabilities - (1 - label_smoothing) * onehot - label_smoothing / vocab_size
    scale = jnp.where(counts, cotangent, 0)
    # Written once for its three readers (both products and the bias), instead of formed anew by each.
    return jax.lax.optimization_barrier((gradient * scale[:, None]).astype(logits.dtype)), None, None


cross_entropy.defvjp(_forward, _backward)
