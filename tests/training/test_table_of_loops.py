"""What a training step does in its loops, for every member of the family; and what must be in none of them.

Read off the program that JAX hands to the compiler; test_compiled.py looks at what the compiler makes of it.
"""

from typing import get_args

import jax
import pytest

from seq2seq_jax import build
from seq2seq_jax.config import Attention, Config, MeshConfig
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training.setup import abstract_sequences
from seq2seq_jax.training.step import abstract_state, jit_train_step
from tests.jaxprs import operations, products
from tests.models import VOCAB, everything, tiny_config

BATCH, SOURCE, TARGET, SIZE = 3, 13, 7, 10  # the batch is as large as no other axis

# Products of a step that need what the step before computed. The others are taken for all steps at once.
CELLS = {  # of all gates together: where the inputs are known before the loop, and where they are not
    "rnn": (1, 1),
    "gru": (2, 2),  # the candidate waits for its reset gate
    "gru_v2": (1, 2),  # what comes of the state is not only added to what comes of the inputs
    "lstm": (1, 1),
    "layer_norm_lstm": (1, 2),  # nor here
    "layer_norm_gru": (1, 2),
    "min_lstm": (0, 1),  # no loop at all where the inputs are known
    "min_gru": (0, 1),
    "slstm": (1, 1),
}
ATTENTIONS = {  # scores (of the additive ones and of location: what the query gives) and context
    "none": 0,
    "dot": 2,
    "scaled_dot": 2,
    "general": 2,
    "concat": 2,
    "additive": 2,
    "normed_additive": 2,
    "location": 2,
}
ADDITIVE = ("concat", "additive", "normed_additive")
VECTOR = 1


def training_step(**settings):
    """The program of an update, with dropout."""
    config, mesh = Config(model=tiny_config(hidden_size=SIZE, **settings)), make_mesh(MeshConfig(data=1))
    batch = (abstract_sequences(BATCH, width, mesh) for width in (SOURCE, TARGET))
    sizes = VOCAB, VOCAB
    return jit_train_step(config, sizes, mesh).trace(abstract_state(config, sizes, mesh), *batch).jaxpr.jaxpr


def products_of_loops(jaxpr) -> list[list[tuple[int, ...]]]:
    """For every loop, in order, the shapes of what the matrix products in one step of it give."""
    return [products(loop.params["jaxpr"].jaxpr) for loop in operations(jaxpr, "scan")]


def test_every_cell_and_every_attention_has_a_row():
    assert CELLS.keys() == build.CELLS.keys()
    assert ATTENTIONS.keys() | {"hard_monotonic"} == set(get_args(Attention))  # which is a decoder, below


def assert_loops(forward: list[int | None], **settings):
    """Products in each loop of the forward pass, and so in those of the backward one; None for no loop."""
    found = products_of_loops(training_step(**settings))
    there = [number for number in forward if number is not None]
    assert [len(products) for products in found] == [*there, *there[::-1]]


