"""Greedy search of one line, a token at a time, for those who read along.

The line is encoded once; each further token is one run of a compiled step. The
tokens are those of `decoding.greedy.greedy_search`, which finds them in one loop.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.decoding.hypotheses import best_continuations, penalty
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import BOS, EOS
from seq2seq_jax.translator import Hypothesis, Translator, output_limits


class Written(NamedTuple):
    """One token further.

    Attributes:
      state: of the decoder, leaves [1, 1, ...].
      token: the likeliest, or EOS where no other is allowed.
      log_prob: of it, nats.
      cut: whether EOS was all that was allowed, and another token likelier.
    """

    state: Any
    token: Int[Array, "1 1"]
    log_prob: Float[Array, "1 1"]
    cut: Bool[Array, "1 1"]


class Stepwise:
    """The greedy search of a translator's model by steps; its programs depend on the width of a source alone."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        graph, _, _ = translator.search_parts
        jit = partial(jax.jit, compiler_options=compiler_options(translator.mesh))
        self._encode, self._step = jit(partial(_encode, graph)), jit(partial(_step, graph))

    def begin(self, line: str, width: int) -> "Stream":
        """Reads a line, which is not empty, as a source of `width` ids."""
        return Stream(self, line, width)

    def compile(self, width: int) -> None:
        """Compiles what sources of `width` ids need."""
        graph, params, tables = self.translator.search_parts
        source = Padded(np.full((1, width), EOS, np.int32), np.ones(1, np.int32))
        memory, state = self._encode(params, source)
        self._step(params, tables, memory, state, np.full((1, 1), BOS, np.int32), np.ones(1, bool))


class Stream:
    """One line that is being written.

    Attributes:
      tokens: ids so far, the end mark included once it is there.
    """

    def __init__(self, stepwise: Stepwise, line: str, width: int) -> None:
        translator = stepwise.translator
        sources = encode_lines(translator.vocabularies, [line]).sources
        self._stepwise, self._line = stepwise, line
        (self._limit,) = output_limits(sources.lengths, translator.decode.max_length_ratio).tolist()
        _, params, _ = translator.search_parts
        self._memory, self._state = stepwise._encode(params, sources.padded(np.arange(1), 1, width))
        self._log_prob, self._cut = 0.0, False
        self.tokens: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the end mark is written."""
        return self.tokens[-1:] == [EOS]

    def advance(self) -> None:
        """Writes one token more."""
        _, params, tables = self._stepwise.translator.search_parts
        last = np.full((1, 1), self.tokens[-1] if self.tokens else BOS, np.int32)
        last_allowed = np.array([len(self.tokens) + 1 >= self._limit])
        found = self._stepwise._step(params, tables, self._memory, self._state, last, last_allowed)
        self._state = found.state
        self._log_prob += float(found.log_prob[0, 0])
        self._cut = bool(found.cut[0, 0])
        self.tokens.append(int(found.token[0, 0]))

    @property
    def text(self) -> str:
        """What is written so far."""
        vocabularies = self._stepwise.translator.vocabularies
        return vocabularies.target.decode([self.tokens], vocabularies.copies([self._line]))[0]

    def hypothesis(self) -> Hypothesis:
        """What is written, as `Translator.translate` returns it."""
        alpha = self._stepwise.translator.decode.length_penalty
        score = self._log_prob / float(penalty(jnp.int32(len(self.tokens)), alpha))
        return Hypothesis(self.text, score, self._cut)


def _encode(graph: nnx.GraphDef, params: Any, source: Padded) -> tuple[Any, Any]:
    """What attention looks at, and where the decoder starts, leaves [1, 1, ...]."""
    encoded = nnx.merge(graph, params).encode(source)
    return encoded._replace(state=None), jax.tree.map(lambda leaf: leaf[:, None], encoded.state)


def _step(
    graph: nnx.GraphDef,
    params: Any,
    tables: Any,
    memory: Any,
    state: Any,
    last: Int[Array, "1 1"],
    last_allowed: Bool[Array, " 1"],
) -> Written:
    state, logits = nnx.merge(graph, params).search_step(tables, memory, state, last)
    best = best_continuations(logits, jnp.zeros(last.shape), last_allowed)
    return Written(state, best.token, best.log_probs, best.cut)
