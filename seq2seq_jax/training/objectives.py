"""What is minimised: a sum over a batch, and the number of its terms."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.dropout import Keys
from seq2seq_jax.losses import copying_cross_entropy, cross_entropy, cross_entropy_in_parts
from seq2seq_jax.outputs import Predicted
from seq2seq_jax.padded import Padded
from seq2seq_jax.seq2seq import Seq2Seq


def negative_log_likelihood(
    model: Seq2Seq, source: Padded, target: Padded, keys: Keys | None, config: TrainConfig
) -> Float[Array, ""]:
    """Cross-entropy of all target tokens given the ones before, in nats, with label smoothing and coverage loss."""

    def read(predicted: Predicted, labels: Array, mask: Array) -> Array:
        logits, copying, repeated = predicted
        smoothing, vocab_size = config.label_smoothing, model.output.vocab_size
        if copying is not None:
            loss = copying_cross_entropy(logits, copying, labels, mask, smoothing)
        elif logits.shape[-1] < vocab_size:
            loss = cross_entropy_in_parts(logits, labels, mask, smoothing, vocab_size)
        else:
            loss = cross_entropy(logits, labels, mask, smoothing)
        if config.coverage_loss and repeated is not None:  # See et al. 2017, equation 13
            loss += config.coverage_loss * jnp.sum(repeated, where=mask, dtype=loss.dtype)
        return loss

    return model.total(read, source, target, keys=keys, piece=config.rematerialize_every)


def num_terms(target: Padded) -> Int[Array, ""]:
    """Target tokens, end marks included."""
    return target.lengths.sum()
