import jax.numpy as jnp
import numpy as np
from flax import nnx

from seq2seq_jax import bridges
from seq2seq_jax.linear import uniform

BATCH, SIZE = 3, 4


def states(num_layers=2, num_parts=2):
    draw = np.random.default_rng(0).standard_normal
    return [tuple(jnp.asarray(draw((BATCH, SIZE)), jnp.float32) for _ in range(num_parts)) for _ in range(num_layers)]


def test_copy_goes_on_where_the_encoder_ends():
    given = states()
    assert bridges.copy(given) is given


def test_zero_forgets_the_source():
    for layer, given in zip(bridges.zero(states()), states(), strict=True):
        for part, other in zip(layer, given, strict=True):
            assert part.shape == other.shape and part.dtype == other.dtype and not part.any()


def test_dense_has_weights_of_its_own_for_every_part_of_every_layer():
    bridge = bridges.Dense(2, 2, SIZE, uniform(0.8, nnx.Rngs(0)))
    kernels = [[np.asarray(linear.kernels[0][...]) for linear in layer] for layer in bridge.layers]
    assert len({kernel.tobytes() for layer in kernels for kernel in layer}) == 4
    for depth, (layer, given) in enumerate(zip(bridge(states()), states(), strict=True)):
        for n, (part, other) in enumerate(zip(layer, given, strict=True)):
            np.testing.assert_allclose(part, np.tanh(np.asarray(other) @ kernels[depth][n]), atol=1e-6)
