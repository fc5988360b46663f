"""Cycles that are solved for all steps at once: which they are, and that they are `jax.lax.scan`'s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.recurrence import plan, scan
from tests.jaxprs import operations

STEPS, BATCH, SIZE = 6, 3, 4


def gated(carry, x):
    """A mean that moves, held where a mask says so, and what is made of it."""
    rows, mask = x
    gate = jax.nn.sigmoid(rows @ jnp.full((SIZE, SIZE), 0.3))
    carry = jnp.where(mask, (1 - gate) * carry - rows / (1 + gate), carry)
    return carry, jnp.tanh(carry)


SOLVED = {
    "gated": gated,
    "what came before is put out": lambda carry, x: (gated(carry, x)[0], (carry, jnp.sin(carry))),
    "a sum": lambda carry, x: (carry + x[0], carry),
    "the new one by a factor": lambda carry, x: (carry * x[0], None),
    "over a factor": lambda carry, x: ((carry + 1) / (2 + x[0] ** 2), None),
}
NOT_SOLVED = {
    "a square": lambda carry, x: (carry * carry * x[0], None),
    "a function": lambda carry, x: (jnp.tanh(carry) + x[0], None),
    "a divisor": lambda carry, x: (x[0] / (2 + carry**2), None),
    "features mix": lambda carry, x: (carry[:, ::-1] * x[0], None),
    "a choice by the past": lambda carry, x: (jnp.where(carry > 0, carry, x[0]), None),
    "two that go round": lambda carry, x: ((carry[1] + x[0], carry[0] * x[0]), None),
    "a whole number": lambda carry, x: (carry + 1, carry * x[0]),
}
STARTS = {"two that go round": (jnp.ones((BATCH, SIZE)),) * 2, "a whole number": 0}


def arguments():
    draw = np.random.default_rng(0)
    start, rows = draw.standard_normal((BATCH, SIZE)), draw.standard_normal((STEPS, BATCH, SIZE))
    return start, (rows, draw.random((STEPS, BATCH, 1)) > 0.3)


@pytest.fixture(params=["one by one", "at once"])
def on(request, monkeypatch):
    """What a CPU does, and what other devices do."""
    if request.param == "at once":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", SOLVED)
def test_solved_as_lax_scan_finds_it(on, name, reverse):
    start, (rows, mask) = arguments()

    def loss(run, start, rows):
        results = run(SOLVED[name], start, (rows, mask), reverse=reverse)
        return sum(jnp.sum((n + 1) * jnp.sin(leaf)) for n, leaf in enumerate(jax.tree.leaves(results)))

    with jax.enable_x64(True):
        found, expected = (
            jax.value_and_grad(lambda *given: loss(run, *given), (0, 1))(start, rows)  # noqa: B023
            for run in (scan, jax.lax.scan)
        )
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*SOLVED, *NOT_SOLVED])
def test_which_are(name):
    start, xs = arguments()
    found = plan((SOLVED | NOT_SOLVED)[name], STARTS.get(name, start), xs)
    kinds = [stage.where for stage in found.stages]
    assert ("solved" in kinds, "loop" in kinds) == (name in SOLVED, name in NOT_SOLVED)


def test_a_step_that_prints_is_not():
    def step(carry, x):
        jax.debug.print("{}", x[0][0, 0])
        return gated(carry, x)

    assert "solved" not in [stage.where for stage in plan(step, *arguments()).stages]


def test_on_other_devices_there_is_no_loop(monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))
    start, xs = arguments()

    def loss(start):
        return scan(gated, start, xs)[1].sum()

    assert not list(operations(jax.make_jaxpr(jax.grad(loss))(start).jaxpr, "scan"))


def test_half_precision_is_widened_on_the_way():
    """A thousand small steps: in bfloat16 each of them would be lost."""
    start, xs = jnp.zeros((1, 1), jnp.bfloat16), jnp.full((1000, 1, 1), 1e-3, jnp.bfloat16)
    last, _ = scan(lambda carry, x: (carry + x, None), start, xs)
    assert float(last[0, 0]) == pytest.approx(1, rel=0.01)
