"""Greedy search: the likeliest token at every position. Knows no model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import Carry, Found, Memory, Step, best_continuations, penalty, search_rows
from seq2seq_jax.symbols import BOS, EOS, PAD


def greedy_search(
    step: Step,
    memory: Memory,
    carry: Carry,
    *,
    max_lengths: Int[Array, " B"],
    max_length: int,
    length_penalty: float = 0.0,
    smallest: int = 16,
) -> Found:
    """Writes the likeliest token at every position until EOS; ends with the last sentence.

    Args:
      step: the model; see `Step`. The first tokens are BOS.
      memory: what `step` reads besides, leaves [B, ...].
      carry: first state, leaves [B, 1, ...].
      max_lengths: most tokens of each sentence, EOS included; at the last of
        them only EOS is allowed, so every sequence ends.
      max_length: most tokens of any sentence; static. Greater values in
        `max_lengths` count as this, those below 1 as 1.
      length_penalty: exponent for the scores, as in `beam_search`; the tokens
        do not depend on it.
      smallest: rows below which those of ended sentences are not taken out,
        see `search_rows`; static.

    Returns:
      One sequence per sentence, N = 1. It is cut where the likeliest token at
      its last position allowed is not EOS.
    """

    def advance(memory: Memory, position: Int[Array, ""], rows: _Rows) -> _Rows:
        carry, logits = step(memory, rows.carry, rows.last)
        length = position + 1
        certain = jnp.zeros(rows.last.shape, jnp.float32)
        best = best_continuations(logits, certain, length >= rows.limits)
        running = rows.lengths == 0
        token = jnp.where(running, best.token, PAD)
        return rows._replace(
            carry=carry,
            last=token,
            tokens=jax.lax.dynamic_update_index_in_dim(rows.tokens, token, position, axis=1),
            log_probs=rows.log_probs + jnp.where(running, best.log_probs, 0.0),
            lengths=jnp.where(running & (token == EOS), length, rows.lengths),
            cut=rows.cut | (running & best.cut),
        )

    rows = _first_rows(carry, jnp.clip(max_lengths, 1, max_length), max_length)
    rows = search_rows(advance, lambda rows: rows.lengths[:, 0] == 0, memory, rows, smallest)
    scores = rows.log_probs / penalty(rows.lengths, length_penalty)
    return Found(jnp.swapaxes(rows.tokens, 1, 2), scores, rows.log_probs, rows.lengths, rows.cut)


class _Rows(NamedTuple):
    """What the loop carries of each sentence; K = 1. A length of 0 marks a sentence that has not ended."""

    limits: Int[Array, " B"]
    carry: Carry
    last: Int[Array, "B K"]
    tokens: Int[Array, "B T K"]
    log_probs: Float[Array, "B K"]
    lengths: Int[Array, "B K"]
    cut: Bool[Array, "B K"]


def _first_rows(carry: Carry, limits: Int[Array, " B"], max_length: int) -> _Rows:
    zeros = jnp.zeros((limits.shape[0], 1), jnp.int32)
    return _Rows(
        limits=limits,
        carry=carry,
        last=jnp.full_like(zeros, BOS),
        tokens=jnp.full((limits.shape[0], max_length, 1), PAD, jnp.int32),
        log_probs=jnp.zeros(zeros.shape, jnp.float32),
        lengths=zeros,
        cut=jnp.zeros(zeros.shape, bool),
    )
