import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.linear import Linear, orthogonal, uniform

SIZES, RESULTS = (2, 3, 4), 5


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize("bias", [True, False])
def test_parts_are_multiplied_as_their_concatenation_would_be(bias):
    with jax.enable_x64(True):
        kernel, added = draw(sum(SIZES), RESULTS), draw(RESULTS, seed=1)
        parts = [draw(6, 7, size, seed=size) for size in SIZES]
        linear = Linear(SIZES, kernel, added if bias else None)
        expected = np.concatenate(parts, axis=-1) @ np.asarray(kernel) + (np.asarray(added) if bias else 0)
        np.testing.assert_allclose(linear(*parts), expected, rtol=0, atol=1e-13)


def test_a_part_too_few_is_refused():
    with pytest.raises(ValueError):
        Linear(SIZES, draw(sum(SIZES), RESULTS))(draw(1, 2), draw(1, 3))


def test_a_kernel_of_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"parts with \[2, 3, 4\] features was given a kernel of 8 rows"):
        Linear(SIZES, draw(8, RESULTS))


def test_weights_follow_the_dtype_of_what_they_meet():
    linear = Linear([2], draw(2, RESULTS), draw(RESULTS))
    assert linear(draw(1, 2).astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert linear.kernels[0].dtype == jnp.float32


def test_uniform_fills_its_bounds():
    weights = uniform(0.02, nnx.Rngs(0))
    for values in map(np.asarray, (weights.matrix(80, 90), weights.recurrent(80), weights.embedding(80, 90))):
        assert 0.019 < np.abs(values).max() <= 0.02 and abs(values.mean()) < 5e-4
        assert values.std() == pytest.approx(0.02 / np.sqrt(3), rel=0.05)


def test_orthogonal_keeps_lengths():
    weights = orthogonal(nnx.Rngs(0))
    for recurrent in np.asarray(weights.recurrent(40, num_gates=3)).reshape(40, 3, 40).swapaxes(0, 1):
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(40), atol=1e-5)
    matrix = np.asarray(weights.matrix(30, 120))
    bound = np.sqrt(6 / (30 + 120))  # Glorot and Bengio 2010, equation 16
    assert 0.98 * bound < np.abs(matrix).max() <= bound
    lengths = np.linalg.norm(weights.embedding(500, 64), axis=1)
    assert np.mean(lengths**2) == pytest.approx(1, rel=0.05)
