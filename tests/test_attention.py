from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.attention import additive_scores, masked_softmax
from seq2seq_jax.build import ATTENTIONS, HEADS, build_model
from tests.models import VOCAB, Oracle, tiny_config

STEPS, BATCH, LENGTH, SIZE = 4, 3, 5, 6
MASK = np.arange(LENGTH) < np.array([[5], [3], [0]])  # a full row, a padded one, an empty one


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


KINDS: dict[str, dict] = {kind: {"attention": kind} for kind in ATTENTIONS}
KINDS |= {f"{kind} heads": {"attention": kind, "attention_heads": 2} for kind in HEADS}
KINDS |= {window: {"attention": "general", "attention_window": window} for window in ("local_m", "local_p")}
KINDS |= {f"{kind} coverage": {"attention": kind, "coverage": True} for kind in ("additive", "normed_additive")}


def config_of(kind):
    sizes = {"hidden_size": SIZE, "window_size": 1, "attention_positions": 4, "init_scale": 2.0}
    return tiny_config(**sizes, **KINDS[kind])


@cache
def attention(kind):
    """Structure and weights of a model's attention."""
    with jax.ensure_compile_time_eval():
        decoder: Any = build_model(config_of(kind), (VOCAB, VOCAB), jax.random.key(0)).decoder
        return nnx.split(decoder.attention)


@partial(jax.jit, static_argnames=("kind", "axes"))
def attend_all(kind, queries, values, axes="all steps"):
    """Context and weights for queries [T, B, H] one by one, of all steps, or of beams; the memory is held once."""
    score = nnx.merge(*attention(kind))
    memory = score.memory(values, jnp.asarray(MASK))
    score_of = lambda query: score(query, memory, score.start(memory.mask))[:2]  # noqa: E731
    if axes == "one step":
        return jax.tree.map(lambda *steps: jnp.stack(steps), *map(score_of, queries))
    if axes == "all steps":
        return jax.vmap(score_of)(queries)
    beams = jax.vmap(score_of, in_axes=1, out_axes=1)(jnp.swapaxes(queries, 0, 1))
    return jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), beams)


def attend_by_hand(kind, query, outputs, past):
    """One query over the real positions of one sentence, from the equations."""
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(attention(kind)[1]))
    oracle = Oracle.__new__(Oracle)
    oracle.config, oracle.params = config_of(kind), {"decoder": {"attention": params}}
    context, weights = oracle.attend(query, outputs, past)
    return context, np.pad(weights, (0, len(outputs) - len(weights)))


@pytest.fixture
def inputs():
    """Queries, and what the encoder put out."""
    return np.float32(draw(STEPS, BATCH, SIZE, seed=3)), np.float32(draw(BATCH, LENGTH, SIZE, seed=4))


@pytest.mark.parametrize("axes", ["one step", "all steps", "beams"])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_the_equations_of_the_papers(kind, axes, inputs):
    queries, values = inputs
    contexts, weights = map(np.asarray, attend_all(kind, *inputs, axes=axes))
    for step in range(STEPS):
        for row, length in enumerate(MASK.sum(-1)[:2]):
            past = {"step": 0, "coverage": np.zeros(min(length, 4) if kind == "location" else length)}
            context, row_weights = attend_by_hand(kind, queries[step, row], values[row, :length], past)
            np.testing.assert_allclose(contexts[step, row], context, atol=1e-5)
            np.testing.assert_allclose(weights[step, row, :length], row_weights, atol=1e-5)
    assert not weights[..., ~MASK].any()
    assert not contexts[:, 2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_past_changes_what_is_looked_at_as_the_papers_say(kind, inputs):
    """Step after step, with what each leaves to the next."""
    queries, values = inputs
    score = nnx.merge(*attention(kind))
    memory = score.memory(jnp.asarray(values), jnp.asarray(MASK))
    past, by_hand = score.start(memory.mask), {"step": 0, "coverage": np.zeros(4 if kind == "location" else LENGTH)}
    for query in queries:
        before = by_hand["coverage"]
        attended = score(jnp.asarray(query), memory, past)
        _, weights = attend_by_hand(kind, query[0], values[0], by_hand)
        np.testing.assert_allclose(attended.weights[0], weights, atol=1e-5)
        if "coverage" in kind:  # See et al. 2017, equation 12
            np.testing.assert_allclose(attended.repeated[0], np.minimum(weights, before).sum(), atol=1e-5)
        past = attended.past


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_seen(kind, inputs):
    queries, values = inputs
    garbage = np.where(MASK[..., None], values, np.float32(1e3))
    for found, expected in zip(attend_all(kind, queries, garbage), attend_all(kind, *inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_sentence_leaves_gradients_finite(kind, inputs):
    structure, params = attention(kind)

    @partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, queries, values):
        score = nnx.merge(structure, params)
        memory = score.memory(values, jnp.asarray(MASK))
        past, total = score.start(memory.mask), 0.0
        for query in queries:
            attended = score(query, memory, past)
            total, past = total + jnp.sum(attended.context**2) + jnp.sum(attended.weights**2), attended.past
        return total

    d_params, d_queries, d_values = jax.jit(gradient)(params, *inputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((d_params, d_queries, d_values)))
    assert not d_values[~MASK].any() and not d_queries[:, 2].any()
    looked_at = d_values[MASK].any(-1)
    assert looked_at.any() if kind in ("location", "local_p") else looked_at.all()
    assert all(np.any(leaf) for leaf in jax.tree.leaves(d_params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_sum_to_one_and_are_exactly_zero_at_padding(dtype):
    scores = jnp.asarray([[3.0, -1e4, 2.5], [1e4, 1e4, 9e4], [1.0, 2.0, 3.0]], dtype)
    mask = jnp.asarray([[True, True, True], [True, True, False], [False, False, False]])
    weights = masked_softmax(scores, mask)
    assert weights.dtype == dtype
    np.testing.assert_allclose(np.float32(weights).sum(-1), [1, 1, 0], atol=2**-8 if dtype == jnp.bfloat16 else 1e-6)
    assert not weights[~mask].any()
    np.testing.assert_allclose(np.float32(weights[1]), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("leading", [(), (BATCH,), (STEPS, BATCH)], ids=["one row", "one step", "all steps"])
def test_gradient_of_additive_scores_is_that_of_automatic_differentiation(leading):
    arguments = draw(*leading, SIZE), draw(*leading, LENGTH, SIZE, seed=1), draw(*leading, SIZE, seed=2)

    def plain(query, keys, v):
        return jnp.sum(v[..., None, :] * jnp.tanh(query[..., None, :] + keys), axis=-1)

    with jax.enable_x64(True):
        cotangent = jnp.asarray(draw(*leading, LENGTH, seed=3))
        found, expected = (
            jax.jit(lambda arguments, scores=scores: (scores(*arguments), jax.vjp(scores, *arguments)[1](cotangent)))(
                arguments
            )
            for scores in (additive_scores, plain)
        )
        jax.tree.map(lambda value, other: np.testing.assert_allclose(value, other, atol=1e-12), found, expected)
