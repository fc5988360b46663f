"""What runs inside the time loops, and what must not: the reason for `recurrence.py`, read off the programs."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.losses import cross_entropy
from tests.models import graph, random_params, tiny_config

STEPS, BATCH, LENGTH, SIZE = 7, 3, 13, 10


def training_gradient(engine="fast", **settings):
    """The parameters, and the gradient of the loss with dropout."""
    config = tiny_config(hidden_size=SIZE, **settings)
    structure = graph(config, engine)

    def loss(params, source, target):
        model = nnx.merge(structure, params)
        vectors, _ = model(source, target, keys=jax.random.split(jax.random.key(0, impl="rbg"), len(source)))
        return cross_entropy(model.logits(vectors), target.T, (target != 0).T, 0.1)

    return jax.tree.map(np.float32, random_params(config)), jax.grad(loss)


def program(engine="fast", **settings):
    """Shapes of the parameters, and the gradient's program."""
    params, gradient = training_gradient(engine, **settings)
    tokens = [np.zeros((BATCH, length), np.int32) for length in (LENGTH, STEPS)]
    return {leaf.shape for leaf in jax.tree.leaves(params)}, jax.make_jaxpr(gradient)(params, *tokens).jaxpr


def operations(jaxpr) -> Iterator:
    """All operations, those inside others too."""
    for operation in jaxpr.eqns:
        yield operation
        for inner in jax.tree.leaves(list(operation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from operations(getattr(inner, "jaxpr", inner))


def loop_products(jaxpr) -> list[list[tuple[int, ...]]]:
    """For every loop, in order, the shapes of the matrix products in one step of it."""
    loops = [operation.params["jaxpr"].jaxpr for operation in operations(jaxpr) if operation.primitive.name == "scan"]
    return [[o.outvars[0].aval.shape for o in operations(body) if o.primitive.name == "dot_general"] for body in loops]


def is_gradient_of(shape, weights) -> bool:
    """Whether a product of this shape can be a weight's gradient, of one or both directions, transposed or not."""
    shapes = weights | {weight[1:] for weight in weights if len(weight) == 3}
    return tuple(sorted(shape)) in {tuple(sorted(weight)) for weight in shapes}


def test_a_step_takes_each_product_once_forward_and_once_backward():
    _, jaxpr = program(attention="dot")
    # Encoder: the recurrent product. Decoder: cell, scores, context, attentional vector. Then the same backwards.
    assert [len(products) for products in loop_products(jaxpr)] == [1, 4, 4, 1]


def test_layers_without_feeding_take_one_product_a_step():
    _, jaxpr = program(attention="general", input_feeding=False, num_layers=2)
    assert [len(products) for products in loop_products(jaxpr)] == [1] * 8  # attention is in none of them


@pytest.mark.parametrize("settings", [dict(num_layers=2), dict(attention="additive"), dict(input_feeding=False)])
def test_no_weight_gradient_is_summed_in_a_loop(settings):
    found = {}
    for engine in ("fast", "reference"):
        weights, jaxpr = program(engine, **settings)
        weights = {weight for weight in weights if len(weight) > 1 and weight[-1] > 1}
        found[engine] = [s for products in loop_products(jaxpr) for s in products if is_gradient_of(s, weights)]
    assert found["fast"] == []
    assert found["reference"]  # what automatic differentiation does


@pytest.mark.parametrize("feeding", [True, False])
def test_additive_attention_never_holds_all_steps_at_once(feeding):
    """The sum under the tanh, [B, S, H] for a step, would be the largest array of all for every step."""
    _, jaxpr = program(attention="additive", input_feeding=feeding)
    sizes = [variable.aval.size for operation in operations(jaxpr) for variable in operation.outvars]
    assert BATCH * LENGTH * SIZE in sizes
    assert max(sizes) < STEPS * BATCH * LENGTH * SIZE