def layers(cell: str, number: int) -> list[int | None]:
    """Layers whose inputs are known."""
    return [CELLS[cell][0] or None] * number


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("feeding", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_loops_of_each_cell(cell, feeding, num_layers):
    """A loop a layer, both directions of the encoder in one; with feeding one for the whole decoder."""
    decoder = [num_layers * CELLS[cell][1] + ATTENTIONS["general"] + VECTOR] if feeding else layers(cell, num_layers)
    assert_loops([*layers(cell, num_layers), *decoder], cell=cell, input_feeding=feeding, num_layers=num_layers)


@pytest.mark.parametrize(
    "attention, feeding",
    [(name, feeding) for name in ATTENTIONS for feeding in (False, True) if (name, feeding) != ("none", True)],
)
def test_loops_of_each_attention(attention, feeding):
    """Additive scores of all steps have a loop without products, so that their largest array is of one step."""
    decoder = [1, 0] if attention in ADDITIVE else [1]
    if feeding:
        decoder = [1 + ATTENTIONS[attention] + VECTOR]
    assert_loops([1, *decoder], attention=attention, input_feeding=feeding)


DECODERS = {  # two LSTM layers with general attention
    "plain": (dict(decoder="plain", attention="none", output="linear"), [1, 1]),
    "cho, no attention": (dict(decoder="cho", attention="none"), [1, 1]),
    "cho": (dict(decoder="cho"), [2 + 2]),  # of both layers, scores and context
    "bahdanau": (dict(decoder="bahdanau", output="deep"), [2 + 2]),
    "gnmt": (dict(decoder="gnmt", output="linear"), [1, 1]),
    "gnmt, feedback": (dict(decoder="gnmt", context_feedback=True), [1 + 2, 1]),
    "local-m": (dict(attention_window="local_m"), [1, 1]),
    "local-p": (dict(attention_window="local_p"), [1, 1]),
    "heads": (dict(attention="dot", attention_heads=2), [1, 1]),
    "copy": (dict(copy=True), [1, 1]),
    "hard_monotonic": (dict(attention="hard_monotonic"), [1, 1, 0]),  # of alignments a loop without products
    "hard_monotonic, order 1": (dict(attention="hard_monotonic", alignment_order=1), [1, 1, 0]),
    "coverage": (
        dict(attention="additive", coverage=True),
        [1, 1, 0],
    ),  # the query is known, and the context is a matter of weights
}


@pytest.mark.parametrize("name", DECODERS)
def test_loops_of_each_decoder(name):
    settings, decoder = DECODERS[name]
    assert_loops([1, 1, *decoder], num_layers=2, **{"input_feeding": False} | settings)


@pytest.mark.parametrize(
    "cell, feeding, variational",
    [*((cell, False, True) for cell in CELLS), ("lstm", True, False), ("min_gru", True, False)],
)
def test_regularizers_add_no_product_to_a_loop_and_no_loop_and_draw_before_them(cell, feeding, variational):
    """Where all steps are solved at once, they are with zoneout, too."""
    step = training_step(**everything(cell, input_feeding=feeding, variational_dropout=variational))
    plain = products_of_loops(training_step(cell=cell, num_layers=2, input_feeding=feeding))
    assert products_of_loops(step) == plain
    drawn = [name for loop in operations(step, "scan") for name in drawing(loop.params["jaxpr"].jaxpr)]
    assert drawing(step) and not drawn


def drawing(jaxpr) -> list[str]:
    """Names of the operations that draw random bits."""
    return [operation.primitive.name for operation in operations(jaxpr) if "random_bits" in operation.primitive.name]


@pytest.mark.parametrize(
    "cell, settings",
    [*((cell, dict(num_layers=2, attention="additive")) for cell in CELLS), ("lstm", dict(input_feeding=False))],
)
def test_no_weight_gradient_is_summed_in_a_loop(monkeypatch, cell, settings):
    """Such a product has no axis of the batch."""

    def of_weights():
        products = products_of_loops(training_step(cell=cell, **settings))
        return [shape for loop in products for shape in loop if BATCH not in shape]

    assert of_weights() == []
    for module in ("seq2seq", "encoders"):
        monkeypatch.setattr(f"seq2seq_jax.{module}.scan", jax.lax.scan)
    assert of_weights()  # what automatic differentiation does


@pytest.mark.parametrize("feeding", [True, False])
def test_additive_attention_never_holds_all_steps_at_once(feeding):
    """The sum under the tanh, [B, S, H] for a step, would be the largest array of all for every step."""
    jaxpr = training_step(attention="additive", input_feeding=feeding)
    sizes = [variable.aval.size for operation in operations(jaxpr) for variable in operation.outvars]
    assert BATCH * SOURCE * SIZE in sizes
    assert max(sizes) < TARGET * BATCH * SOURCE * SIZE
