import jax.numpy as jnp
import numpy as np
from flax import nnx

from seq2seq_jax import bridges
from seq2seq_jax.encoders import Read
from seq2seq_jax.linear import uniform

LENGTHS, SIZE = np.array([4, 2, 0]), 4
BATCH = len(LENGTHS)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def states(num_parts=2, seed=0):
    """Of two layers."""
    return [tuple(draw(BATCH, SIZE, seed=seed + 2 * depth + n) for n in range(num_parts)) for depth in range(2)]


def read():
    mask = jnp.arange(LENGTHS.max())[:, None] < LENGTHS
    return Read(draw(LENGTHS.max(), BATCH, SIZE, seed=9), states(), mask)


def test_copy_goes_on_where_the_encoder_ends():
    given = read()
    assert bridges.copy(given, states(seed=5)) is given.states


def test_zero_forgets_the_source():
    starts = states(seed=5)
    assert bridges.zero(read(), starts) is starts


def test_dense_has_weights_of_its_own_for_every_part_of_every_layer():
    bridge = bridges.Dense([SIZE] * 2, 2, SIZE, uniform(0.8, nnx.Rngs(0)))
    kernels = [[np.asarray(linear.kernels[0][...]) for linear in layer] for layer in bridge.layers]
    assert len({kernel.tobytes() for layer in kernels for kernel in layer}) == 4
    for depth, (layer, given) in enumerate(zip(bridge(read(), states(seed=5)), states(), strict=True)):
        for n, (part, other) in enumerate(zip(layer, given, strict=True)):
            np.testing.assert_allclose(part, np.tanh(np.asarray(other) @ kernels[depth][n]), atol=1e-6)


def test_dense_makes_another_cells_state_of_the_hidden_one():
    bridge = bridges.Dense([SIZE] * 2, 1, SIZE, uniform(0.8, nnx.Rngs(0)))
    for layer, maps, (_, hidden) in zip(bridge(read(), states(1)), bridge.layers, states(), strict=True):
        np.testing.assert_allclose(layer[0], np.tanh(np.asarray(hidden @ maps[0].kernels[0][...])), atol=1e-6)


def test_mean_is_over_the_real_positions_and_leaves_the_rest_of_a_state_at_its_start():
    bridge, given, starts = bridges.Mean(2, SIZE, SIZE, uniform(0.8, nnx.Rngs(0))), read(), states(seed=5)
    for layer, (cell, _), linear in zip(bridge(given, starts), starts, bridge.layers, strict=True):
        for row, length in enumerate(LENGTHS):
            mean = np.asarray(given.outputs[:length, row]).mean(0) if length else np.zeros(SIZE)
            expected = np.tanh(mean @ np.asarray(linear.kernels[0][...]))
            np.testing.assert_allclose(layer[1][row], expected, atol=1e-6)
        assert layer[0] is cell
