import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax import linear
from seq2seq_jax.build import ATTENTIONS, CELLS, abstract_params, build_model
from seq2seq_jax.config import STATE_PARTS, ModelConfig
from seq2seq_jax.outputs import Softmax
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
        assert isinstance(model.output, Softmax)
        found.update(source=model.source_table, target=model.target_table, output=model.output.table)
        return model

    nnx.eval_shape(make)
    for one, other in itertools.combinations(found, 2):
        assert (found[one] is found[other]) == (one in TIED[ties] and other in TIED[ties])
    params = jax.tree.leaves(abstract_params(config, (VOCAB, VOCAB)))
    assert sum(param.ndim == 2 and len(param) == VOCAB for param in params) == len({*map(id, found.values())})
    assert found["output"].shape[1] == (config.embed_size if "output" in TIED[ties] else config.hidden_size)


PARAMETERS_OF_A_CELL = {  # of i inputs and h features
    "rnn": lambda i, h: h * (i + h + 1),
    "gru": lambda i, h: 3 * h * (i + h + 1),
    "gru_v2": lambda i, h: 3 * h * (i + h + 1) + h,
    "lstm": lambda i, h: 4 * h * (i + h + 1),
    "layer_norm_lstm": lambda i, h: 4 * h * (i + h + 1) + 2 * 4 * h + 2 * h,
    "layer_norm_gru": lambda i, h: 3 * h * (i + h + 1) + 2 * 3 * h,
    "min_lstm": lambda i, h: 3 * h * (i + 1),
    "min_gru": lambda i, h: 2 * h * (i + 1),
    "slstm": lambda i, h: 4 * h * (i + h + 1),
}
PARAMETERS_OF_A_SCORE = {  # of h features on either side
    "none": lambda h: 0,
    "dot": lambda h: 0,
    "scaled_dot": lambda h: 0,
    "general": lambda h: h * h,
    "concat": lambda h: 2 * h * h + h,
    "additive": lambda h: 2 * h * h + h,
    "normed_additive": lambda h: 2 * h * h + 2 * h + 1,
    "location": lambda h: 100 * h,
}


def assert_parameters(cell, attention):
    """Counted by hand: gates of a cell, projections of a score."""
    hidden, embed, layers = 6, 4, 2
    cells, parts = PARAMETERS_OF_A_CELL[cell], len(STATE_PARTS[cell])
    encoder = 2 * (cells(embed, hidden // 2) + cells(hidden, hidden // 2))
    vector = hidden * (hidden if attention == "none" else 2 * hidden)
    fed = 0 if attention == "none" else hidden
    decoder = cells(embed + fed, hidden) + cells(hidden, hidden) + vector + PARAMETERS_OF_A_SCORE[attention](hidden)
    tables = 2 * VOCAB * embed + VOCAB * (hidden + 1)
    bridge = "copy" if cell == "slstm" else "dense"
    config = tiny_config(
        cell=cell, attention=attention, num_layers=layers, input_feeding=attention != "none", bridge=bridge
    )
    params = jax.tree.leaves(abstract_params(config, (VOCAB, VOCAB)))
    bridge = 0 if bridge == "copy" else layers * parts * hidden**2
    assert sum(param.size for param in params) == encoder + bridge + decoder + tables


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_the_parameters_of_its_equations(cell):
    assert_parameters(cell, "general")


@pytest.mark.parametrize("attention", ["none", *ATTENTIONS])
def test_every_attention_has_the_parameters_of_its_equations(attention):
    assert_parameters("lstm", attention)


PAPERS = {  # settings, vocabularies, and the parameters that a paper says its model has
    # Four layers of 1,000 in either; 384 million, 64 of them recurrent (section 3.4).
    "Sutskever et al. 2014": (
        dict(decoder="plain", attention="none", output="linear", num_layers=4, hidden_size=1000, embed_size=1000)
        | dict(bidirectional="none", reverse_source=True),
        (160_000, 80_000),
        384e6,
    ),
    # 278 million by Chen et al. 2018, who do not say how they count.
    "Wu et al. 2016": (
        dict(decoder="gnmt", context_feedback=True, attention="additive", output="linear", bridge="zero")
        | dict(num_layers=8, hidden_size=1024, embed_size=1024, bidirectional="first", direction_size=1024)
        | dict(residual_from=3),
        (32_000, 32_000),
        278e6,
    ),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_models_are_as_large_as_their_papers_say(paper):
    settings, vocab_sizes, expected = PAPERS[paper]
    params = abstract_params(ModelConfig(input_feeding=False, **settings), vocab_sizes)
    assert sum(param.size for param in jax.tree.leaves(params)) == pytest.approx(expected, rel=0.015)


def test_the_states_that_configurations_know_are_those_of_the_cells():
    weights = linear.uniform(0.1, nnx.Rngs(0))
    assert {name: len(cell([2], 3, weights).start(1, np.float32)) for name, cell in CELLS.items()} == {
        name: len(parts) for name, parts in STATE_PARTS.items()
    }


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
    bridge = "copy" if cell == "slstm" else "dense"
    _, params = initial_params(cell=cell, attention="additive", num_layers=2, bridge=bridge, init_scale=0.02)
    matrices, biases, gains = [], [], []
    for path, leaf in jax.tree.leaves_with_path(params):
        kind = path[-1].key
        {"bias": biases, "cell_bias": biases, "gain": gains}.get(kind, matrices).append(leaf)
    values = np.concatenate([matrix.ravel() for matrix in matrices])
    assert np.abs(values).max() <= 0.02 and abs(values.mean()) < 1e-3
    assert values.std() == pytest.approx(0.02 / np.sqrt(3), rel=0.05)
    assert all(np.abs(matrix).max() > 0.01 for matrix in matrices)
    assert len({matrix.tobytes() for matrix in matrices}) == len(matrices)
    per_cell = {"gru": 2, "gru_v2": 2, "layer_norm_lstm": 2}.get(cell, 1)
    assert len(biases) == (2 * 2 + 2) * per_cell + 1 and not any(bias.any() for bias in biases)
    assert all((gain == 1).all() for gain in gains)


@pytest.mark.parametrize("cell, num_blocks", [("rnn", 1), ("gru", 3), ("gru_v2", 3), ("lstm", 4), ("slstm", 4)])
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


FORGET_GATES = {"lstm": (4, 1), "layer_norm_lstm": (4, 1), "slstm": (4, 1), "min_lstm": (3, 0)}
"""Of cells that have one, the blocks of the bias and the place of its own."""


@pytest.mark.parametrize("cell", CELLS)
def test_forget_bias_is_that_of_the_forget_gate_alone(cell):
    _, params = initial_params(cell=cell, **ORTHOGONAL)
    num_blocks, place = FORGET_GATES.get(cell, (1, None))
    for parts in cells_of(params):
        bias = parts["bias"] if cell.startswith("layer_norm") else parts["input"]["bias"]
        expected = np.zeros((num_blocks, len(bias) // num_blocks))
        if place is not None:
            expected[place] = 1.5
        np.testing.assert_array_equal(bias, expected.ravel())
        others = [leaf for path, leaf in jax.tree.leaves_with_path(parts) if "bias" in str(path[-1].key)]
        assert sum(np.any(other) for other in others) == (place is not None)
