"""What a search may write: rules over the steps of a model, which any search obeys as it is.

A rule takes log-probabilities of the next token and gives them back, those of
tokens that it forbids as minus infinity, or some of them lower. It never
raises one. Log-probabilities of what may be written stay those of the model:
what is taken off goes to PAD, which no search writes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import Carry, Memory, Step, penalty, with_rest
from seq2seq_jax.decoding.phrases import Phrases, all_met, progress_after
from seq2seq_jax.outputs import wide
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import BOS, EOS, PAD

Attending = Callable[
    [Memory, Carry, Int[Array, "B K"]], tuple[Carry, Float[Array, "B K V"], Float[Array, "B K S"] | None]
]
"""As `Step`, and beside the logits the attention to each source position, where there is one."""


class Asked(NamedTuple):
    """What is asked of the output of each sentence; None where nothing is.

    Attributes:
      prefix: tokens that it begins with, [B, P].
      phrases: that appear in it.
    """

    prefix: Padded | None = None
    phrases: Phrases | None = None


class Written(NamedTuple):
    """What stands in each hypothesis.

    Attributes:
      tokens: those so far, PAD after them.
      number: of them.
      coverage: attention that each source position has had, this step's included; None if no rule needs it.
      progress: in each phrase that must appear, see `phrases.progress_after`; None without such.
    """

    tokens: Int[Array, "B K T"]
    number: Int[Array, "B K"]
    coverage: Float[Array, "B K S"] | None
    progress: Int[Array, "B K P"] | None


Rule = Callable[[Asked, Written, Float[Array, "B K V"]], Float[Array, "B K V"]]
"""From what sentences ask for, what is written and the log-probabilities of the next token to
log-probabilities none of which is higher."""


def ruled(step: Attending, rules: Sequence[Rule]) -> Step:
    """Returns a step that obeys rules.

    Its memory is that of `step` and what sentences ask for, its carry that of
    `step` and `nothing_written`.
    """

    def obey(memory: tuple[Memory, Asked], carry: tuple[Carry, Written], last: Array) -> tuple[Any, Array]:
        (inner, asked), (state, before) = memory, carry
        state, logits, weights = step(inner, state, last)
        if before.coverage is not None and weights is None:
            raise ValueError("a model without attention covers nothing")
        written = _after(asked, before, last, weights)
        log_probs = jax.nn.log_softmax(wide(logits))
        for rule in rules:
            log_probs = rule(asked, written, log_probs)
        return (state, written), with_rest(log_probs)

    return obey


def nothing_written(asked: Asked, batch: int, max_length: int, source: Padded | None) -> Written:
    """Before the first step, of one hypothesis a sentence; `source` where coverage is needed.

    Positions that are no token count as covered.
    """
    return Written(
        tokens=jnp.full((batch, 1, max_length), PAD, jnp.int32),
        number=jnp.zeros((batch, 1), jnp.int32),
        coverage=None if source is None else jnp.where(source.mask, 0.0, 1.0)[:, None],
        progress=None if asked.phrases is None else jnp.zeros_like(asked.phrases.lengths)[:, None],
    )


def _after(asked: Asked, before: Written, last: Int[Array, "B K"], weights: Float[Array, "B K S"] | None) -> Written:
    is_token = last != BOS
    here = jnp.arange(before.tokens.shape[-1]) == before.number[..., None]
    progress = before.progress
    if asked.phrases is not None and progress is not None:
        progress = progress_after(asked.phrases, progress, last)
    return Written(
        tokens=jnp.where(here & is_token[..., None], last[..., None], before.tokens),
        number=before.number + is_token,
        coverage=None if before.coverage is None or weights is None else before.coverage + weights,
        progress=progress,
    )


def no_shorter_than(least: int) -> Rule:
    """No end before so many tokens, the end mark not counted."""

    def rule(asked: Asked, written: Written, log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
        ends = log_probs[..., EOS]
        return log_probs.at[..., EOS].set(jnp.where(written.number < least, -jnp.inf, ends))

    return rule


def no_repeated_ngram(size: int) -> Rule:
    """No sequence of `size` tokens twice in an output (Paulus et al. 2018, section 2.5, with `size` 3)."""

    def rule(asked: Asked, written: Written, log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
        tokens, number = written.tokens, written.number
        starts = jnp.arange(tokens.shape[-1] - size + 1)
        seen = starts + size <= number[..., None]  # whole n-grams that are written
        for offset in range(size - 1):
            latest = _at(tokens, number - (size - 1) + offset)
            seen &= tokens[..., offset : offset + starts.shape[0]] == latest[..., None]
        return _forbid(log_probs, tokens[..., size - 1 :], seen)

    return rule


def without(phrases: Sequence[Sequence[int]]) -> Rule:
    """None of some phrases of tokens anywhere in an output."""
    longest = max(map(len, phrases))
    ends = np.array([[PAD] * (longest - len(phrase)) + list(phrase) for phrase in phrases], np.int32)  # [P, L]
    before = np.array([np.arange(longest - 1) >= longest - len(phrase) for phrase in phrases])  # what must be there

    def rule(asked: Asked, written: Written, log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
        back = written.number[..., None] - (longest - 1) + jnp.arange(longest - 1)
        latest = _at(written.tokens, back)  # [B, K, L - 1]
        ready = ((latest[..., None, :] == ends[:, :-1]) | ~before).all(-1)  # [B, K, P]
        return _forbid(log_probs, jnp.broadcast_to(ends[:, -1], ready.shape), ready)

    return rule


def _at(tokens: Int[Array, "B K T"], places: Int[Array, "B K *N"]) -> Int[Array, "B K *N"]:
    """The tokens at some places; PAD before the first."""
    flat = places.reshape(*places.shape[:2], -1)
    found = jnp.take_along_axis(tokens, jnp.maximum(flat, 0), axis=-1)
    return jnp.where(flat < 0, PAD, found).reshape(places.shape)


def _forbid(
    log_probs: Float[Array, "B K V"], tokens: Int[Array, "B K N"], which: Bool[Array, "B K N"]
) -> Float[Array, "B K V"]:
    """Forbids those tokens for which `which` is true; PAD stands for the others, and is no output anyway."""
    put = jnp.vectorize(lambda row, at: row.at[at].set(-jnp.inf), signature="(v),(n)->(v)")
    return put(log_probs, jnp.where(which, tokens, PAD))


def begun(asked: Asked, written: Written, log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
    """The beginning that is asked for, token by token."""
    if asked.prefix is None:
        return log_probs
    prefix, lengths = asked.prefix
    token = jnp.take_along_axis(prefix, jnp.minimum(written.number, prefix.shape[1] - 1), axis=1)
    free = written.number >= lengths[:, None]
    right = jnp.arange(log_probs.shape[-1]) == token[..., None]
    return jnp.where(free[..., None] | right, log_probs, -jnp.inf)


def complete(asked: Asked, written: Written, log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
    """No end before all phrases that are asked for have appeared."""
    if asked.phrases is None or written.progress is None:
        return log_probs
    ends = log_probs[..., EOS]
    return log_probs.at[..., EOS].set(jnp.where(all_met(asked.phrases, written.progress), ends, -jnp.inf))


def covering(strength: float, length_penalty: float) -> Rule:
    """Lowers an end by what the source lacks of attention: Wu et al. 2016, equation 14.

    An output's score is `log P / lp + strength sum_i log(min(sum_j p_ij, 1))`,
    over all source tokens i and output tokens j, both end marks included. So
    much is taken off the end mark's log-probability that it comes out so.
    """

    def rule(asked: Asked, written: Written, log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
        covered = jnp.clip(written.coverage, jnp.finfo(jnp.float32).tiny, 1)
        lacking = strength * jnp.log(covered).sum(-1) * penalty(written.number + 1, length_penalty)
        return log_probs.at[..., EOS].add(lacking)

    return rule
