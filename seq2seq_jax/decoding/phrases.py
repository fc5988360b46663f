"""Phrases that must appear in an output: beam search by dynamic beam allocation (Post and Vilar 2018)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import NUM_UNWRITTEN, Continuations, best_continuations, take


class Phrases(NamedTuple):
    """Phrases of tokens, P for each sentence.

    Attributes:
      tokens: PAD after a phrase.
      lengths: 0 where a sentence has fewer phrases than others.
      goes_on: for every number s of tokens of a phrase just written, and every
        number j after the next token: whether the phrase's first j - 1 tokens are the
        last ones of its first s. So what repeats within a phrase is not lost from sight
        (Knuth, Morris and Pratt 1977).
    """

    tokens: Int[Array, "B P L"]
    lengths: Int[Array, "B P"]
    goes_on: Bool[Array, "B P L1 L1"]


def make_phrases(of_each: Sequence[Sequence[Sequence[int]]], num_phrases: int, longest: int) -> Phrases:
    """The phrases of each sentence, token ids, as arrays with room for so many of such a length."""
    shape = len(of_each), num_phrases
    tokens, lengths = np.zeros((*shape, longest), np.int32), np.zeros(shape, np.int32)
    goes_on = np.zeros((*shape, longest + 1, longest + 1), bool)
    for row, phrases in enumerate(of_each):
        for column, phrase in enumerate(map(list, phrases)):
            tokens[row, column, : len(phrase)], lengths[row, column] = phrase, len(phrase)
            for written in range(len(phrase)):
                for after in range(1, written + 2):
                    goes_on[row, column, written, after] = phrase[: after - 1] == phrase[written - after + 1 : written]
    return Phrases(*map(jnp.asarray, (tokens, lengths, goes_on)))


def progress_after(phrases: Phrases, progress: Int[Array, "B K P"], token: Int[Array, "B K"]) -> Int[Array, "B K P"]:
    """How many of each phrase's first tokens are the latest written, once `token` is; all, if it ever was whole."""
    longest = phrases.tokens.shape[-1]
    right = phrases.tokens[:, None] == token[..., None, None]  # [B, K, P, L]
    # [B, K, P, L]: of each phrase the row of `goes_on` that its progress says, but for its first column.
    rows = jnp.take_along_axis(phrases.goes_on[:, None], progress[..., None, None], axis=3)[..., 0, 1:]
    found = jnp.where(right & rows, 1 + jnp.arange(longest), 0).max(-1)
    return jnp.where(progress == phrases.lengths[:, None], progress, found)


def all_met(phrases: Phrases, progress: Int[Array, "B K P"]) -> Bool[Array, "B K"]:
    """Whether every phrase has appeared."""
    return (progress == phrases.lengths[:, None]).all(-1)


def by_banks(
    memory: tuple[Any, Any],
    carry: tuple[Any, Any],
    logits: Float[Array, "B K V"],
    open: Float[Array, "B K"],
    last_allowed: Bool[Array, " B"],
) -> Continuations:
    """Keeps continuations of every stage: places are dealt out over banks, the numbers of phrase tokens written.

    To choose from are the K best continuations of all hypotheses, the best of
    each, and of each the next token of every phrase (Post and Vilar 2018, section
    3.1). The banks are given a place in turn, that of the most tokens first, for its
    best that has none yet, so that what a bank cannot use goes to the others.
    (There, section 3.2, every bank has the same number of places, the rest goes to that
    of the most tokens, and what a bank cannot use to its neighbours.)

    Args:
      memory, carry, logits: of a step that `rules.ruled` made.
      open, last_allowed: as of `best_continuations`.
    """
    phrases, progress = memory[1].phrases, carry[1].progress
    batch, beam_size, vocab_size = logits.shape
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    best = best_continuations(logits, open, last_allowed)
    next_token = jnp.take_along_axis(phrases.tokens[:, None], progress[..., None], axis=3, mode="clip")[..., 0]
    wanted = progress < phrases.lengths[:, None]  # [B, K, P]
    likeliest = NUM_UNWRITTEN + log_probs[..., NUM_UNWRITTEN:].argmax(-1)
    own = jnp.concatenate([likeliest[..., None], next_token], -1)  # [B, K, 1 + P]
    there = jnp.concatenate([jnp.ones_like(likeliest[..., None], bool), wanted], -1)
    places = jnp.broadcast_to(jnp.arange(beam_size)[:, None], own.shape)

    flat = lambda x: x.reshape(batch, -1)  # noqa: E731
    token = jnp.concatenate([best.token, flat(own)], 1)
    place = jnp.concatenate([best.place, flat(places)], 1)
    there = jnp.concatenate([best.log_probs > -jnp.inf, flat(there)], 1)
    index = place * vocab_size + token
    score = jnp.where(there, take(open, place) + take(flat(log_probs), index), -jnp.inf)
    earlier = jnp.tri(token.shape[1], k=-1, dtype=bool)
    again = (index[:, :, None] == index[:, None, :]) & there[:, None, :] & earlier
    score = jnp.where(again.any(-1), -jnp.inf, score)

    met = progress_after(phrases, take(progress, place), token).sum(-1)
    ahead = (score[:, None, :] > score[:, :, None]) | ((score[:, None, :] == score[:, :, None]) & earlier)
    rank = (ahead & (met[:, None, :] == met[:, :, None])).sum(-1)
    turn = rank * (phrases.tokens[0].size + 1) - met
    turn = jnp.where(score > -jnp.inf, turn, jnp.iinfo(jnp.int32).max)
    _, kept = jax.lax.top_k(-turn, beam_size)

    end = last_allowed[:, None]
    return Continuations(
        log_probs=jnp.where(end, best.log_probs, take(score, kept)),
        place=jnp.where(end, best.place, take(place, kept)),
        token=jnp.where(end, best.token, take(token, kept)),
        cut=best.cut,
    )
