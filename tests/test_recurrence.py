import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.losses import cross_entropy
from seq2seq_jax.recurrence import direct_product, matmul, scan
from tests.models import SOURCE, TARGET, graph, random_params, run_compiled, tiny_config

STEPS, BATCH, SIZE, WIDTH = 5, 3, 4, 2
SPECS = {"recurrent": "bh,hg->bg", "out": "bg,go->bo"}


def step(product, shared, carry, x):
    """Two products, only the first of which is added to; a mask, as in the encoder."""
    hidden = jnp.tanh(product("recurrent", carry) * shared["scale"])
    out = product("out", jnp.sin(hidden) + x["drift"])
    return jnp.where(x["mask"][:, None], hidden, carry), out


@pytest.fixture
def arguments():
    """(operands, shared, carry, added, xs) in float64."""
    draw = np.random.default_rng(0).standard_normal
    operands = {"recurrent": draw((SIZE, SIZE)), "out": draw((SIZE, WIDTH))}
    xs = {"drift": draw((STEPS, BATCH, SIZE)), "mask": np.arange(STEPS)[:, None] < np.array([5, 2, 4])}
    return operands, {"scale": draw(SIZE)}, draw((BATCH, SIZE)), {"recurrent": draw((STEPS, BATCH, SIZE))}, xs


def python_loop(operands, shared, carry, added, xs):
    ys = []
    for t in range(STEPS):
        product = direct_product(SPECS, operands, {name: array[t] for name, array in added.items()})
        carry, y = step(product, shared, carry, jax.tree.map(lambda x: x[t], xs))  # noqa: B023 - used at once
        ys.append(y)
    return carry, jnp.stack(ys)


def value_and_gradients(run, arguments):
    """The outputs, and gradients of a random projection of them with respect to everything but the mask."""
    draw = np.random.default_rng(1).standard_normal
    directions = draw((BATCH, SIZE)), draw((STEPS, BATCH, WIDTH))
    *others, xs = arguments

    def loss(others, drift):
        outputs = run(*others, {**xs, "drift": drift})
        return sum(jnp.vdot(d, out) for d, out in zip(directions, outputs, strict=True)), outputs

    return run_compiled(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), others, xs["drift"])


def assert_trees_close(found, expected, atol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, value), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_scan_is_a_python_loop(engine, arguments):
    with jax.enable_x64(True):
        found = value_and_gradients(partial(scan, step, SPECS, engine=engine), arguments)
        expected = value_and_gradients(python_loop, arguments)
    assert_trees_close(found, expected, 1e-12)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found[1]))


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_one_step_is_a_sequence_too(engine, arguments):
    operands, shared, carry, added, xs = jax.tree.map(jnp.asarray, arguments)
    first = jax.tree.map(lambda x: x[:1], (added, xs))
    last, ys = scan(step, SPECS, operands, shared, carry, *first, engine=engine)
    product = direct_product(SPECS, operands, {"recurrent": added["recurrent"][0]})
    expected = step(product, shared, carry, jax.tree.map(lambda x: x[0], xs))
    assert_trees_close((last, ys[0]), expected, 1e-6)


def test_a_product_taken_twice_is_refused(arguments):
    def twice(product, shared, carry, x):
        return product("recurrent", product("recurrent", carry)), product("out", carry)

    with pytest.raises(ValueError, match="'recurrent' is taken twice in a step"):
        jax.eval_shape(jax.grad(lambda *parts: scan(twice, SPECS, *parts)[1].sum(), allow_int=True), *arguments)


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_specs_and_operands_must_agree(engine, arguments):
    operands, *rest = jax.tree.map(jnp.asarray, arguments)
    with pytest.raises(ValueError, match=r"specs name \['out', 'recurrent'\] and operands \['out'\]"):
        scan(step, SPECS, {"out": operands["out"]}, *rest, engine=engine)


def test_a_direct_product_adds_what_is_added(arguments):
    operands, _, carry, added, _ = jax.tree.map(jnp.asarray, arguments)
    added = {"recurrent": added["recurrent"][0]}
    product = direct_product(SPECS, operands, added)
    np.testing.assert_allclose(
        product("recurrent", carry), carry @ operands["recurrent"] + added["recurrent"], atol=1e-5
    )
    np.testing.assert_allclose(product("out", carry), carry @ operands["out"], atol=1e-5)


# ---- the two engines under the whole model

