import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.build import CELLS
from seq2seq_jax.cells import UNREGULARIZED, Regularizers
from seq2seq_jax.dropout import Dropout
from seq2seq_jax.encoders import Layers
from seq2seq_jax.linear import uniform

SIZES, SIZE = (3, 4), 2  # of the inputs, and of a direction's state
LENGTHS = np.array([5, 2, 0, 4])


def encoder(kind, num_directions, regularizers=UNREGULARIZED):
    """Two layers; the lower one's outputs are as wide as both directions."""
    sizes = SIZES[0], num_directions * SIZE
    weights = uniform(0.8, nnx.Rngs(0))
    make = lambda size: CELLS[kind]([size], SIZE, weights, 1.0)  # noqa: E731
    return Layers([[make(size) for _ in range(num_directions)] for size in sizes], regularizers)


def inputs():
    x = np.random.default_rng(0).standard_normal((LENGTHS.max(), len(LENGTHS), SIZES[0]))
    return jnp.asarray(x), jnp.arange(LENGTHS.max())[:, None] < LENGTHS


def by_hand(cells, sequence):
    """One layer over one sequence [1, N, D] without padding, cell by cell: outputs, and the last states."""
    outputs, lasts = [], []
    for direction, cell in enumerate(cells):
        state, found = cell.start(1, sequence.dtype), []
        for x in sequence[:: -1 if direction else 1]:
            state = cell(state, x[None])
            found.append(state[-1][0])
        outputs.append(jnp.array(found[:: -1 if direction else 1]).reshape(len(sequence), SIZE))
        lasts.append(state)
    return jnp.concatenate(outputs, axis=-1), [jnp.concatenate(parts, axis=-1) for parts in zip(*lasts, strict=True)]


@pytest.mark.parametrize("num_directions", [1, 2])
@pytest.mark.parametrize("kind", CELLS)
def test_layers_are_their_cells_step_by_step(kind, num_directions):
    """An empty sequence leaves the states at their start."""
    with jax.enable_x64(True):
        layers, (x, mask) = encoder(kind, num_directions), inputs()
        outputs, states, _ = jax.jit(lambda x, mask: layers(x, mask))(x, mask)
        for row, length in enumerate(LENGTHS):
            sequence = x[:length, row]
            for depth, cells in enumerate(layers.layers):
                sequence, last = by_hand(cells, sequence)
                for part, expected in zip(states[depth], last, strict=True):
                    np.testing.assert_allclose(part[row], expected[0], atol=1e-12)
            np.testing.assert_allclose(outputs[:length, row], sequence, atol=1e-12)


def test_dropout_is_between_layers_alone():
    layers, (x, mask) = encoder("gru", 2, Regularizers(inputs=Dropout(0.5))), inputs()
    keys = jax.random.split(jax.random.key(0), len(LENGTHS))
    run = jax.jit(lambda x, mask, keys: layers(x, mask, keys))
    (outputs, states, _), (dropped, dropped_states, _) = run(x, mask, None), run(x, mask, keys)
    for part, other in zip(states[0], dropped_states[0], strict=True):
        np.testing.assert_array_equal(part, other)
    assert not np.allclose(outputs, dropped)
    assert np.all(dropped[:5, 0] != 0)  # of the top layer nothing is
