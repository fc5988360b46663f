"""What runs inside the time loops, and what must not: the reason for `recurrence.py`, read off the programs."""

import json
import subprocess
import sys
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
        vectors, _ = model(source, target, key=jax.random.key(0, impl="rbg"))
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


COLLECTIVES = """
import json, re, sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import NamedSharding, PartitionSpec
from tests.models import QUICK_COMPILE
from tests.test_loops import training_gradient

def computations(hlo):
    return dict(re.findall(r"^(?:ENTRY )?%?([\\w.-]+) \\(.*?\\{$(.*?)^\\}", hlo, re.M | re.S))

def reached(name, bodies):
    inner = re.findall(r"(?:calls|to_apply|body)=%?([\\w.-]+)", bodies[name])
    return {name}.union(*(reached(other, bodies) for other in inner))

mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
counts = {}
for name, (engine, settings) in json.loads(sys.argv[1]).items():
    params, gradient = training_gradient(engine, **settings)
    tokens = [np.zeros((16, length), np.int32) for length in (13, 7)]
    function = jax.jit(gradient, in_shardings=(whole, rows, rows), out_shardings=whole)
    hlo = function.lower(params, *tokens).compile(compiler_options=QUICK_COMPILE).as_text()
    bodies = computations(hlo)
    loops = re.findall(r"\\bwhile\\(.*?body=%?([\\w.-]+)", hlo)
    inside = set().union(*(reached(loop, bodies) for loop in loops))
    pattern = r"\\b(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\\("
    counts[name] = [len(loops)] + [
        sum(len(re.findall(pattern, text)) for body, text in bodies.items() if (body in inside) == wanted)
        for wanted in (True, False)
    ]
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def collectives(repository):
    """(loops, collectives inside them, collectives outside) of training gradients over 8 devices."""
    programs = {
        "reference": ("reference", dict(attention="general")),
        "one layer": ("fast", dict(attention="general")),
        "read in the loop": ("fast", dict(attention="additive", num_layers=2)),
    }
    result = subprocess.run(
        [sys.executable, "-c", COLLECTIVES, json.dumps(programs)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_devices_never_wait_for_each_other_in_a_loop(collectives):
    num_loops, inside, outside = collectives["one layer"]
    assert num_loops >= 4  # encoder and decoder, forward and backward
    assert inside == 0 and outside > 0
    assert collectives["reference"][1] > 0  # so those inside are seen


def test_parameters_that_every_step_reads_need_no_other_device_either(collectives):
    """Biases of deep fed layers, and v of additive attention."""
    assert collectives["read in the loop"][1] == 0