ATTENTIONS = [("none", False), *itertools.product(["dot", "general", "additive"], [True, False])]
# Each attention once, and every pair of the other choices among them.
COVERING = [
    (*ATTENTIONS[0], True, 2, "all"),
    (*ATTENTIONS[1], False, 2, "none"),
    (*ATTENTIONS[2], True, 1, "none"),
    (*ATTENTIONS[3], True, 2, "all"),
    (*ATTENTIONS[4], False, 2, "target_output"),
    (*ATTENTIONS[5], False, 1, "all"),
    (*ATTENTIONS[6], True, 2, "source_target"),
]
EVERY = [
    (*attention, *others)
    for attention in ATTENTIONS
    for others in itertools.product([True, False], [1, 2], ["none", "source_target", "target_output", "all"])
]


def loss_and_gradients(config, engine, dtype):
    """Smoothed loss of the padded batch with dropout, and the gradient of every parameter."""
    structure = graph(config, engine)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(config))

    def loss(params, source, target):
        model = nnx.merge(structure, params)
        keys = jax.random.split(jax.random.key(1, impl="rbg"), len(source))  # the default compiles for longer
        vectors, _ = model(source, target, keys=keys)
        return cross_entropy(model.logits(vectors), target.T, (target != 0).T, 0.1)

    return run_compiled(jax.value_and_grad(loss), params, SOURCE, TARGET)


def assert_engines_agree(attention, feeding, bidirectional, num_layers, ties):
    config = tiny_config(
        attention=attention,
        input_feeding=feeding,
        bidirectional=bidirectional,
        num_layers=num_layers,
        tied_embeddings=ties,
    )
    with jax.enable_x64(True):
        fast, reference = (loss_and_gradients(config, engine, np.float64) for engine in ("fast", "reference"))
    assert_trees_close(fast, reference, 1e-10)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(reference))  # no parameter is left out


@pytest.mark.parametrize("attention, feeding, bidirectional, num_layers, ties", COVERING)
def test_fast_equals_reference(attention, feeding, bidirectional, num_layers, ties):
    assert_engines_agree(attention, feeding, bidirectional, num_layers, ties)


@pytest.mark.slow
@pytest.mark.parametrize("attention, feeding, bidirectional, num_layers, ties", EVERY)
def test_fast_equals_reference_for_every_choice(attention, feeding, bidirectional, num_layers, ties):
    assert_engines_agree(attention, feeding, bidirectional, num_layers, ties)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_fast_equals_reference_in_training_precision(dtype, tolerance):
    """Relative to a gradient's largest entry: some hundred roundings of float32, a dozen of bfloat16."""
    config = tiny_config(attention="dot", bidirectional=False, compute_dtype=dtype)
    (fast_loss, fast), (loss, reference) = (
        loss_and_gradients(config, engine, np.float32) for engine in ("fast", "reference")
    )
    assert float(fast_loss) == pytest.approx(float(loss), rel=tolerance / 10)
    scaled = jax.tree.map(lambda value, other: value / np.abs(other).max(), fast, reference)
    assert_trees_close(scaled, jax.tree.map(lambda leaf: leaf / np.abs(leaf).max(), reference), tolerance)


@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_matmul_and_its_gradients_are_those_of_numpy(leading):
    draw = np.random.default_rng(0).standard_normal
    x, kernel, bias, direction = draw((*leading, 5)), draw((5, 4)), draw(4), draw((*leading, 4))

    def loss(x, kernel, bias):
        result = matmul(x, kernel, bias)
        return jnp.vdot(direction, result), result

    with jax.enable_x64(True):
        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, result), (d_x, d_kernel, d_bias) = run_compiled(gradient, x, kernel, bias)
    np.testing.assert_allclose(result, x @ kernel + bias, rtol=1e-12)
    np.testing.assert_allclose(d_bias, direction.reshape(-1, 4).sum(0), rtol=1e-12)
    np.testing.assert_allclose(d_x, direction @ kernel.T, rtol=1e-12)
    expected = sum(np.outer(x[index], direction[index]) for index in np.ndindex(*leading))
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-12)


def test_matmul_keeps_nothing_for_a_gradient_that_nobody_asks_for():
    """Inside the fast scan, where x would be stacked over time beside the left sides."""
    x, kernel = jnp.ones((3, 5)), jnp.ones((5, 4))
    both, of_x = (jax.vjp(f, *args)[1] for f, args in ((matmul, (x, kernel)), (lambda x: matmul(x, kernel), (x,))))
    shapes = [{leaf.shape for leaf in jax.tree.leaves(pullback)} for pullback in (both, of_x)]
    assert shapes == [{x.shape, kernel.shape}, {kernel.shape}]
