"""What is minimised: a sum over a batch, and the number of its terms."""

from jaxtyping import Array, Float, Int

from seq2seq_jax.config import TrainConfig
from seq2seq_jax.dropout import Keys
from seq2seq_jax.losses import cross_entropy
from seq2seq_jax.padded import Padded
from seq2seq_jax.seq2seq import Seq2Seq


def negative_log_likelihood(
    model: Seq2Seq, source: Padded, target: Padded, keys: Keys | None, config: TrainConfig
) -> Float[Array, ""]:
    """Cross-entropy of all target tokens given the ones before, in nats, with label smoothing."""

    def read(logits: Array, labels: Array, mask: Array) -> Array:
        return cross_entropy(logits, labels, mask, config.label_smoothing)

    return model.total(read, source, target, keys=keys, piece=config.rematerialize_every)


def num_terms(target: Padded) -> Int[Array, ""]:
    """Target tokens, end marks included."""
    return target.lengths.sum()
