"""What every search works with: a step of the model, the best next tokens, the sequences found."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.symbols import EOS, PAD

NUM_UNWRITTEN = 2  # PAD and BOS, the first two ids, are never part of an output
BLOCK = 64  # columns; from 32 to 128 the time on a CPU is the same within noise

Memory = Any
Carry = Any
Step = Callable[[Memory, Carry, Int[Array, "B K"]], tuple[Carry, Float[Array, "B K V"]]]
"""From what is the same for all hypotheses of a sentence, such as the encoder's outputs, leaves [B, ...], the state,
leaves [B, K, ...], and the last tokens to the next state and logits of the next token.

Row b of what it returns depends on row b of what it is given only, and a hypothesis on itself only. It is called with
fewer rows, too, when sentences have ended.
"""


class Found(NamedTuple):
    """N sequences found for every sentence, best first.

    Attributes:
      tokens: each sequence ends with EOS, and PAD follows. No BOS.
      scores: length-normalised log-probabilities, nats. A row without a
        sequence (where fewer than N exist) has -inf, length 0 and PAD only.
      log_probs: log-probabilities of whole sequences under the model, EOS
        included, nats.
      lengths: tokens, EOS included.
      cut: whether the sequence ends because its sentence's limit was reached:
        the likeliest next token of it was another than EOS.
    """

    tokens: Int[Array, "B N T"]
    scores: Float[Array, "B N"]
    log_probs: Float[Array, "B N"]
    lengths: Int[Array, "B N"]
    cut: Bool[Array, "B N"]


class Continuations(NamedTuple):
    """Hypotheses one token longer, best first.

    Attributes:
      log_probs: of the longer hypotheses, nats.
      place: of the hypotheses that they continue.
      token: the new token.
      cut: whether EOS was all that was allowed, and another token likelier.
    """

    log_probs: Float[Array, "B K"]
    place: Int[Array, "B K"]
    token: Int[Array, "B K"]
    cut: Bool[Array, "B K"]


def penalty(lengths: Int[Array, "*N"], length_penalty: float) -> Float[Array, "*N"]:
    """What log-probabilities are divided by: ((5 + length) / 6) ** length_penalty, Wu et al. 2016, section 7."""
    return ((5.0 + lengths.astype(jnp.float32)) / 6.0) ** length_penalty


def best_continuations(
    logits: Float[Array, "B K V"], log_probs: Float[Array, "B K"], last_allowed: Bool[Array, " B"]
) -> Continuations:
    """Finds the K best of the K * V continuations of each sentence's hypotheses.

    PAD and BOS are never among them, though they have their share of the
    probability, as in training. Where `last_allowed`, every hypothesis is
    continued by EOS, and the order is that of the hypotheses.

    The K best lie in the K blocks of columns with the greatest maxima, so only
    those are sorted. On a CPU this takes a third of the time of `lax.top_k`
    over all columns, and a sort of them all is slow on a GPU too.

    Args:
      logits: of the next token; any floating type, used in float32.
      log_probs: of the hypotheses so far; -inf for an empty place.
      last_allowed: sentences that may have one more token only.
    """
    batch, beam_size, vocab_size = logits.shape
    logits = logits.astype(jnp.float32)
    maxima = _block_maxima(logits)  # [B, K, N]
    largest = maxima.max(axis=-1, keepdims=True)
    log_norms = largest[..., 0] + jnp.log(jnp.exp(logits - largest).sum(axis=-1))
    offsets = log_probs - log_norms

    maxima = maxima.at[..., 0].set(logits[..., NUM_UNWRITTEN:BLOCK].max(axis=-1))
    likelier = maxima.max(axis=-1) > logits[..., EOS]
    maxima = maxima + offsets[..., None]
    _, block = jax.lax.top_k(maxima.reshape(batch, -1), beam_size)
    place, first = block // maxima.shape[-1], block % maxima.shape[-1] * BLOCK
    column = first[..., None] + jnp.arange(BLOCK, dtype=jnp.int32)  # [B, K, BLOCK]
    index = place[..., None] * vocab_size + jnp.minimum(column, vocab_size - 1)
    values = take(logits.reshape(batch, -1), index) + take(offsets, place)[..., None]
    values = jnp.where((column >= NUM_UNWRITTEN) & (column < vocab_size), values, -jnp.inf)
    best, index = jax.lax.top_k(values.reshape(batch, -1), beam_size)

    end = last_allowed[:, None]
    return Continuations(
        log_probs=jnp.where(end, offsets + logits[..., EOS], best),
        place=jnp.where(end, jnp.arange(beam_size, dtype=jnp.int32), take(place, index // BLOCK)),
        token=jnp.where(end, EOS, take(column.reshape(batch, -1), index)),
        cut=end & likelier,
    )


def search_rows(
    advance: Callable[[Memory, Int[Array, ""], Any], Any],
    is_open: Callable[[Any], Bool[Array, " B"]],
    memory: Memory,
    rows: Any,
    smallest: int,
    position: Int[Array, ""] | int = 0,
) -> Any:
    """Advances the rows of a search, one for each sentence, until none is open.

    Sentences end at different positions. Whenever half of them have, the others
    go on among themselves: a program for fewer rows, compiled with the first.

    Args:
      advance: `(memory, position, rows) -> rows`, one position on.
      is_open: whether each row needs more positions.
      memory: leaves [B, ...].
      rows: leaves [B, ...].
      smallest: never go on with fewer rows than this; B or more for one loop.
      position: of the first step.
    """
    batch = jax.tree.leaves(rows)[0].shape[0]
    half = batch // 2 if isinstance(batch, int) and batch // 2 >= smallest else 0  # a symbol, in an export

    def enough(state: tuple[Array, Any]) -> Bool[Array, ""]:
        return is_open(state[1]).sum() > half

    def on(state: tuple[Array, Any]) -> tuple[Array, Any]:
        return state[0] + 1, advance(memory, *state)

    position, rows = jax.lax.while_loop(enough, on, (jnp.int32(position), rows))
    if not half:
        return rows
    _, kept = jax.lax.top_k(is_open(rows).astype(jnp.int32), half)  # all open ones, and some that are done
    taken_memory, taken = jax.tree.map(lambda leaf: leaf[kept], (memory, rows))
    done = search_rows(advance, is_open, taken_memory, taken, smallest, position)
    return jax.tree.map(lambda leaf, part: leaf.at[kept].set(part), rows, done)


def with_rest(log_probs: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
    """Gives PAD, which no search writes, what log-probabilities lack of a sum of 1: so they stay what they are."""
    others = jnp.exp(log_probs.at[..., PAD].set(-jnp.inf)).sum(-1)
    return log_probs.at[..., PAD].set(jnp.log(jnp.maximum(1 - others, 0)))


def select(carry: Carry, place: Int[Array, "B K"]) -> Carry:
    """Returns the carry whose row k of each sentence is its row `place[k]` now."""
    return jax.tree.map(lambda leaf: take(leaf, place), carry)


def _block_maxima(logits: Float[Array, "B K V"]) -> Float[Array, "B K N"]:
    """Returns the greatest of every BLOCK columns."""
    num_blocks = -(-logits.shape[-1] // BLOCK)
    missing = num_blocks * BLOCK - logits.shape[-1]
    padded = jnp.pad(logits, ((0, 0), (0, 0), (0, missing)), constant_values=-jnp.inf)
    return padded.reshape(*logits.shape[:2], num_blocks, BLOCK).max(axis=-1)


def take(rows: Array, index: Int[Array, "B ..."]) -> Array:
    """Returns `rows[b, index[b, ...]]` for every sentence b; stays local when B is spread over devices."""
    return jax.vmap(lambda row, i: row.at[i].get(mode="promise_in_bounds"))(rows, index)
