"""Output layers: from what a decoder's step knows to a vector, and from that to a distribution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from seq2seq_jax.linear import Linear
from seq2seq_jax.products import matmul
from seq2seq_jax.vocabulary_parts import of_all

LEAST = -1e30
"""Log-probability of what cannot be: its exponential is 0, and differences of two such are finite."""


class Copying(NamedTuple):
    """What may be copied in the place of a token of the vocabulary (See et al. 2017, section 2.2)."""

    gate: Float[Array, "*N"]
    """Logit of the probability of writing a token of the vocabulary, p_gen."""
    weights: Float[Array, "*N S"]
    """Of attention to what can be copied, which sum to 1."""
    tokens: Int[Array, "*N S"]
    """What a copy of each source position is: an id of the vocabulary, V plus a position, or PAD for nothing."""


class Predicted(NamedTuple):
    """What a model says of some next tokens."""

    logits: Float[Array, "*N V"]
    """Unnormalised log-probabilities of the vocabulary."""
    copying: Copying | None = None
    repeated: Float[Array, "*N"] | None = None
    """Attention to what has had it before; None without coverage."""


def scores(predicted: Predicted) -> Float[Array, "*N W"]:
    """Unnormalised log-probabilities of all that can come next; with copies of S positions, V + S of them.

    With copies it is `log(p_gen P(w) + (1 - p_gen) sum of the weights of w)`, See et al.
    2017, equation 9, in float32.
    """
    if predicted.copying is None:
        return predicted.logits
    gate, weights, tokens = predicted.copying
    logits, gate, weights = (wide(x) for x in (predicted.logits, gate, weights))
    generated = jax.nn.log_sigmoid(gate)[..., None] + jax.nn.log_softmax(logits)
    more = [(0, 0)] * gate.ndim + [(0, weights.shape[-1])]
    add = jnp.vectorize(lambda zeros, at, what: zeros.at[at].add(what), signature="(w),(s),(s)->(w)")
    copied = add(jnp.zeros((*gate.shape, logits.shape[-1] + weights.shape[-1])), tokens, weights)
    return jnp.logaddexp(
        jnp.pad(generated, more, constant_values=-jnp.inf), jax.nn.log_sigmoid(-gate)[..., None] + log_or_least(copied)
    )


def log_or_least(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """The logarithm; of 0 it is `LEAST`, with a gradient of 0."""
    some = x > 0
    return jnp.where(some, jnp.log(jnp.where(some, x, 1)), LEAST)


def wide(x: Array) -> Array:
    """In float32, or wider where it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Combine(Linear):
    """`tanh(W [c; h])`, the attentional vector of Luong et al. 2015, equation 5; `tanh(W h)` without a context."""

    def vector(
        self, hidden: Float[Array, "*#N H"], context: Float[Array, "*#N E"] | None, x: Float[Array, "*#N D"]
    ) -> Float[Array, "*#N A"]:
        """From the top state, the context, if there is one, and the embedding of the token before."""
        return jnp.tanh(self(hidden) if context is None else self(context, hidden))


class Maxout(Linear):
    """`max(t_2j-1, t_2j)` of `t = U h + V x + C c` (Goodfellow et al. 2013), Bahdanau et al. 2015, appendix A.2.2.

    That appendix writes the state before the step. Here h is the state after it,
    which section 3.1 of the paper, equation 4, has the distribution depend on.
    """

    def vector(
        self, hidden: Float[Array, "*#N H"], context: Float[Array, "*#N E"] | None, x: Float[Array, "*#N D"]
    ) -> Float[Array, "*#N A"]:
        """As `Combine.vector`."""
        total = self(hidden, x) if context is None else self(hidden, x, context)
        return total.reshape(*total.shape[:-1], -1, 2).max(-1)


class Pass(nnx.Module):
    """The state as it is, and beside it the context, if it is in no cell."""

    def __init__(self, with_context: bool) -> None:
        self.with_context = with_context

    def vector(
        self, hidden: Float[Array, "*#N H"], context: Float[Array, "*#N E"] | None, x: Float[Array, "*#N D"]
    ) -> Float[Array, "*#N A"]:
        """As `Combine.vector`."""
        return jnp.concatenate([context, hidden], -1) if self.with_context and context is not None else hidden


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
        """Unnormalised log-probabilities; `kernel` is what `kernel()` gives, where it is kept.

        Where devices share a vocabulary, those of this device's words, for the vectors
        of all of them, [M N, V / M].
        """
        kernel = self.kernel(vectors.dtype) if kernel is None else kernel
        if kernel.shape[-1] < self.vocab_size:
            vectors = of_all(vectors)
        return matmul(vectors, kernel, self.bias[...].astype(vectors.dtype))

    def kernel(self, dtype: Any) -> Float[Array, "A V"]:
        """The table laid out so that a few vectors can be multiplied with it as it is."""
        return self.table[...].astype(dtype).T


class Given(nnx.Module):
    """What the decoder puts out are log-probabilities already."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(
        self, vectors: Float[Array, "*N V"], kernel: Float[Array, "A V"] | None = None
    ) -> Float[Array, "*N V"]:
        """As `Softmax.__call__`."""
        return vectors

    def kernel(self, dtype: Any) -> None:
        """None: there is no table."""
