"""How good whole outputs are, beside a reference: sentence metrics of token ids, computed where the model is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.padded import Padded

LONGEST_NGRAM = 4  # of BLEU


def exact_match(output: Padded, reference: Padded) -> Float[Array, " B"]:
    """1 where an output is the reference, 0 elsewhere."""
    same = (output.values == reference.values) | ~output.mask
    return (same.all(1) & (output.lengths == reference.lengths)).astype(jnp.float32)


def edit_similarity(output: Padded, reference: Padded) -> Float[Array, " B"]:
    """1 less the tokens to insert, delete or replace, as a share of the reference's; negative for more than these.

    Row i of Levenshtein's table, from row i - 1: `d[j] = min over k <= j of a[k] + j - k`, where a is the
    least without insertions. So a row is a running minimum, and only rows are a loop.
    """
    width = reference.values.shape[1]
    place = jnp.arange(width + 1)
    first = jnp.broadcast_to(place, (reference.lengths.shape[0], width + 1))

    def row(above: Array, token: Array) -> tuple[Array, Array]:
        replaced = above[:, :-1] + (token[:, None] != reference.values)
        best = jnp.concatenate([above[:, :1] + 1, jnp.minimum(above[:, 1:] + 1, replaced)], axis=1)
        now = jax.lax.cummin(best - place, axis=1) + place
        return now, now

    rows = jnp.concatenate([first[None], jax.lax.scan(row, first, output.values.T)[1]])  # [T + 1, B, W + 1]
    distance = rows[output.lengths, jnp.arange(len(first)), reference.lengths]
    return 1 - distance / jnp.maximum(reference.lengths, 1)


def bleu(output: Padded, reference: Padded) -> Float[Array, " B"]:
    """BLEU of single outputs, 0 to 1; for n > 1 with 1 added to counts of n-grams (Lin and Och 2004, section 4)."""
    total = jnp.zeros(output.lengths.shape)
    for n in range(1, LONGEST_NGRAM + 1):
        matches, count = _ngram_matches(output, reference, n)
        more = n > 1
        share = (matches + more) / jnp.maximum(count + more, 1)
        total += jnp.log(jnp.maximum(share, 1e-30)) / LONGEST_NGRAM
    short = jnp.minimum(0, 1 - reference.lengths / jnp.maximum(output.lengths, 1))
    return jnp.where(output.lengths > 0, jnp.exp(total + short), 0)


def _ngram_matches(output: Padded, reference: Padded, n: int) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """How many n-grams of an output the reference has, each as often as it has it at most; and how many there are."""
    here = _ngrams(output, output, n)
    earlier = here & (jnp.arange(here.shape[1]) < jnp.arange(here.shape[1])[:, None])
    in_reference = _ngrams(output, reference, n).sum(2)
    matches = (earlier.sum(2) < in_reference).sum(1)
    return matches, jnp.maximum(output.lengths - n + 1, 0)


def _ngrams(first: Padded, second: Padded, n: int) -> Bool[Array, "B T U"]:
    """Whether the n-grams that begin at two places are the same; none begins where too few tokens follow."""
    same = first.values[:, :, None] == second.values[:, None, :]
    same &= first.mask[:, :, None] & second.mask[:, None, :]
    found = same
    for shift in range(1, n):
        found &= jnp.pad(same, ((0, 0), (0, shift), (0, shift)))[:, shift:, shift:]
    return found


REWARDS: dict[str, Callable[[Padded, Padded], Float[Array, " B"]]] = {
    "bleu": bleu,
    "edit_similarity": edit_similarity,
    "exact_match": exact_match,
}
"""By the name in `objective.reward`: of outputs and references without end marks, [B, T], the better the larger."""
