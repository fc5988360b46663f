"""Outputs drawn at random, token by token. Knows no model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import NUM_UNWRITTEN, Carry, Found, Memory, Step, penalty, search_rows, select
from seq2seq_jax.outputs import wide
from seq2seq_jax.symbols import BOS, EOS, PAD


def sample(
    step: Step,
    memory: Memory,
    carry: Carry,
    *,
    num_samples: int,
    seed: int,
    numbers: Int[Array, " B"],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_lengths: Int[Array, " B"],
    max_length: int,
    length_penalty: float = 0.0,
    smallest: int = 16,
) -> Found:
    """Draws sequences, each token from what the model says of it, until EOS.

    A token's probability is proportional to `p ** (1 / temperature)` among the
    `top_k` likeliest (Fan et al. 2018), and of these among the fewest likeliest that
    have at least `top_p` of that probability together (Holtzman et al. 2020).
    PAD and BOS are never drawn.

    Args:
      step, memory, carry: as of `greedy_search`.
      num_samples: N, drawn independently of each other.
      seed, numbers: what is drawn for a sentence depends on the seed and its number, not
        on the other sentences.
      temperature: above 0; below 1 the likelier tokens gain.
      top_k: 0 for all.
      top_p: 1 for all.
      max_lengths, max_length, length_penalty, smallest: as of `greedy_search`.

    Returns:
      N sequences for each sentence, in the order in which they were drawn. One is cut
      where something else than EOS was drawn at its last position allowed.
      Log-probabilities and scores are those of the model, whatever it was drawn from.
    """
    base = jax.random.key(seed)

    def advance(memory: Memory, position: Int[Array, ""], rows: _Rows) -> _Rows:
        carry, logits = step(memory, rows.carry, rows.last)
        log_probs = jax.nn.log_softmax(wide(logits))
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(base, number), position))(rows.numbers)
        drawn = _draw(keys, log_probs, temperature, top_k, top_p)
        length, running = position + 1, rows.lengths == 0
        last_allowed = (length >= rows.limits)[:, None]
        token = jnp.where(running, jnp.where(last_allowed, EOS, drawn), PAD)
        log_prob = jnp.take_along_axis(log_probs, token[..., None], -1)[..., 0]
        return rows._replace(
            carry=carry,
            last=token,
            tokens=jax.lax.dynamic_update_index_in_dim(rows.tokens, token, position, axis=1),
            log_probs=rows.log_probs + jnp.where(running, log_prob, 0.0),
            lengths=jnp.where(running & (token == EOS), length, rows.lengths),
            cut=rows.cut | (running & last_allowed & (drawn != EOS)),
        )

    rows = _first_rows(carry, num_samples, numbers, jnp.clip(max_lengths, 1, max_length), max_length)
    rows = search_rows(advance, lambda rows: (rows.lengths == 0).any(1), memory, rows, smallest)
    possible = rows.log_probs > -jnp.inf  # where rules forbid every token there is no sequence
    found = Found(
        tokens=jnp.where(possible[..., None], jnp.swapaxes(rows.tokens, 1, 2), PAD),
        scores=rows.log_probs / penalty(rows.lengths, length_penalty),
        log_probs=rows.log_probs,
        lengths=jnp.where(possible, rows.lengths, 0),
        cut=rows.cut & possible,
    )
    return select(found, jnp.argsort(~possible, axis=1, stable=True))


class _Rows(NamedTuple):
    """What the loop carries of each sentence. A length of 0 marks a sequence that has not ended."""

    numbers: Int[Array, " B"]
    limits: Int[Array, " B"]
    carry: Carry
    last: Int[Array, "B N"]
    tokens: Int[Array, "B T N"]
    log_probs: Float[Array, "B N"]
    lengths: Int[Array, "B N"]
    cut: Bool[Array, "B N"]


def _first_rows(
    carry: Carry, num_samples: int, numbers: Int[Array, " B"], limits: Int[Array, " B"], max_length: int
) -> _Rows:
    zeros = jnp.zeros((limits.shape[0], num_samples), jnp.int32)
    return _Rows(
        numbers=numbers,
        limits=limits,
        carry=jax.tree.map(lambda leaf: jnp.repeat(leaf, num_samples, axis=1), carry),
        last=jnp.full_like(zeros, BOS),
        tokens=jnp.full((limits.shape[0], max_length, num_samples), PAD, jnp.int32),
        log_probs=jnp.zeros(zeros.shape, jnp.float32),
        lengths=zeros,
        cut=jnp.zeros(zeros.shape, bool),
    )


def _draw(
    keys: Array, log_probs: Float[Array, "B N V"], temperature: float, top_k: int, top_p: float
) -> Int[Array, "B N"]:
    """One token for each hypothesis, by the largest of log-probabilities with Gumbel noise added."""
    scaled = log_probs[..., NUM_UNWRITTEN:] / temperature
    tokens = None
    if 0 < top_k < scaled.shape[-1] or top_p < 1:
        scaled, tokens = jax.lax.top_k(scaled, min(top_k or scaled.shape[-1], scaled.shape[-1]))
        probs = jax.nn.softmax(scaled)
        scaled = jnp.where(jnp.cumsum(probs, -1) - probs < top_p, scaled, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scaled.shape[1:]))(keys)
    best = (scaled + noise).argmax(-1)
    if tokens is not None:
        best = jnp.take_along_axis(tokens, best[..., None], -1)[..., 0]
    return NUM_UNWRITTEN + best
