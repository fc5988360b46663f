import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.outputs import Softmax

SIZE, VOCAB = 4, 7


@pytest.fixture
def output():
    draw = np.random.default_rng(0).standard_normal
    output = Softmax(nnx.Param(jnp.asarray(draw((VOCAB, SIZE)), jnp.float32)))
    output.bias[...] = jnp.asarray(draw(VOCAB), jnp.float32)
    return output


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_logits_are_the_equation(output, leading):
    vectors = np.random.default_rng(1).standard_normal((*leading, SIZE)).astype(np.float32)
    expected = np.einsum("va,...a->...v", output.table[...], vectors) + np.asarray(output.bias[...])
    np.testing.assert_allclose(output(jnp.asarray(vectors)), expected, atol=1e-5)


def test_a_kernel_that_is_kept_gives_the_same(output):
    vectors = jnp.ones((3, SIZE))
    np.testing.assert_array_equal(output(vectors, output.kernel(jnp.float32)), output(vectors))


def test_logits_have_the_dtype_of_the_vectors(output):
    assert output(jnp.ones((3, SIZE), jnp.bfloat16)).dtype == output.kernel(jnp.bfloat16).dtype == jnp.bfloat16
