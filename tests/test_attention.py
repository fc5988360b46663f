from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.attention import Memory, additive_scores, masked_softmax
from seq2seq_jax.build import ATTENTIONS
from seq2seq_jax.linear import uniform

STEPS, BATCH, LENGTH, SIZE = 4, 3, 5, 6
MASK = np.arange(LENGTH) < np.array([[5], [3], [0]])  # a full row, a padded one, an empty one


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def attention(kind):
    return ATTENTIONS[kind](SIZE, SIZE, uniform(2.0, nnx.Rngs(0)))


@partial(jax.jit, static_argnames=("kind", "axes"))
def attend_all(kind, queries, values, axes="all steps"):
    """Context and weights for queries [T, B, H] one by one, of all steps, or of beams; the memory is held once."""
    score = attention(kind)
    memory = Memory(score.keys(values), values, jnp.asarray(MASK))
    if axes == "one step":
        return jax.tree.map(lambda *steps: jnp.stack(steps), *(score(query, memory) for query in queries))
    if axes == "all steps":
        return jax.vmap(score, in_axes=(0, None))(queries, memory)
    beams = jax.vmap(score, in_axes=(1, None), out_axes=1)(jnp.swapaxes(queries, 0, 1), memory)
    return jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), beams)


def attend_by_hand(kind, query, memory):
    """One query over the real positions of one sentence, from the equations."""
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(attention(kind))))
    if kind == "additive":
        v, query_kernel = params["score"], params["query"]["kernels"][0]
        scores = np.array([v @ np.tanh(query_kernel.T @ query + params["key_kernel"].T @ m) for m in memory])
    else:
        scores = np.array([query @ (m if kind == "dot" else params["key_kernel"].T @ m) for m in memory])
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return weights @ memory, weights


@pytest.fixture
def inputs():
    """Queries, and what the encoder put out."""
    return np.float32(draw(STEPS, BATCH, SIZE, seed=3)), np.float32(draw(BATCH, LENGTH, SIZE, seed=4))


@pytest.mark.parametrize("axes", ["one step", "all steps", "beams"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_is_the_equations_of_the_papers(kind, axes, inputs):
    queries, values = inputs
    contexts, weights = map(np.asarray, attend_all(kind, *inputs, axes=axes))
    for step in range(STEPS):
        for row, length in enumerate(MASK.sum(-1)[:2]):
            context, row_weights = attend_by_hand(kind, queries[step, row], values[row, :length])
            np.testing.assert_allclose(contexts[step, row], context, atol=1e-5)
            np.testing.assert_allclose(weights[step, row, :length], row_weights, atol=1e-5)
    assert not weights[..., ~MASK].any()
    assert not contexts[:, 2].any()


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_padding_is_never_seen(kind, inputs):
    queries, values = inputs
    garbage = np.where(MASK[..., None], values, np.float32(1e3))
    for found, expected in zip(attend_all(kind, queries, garbage), attend_all(kind, *inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_an_empty_sentence_leaves_gradients_finite(kind, inputs):
    structure, params = nnx.split(attention(kind))

    @partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, queries, values):
        score = nnx.merge(structure, params)
        memory = Memory(score.keys(values), values, jnp.asarray(MASK))
        context, weights = jax.vmap(score, in_axes=(0, None))(queries, memory)
        return jnp.sum(context**2) + jnp.sum(weights**2)

    d_params, d_queries, d_values = jax.jit(gradient)(params, *inputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((d_params, d_queries, d_values)))
    assert not d_values[~MASK].any() and not d_queries[:, 2].any()
    assert d_values[MASK].any(-1).all() and all(np.any(leaf) for leaf in jax.tree.leaves(d_params))


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
