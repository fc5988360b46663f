import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from seq2seq_jax.build import CELLS
from seq2seq_jax.cells import Cell, Keep, Stack, lstm_cell
from seq2seq_jax.config import WITHOUT_RECURRENT_WEIGHTS
from seq2seq_jax.dropout import Mask
from seq2seq_jax.linear import uniform
from tests import models

BATCH, SIZE, INPUTS = 3, 5, (2, 4)


def draw(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


def step_of(kind, inputs=INPUTS):
    """A step as a function, `(params, state, *inputs) -> state`, and random parameters for it, biases too."""
    structure, params = nnx.split(CELLS[kind](inputs, SIZE, uniform(0.8, nnx.Rngs(0))))
    params = nnx.to_pure_dict(params)
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, draw(*(leaf.shape for leaf in leaves)))
    return lambda params, state, *inputs, **keep: nnx.merge(structure, params)(state, *inputs, **keep), params


def state_of(kind, batch=BATCH):
    state = draw(*[(batch, SIZE)] * models.CELLS[kind][1], seed=1)
    if kind == "slstm":
        state[1] = np.abs(state[1])  # a sum of positive numbers
    return tuple(state)


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_the_equations_of_its_paper(kind):
    """Two inputs are their concatenation."""
    step, params = step_of(kind)
    state, inputs = state_of(kind), draw(*((BATCH, size) for size in INPUTS), seed=2)
    with jax.enable_x64(True):
        found = jax.jit(step)(params, state, *inputs)
    equations, weights = models.CELLS[kind][0], models.weights_of(params)
    for row, now in enumerate(np.concatenate(inputs, axis=1)):
        expected = equations(weights, now, tuple(part[row] for part in state))
        for part, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(part[row], other, rtol=0, atol=1e-13)


def kept_of(kind):
    """What a cell can drop within its step: masks, and the factors that they are."""
    places = {"state": kind in WITHOUT_RECURRENT_WEIGHTS, "candidate": kind == "rnn"}
    masks = [mask > 0.3 for mask in draw(*[(BATCH, SIZE)] * 2, seed=3)]
    keep = {name: mask for (name, lacking), mask in zip(places.items(), masks, strict=True) if not lacking}
    return {name: Mask(jnp.asarray(mask), 0.25) for name, mask in keep.items()}, [
        keep.get(name, np.full_like(masks[0], 0.75, float)) / 0.75 for name in places
    ]


