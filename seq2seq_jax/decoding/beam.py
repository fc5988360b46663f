"""Beam search with length normalisation, of one beam or of several that differ. Knows no model."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.decoding.hypotheses import (
    Carry,
    Continuations,
    Found,
    Memory,
    Step,
    best_continuations,
    penalty,
    search_rows,
    select,
    take,
    with_rest,
)
from seq2seq_jax.symbols import BOS, EOS, PAD

Choose = Callable[[Memory, Carry, Float[Array, "B K V"], Float[Array, "B K"], Bool[Array, " B"]], Continuations]
"""Which continuations to keep: as `best_continuations`, given the model's memory and new state too."""


def by_log_prob(memory: Memory, carry: Carry, *given: Array) -> Continuations:
    """The most likely continuations, whatever else is known of them."""
    return best_continuations(*given)


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
    num_groups: int = 1,
    diversity: float = 0.0,
    choose: Choose = by_log_prob,
    smallest: int = 16,
) -> Found:
    """Finds likely sequences, ranked by length-normalised log-probability.

    At every position the K best continuations of the open hypotheses are kept.
    Those that end in EOS leave the beam, and their places are filled again at
    the next position. A sentence is done when no open hypothesis can beat its
    `num_best` best ended ones any more, whatever follows; so the early exit
    never changes what is found. A beam of 1 is greedy search.

    With G groups it is diverse beam search (Vijayakumar et al. 2018, algorithm 1):
    G beams of K / G hypotheses, each with best ended ones of its own. At every
    position they choose one after another, and each lowers, for those after it,
    the tokens that it has chosen: by `diversity` for every hypothesis that it
    wrote the token to. Scores and log-probabilities stay those of the model.

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
        fewer are wanted, the sooner the search ends. Of several groups each
        keeps its share, rounded up, and the best of all are given; there are fewer
        where groups find the same.
      num_groups: G, which divides K; static.
      diversity: nats.
      choose: which continuations a group keeps.
      smallest: rows below which those of ended sentences are not taken out,
        see `search_rows`; static.

    Returns:
      `num_best` sequences per sentence, best first. One is cut where it was
      still open before its last position allowed, and the likeliest token there
      is not EOS.
    """
    num_best = beam_size if num_best is None else num_best
    width, share = beam_size // num_groups, -(-num_best // num_groups)

    def chosen(
        memory: Memory, carry: Carry, logits: Array, rows: _Rows, last_allowed: Array, group: int, counts: Array | None
    ) -> Continuations:
        """What a group keeps; `counts` of the tokens that those before it chose."""
        places = slice(group * width, (group + 1) * width)
        carry, logits, open = jax.tree.map(lambda leaf: leaf[:, places], (carry, logits, rows.open))
        if counts is None:
            return choose(memory, carry, logits, open, last_allowed)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        best = choose(memory, carry, with_rest(log_probs - diversity * counts[:, None]), open, last_allowed)
        log_prob = take(log_probs.reshape(open.shape[0], -1), best.place * log_probs.shape[-1] + best.token)
        there = best.log_probs > -jnp.inf
        return best._replace(log_probs=jnp.where(there, take(open, best.place) + log_prob, -jnp.inf))

    def advance(memory: Memory, position: Int[Array, ""], rows: _Rows) -> _Rows:
        carry, logits = step(memory, rows.carry, rows.last)
        length = position + 1
        settled = jnp.ones(rows.limits.shape, bool)  # every group, for they see each other's tokens
        counts, kept, opened, finished = None, [], [], []
        for group in range(num_groups):
            best = chosen(memory, carry, logits, rows, length >= rows.limits, group, counts)
            if group + 1 < num_groups:
                counts = _counted(counts, best, logits.shape[-1])
            best = best._replace(place=best.place + group * width)
            ends = best.token == EOS
            ended = jnp.where(ends, best.log_probs, -jnp.inf)
            own = jax.tree.map(lambda leaf, group=group: leaf[:, group * share : (group + 1) * share], rows.finished)
            own = _keep_best(own, ended, best.cut, group * width, length, length_penalty)
            still_open = jnp.where(ends, -jnp.inf, best.log_probs)
            settled &= _is_settled(still_open, own, rows.limits, length_penalty)
            kept.append(best)
            opened.append(still_open)
            finished.append(own)
        best, open, of_all = (jax.tree.map(_side_by_side, *parts) for parts in (kept, opened, finished))
        return _Rows(
            limits=rows.limits,
            carry=select(carry, best.place),
            last=best.token,
            open=jnp.where(settled[:, None], -jnp.inf, open),
            history=_write(rows.history, best.token * beam_size + best.place, position),
            finished=of_all,
        )

    limits = jnp.clip(max_lengths, 1, max_length)
    rows = _first_rows(carry, num_groups, width, num_groups * share, limits, max_length)
    rows = search_rows(advance, lambda rows: jnp.any(rows.open > -jnp.inf, axis=1), memory, rows, smallest)
    finished = rows.finished
    tokens = _trace_back(rows.history, finished)
    found = Found(tokens, finished.scores, finished.log_probs, finished.lengths, finished.cut)
    return _best_of_groups(found, num_best) if num_groups > 1 else found


