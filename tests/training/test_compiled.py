"""The compiled train step: what is in its loops, and how much memory it takes. Read off the program, not a clock."""

import re

import jax
import numpy as np
import pytest

from seq2seq_jax.config import Config, MeshConfig, ModelConfig, TrainConfig
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training.costs.collectives import computations, loop_bodies, reached
from seq2seq_jax.training.setup import abstract_sequences
from seq2seq_jax.training.step import abstract_state, jit_train_step
from tests.compiler import AS_USERS_COMPILE

BATCH, SOURCE, TARGET, SIZE, VOCAB = 8, 13, 11, 24, 97  # no two products of them are alike


def compiled_step(batch=BATCH, source=SOURCE, target=TARGET, vocab_size=VOCAB, train=None, **settings):
    """The step of a small model, compiled as for training."""
    model = ModelConfig(hidden_size=SIZE, embed_size=20, **settings)
    config, mesh = Config(model=model, train=train or TrainConfig()), make_mesh(MeshConfig(data=1))
    sizes = (vocab_size, vocab_size)
    tokens = (abstract_sequences(batch, width, mesh) for width in (source, target))
    lowered = jit_train_step(config, sizes, mesh).lower(abstract_state(config, sizes, mesh), *tokens)
    return lowered.compile(compiler_options=AS_USERS_COMPILE)


def products_of_loops(hlo: str) -> list[list[str]]:
    """For every loop, the shapes of the results of its matrix products, smallest loop first."""
    bodies = computations(hlo)
    products = [
        [shape for name in reached(loop, bodies) for shape in re.findall(r"= \w+\[([\d,]*)\]\S* dot\(", bodies[name])]
        for loop in loop_bodies(hlo)
    ]
    return sorted((shapes for shapes in products if shapes), key=len)


def sizes_of_arrays(hlo: str) -> set[int]:
    """Numbers of elements of all arrays in the program."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]", hlo)
    return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}


def test_a_loop_of_a_plain_layer_has_one_product():
    """Two layers on either side, forward and backward: eight loops, and attention in none of them."""
    hlo = compiled_step(num_layers=2, input_feeding=False).as_text()
    assert [len(shapes) for shapes in products_of_loops(hlo)] == [1] * 8


def test_a_loop_with_feeding_has_one_product_for_each_factor():
    """Scores, context, attentional vector and a product for each of two layers; in the encoder one."""
    hlo = compiled_step(num_layers=2, bidirectional="none").as_text()
    assert [len(shapes) for shapes in products_of_loops(hlo)] == [1, 1, 1, 1, 5, 5]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the programs for a CPU")
def test_gradients_of_kernels_are_products_over_the_last_axis_of_their_left_side():
    """XLA has its quick kernels for no others. That of the output layer is as quick by the slower ones.

    A bias gradient is a product of one row and does not count.
    """
    hlo = compiled_step(num_layers=2).as_text()
    over_first = re.findall(r"= \w+\[(?!1,)(\d+,\d+)\]\S* dot\((?!.*batch_dims).*lhs_contracting_dims=\{0\}", hlo)
    assert over_first == [f"{VOCAB},{SIZE}"]


@pytest.mark.parametrize("feeding", [True, False])
def test_no_loop_computes_a_gradient_of_a_weight(feeding):
    """Such a product has no axis of the batch."""
    hlo = compiled_step(num_layers=2, input_feeding=feeding).as_text()
    shapes = [shape.split(",") for loop in products_of_loops(hlo) for shape in loop]
    assert shapes and all(str(BATCH) in shape for shape in shapes)


def test_no_array_has_a_value_for_every_pair_of_positions_and_feature():
    """Additive attention's sum under the tanh, [T, B, S, H], stays inside its step."""
    hlo = compiled_step(attention="additive", batch=16).as_text()
    assert max(sizes_of_arrays(hlo)) < TARGET * 16 * SOURCE * SIZE


def test_the_logits_exist_once_beside_their_gradient():
    """What memory grows by with the vocabulary, after what belongs to its tables."""
    rows, entries = 64 * TARGET, 4_000
    small, large = (compiled_step(batch=64, vocab_size=n).memory_analysis().temp_size_in_bytes for n in (1_000, 5_000))
    of_tables = 4 * entries * (20 + 20 + SIZE + 1)  # their gradients
    assert large - small - of_tables <= 2.05 * 4 * rows * entries


def test_no_moment_of_the_optimizer_is_copied():
    """The state is updated in place: its arrays are inputs of no copy."""
    hlo = compiled_step(vocab_size=1_000).as_text()
    assert "fusion(" in hlo and not re.findall(r" copy\(%state_optimizer", hlo)


def test_rematerialisation_bounds_memory_by_a_piece():
    """At 1,024 positions an eighth and less of what keeping everything takes."""
    long = dict(batch=2, source=1_024, target=1_024, vocab_size=500)
    whole, pieces = (
        compiled_step(**long, train=TrainConfig(rematerialize_every=n)).memory_analysis().temp_size_in_bytes
        for n in (0, 32)
    )
    assert pieces < whole / 8
