"""Greedy search of one line, a token at a time, for those who read along.

The line is encoded once; each further token is one run of a compiled step. The
tokens are those of `decoding.greedy.greedy_search`, which finds them in one loop.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.config import greedy
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.decoding.hypotheses import best_continuations, penalty
from seq2seq_jax.decoding.rules import Asked, Rule
from seq2seq_jax.padded import Padded
from seq2seq_jax.programs import begin, rules_of, step_of
from seq2seq_jax.symbols import BOS, EOS, PAD
from seq2seq_jax.translator import Hypothesis, Translator


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
    """The greedy search of a translator's model by steps, which obeys the rules that its settings name.

    Its programs depend on the width of a source alone.
    """

    def __init__(self, translator: Translator) -> None:
        self.translator, graph = translator, translator.graph
        rules = rules_of(greedy(translator.decode), translator.avoided, Asked())
        jit = partial(jax.jit, compiler_options=compiler_options(translator.mesh))
        self._begin = jit(partial(_begin, graph, rules), static_argnums=2)
        self._step = jit(partial(_step, graph, rules))

    def begin(self, line: str, width: int) -> "Stream":
        """Reads a line, which is not empty, as a source of `width` ids."""
        return Stream(self, line, width)

    def compile(self, width: int) -> None:
        """Compiles what sources of `width` ids need."""
        source = Padded(np.full((1, width), EOS, np.int32), np.ones(1, np.int32))
        memory, state = self.encode(source, int(self.translator.output_limits(np.array([width]))[0]))
        self.step(memory, state, BOS, last_allowed=True)

    def encode(self, source: Padded, longest: int) -> tuple[Any, Any]:
        """What a step reads of a source, and the first state; an output has `longest` tokens at most."""
        return self._begin(self.translator.params, source, longest)

    def step(self, memory: Any, state: Any, last: int, *, last_allowed: bool) -> Written:
        """Writes a token after the one before, the end mark where no other is allowed."""
        params, tables = self.translator.params, self.translator.tables
        return self._step(params, tables, memory, state, np.full((1, 1), last, np.int32), np.array([last_allowed]))


class Stream:
    """One line that is being written.

    Attributes:
      tokens: ids so far, the end mark included once it is there.
    """

    def __init__(self, stepwise: Stepwise, line: str, width: int) -> None:
        self._stepwise, self._line, self._translator = stepwise, line, stepwise.translator
        sources = encode_lines(self._translator.vocabularies, [line]).sources
        self._source = sources.padded(np.arange(1), self._translator.mesh.size, width)  # a row for each device
        self._limit, self._longest = self._translator.output_limits(np.array([sources.lengths[0], width])).tolist()
        self._memory, self._state = stepwise.encode(sources.padded(np.arange(1), 1, width), self._longest)
        self._log_prob, self._cut = 0.0, False
        self.tokens: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the end mark is written."""
        return self.tokens[-1:] == [EOS]

    def advance(self) -> str:
        """Writes one token more, and returns the text so far."""
        last, last_allowed = self.tokens[-1] if self.tokens else BOS, len(self.tokens) + 1 >= self._limit
        found = self._stepwise.step(self._memory, self._state, last, last_allowed=last_allowed)
        self._state = found.state
        self._log_prob += float(found.log_prob[0, 0])
        self._cut = bool(found.cut[0, 0])
        self.tokens.append(int(found.token[0, 0]))
        return self._text()

    def _text(self) -> str:
        tokens = np.full((self._translator.mesh.size, self._longest), PAD, np.int32)
        tokens[0, : len(self.tokens)] = self.tokens
        return self._translator.text(self._source, tokens, self._line)

    def hypothesis(self) -> Hypothesis:
        """What is written, as `Translator.translate` returns it."""
        alpha = self._translator.decode.length_penalty
        score = self._log_prob / float(penalty(jnp.int32(len(self.tokens)), alpha))
        return Hypothesis(self._text(), score, self._cut)


def _begin(graph: nnx.GraphDef, rules: Sequence[Rule], params: Any, source: Padded, longest: int) -> tuple[Any, Any]:
    """What a step reads besides, and the first state, leaves [1, 1, ...]."""
    return begin(nnx.merge(graph, params), rules, source, Asked(), longest, covers=False)  # only a beam's rule does


def _step(
    graph: nnx.GraphDef,
    rules: Sequence[Rule],
    params: Any,
    tables: Any,
    memory: Any,
    state: Any,
    last: Int[Array, "1 1"],
    last_allowed: Bool[Array, " 1"],
) -> Written:
    state, logits = step_of(nnx.merge(graph, params), tables, rules)(memory, state, last)
    best = best_continuations(logits, jnp.zeros(last.shape), last_allowed)
    return Written(state, best.token, best.log_probs, best.cut)
