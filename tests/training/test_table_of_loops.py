"""What a training step does in its loops, for every member of the family; and what must be in none of them.

Read off the program that JAX hands to the compiler; test_compiled.py looks at what the compiler makes of it.
"""

import jax
import pytest

from seq2seq_jax import build
from seq2seq_jax.config import Config, MeshConfig
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training.setup import abstract_sequences
from seq2seq_jax.training.step import abstract_state, jit_train_step
from tests.jaxprs import operations, products
from tests.models import VOCAB, tiny_config

BATCH, SOURCE, TARGET, SIZE = 3, 13, 7, 10  # the batch is as large as no other axis

# Products of a step that need what the step before computed. The others are taken for all steps at once.
CELLS = {"rnn": 1, "gru": 2, "lstm": 1}  # of all gates together; the GRU's candidate waits for its reset gate
ATTENTIONS = {"none": 0, "dot": 2, "general": 2, "additive": 2}  # scores (additive: the query) and context
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
    assert ATTENTIONS.keys() == {"none", *build.ATTENTIONS}


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    "attention, feeding",
    [(name, feeding) for name in ATTENTIONS for feeding in (False, True) if (name, feeding) != ("none", True)],
)
@pytest.mark.parametrize("cell", CELLS)
def test_the_table_of_loops(cell, attention, feeding, num_layers):
    """A loop a layer, both directions of the encoder in one; with feeding one for the whole decoder.

    Additive attention over all steps has a loop without products, so that its largest array is of one step.
    """
    encoder = decoder = [CELLS[cell]] * num_layers
    if feeding:
        decoder = [sum(decoder) + ATTENTIONS[attention] + VECTOR]
    elif attention == "additive":
        decoder = [*decoder, 0]
    found = products_of_loops(
        training_step(cell=cell, attention=attention, input_feeding=feeding, num_layers=num_layers)
    )
    forward = [*encoder, *decoder]
    assert [len(products) for products in found] == [*forward, *forward[::-1]]


@pytest.mark.parametrize("settings", [dict(num_layers=2), dict(attention="additive"), dict(input_feeding=False)])
@pytest.mark.parametrize("cell", CELLS)
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
