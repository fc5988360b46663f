import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from seq2seq_jax.cells import lstm_cell

BATCH, SIZE = 3, 5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def equations(gates, cell, xp=np, sigmoid=sigmoid):
    """Gers et al. 2000, in the order input, forget, candidate, output."""
    size = cell.shape[-1]
    i, f, g, o = (gates[..., n * size : (n + 1) * size] for n in range(4))
    new_cell = sigmoid(f) * cell + sigmoid(i) * xp.tanh(g)
    return new_cell, sigmoid(o) * xp.tanh(new_cell)


def draw(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


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
        check_grads(jax.jit(lstm_cell), tuple(draw((2, 4 * 2), (2, 2))), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


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
