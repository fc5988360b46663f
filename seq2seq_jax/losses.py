"""Losses as sums with counts, never means of means."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.outputs import LEAST, Copying, log_or_least, wide
from seq2seq_jax.sharding import MODEL
from seq2seq_jax.vocabulary_parts import of_all, own_of_all, places_here


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    logits: Float[Array, "*N V"],
    labels: Int[Array, "*N"],
    mask: Bool[Array, "*N"],
    label_smoothing: float,
) -> Float[Array, ""]:
    """Cross-entropy summed over real tokens, in nats, computed in float32.

    The target distribution is `(1 - s) onehot(label) + s / V` (Szegedy et al.
    2016, section 7), summed in closed form: no array beside the logits has their
    size, and the backward pass reads them once.

    Args:
      logits: unnormalised log-probabilities.
      labels: the right tokens.
      mask: True at tokens that count.
      label_smoothing: s.
    """
    return _forward(logits, labels, mask, label_smoothing)[0]


def _forward(logits: Array, labels: Array, mask: Array, label_smoothing: float):
    logits32 = wide(logits)
    log_normalizer = jax.nn.logsumexp(logits32, axis=-1)
    right = jnp.take_along_axis(logits32, labels[..., None], axis=-1)[..., 0]
    losses = log_normalizer - (1 - label_smoothing) * right
    if label_smoothing:
        losses -= label_smoothing * logits32.mean(-1)
    return jnp.sum(losses, where=mask), (logits, log_normalizer, labels, mask)


def _backward(label_smoothing: float, residuals, cotangent: Array):
    logits, log_normalizer, labels, mask = residuals
    onehot = labels[..., None] == jnp.arange(logits.shape[-1])
    gradient = _logits_gradient(logits, log_normalizer, onehot, label_smoothing, logits.shape[-1], mask, cotangent)
    return gradient, None, None


def _logits_gradient(
    logits: Array,
    log_normalizer: Array,
    onehot: Array,
    label_smoothing: float,
    vocab_size: int,
    mask: Array,
    cotangent: Array,
) -> Array:
    probabilities = jnp.exp(logits.astype(log_normalizer.dtype) - log_normalizer[..., None])
    gradient = probabilities - (1 - label_smoothing) * onehot - label_smoothing / vocab_size
    scale = jnp.where(mask, cotangent, 0)
    # Written once for its three readers (both products and the bias), instead of formed anew by each.
    return jax.lax.optimization_barrier((gradient * scale[..., None]).astype(logits.dtype))


cross_entropy.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy_in_parts(
    logits: Float[Array, "A P"],
    labels: Int[Array, " N"],
    mask: Bool[Array, " N"],
    label_smoothing: float,
    vocab_size: int,
) -> Float[Array, ""]:
    """Cross-entropy as `cross_entropy` has it, of one device's tokens, where devices share a vocabulary.

    Its gradient takes every device's cotangent to be the same, as it is where losses
    are added up.

    Args:
      logits: of this device's words, for the tokens of all devices, see `vocabulary_parts`.
      labels: the right tokens of this device's.
      mask: True at tokens that count, of this device's.
      label_smoothing: share of probability spread evenly over the vocabulary.
      vocab_size: words of all devices.
    """
    return _forward_in_parts(logits, labels, mask, label_smoothing, vocab_size)[0]


def _forward_in_parts(logits: Array, labels: Array, mask: Array, label_smoothing: float, vocab_size: int):
    logits32, every, counts = wide(logits), of_all(labels), of_all(mask)
    place, here = places_here(every, logits.shape[-1])
    largest = jax.lax.pmax(logits32.max(-1), MODEL)
    right = jnp.take_along_axis(logits32, place[:, None], axis=-1)[:, 0]
    sums = [jnp.exp(logits32 - largest[:, None]).sum(-1), jnp.where(here, right, 0)]
    if label_smoothing:
        sums.append(logits32.sum(-1))
    sums = jax.lax.psum(jnp.stack(sums), MODEL)
    log_normalizer = largest + jnp.log(sums[0])
    losses = log_normalizer - (1 - label_smoothing) * sums[1]
    if label_smoothing:
        losses -= label_smoothing / vocab_size * sums[2]
    own = own_of_all(losses, len(labels))
    return jnp.sum(own, where=mask), (logits, log_normalizer, place, here, counts)


def _backward_in_parts(label_smoothing: float, vocab_size: int, residuals, cotangent: Array):
    logits, log_normalizer, place, here, counts = residuals
    onehot = here[:, None] & (place[:, None] == jnp.arange(logits.shape[-1]))
    gradient = _logits_gradient(logits, log_normalizer, onehot, label_smoothing, vocab_size, counts, cotangent)
    return gradient, None, None


cross_entropy_in_parts.defvjp(_forward_in_parts, _backward_in_parts)


def copying_cross_entropy(
    logits: Float[Array, "N V"],
    copying: Copying,
    labels: Int[Array, " N"],
    mask: Bool[Array, " N"],
    label_smoothing: float,
) -> Float[Array, ""]:
    """Cross-entropy, summed over real tokens, where the next token may also be copied, in nats, in float32.

    `-log(p_gen P(w) + (1 - p_gen) sum of the weights of w)`, See et al. 2017, equations
    6 and 9, with label smoothing over the vocabulary (Szegedy et al. 2016, section 7).
    The whole mixture is never formed: of the vocabulary only what stands in the source
    has another probability than p_gen P.

    Args:
      logits: unnormalised log-probabilities of the vocabulary.
      copying: what may be copied.
      labels: the right tokens; one that the vocabulary lacks is V plus a position.
      mask: True at tokens that count.
      label_smoothing: share of probability spread evenly over the vocabulary.
    """
    gate, weights, logits32 = (wide(x) for x in (*copying[:2], logits))
    writes, copies = jax.nn.log_sigmoid(gate), jax.nn.log_sigmoid(-gate)
    log_normalizer, vocab_size = jax.nn.logsumexp(logits32, axis=-1), logits.shape[-1]

    def generated(tokens: Int[Array, "N _"]) -> Float[Array, "N _"]:
        known = jnp.take_along_axis(logits32, jnp.minimum(tokens, vocab_size - 1), axis=-1)
        return jnp.where(tokens < vocab_size, (writes - log_normalizer)[:, None] + known, LEAST)

    def copied(tokens: Int[Array, "N M"]) -> Float[Array, "N M"]:
        total = jnp.where(copying.tokens[:, None] == tokens[..., None], weights[:, None], 0).sum(-1)
        return copies[:, None] + log_or_least(total)

    right = labels[:, None]
    losses = -(1 - label_smoothing) * jnp.logaddexp(generated(right), copied(right))[:, 0]
    if label_smoothing:
        before = jnp.arange(weights.shape[-1]) < jnp.arange(weights.shape[-1])[:, None]
        again = jnp.any((copying.tokens[:, None] == copying.tokens[..., None]) & before, axis=-1)
        alone = generated(copying.tokens)
        gained = jnp.logaddexp(alone, copied(copying.tokens)) - alone
        gained = jnp.where(again | (copying.tokens >= vocab_size), 0, gained).sum(-1)
        losses -= label_smoothing * (writes + logits32.mean(-1) - log_normalizer + gained / vocab_size)
    return jnp.sum(losses, where=mask)


def token_losses(logits: Float[Array, "*N V"], labels: Int[Array, "*N"]) -> Float[Array, "*N"]:
    """Cross-entropy of each token, in nats, float32; for evaluation."""
    logits32 = wide(logits)
    right = jnp.take_along_axis(logits32, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits32, axis=-1) - right


def correct_tokens(logits: Float[Array, "*N V"], labels: Int[Array, "*N"]) -> Bool[Array, "*N"]:
    """Whether the largest logit is that of the right token."""
    return logits.argmax(-1) == labels
