"""What a translator compiles: searches, and looks at given targets. Functions of a model's graph and parameters."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from seq2seq_jax.config import SAMPLING, DecodeConfig
from seq2seq_jax.decoding.beam import beam_search, by_log_prob
from seq2seq_jax.decoding.greedy import greedy_search
from seq2seq_jax.decoding.hypotheses import Found, Step
from seq2seq_jax.decoding.phrases import by_banks
from seq2seq_jax.decoding.rules import (
    Asked,
    Rule,
    begun,
    complete,
    covering,
    no_repeated_ngram,
    no_shorter_than,
    nothing_written,
    ruled,
    without,
)
from seq2seq_jax.decoding.sampling import sample
from seq2seq_jax.ensemble import Ensemble
from seq2seq_jax.losses import correct_tokens, token_losses
from seq2seq_jax.outputs import Predicted, scores
from seq2seq_jax.padded import Padded
from seq2seq_jax.seq2seq import Seq2Seq
from seq2seq_jax.sharding import ROWS, WHOLE, share_out
from seq2seq_jax.symbols import PAD

Params = dict[str, Any]
SMALLEST_BATCH = 16
"""Sentences that a search still takes out of their batch when others have ended: fewer run no faster."""


def search_tables(graph: nnx.GraphDef, params: Params) -> Any:
    """What searches need besides a sentence's own state, see `Seq2Seq.search_tables`."""
    return nnx.merge(graph, params).search_tables()


class Limits(NamedTuple):
    """Of each sentence: most tokens of its output, the end mark included, and its number, by which that is drawn."""

    lengths: Any  # int32 [B]
    numbers: Any  # int32 [B]


def search(
    graph: nnx.GraphDef,
    decode: DecodeConfig,
    avoid: Sequence[Sequence[int]],
    mesh: Mesh,
    params: Params,
    tables: Any,
    source: Padded,
    limits: Limits,
    asked: Asked,
    max_length: int,
    num_best: int,
) -> Found:
    """Searches for the outputs of a batch, each device for those of its own rows."""
    search = partial(search_of, graph, decode, avoid, max_length=max_length, num_best=num_best)
    # Each device ends when its own sentences have.
    spread = share_out(search, mesh, in_specs=(WHOLE, WHOLE, ROWS, ROWS, ROWS), out_specs=ROWS)
    return spread(params, tables, source, limits, asked)


def search_of(
    graph: nnx.GraphDef,
    decode: DecodeConfig,
    avoid: Sequence[Sequence[int]],
    params: Params,
    tables: Any,
    source: Padded,
    limits: Limits,
    asked: Asked,
    max_length: int,
    num_best: int,
) -> Found:
    """Searches for the outputs of some rows, on one device."""
    model: Seq2Seq | Ensemble = nnx.merge(graph, params)
    rules = rules_of(decode, avoid, asked)
    step = step_of(model, tables, rules)
    memory, carry = begin(model, rules, source, asked, max_length, covers=decode.coverage_penalty > 0)
    common: dict[str, Any] = dict(
        max_lengths=limits.lengths,
        max_length=max_length,
        smallest=SMALLEST_BATCH,
        length_penalty=float(decode.length_penalty),
    )
    if decode.sample:
        drawn: dict[str, Any] = {name: getattr(decode, name) for name in SAMPLING}
        return sample(step, memory, carry, num_samples=num_best, numbers=limits.numbers, **drawn, **common)
    if decode.beam_size == 1 and not rules:
        return greedy_search(step, memory, carry, **common)
    beam: dict[str, Any] = dict(beam_size=decode.beam_size, num_best=num_best, num_groups=decode.groups)
    choose = by_log_prob if asked.phrases is None else by_banks
    return beam_search(step, memory, carry, **beam, diversity=decode.diversity, choose=choose, **common)


def begin(
    model: Seq2Seq | Ensemble, rules: Sequence[Rule], source: Padded, asked: Asked, max_length: int, *, covers: bool
) -> tuple[Any, Any]:
    """What a step reads besides, and the state before the first one, leaves [B, 1, ...].

    `covers` says whether a rule looks at what has been attended to.
    """
    memory, state = apart(model.encode(source))
    if not rules:
        return memory, state
    written = nothing_written(asked, source.lengths.shape[0], max_length, source if covers else None)
    return (memory, asked), (state, written)


def apart(encoded: Any) -> tuple[Any, Any]:
    """Of a batch that is encoded: what a step of a search reads besides, and the first state, leaves [B, 1, ...]."""
    return encoded._replace(state=None), jax.tree.map(lambda leaf: leaf[:, None], encoded.state)


def step_of(model: Seq2Seq | Ensemble, tables: Any, rules: Sequence[Rule]) -> Step:
    """The step of a search, which obeys the rules that there are."""
    return ruled(partial(model.attending_step, tables), rules) if rules else partial(model.search_step, tables)


def rules_of(decode: DecodeConfig, avoid: Sequence[Sequence[int]], asked: Asked) -> list[Rule]:
    """The rules that a search obeys; none where nothing is asked of it."""
    rules: list[Rule] = []
    if decode.min_length:
        rules.append(no_shorter_than(decode.min_length))
    if decode.no_repeat_ngram:
        rules.append(no_repeated_ngram(decode.no_repeat_ngram))
    if avoid:
        rules.append(without(avoid))
    if asked.phrases is not None:
        rules.append(complete)
    if decode.coverage_penalty:
        rules.append(covering(decode.coverage_penalty, decode.length_penalty))
    if asked.prefix is not None:
        rules.append(begun)
    return rules


def follow(
    graph: nnx.GraphDef, mesh: Mesh, params: Params, source: Padded, tokens: Int[Array, "B T"]
) -> tuple[Float[Array, "T B"], Float[Array, "T B S"] | None]:
    """Log-probabilities of given tokens by teacher forcing, and the attention weights."""

    def on_a_device(params: Params, source: Padded, tokens: Array) -> tuple[Array, Array | None]:
        model: Seq2Seq | Ensemble = nnx.merge(graph, params)
        target = Padded(tokens, (tokens != PAD).sum(-1))
        return model.each(lambda predicted, labels, _: -token_losses(scores(predicted), labels), source, target)

    out_specs = PartitionSpec(None, *ROWS)  # time first
    return share_out(on_a_device, mesh, in_specs=(WHOLE, ROWS, ROWS), out_specs=out_specs)(params, source, tokens)


def token_scores(
    graph: nnx.GraphDef,
    piece: int,
    mesh: Mesh,
    params: Params,
    source: Padded,
    target: Padded,
) -> tuple[Float[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
    """Of each row: nats, real tokens, tokens whose logit is the largest."""

    def on_a_device(params: Params, source: Padded, target: Padded) -> tuple[Array, Array, Array]:
        model: Seq2Seq | Ensemble = nnx.merge(graph, params)

        def read(predicted: Predicted, labels: Array, mask: Array) -> tuple[Array, Array, Array]:
            logits = scores(predicted)
            values = jnp.where(mask, token_losses(logits, labels), 0), mask, mask & correct_tokens(logits, labels)
            loss, tokens, correct = (value.reshape(-1, len(source.lengths)).sum(0) for value in values)
            return loss, tokens, correct

        return model.total(read, source, target, piece=piece)

    return share_out(on_a_device, mesh, in_specs=(WHOLE, ROWS, ROWS), out_specs=ROWS)(params, source, target)