def _best_of_groups(found: Found, num_best: int) -> Found:
    """The best of what several groups found, each sequence once."""
    same = (found.tokens[:, :, None] == found.tokens[:, None]).all(-1)
    again = (same & jnp.tri(same.shape[-1], k=-1, dtype=bool)).any(-1)
    found = Found(
        tokens=jnp.where(again[..., None], PAD, found.tokens),
        scores=jnp.where(again, -jnp.inf, found.scores),
        log_probs=jnp.where(again, -jnp.inf, found.log_probs),
        lengths=jnp.where(again, 0, found.lengths),
        cut=found.cut & ~again,
    )
    return select(found, jax.lax.top_k(found.scores, num_best)[1])


def _side_by_side(*parts: Array) -> Array:
    return jnp.concatenate(parts, axis=1)


def _counted(counts: Float[Array, "B V"] | None, best: Continuations, vocab_size: int) -> Float[Array, "B V"]:
    """How many hypotheses wrote each token, those of one more group included."""
    wrote = jax.nn.one_hot(best.token, vocab_size) * (best.log_probs > -jnp.inf)[..., None]
    return wrote.sum(1) if counts is None else counts + wrote.sum(1)


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


def _first_rows(
    carry: Carry, num_groups: int, width: int, num_best: int, limits: Int[Array, " B"], max_length: int
) -> _Rows:
    batch, beam_size = limits.shape[0], num_groups * width
    open = jnp.full((batch, beam_size), -jnp.inf, jnp.float32)
    none = jnp.full((batch, num_best), -jnp.inf, jnp.float32)
    zeros = jnp.zeros((batch, num_best), jnp.int32)
    return _Rows(
        limits=limits,
        carry=jax.tree.map(lambda leaf: jnp.repeat(leaf, beam_size, axis=1), carry),
        last=jnp.full((batch, beam_size), BOS, jnp.int32),
        open=open.at[:, ::width].set(0.0),  # one only of a group: equal ones would stay equal
        history=jnp.zeros((batch, max_length, beam_size), jnp.int32),
        finished=_Finished(none, none, zeros, zeros, jnp.zeros(none.shape, bool)),
    )


def _keep_best(
    finished: _Finished,
    ended: Float[Array, "B K"],
    cut: Bool[Array, "B K"],
    first_place: int,
    length: Int[Array, ""],
    length_penalty: float,
) -> _Finished:
    """Returns the N best of those ended before and those that end now, whose log-probabilities `ended` holds.

    `first_place` is the place of the first of these in the beam.
    """
    new = _Finished(
        scores=ended / penalty(length, length_penalty),
        log_probs=ended,
        lengths=jnp.where(ended > -jnp.inf, length, 0),
        place=jnp.broadcast_to(first_place + jnp.arange(ended.shape[1], dtype=jnp.int32), ended.shape),
        cut=cut & (ended > -jnp.inf),
    )
    both = _Finished(*(jnp.concatenate(pair, axis=1) for pair in zip(finished, new, strict=True)))  # [B, N + K]
    _, order = jax.lax.top_k(both.scores, finished.scores.shape[1])
    return select(both, order)


def _is_settled(
    log_probs: Float[Array, "B K"], finished: _Finished, limits: Int[Array, " B"], length_penalty: float
) -> Bool[Array, " B"]:
    """Whether the result of a sentence cannot change any more.

    Log-probabilities only fall and the penalty only rises, to its value at the
    sentence's last position, so no open hypothesis can score more than its
    log-probability now over the penalty then.
    """
    attainable = log_probs.max(axis=1) / penalty(limits, length_penalty)
    return attainable <= finished.scores[:, -1]


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
