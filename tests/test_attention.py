from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.attention import additive_scores, attend, attention_specs, masked_softmax
from seq2seq_jax.recurrence import direct_product

STEPS, BATCH, LENGTH, SIZE = 4, 3, 5, 6
MASK = np.arange(LENGTH) < np.array([[5], [3], [0]])  # a full row, a padded one, an empty one


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@partial(jax.jit, static_argnums=0, static_argnames="axes")
def attend_all(kind, queries, memory, parameters, axes="tb"):
    """Context and weights for queries [T, B, H] through the axes of a step, of all steps, or of beams."""
    key_kernel, query_kernel, v = parameters
    mask = jnp.asarray(MASK)
    keys = memory if kind == "dot" else memory @ key_kernel
    operands = {"values": memory} | ({"query": query_kernel} if kind == "additive" else {"keys": keys})
    product = direct_product(attention_specs(kind, axes), operands)
    if axes == "b":
        additive = (keys, v) if kind == "additive" else None
        steps = [attend(product, query, mask, additive) for query in queries]
        return tuple(jnp.stack(part) for part in zip(*steps, strict=True))
    if axes == "tb":
        return attend(product, queries, mask, (keys, v) if kind == "additive" else None)
    additive = (keys[:, None], v) if kind == "additive" else None
    found = attend(product, jnp.swapaxes(queries, 0, 1), mask[:, None], additive)
    return tuple(jnp.swapaxes(part, 0, 1) for part in found)


def attend_by_hand(kind, query, memory, parameters):
    """One query over the real positions of one sentence, from the equations."""
    key_kernel, query_kernel, v = parameters
    if kind == "additive":
        scores = np.array([v @ np.tanh(query_kernel.T @ query + key_kernel.T @ m) for m in memory])
    else:
        scores = np.array([query @ (m if kind == "dot" else key_kernel.T @ m) for m in memory])
    weights = np.exp(scores) / np.exp(scores).sum()
    return weights @ memory, weights


@pytest.fixture
def inputs():
    """Queries, memory, and (key kernel, query kernel, v)."""
    parameters = tuple(
        np.float32(draw(*shape, seed=n)) for n, shape in enumerate([(SIZE, SIZE), (SIZE, SIZE), (SIZE,)])
    )
    return np.float32(draw(STEPS, BATCH, SIZE, seed=3)), np.float32(draw(BATCH, LENGTH, SIZE, seed=4)), parameters


@pytest.mark.parametrize("axes", ["b", "tb", "bk"])
@pytest.mark.parametrize("kind", ["dot", "general", "additive"])
def test_attention_is_the_equations_of_the_papers(kind, axes, inputs):
    queries, memory, parameters = inputs
    contexts, weights = map(np.asarray, attend_all(kind, *inputs, axes=axes))
    for step in range(STEPS):
        for row, length in enumerate(MASK.sum(-1)[:2]):
            context, row_weights = attend_by_hand(kind, queries[step, row], memory[row, :length], parameters)
            np.testing.assert_allclose(contexts[step, row], context, atol=1e-5)
            np.testing.assert_allclose(weights[step, row, :length], row_weights, atol=1e-5)
    assert not weights[..., ~MASK].any()
    assert not contexts[:, 2].any()


@pytest.mark.parametrize("kind", ["general", "additive"])
def test_padding_is_never_seen(kind, inputs):
    queries, memory, parameters = inputs
    garbage = np.where(MASK[..., None], memory, np.float32(1e3))
    for found, expected in zip(attend_all(kind, queries, garbage, parameters), attend_all(kind, *inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["general", "additive"])
def test_an_empty_sentence_leaves_gradients_finite(kind, inputs):
    def loss(queries, memory, parameters):
        context, weights = attend_all(kind, queries, memory, parameters)
        return jnp.sum(context**2) + jnp.sum(weights**2)

    d_queries, d_memory, d_parameters = jax.grad(loss, argnums=(0, 1, 2))(*inputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((d_queries, d_memory, d_parameters)))
    assert not d_memory[~MASK].any() and not d_queries[:, 2].any()
    assert d_memory[MASK].any(-1).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_sum_to_one_and_are_exactly_zero_at_padding(dtype):
    scores = jnp.asarray([[3.0, -1e4, 2.5], [1e4, 1e4, 9e4], [1.0, 2.0, 3.0]], dtype)
    mask = jnp.asarray([[True, True, True], [True, True, False], [False, False, False]])
    weights = masked_softmax(scores, mask)
    assert weights.dtype == dtype
    np.testing.assert_allclose(np.float32(weights).sum(-1), [1, 1, 0], atol=2**-8 if dtype == jnp.bfloat16 else 1e-6)
    assert not weights[~mask].any()
    np.testing.assert_allclose(np.float32(weights[1]), [0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    "query_shape, key_shape, v_shape",
    [
        ((BATCH, SIZE), (BATCH, LENGTH, SIZE), (BATCH, SIZE)),  # one step
        ((STEPS, BATCH, SIZE), (BATCH, LENGTH, SIZE), (SIZE,)),  # all steps
        ((BATCH, 2, SIZE), (BATCH, 1, LENGTH, SIZE), (BATCH, 1, SIZE)),  # beams
    ],
)
def test_gradient_of_additive_scores_is_that_of_automatic_differentiation(query_shape, key_shape, v_shape):
    arguments = draw(*query_shape), draw(*key_shape, seed=1), draw(*v_shape, seed=2)

    def plain(query, keys, v):
        return jnp.sum(v[..., None, :] * jnp.tanh(query[..., None, :] + keys), axis=-1)

    with jax.enable_x64(True):
        cotangent = draw(*query_shape[:-1], LENGTH, seed=3)
        found, expected = (
            jax.jit(lambda arguments, scores=scores: (scores(*arguments), jax.vjp(scores, *arguments)[1](cotangent)))(
                arguments
            )
            for scores in (additive_scores, plain)
        )
        jax.tree.map(lambda value, other: np.testing.assert_allclose(value, other, atol=1e-12), found, expected)
