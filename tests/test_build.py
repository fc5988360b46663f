import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.build import ATTENTIONS, CELLS, abstract_params, build_model
from tests.models import VOCAB, joined, run_compiled, tiny_config

TIED = {
    "none": (),
    "source_target": ("source", "target"),
    "target_output": ("target", "output"),
    "all": ("source", "target", "output"),
}


@pytest.mark.parametrize("ties", TIED)
def test_tied_tables_are_one_parameter(ties):
    config, found = tiny_config(tied_embeddings=ties), {}

    def make():
        model = build_model(config, (VOCAB, VOCAB), jax.random.key(0))
        found.update(source=model.source_table, target=model.target_table, output=model.output.table)
        return model

    nnx.eval_shape(make)
    for one, other in itertools.combinations(found, 2):
        assert (found[one] is found[other]) == (one in TIED[ties] and other in TIED[ties])
    params = jax.tree.leaves(abstract_params(config, (VOCAB, VOCAB)))
    assert sum(param.ndim == 2 and len(param) == VOCAB for param in params) == len({*map(id, found.values())})
    assert found["output"].shape[1] == (config.embed_size if "output" in TIED[ties] else config.hidden_size)


@pytest.mark.parametrize("attention", ["none", *ATTENTIONS])
@pytest.mark.parametrize("cell", CELLS)
def test_every_choice_has_the_parameters_of_its_equations(cell, attention):
    """Counted by hand: gates of a cell, projections of a score."""
    hidden, embed, layers = 6, 4, 2
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    parts = {"rnn": 1, "gru": 1, "lstm": 2}[cell]
    cells = lambda inputs, size: gates * size * (inputs + size + 1)  # noqa: E731
    encoder = 2 * (cells(embed, hidden // 2) + cells(hidden, hidden // 2))
    vector = hidden * (hidden if attention == "none" else 2 * hidden)
    score = {"none": 0, "dot": 0, "general": hidden**2, "additive": 2 * hidden**2 + hidden}[attention]
    fed = 0 if attention == "none" else hidden
    decoder = cells(embed + fed, hidden) + cells(hidden, hidden) + vector + score
    tables = 2 * VOCAB * embed + VOCAB * (hidden + 1)
    config = tiny_config(
        cell=cell, attention=attention, num_layers=layers, input_feeding=attention != "none", bridge="dense"
    )
    params = jax.tree.leaves(abstract_params(config, (VOCAB, VOCAB)))
    assert sum(param.size for param in params) == encoder + layers * parts * hidden**2 + decoder + tables


# ---- first values


ORTHOGONAL = dict(initializer="orthogonal", num_layers=2, forget_bias=1.5)


@functools.cache
def initial_params(**settings):
    config = tiny_config(**settings)
    key = jax.random.key(0, impl="unsafe_rbg")  # the default compiles for longer
    make = lambda key: nnx.to_pure_dict(nnx.state(build_model(config, (VOCAB, VOCAB), key), nnx.Param))  # noqa: E731
    return config, run_compiled(make, key)


def cells_of(params):
    """The parameters of every cell: two directions of each layer of the encoder, and the decoder's."""
    encoder = [cell for layer in params["encoder"]["layers"].values() for cell in layer.values()]
    return [*encoder, *params["decoder"]["stack"]["cells"].values()]


@pytest.mark.parametrize("cell", CELLS)
def test_uniform_parameters_fill_their_bounds(cell):
    _, params = initial_params(cell=cell, attention="additive", num_layers=2, bridge="dense", init_scale=0.02)
    matrices, biases = [], []
    for path, leaf in jax.tree.leaves_with_path(params):
        (biases if path[-1].key == "bias" else matrices).append(leaf)
    values = np.concatenate([matrix.ravel() for matrix in matrices])
    assert np.abs(values).max() <= 0.02 and abs(values.mean()) < 1e-3
    assert values.std() == pytest.approx(0.02 / np.sqrt(3), rel=0.05)
    assert all(np.abs(matrix).max() > 0.01 for matrix in matrices)
    assert len({matrix.tobytes() for matrix in matrices}) == len(matrices)
    assert len(biases) == (2 * 2 + 2) * (2 if cell == "gru" else 1) + 1 and not any(bias.any() for bias in biases)


@pytest.mark.parametrize("cell, num_blocks", [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_orthogonal_means_each_gate_of_each_direction(cell, num_blocks):
    config, params = initial_params(cell=cell, **ORTHOGONAL)
    blocks = []
    for parts in cells_of(params):
        of_gates = joined(parts["recurrent"])
        blocks += np.split(of_gates, of_gates.shape[1] // len(of_gates), axis=1)
        blocks += [joined(parts["candidate"])[-len(of_gates) :]] if "candidate" in parts else []
    assert len(blocks) == num_blocks * (2 * 2 + 2)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    assert len({block.tobytes() for block in blocks}) == len(blocks)
    bound = np.sqrt(6 / (2 * config.hidden_size + config.hidden_size))  # Glorot and Bengio 2010
    combine = joined(params["decoder"]["combine"])
    assert 0.8 * bound < np.abs(combine).max() <= bound


@pytest.mark.parametrize("cell", CELLS)
def test_forget_bias_is_that_of_the_forget_gate_alone(cell):
    _, params = initial_params(cell=cell, **ORTHOGONAL)
    biases = [linear["bias"] for parts in cells_of(params) for linear in parts.values() if "bias" in linear]
    assert len(biases) == (2 * 2 + 2) * (2 if cell == "gru" else 1)
    for bias in biases:
        gates = bias.reshape(4, -1) if cell == "lstm" else bias
        np.testing.assert_array_equal(gates, np.full_like(gates, 1.5) * ([[0], [1], [0], [0]] if cell == "lstm" else 0))
