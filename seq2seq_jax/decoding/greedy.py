"""Greedy search: the likeliest token at every position. Knows no model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import Carry, Found, Step, best_continuations, penalty
from seq2seq_jax.symbols import BOS, EOS, PAD


def greedy_search(
    step: Step, carry: Carry, *, max_lengths: Int[Array, " B"], max_length: int, length_penalty: float = 0.0
) -> Found:
    """Writes the likeliest token at every position until EOS, in one loop that ends with the last sentence.

    Args:
      step: the model; see `Step`. The first tokens are BOS.
      carry: first state, leaves [B, 1, ...].
      max_lengths: most tokens of each sentence, EOS included; at the last of
        them only EOS is allowed, so every sequence ends.
      max_length: most tokens of any sentence; static. Greater values in
        `max_lengths` count as this, those below 1 as 1.
      length_penalty: exponent for the scores, as in `beam_search`; the tokens
        do not depend on it.

    Returns:
      One sequence per sentence, N = 1.
    """
    limits = jnp.clip(max_lengths, 1, max_length)
    certain = jnp.zeros((limits.shape[0], 1), jnp.float32)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return jnp.any(state.lengths == 0)

    def advance(state: _State) -> _State:
        carry, logits = step(state.carry, state.last)
        length = state.position + 1
        best = best_continuations(logits, certain, length >= limits)
        running = state.lengths == 0
        token = jnp.where(running, best.token, PAD)
        return _State(
            position=length,
            carry=carry,
            last=token,
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.position, axis=0),
            log_probs=state.log_probs + jnp.where(running, best.log_probs, 0.0),
            lengths=jnp.where(running & (token == EOS), length, state.lengths),
        )

    state = jax.lax.while_loop(unfinished, advance, _first_state(carry, limits.shape[0], max_length))
    scores = state.log_probs / penalty(state.lengths, length_penalty)
    return Found(jnp.moveaxis(state.tokens, 0, -1), scores, state.log_probs, state.lengths)


class _State(NamedTuple):
    """What the loop carries; K = 1. A length of 0 marks a sentence that has not ended."""

    position: Int[Array, ""]
    carry: Carry
    last: Int[Array, "B K"]
    tokens: Int[Array, "T B K"]
    log_probs: Float[Array, "B K"]
    lengths: Int[Array, "B K"]


def _first_state(carry: Carry, batch: int, max_length: int) -> _State:
    zeros = jnp.zeros((batch, 1), jnp.int32)
    return _State(
        position=jnp.int32(0),
        carry=carry,
        last=jnp.full_like(zeros, BOS),
        tokens=jnp.full((max_length, batch, 1), PAD, jnp.int32),
        log_probs=jnp.zeros((batch, 1), jnp.float32),
        lengths=zeros,
    )
