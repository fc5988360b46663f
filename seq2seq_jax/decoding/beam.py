"""Beam search with length normalisation. Knows no model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import (
    Carry,
    Found,
    Memory,
    Step,
    best_continuations,
    penalty,
    search_rows,
    select,
)
from seq2seq_jax.symbols import BOS, EOS, PAD


def beam_search(
    step: Step,
    memory: Memory,
    carry: Carry,
    *,
    beam_size: int,
    max_lengths: Int[Array, " B"],
    max_length: int,
    length_penalty: float,
    num_best: int | None = None,
    smallest: int = 16,
) -> Found:
    """Finds likely sequences, ranked by length-normalised log-probability.

    At every position the K best continuations of the open hypotheses are kept.
    Those that end in EOS leave the beam, and their places are filled again at
    the next position. A sentence is done when no open hypothesis can beat its
    `num_best` best ended ones any more, whatever follows; so the early exit
    never changes what is found. A beam of 1 is greedy search.

    Args:
      step: the model; see `Step`. The first tokens are BOS.
      memory: what `step` reads besides, leaves [B, ...].
      carry: first state, leaves [B, 1, ...]; repeated here for K hypotheses.
      beam_size: K; static.
      max_lengths: most tokens of each sentence, EOS included; at the last of
        them only EOS is allowed, so every sequence ends.
      max_length: most tokens of any sentence; static. Greater values in
        `max_lengths` count as this, those below 1 as 1.
      length_penalty: exponent of Wu et al. 2016, at least 0; 0 ranks by plain
        log-probability, which favours short sequences.
      num_best: sequences wanted per sentence, at most K and by default K;
        static. The best one is the same whatever is wanted beside it, but the
        fewer are wanted, the sooner the search ends.
      smallest: rows below which those of ended sentences are not taken out,
        see `search_rows`; static.

    Returns:
      `num_best` sequences per sentence, best first. One is cut where it was
      still open before its last position allowed, and the likeliest token there
      is not EOS.
    """
    num_best = beam_size if num_best is None else num_best

    def advance(memory: Memory, position: Int[Array, ""], rows: _Rows) -> _Rows:
        carry, logits = step(memory, rows.carry, rows.last)
        length = position + 1
        best = best_continuations(logits, rows.open, length >= rows.limits)
        ends = best.token == EOS
        ended = jnp.where(ends, best.log_probs, -jnp.inf)
        finished = _keep_best(rows.finished, ended, best.cut, length, length_penalty)
        still_open = jnp.where(ends, -jnp.inf, best.log_probs)
        return _Rows(
            limits=rows.limits,
            carry=select(carry, best.place),
            last=best.token,
            open=_close_hopeless(still_open, finished, rows.limits, length_penalty),
            history=_write(rows.history, best.token * beam_size + best.place, position),
            finished=finished,
        )

    limits = jnp.clip(max_lengths, 1, max_length)
    rows = _first_rows(carry, beam_size, num_best, limits, max_length)
    rows = search_rows(advance, lambda rows: jnp.any(rows.open > -jnp.inf, axis=1), memory, rows, smallest)
    finished = rows.finished
    tokens = _trace_back(rows.history, finished)
    return Found(tokens, finished.scores, finished.log_probs, finished.lengths, finished.cut)


class _Finished(NamedTuple):
    """The N best ended hypotheses of each sentence, best first.

    Attributes:
      place: in the beam when they ended.
      cut: whether the limit ended them.
    """

    scores: Float[Array, "B N"]
    log_probs: Float[Array, "B N"]
    lengths: Int[Array, "B N"]
    place: Int[Array, "B N"]
    cut: Bool[Array, "B N"]


class _Rows(NamedTuple):
    """What the loop carries of each sentence.

    Attributes:
      limits: most tokens.
      open: log-probabilities of the open hypotheses; -inf marks an empty place.
      history: for every position and place, the token written there and the
        place of the hypothesis it continues, as token * K + place. Sequences
        are read off it once, at the end, instead of being moved at every step.
    """

    limits: Int[Array, " B"]
    carry: Carry
    last: Int[Array, "B K"]
    open: Float[Array, "B K"]
    history: Int[Array, "B T K"]
    finished: _Finished


def _first_rows(carry: Carry, beam_size: int, num_best: int, limits: Int[Array, " B"], max_length: int) -> _Rows:
    batch = limits.shape[0]
    open = jnp.full((batch, beam_size), -jnp.inf, jnp.float32)
    none = jnp.full((batch, num_best), -jnp.inf, jnp.float32)
    zeros = jnp.zeros((batch, num_best), jnp.int32)
    return _Rows(
        limits=limits,
        carry=jax.tree.map(lambda leaf: jnp.repeat(leaf, beam_size, axis=1), carry),
        last=jnp.full((batch, beam_size), BOS, jnp.int32),
        open=open.at[:, 0].set(0.0),  # one only: K equal ones would stay equal
        history=jnp.zeros((batch, max_length, beam_size), jnp.int32),
        finished=_Finished(none, none, zeros, zeros, jnp.zeros(none.shape, bool)),
    )


def _keep_best(
    finished: _Finished,
    ended: Float[Array, "B K"],
    cut: Bool[Array, "B K"],
    length: Int[Array, ""],
    length_penalty: float,
) -> _Finished:
    """Returns the N best of those ended before and those that end now, whose log-probabilities `ended` holds."""
    beam_size = ended.shape[1]
    new = _Finished(
        scores=ended / penalty(length, length_penalty),
        log_probs=ended,
        lengths=jnp.where(ended > -jnp.inf, length, 0),
        place=jnp.broadcast_to(jnp.arange(beam_size, dtype=jnp.int32), ended.shape),
        cut=cut & (ended > -jnp.inf),
    )
    both = _Finished(*(jnp.concatenate(pair, axis=1) for pair in zip(finished, new, strict=True)))  # [B, N + K]
    _, order = jax.lax.top_k(both.scores, finished.scores.shape[1])
    return select(both, order)


def _close_hopeless(
    log_probs: Float[Array, "B K"], finished: _Finished, limits: Int[Array, " B"], length_penalty: float
) -> Float[Array, "B K"]:
    """Empties the beams of sentences whose result is settled.

    Log-probabilities only fall and the penalty only rises, to its value at the
    sentence's last position, so no open hypothesis can score more than its
    log-probability now over the penalty then.
    """
    attainable = log_probs.max(axis=1) / penalty(limits, length_penalty)
    settled = attainable <= finished.scores[:, -1]
    return jnp.where(settled[:, None], -jnp.inf, log_probs)


def _write(history: Int[Array, "B T K"], entry: Int[Array, "B K"], position: Int[Array, ""]) -> Int[Array, "B T K"]:
    return jax.lax.dynamic_update_index_in_dim(history, entry, position, axis=1)


def _trace_back(history: Int[Array, "B T K"], finished: _Finished) -> Int[Array, "B N T"]:
    """Reads the finished sequences off the history, from their ends to their beginnings."""
    beam_size = history.shape[-1]

    def read(place: Int[Array, "B N"], x: tuple[Int[Array, ""], Int[Array, "B K"]]):
        position, entries = x
        entry = select(entries, place)
        inside = position < finished.lengths
        return jnp.where(inside, entry % beam_size, place), jnp.where(inside, entry // beam_size, PAD)

    positions = jnp.arange(history.shape[1], dtype=jnp.int32)
    _, tokens = jax.lax.scan(read, finished.place, (positions, jnp.swapaxes(history, 0, 1)), reverse=True)
    return jnp.moveaxis(tokens, 0, -1)
