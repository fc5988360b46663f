"""A small recurrent model for searches to search, and the same a second way."""

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.symbols import BOS, EOS

SOURCE_LENGTH = 3


class TinyRNN:
    """A recurrent model as the search sees it: `step` for JAX, `log_probs` a second way, sentence by sentence."""

    def __init__(self, vocab_size: int, seed: int = 0, size: int = 8, end_bias: float = 0.0):
        draw = np.random.default_rng(seed).standard_normal
        self.recurrent, self.embedding = draw((size, size)), draw((vocab_size, size))
        self.output, self.bias = 1.5 * draw((size, vocab_size)), np.zeros(vocab_size)
        self.bias[EOS] = end_bias
        self.start = draw((16, size))  # a state for each of 16 sentences
        self.looks = draw((size, SOURCE_LENGTH))  # what attends to the source

    def step(self, _, carry, tokens):
        state, fixed = carry
        state = jnp.tanh(state @ jnp.float32(self.recurrent) + jnp.float32(self.embedding)[tokens] + fixed)
        return (state, fixed), state @ jnp.float32(self.output) + jnp.float32(self.bias)

    def attending_step(self, _, carry, tokens):
        """As `step`, and attention to a source."""
        (state, fixed), logits = self.step(_, carry, tokens)
        return (state, fixed), logits, jax.nn.softmax(state @ jnp.float32(self.looks))

    def carry(self, sentences):
        start = jnp.float32(self.start[np.asarray(sentences)])[:, None]
        return start, 0.1 * start

    def state(self, sentence: int, prefix: tuple[int, ...]) -> np.ndarray:
        """After BOS and `prefix`, in float64."""
        state = start = self.start[sentence]
        for token in (BOS, *prefix):
            state = np.tanh(state @ self.recurrent + self.embedding[token] + 0.1 * start)
        return state

    def weights(self, sentence: int, prefix: tuple[int, ...]) -> np.ndarray:
        """Attention when the token that follows `prefix` is written."""
        scores = np.exp(self.state(sentence, prefix) @ self.looks)
        return scores / scores.sum()

    def log_probs(self, sentence: int, prefix: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities of the token that follows `prefix`, in float64."""
        state = self.state(sentence, prefix)
        logits = state @ self.output + self.bias
        return logits - np.log(np.exp(logits).sum())

    def log_prob(self, sentence: int, sequence: tuple[int, ...]) -> float:
        return sum(self.log_probs(sentence, sequence[:i])[token] for i, token in enumerate(sequence))
