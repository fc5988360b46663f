"""What `plan` says of a step, and that `scan` does so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.recurrence import plan, scan
from tests.jaxprs import operations, products

BATCH, SIZE, LENGTH = 3, 4, 5
STARTS = {"low": jnp.zeros((BATCH, SIZE)), "top": jnp.zeros((BATCH, SIZE)), "fed": jnp.zeros((BATCH, SIZE))}
XS = jnp.ones((LENGTH, BATCH, SIZE))
WEIGHTS = {name: np.full((SIZE, SIZE), 0.1, np.float32) for name in ("x", "fed", "low", "up", "top", "out")}


def step(carry, x, feeding=False):
    """Two layers and an output, which is fed back or not."""
    given = x @ WEIGHTS["x"] + (carry["fed"] @ WEIGHTS["fed"] if feeding else 0)
    low = jnp.tanh(given + carry["low"] @ WEIGHTS["low"])
    top = jnp.tanh(low @ WEIGHTS["up"] + carry["top"] @ WEIGHTS["top"])
    out = jnp.tanh(top @ WEIGHTS["out"])
    return {"low": low, "top": top, "fed": out}, (out, carry["fed"])


def test_layers_fall_apart_into_loops_of_one_product():
    found = plan(step, STARTS, XS)
    assert [(s.where, s.carries, len(s.products)) for s in found.stages] == [
        ("all steps at once", [], 1),
        ("loop", ["carry['low']"], 1),
        ("all steps at once", [], 1),
        ("loop", ["carry['top']"], 1),
        ("all steps at once", [], 1),
        ("one step earlier", ["carry['fed']"], 0),
    ]
    assert str(found).splitlines()[1] == "loop over carry['low']: [3, 4] @ [4, 4]; gradients after it: [4, 4]"
    assert str(found).splitlines()[-1] == "carry['fed'] is what it was handed on as one step earlier"


def test_feeding_makes_it_one_loop_with_joined_products():
    found = plan(lambda carry, x: step(carry, x, feeding=True), STARTS, XS)
    assert [s.where for s in found.stages if s.products] == ["once", "all steps at once", "loop"][1:]
    (loop,) = found.loops
    assert loop.products == ["[3, 8] @ [8, 4]", "[3, 8] @ [8, 4]", "[3, 4] @ [4, 4]"]


def test_one_loop_keeps_what_lies_between_its_cycles():
    (loop,) = plan(step, STARTS, XS, distribute=False).loops
    assert loop.carries == ["carry['low']", "carry['top']"] and len(loop.products) == 2


def test_abstract_arguments_will_do():
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    assert str(plan(step, jax.tree.map(like, STARTS), like(XS))) == str(plan(step, STARTS, XS))


def test_what_is_planned_is_what_runs():
    """The loops in the program of `scan`, and the products in each."""
    program = jax.make_jaxpr(lambda carry, xs: scan(step, carry, xs, unroll=1))(STARTS, XS)
    loops = [len(products(loop.params["jaxpr"].jaxpr)) for loop in operations(program.jaxpr, "scan")]
    assert loops == [len(loop.products) for loop in plan(step, STARTS, XS).loops] == [1, 1]


def test_the_errors_are_those_of_scan():
    with pytest.raises(ValueError, match=r"xs\['a'\] has 5, xs\['b'\] has 4"):
        plan(lambda carry, x: (carry, None), 0.0, {"a": jnp.zeros(5), "b": jnp.zeros(4)})