@pytest.mark.parametrize("kind", CELLS)
def test_within_a_cell_the_state_is_dropped_in_products_and_the_candidate_without_memory_loss(kind):
    """Gal and Ghahramani 2016, section 4.1; Semeniuta et al. 2016, section 3."""
    step, params = step_of(kind)
    state, inputs = state_of(kind), draw(*((BATCH, size) for size in INPUTS), seed=2)
    masks, factors = kept_of(kind)
    with jax.enable_x64(True):
        found = jax.jit(step)(params, state, *inputs, keep=Keep(**masks))
    equations, weights = models.CELLS[kind][0], models.weights_of(params)
    for row, now in enumerate(np.concatenate(inputs, axis=1)):
        dropped = (factor[row] for factor in factors)
        expected = equations(weights, now, tuple(part[row] for part in state), *dropped)
        for part, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(part[row], other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_of_a_cell_that_drops_agree_with_finite_differences(kind):
    step, params = step_of(kind, inputs=(2,))
    masks, _ = kept_of(kind)
    arguments = params, state_of(kind), *draw((BATCH, 2), seed=2)
    with jax.enable_x64(True):
        dropping = jax.jit(lambda *arguments: step(*arguments, keep=Keep(**masks)))
        check_grads(dropping, arguments, order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_of_a_cell_agree_with_finite_differences(kind):
    """Of every parameter, the state and the input."""
    step, params = step_of(kind, inputs=(2,))
    arguments = params, state_of(kind, 2), *draw((2, 2), seed=2)
    with jax.enable_x64(True):
        check_grads(jax.jit(step), arguments, order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", CELLS)
def test_a_state_starts_with_nothing_and_keeps_its_dtypes(kind, dtype):
    """Whatever sums over all steps is float32 at least."""
    cell = CELLS[kind](INPUTS, SIZE, uniform(0.8, nnx.Rngs(0)))
    state = cell.start(BATCH, dtype)
    after = cell(state, *(jnp.ones((BATCH, size), dtype) for size in INPUTS))
    assert [part.dtype for part in state] == [jnp.float32] * (len(state) - 1) + [dtype]
    assert [(part.shape, part.dtype) for part in after] == [(part.shape, part.dtype) for part in state]
    np.testing.assert_array_equal([part[0] for part in state], np.float32(models.first_state(kind, SIZE)))
    assert all(np.any(part != before) for part, before in zip(after, state, strict=True))


@pytest.mark.parametrize(
    "result, told",
    [
        (lambda hidden: hidden, r"returned \[3, 5\]; a cell returns its new state, a tuple"),
        (lambda hidden: ((hidden,), hidden), r"returned \(tuple, \[3, 5\]\)"),
        (lambda hidden: (hidden, hidden), r"given the state \(\[3, 5\]\) and returned \(\[3, 5\], \[3, 5\]\)"),
    ],
)
def test_a_cell_that_returns_no_state_is_told(result, told):
    class Odd(Cell):
        def __call__(self, state, *inputs):
            return result(state[0])

    stack = Stack([Odd([2], SIZE, uniform(0.8, nnx.Rngs(0)))])
    with pytest.raises(TypeError, match=f"Odd was .*{told}"):
        stack([(jnp.zeros((BATCH, SIZE)),)], jnp.zeros((BATCH, 2)), keep=[Keep()])


def test_in_a_stack_each_state_goes_up_and_dropout_is_between():
    weights = uniform(0.8, nnx.Rngs(0))
    cells = [CELLS["lstm"]([size], SIZE, weights) for size in (2, SIZE, SIZE)]
    states = [tuple(map(jnp.float32, draw((BATCH, SIZE), (BATCH, SIZE), seed=n))) for n in range(3)]
    (x,) = map(jnp.float32, draw((BATCH, 2), seed=3))
    keep = [jnp.asarray(mask > 0) for mask in draw((BATCH, SIZE), (BATCH, SIZE), seed=4)]
    kept = [Keep(), *(Keep(inputs=Mask(mask, 0.25)) for mask in keep)]
    new, top = Stack(cells)(states, x, keep=kept)
    below = x
    for depth, cell in enumerate(cells):
        expected = cell(states[depth], below)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new[depth], expected)
        if depth < 2:
            below = jnp.where(keep[depth], expected[-1] / 0.75, 0)
    np.testing.assert_array_equal(top, new[-1][-1])


# ---- the LSTM's equations after the products, with a gradient of their own


def equations(gates, cell, xp=np, sigmoid=models.sigmoid):
    """Gers et al. 2000, in the order input, forget, candidate, output."""
    size = cell.shape[-1]
    i, f, g, o = (gates[..., n * size : (n + 1) * size] for n in range(4))
    new_cell = sigmoid(f) * cell + sigmoid(i) * xp.tanh(g)
    return new_cell, sigmoid(o) * xp.tanh(new_cell)


def test_lstm_cell_is_the_equations_of_the_paper():
    gates, cell = draw((BATCH, 4 * SIZE), (BATCH, SIZE))
    with jax.enable_x64(True):
        found = lstm_cell(jnp.asarray(gates), jnp.asarray(cell))
        assert found[0].dtype == found[1].dtype == jnp.float64
    for value, expected in zip(found, equations(gates, cell), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-14)


def test_gradient_is_that_of_the_equations():
    arguments = draw((2, BATCH, 4 * SIZE), (2, BATCH, SIZE))
    cotangents = tuple(draw((2, BATCH, SIZE), (2, BATCH, SIZE), seed=1))

    def gradient(cell_function):
        return jax.jit(lambda arguments, cotangents: jax.vjp(cell_function, *arguments)[1](cotangents))

    def plain(gates, cell):
        return equations(gates, cell, jnp, jax.nn.sigmoid)

    with jax.enable_x64(True):
        found, expected = (gradient(function)(arguments, cotangents) for function in (lstm_cell, plain))
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-13)


def test_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        check_grads(jax.jit(lstm_cell), tuple(draw((2, 4 * 2), (2, 2))), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_bfloat16_keeps_the_cell_state_in_float32():
    gates, cell = draw((BATCH, 4 * SIZE), (BATCH, SIZE))
    gates = jnp.asarray(gates, jnp.bfloat16)
    (new_cell, hidden), pullback = jax.vjp(lstm_cell, gates, jnp.asarray(cell, jnp.float32))
    assert (new_cell.dtype, hidden.dtype) == (jnp.float32, jnp.bfloat16)
    d_gates, d_cell = pullback((jnp.ones_like(new_cell), jnp.ones_like(hidden)))
    assert (d_gates.dtype, d_cell.dtype) == (jnp.bfloat16, jnp.float32)
    expected = equations(np.asarray(gates, np.float64), cell)
    np.testing.assert_allclose(new_cell, expected[0], atol=1e-6)  # nothing of the state is rounded to bfloat16
    np.testing.assert_allclose(np.float32(hidden), expected[1], rtol=2**-8)  # half a unit of bfloat16's last place


def test_small_additions_reach_a_large_cell_state():
    gates = jnp.asarray([[20.0, 20.0, 0.5, 0.0]], jnp.bfloat16)  # remember everything, add tanh(0.5)
    cell, _ = lstm_cell(gates, jnp.asarray([[256.0]]))  # where bfloat16 counts in steps of 2
    assert cell.item() == pytest.approx(256 + np.tanh(0.5), abs=1e-4)
