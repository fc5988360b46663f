"""What is minimised: a sum over a batch, and the number of its terms.

All objectives are read off the decoder by teacher forcing. Some have the model
write first, without a gradient, what the decoder is then given, or scored by.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from seq2seq_jax import programs
from seq2seq_jax.config import Config, ObjectiveConfig, TrainConfig
from seq2seq_jax.decoding.greedy import greedy_search
from seq2seq_jax.decoding.hypotheses import NUM_UNWRITTEN
from seq2seq_jax.decoding.sampling import sample
from seq2seq_jax.dropout import Keys
from seq2seq_jax.losses import copying_cross_entropy, cross_entropy, cross_entropy_in_parts, token_losses
from seq2seq_jax.outputs import Predicted, scores, wide
from seq2seq_jax.padded import Padded
from seq2seq_jax.seq2seq import Seq2Seq
from seq2seq_jax.symbols import BOS
from seq2seq_jax.training.rewards import REWARDS


def loss(
    model: Seq2Seq, source: Padded, target: Padded, keys: Key[Array, " B"], step: Int[Array, ""], config: Config
) -> Float[Array, ""]:
    """What `config.objective` asks for, summed over its terms.

    Args:
      model: with the parameters that the gradient is taken of.
      source, target: ids.
      keys: for dropout and what is drawn, one for each row.
      step: updates done.
      config: of the run.
    """
    objective, train = config.objective, config.train
    if objective.name in SENTENCES:
        return SENTENCES[objective.name](model, source, target, keys, objective, train.rematerialize_every)
    inputs = None
    if objective.name == "scheduled_sampling":
        keys, drawing = jax.vmap(jax.random.split, out_axes=1)(keys)
        share = right_share(objective, step)
        inputs = mixed_inputs(_as_it_is(model), source, target, drawing, share, best=objective.draw == "best")
    return negative_log_likelihood(model, source, target, keys, train, inputs, objective.unlikelihood)


def num_terms(target: Padded, objective: ObjectiveConfig) -> Int[Array, ""]:
    """Terms of the sum: target tokens, end marks included, or sentences."""
    return (target.lengths > 0).sum() if objective.name in SENTENCES else num_tokens(target)


def num_tokens(target: Padded) -> Int[Array, ""]:
    """Target tokens, end marks included."""
    return target.lengths.sum()


def negative_log_likelihood(
    model: Seq2Seq,
    source: Padded,
    target: Padded,
    keys: Keys | None,
    config: TrainConfig,
    inputs: Int[Array, "B T"] | None = None,
    unlikelihood: float = 0.0,
) -> Float[Array, ""]:
    """Cross-entropy of all target tokens given the ones before, in nats, with label smoothing and coverage loss.

    Args:
      model, source, target: what is looked at.
      keys: for dropout, of each row.
      config: label smoothing, coverage loss, and pieces of long sequences.
      inputs: what the decoder is given in the place of the tokens before.
      unlikelihood: weight of `unlikelihood_loss`.
    """

    def read(predicted: Predicted, labels: Array, mask: Array, *repeats: Array) -> Array:
        logits, copying, repeated = predicted
        smoothing, vocab_size = config.label_smoothing, model.output.vocab_size
        if copying is not None:
            loss = copying_cross_entropy(logits, copying, labels, mask, smoothing)
        elif logits.shape[-1] < vocab_size:
            loss = cross_entropy_in_parts(logits, labels, mask, smoothing, vocab_size)
        else:
            loss = cross_entropy(logits, labels, mask, smoothing)
        if config.coverage_loss and repeated is not None:  # See et al. 2017, equation 13
            loss += config.coverage_loss * jnp.sum(repeated, where=mask, dtype=loss.dtype)
        if repeats:
            loss += unlikelihood * unlikelihood_loss(scores(predicted), *repeats, mask)
        return loss

    beside = earlier_tokens(target) if unlikelihood else ()
    return model.total(read, source, target, keys=keys, piece=config.rematerialize_every, inputs=inputs, beside=beside)


def earlier_tokens(target: Padded) -> tuple[Int[Array, "B T T"], Bool[Array, "B T T"]]:
    """Of each position the tokens of its row, and which of them stand before it, once each and not itself."""
    values, place = target.values, jnp.arange(target.values.shape[1])
    same = values[:, :, None] == values[:, None, :]
    first = ~(same & (place < place[:, None])).any(2)  # the first place of its token
    others = first[:, None, :] & ~same & (place < place[:, None])
    return jnp.broadcast_to(values[:, None, :], same.shape), others


def unlikelihood_loss(
    logits: Float[Array, "N W"], tokens: Int[Array, "N T"], wrong: Bool[Array, "N T"], mask: Bool[Array, " N"]
) -> Float[Array, ""]:
    """Of tokens that are wrong at a position, the sum of `-log(1 - p)` (Welleck et al. 2020, equation 4), in nats."""
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(wide(logits)), tokens, axis=-1)
    others = jnp.maximum(-jnp.expm1(log_probs), 1e-5)  # a token that is certain would weigh without end
    return -jnp.sum(jnp.log(others), where=wrong & mask[:, None])


def right_share(objective: ObjectiveConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """Probability that the decoder is given the right token, Bengio et al. 2015, section 2.4, with i the step.

    linear `k - c i`, exponential `k ** i`, inverse sigmoid `k / (k + exp(i / k))`; their
    constants are such that it begins at 1 (inverse sigmoid: nearly) and is 1/2 at
    `objective.half_right_step`.
    """
    half = float(objective.half_right_step)
    now = step.astype(jnp.float32)
    if objective.decay == "linear":
        share = 1 - now / (2 * half)
    elif objective.decay == "exponential":
        share = jnp.exp2(-now / half)
    elif objective.decay == "inverse_sigmoid":
        k = _inverse_of_k_log_k(half)
        share = jax.nn.sigmoid(math.log(k) - now / k)
    else:
        share = jnp.zeros(())
    return jnp.maximum(share, objective.least_right)


def _inverse_of_k_log_k(value: float) -> float:
    """The k above 1 with k log k = value."""
    k = max(value, 2.0)
    for _ in range(50):  # Newton's method: the function is convex there
        k = max((value + k) / (1 + math.log(k)), 1 + 1e-9)
    return k


def mixed_inputs(
    model: Seq2Seq,
    source: Padded,
    target: Padded,
    keys: Key[Array, " B"],
    right_share: Float[Array, ""],
    *,
    best: bool = False,
) -> Int[Array, "B T"]:
    """What the decoder is given with scheduled sampling (Bengio et al. 2015, section 2.4, by tokens).

    For every position a coin decides between the right token before it and one that
    the model draws there, given what it was given so far. The model draws as it will
    be used, without dropout (of weights alone there is some). No gradient passes through
    what is drawn, as in the paper.

    Args:
      keys: of each row.
      right_share: probability of the right token.
      best: take the likeliest token instead of drawing one.
    """
    memory, state = programs.apart(model.encode(source))

    def step(carry: tuple[Any, Array], x: tuple[Array, Array]) -> tuple[Any, Array]:
        (state, before), (position, right) = carry, x
        state, logits = model.search_step(None, memory, state, before[:, None])
        noise, coins = jax.vmap(partial(_draws, size=logits.shape[-1]), in_axes=(0, None))(keys, position)
        values = wide(logits[:, 0]) + (0 if best else noise)
        own = NUM_UNWRITTEN + values[:, NUM_UNWRITTEN:].argmax(-1)
        token = jnp.where(coins < right_share, right, own).astype(right.dtype)
        return (state, token), token

    first = jnp.full_like(target.values[:, 0], BOS)
    positions = jnp.arange(1, target.values.shape[1])
    _, tokens = jax.lax.scan(step, (state, first), (positions, target.values.T[:-1]))
    return jnp.concatenate([first[:, None], tokens.T], axis=1)


def _draws(key: Array, position: Array, size: int) -> tuple[Array, Array]:
    """Gumbel noise for every token, and a number from 0 to 1."""
    noise, coin = jax.random.split(jax.random.fold_in(key, position))
    return jax.random.gumbel(noise, (size,)), jax.random.uniform(coin)


def expected_risk(
    model: Seq2Seq, source: Padded, target: Padded, keys: Key[Array, " B"], objective: ObjectiveConfig, piece: int
) -> Float[Array, ""]:
    """Expected loss of whole outputs, minimum risk training (Shen et al. 2016, equations 10 to 13), summed over rows.

    Of each source the model draws `objective.num_candidates` outputs; they and the
    target are the set S. With `Q(y) = P(y) ** sharpness`, made to sum to 1 over S, the
    risk is the sum over S of `Q(y) (1 - reward(y))`. An output that is drawn twice is
    in S once. The rewards are those of `rewards.py`.
    """
    keys, drawing = jax.vmap(jax.random.split, out_axes=1)(keys)
    candidates = draw_candidates(_as_it_is(model), source, target, drawing, objective.num_candidates)
    log_probs = candidate_log_probs(model, source, candidates, keys, piece)
    first = _first_of_its_kind(candidates, len(target.lengths))
    weights = jax.nn.softmax(jnp.where(first, objective.sharpness * log_probs, -jnp.inf))
    risks = jnp.sum(weights * (1 - _rewards(candidates, target, objective)), axis=1)
    return jnp.sum(risks, where=target.lengths > 0)


def self_critical(
    model: Seq2Seq, source: Padded, target: Padded, keys: Key[Array, " B"], objective: ObjectiveConfig, piece: int
) -> Float[Array, ""]:
    """Sum over rows of `-(r(y) - r(g)) log P(y)`, self-critical training (Rennie et al. 2017, section 3.2).

    y is an output that the model draws, g what it writes by greedy search, r the
    reward. With several candidates it is their mean.
    """
    keys, drawing = jax.vmap(jax.random.split, out_axes=1)(keys)
    fixed, number = _as_it_is(model), objective.num_candidates
    drawn = draw_outputs(fixed, source, target, drawing, number)
    drawn = Padded(drawn.values.reshape(-1, drawn.values.shape[2]), drawn.lengths.reshape(-1))
    gain = _rewards(drawn, target, objective) - _rewards(_greedy(fixed, source, target), target, objective)
    log_probs = candidate_log_probs(model, source, drawn, keys, piece)
    return -jnp.sum((gain * log_probs).mean(1), where=target.lengths > 0)


def _greedy(model: Seq2Seq, source: Padded, target: Padded) -> Padded:
    """What greedy search writes for each source, in as many positions as the targets of the batch have."""
    rows, width = target.values.shape
    memory, state = programs.apart(model.encode(source))
    limits = jnp.full(rows, width, jnp.int32)
    step = partial(model.search_step, None)
    found = greedy_search(step, memory, state, max_lengths=limits, max_length=width, smallest=rows)
    return Padded(found.tokens[:, 0], jnp.where(target.lengths > 0, found.lengths[:, 0], 0))


def _rewards(outputs: Padded, target: Padded, objective: ObjectiveConfig) -> Float[Array, "B N"]:
    """Of N outputs of each source, [B N, T], end marks left out."""
    num_rows = target.lengths.shape[0]
    each = outputs.lengths.shape[0] // num_rows
    references = Padded(*(jnp.repeat(x, each, axis=0) for x in (target.values, target.lengths - 1)))
    found = REWARDS[objective.reward](Padded(outputs.values, outputs.lengths - 1), references)
    return found.reshape(num_rows, each)


def draw_candidates(model: Seq2Seq, source: Padded, target: Padded, keys: Key[Array, " B"], number: int) -> Padded:
    """The target of each source and so many outputs that the model draws, one after another, [B (1 + N), T]."""
    drawn = draw_outputs(model, source, target, keys, number)
    values = jnp.concatenate([target.values[:, None], drawn.values], axis=1)
    lengths = jnp.concatenate([target.lengths[:, None], drawn.lengths], axis=1)
    return Padded(values.reshape(-1, values.shape[2]), lengths.reshape(-1))


def draw_outputs(model: Seq2Seq, source: Padded, target: Padded, keys: Key[Array, " B"], number: int) -> Padded:
    """So many outputs of each source that the model draws, [B, N, T].

    They have as many positions as the targets of the batch; at the last one they end. Those of an empty row are empty.
    """
    rows, width = target.values.shape
    memory, state = programs.apart(model.encode(source))
    found = sample(
        partial(model.search_step, None),
        memory,
        state,
        num_samples=number,
        seed=0,
        numbers=jax.vmap(partial(jax.random.bits, dtype=jnp.uint32))(keys).astype(jnp.int32),
        max_lengths=jnp.full(rows, width, jnp.int32),
        max_length=width,
        smallest=rows,
    )
    return Padded(found.tokens, jnp.where(target.lengths[:, None] > 0, found.lengths, 0))


def candidate_log_probs(
    model: Seq2Seq, source: Padded, candidates: Padded, keys: Keys | None, piece: int = 0
) -> Float[Array, "B N"]:
    """Log-probabilities of N outputs of each source, [B N, T], end marks included."""
    num_rows, num_all = source.lengths.shape[0], candidates.lengths.shape[0]

    def read(predicted: Predicted, labels: Array, mask: Array) -> Array:
        return -jnp.where(mask, token_losses(scores(predicted), labels), 0).reshape(-1, num_all).sum(0)

    return model.total(read, source, candidates, keys=keys, piece=piece).reshape(num_rows, -1)


def _first_of_its_kind(candidates: Padded, num_rows: int) -> Bool[Array, "B N"]:
    """Whether no candidate before it, of the same source, is the same."""
    tokens = jnp.where(candidates.mask, candidates.values, -1).reshape(num_rows, -1, candidates.values.shape[1])
    same = (tokens[:, :, None] == tokens[:, None]).all(-1)
    order = jnp.arange(same.shape[1])
    return ~(same & (order < order[:, None])).any(-1)


def _as_it_is(model: Seq2Seq) -> Seq2Seq:
    """The same model, through which no gradient passes."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.lax.stop_gradient(state))


SENTENCES: dict[str, Callable[..., Float[Array, ""]]] = {"minimum_risk": expected_risk, "self_critical": self_critical}
"""Objectives whose terms are sentences, by their name in `objective.name`."""
