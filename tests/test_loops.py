"""What the loops of `scan` and of its gradient do and hold, read off the programs that JAX hands to the compiler."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.products import matmul
from seq2seq_jax.recurrence import scan
from tests.jaxprs import operations, products

STEPS, BATCH, SIZE, SOURCE = 7, 3, 4, 5
KERNEL = np.full((SIZE, SIZE), 0.1, np.float32)
START, XS = jnp.zeros((BATCH, SIZE)), jnp.ones((STEPS, BATCH, SIZE))


class Loop(NamedTuple):
    """Shapes: what a loop carries, is given of every step and puts out at every step, and its products' results."""

    carries: list[tuple[int, ...]]
    given: list[tuple[int, ...]]
    put_out: list[tuple[int, ...]]
    products: list[tuple[int, ...]]


def program(step, start=START, xs=XS, weights=None, of_xs=False, run=scan, **settings) -> Any:
    """The gradient of the sum of all ys and last carries by the weights, the start and, if asked for, xs."""

    def loss(weights, start, moving):
        carry_step = step if weights is None else lambda *inputs: step(weights, *inputs)
        return sum(map(jnp.sum, jax.tree.leaves(run(carry_step, start, moving if of_xs else xs, **settings))))

    return jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(weights, start, xs if of_xs else None).jaxpr


def loops(jaxpr: Any) -> list[Loop]:
    found = []
    for loop in operations(jaxpr, "scan"):
        skip, num_carries, body = loop.params["num_consts"], loop.params["num_carry"], loop.params["jaxpr"].jaxpr
        shapes = [variable.aval.shape for variable in body.invars[skip:]]
        put_out = [variable.aval.shape for variable in body.outvars[num_carries:]]
        found.append(Loop(shapes[:num_carries], shapes[num_carries:], put_out, products(body)))
    return found


def largest(jaxpr: Any) -> int:
    return max(variable.aval.size for operation in operations(jaxpr) for variable in operation.outvars)


ROW = (BATCH, SIZE)


def elman(w, hidden, x):
    hidden = jnp.tanh(x @ w["in"] + hidden @ w["on"] + w["bias"])
    return hidden, hidden


ELMAN = {"in": KERNEL, "on": KERNEL, "bias": np.zeros(SIZE, np.float32)}


def test_a_layer_keeps_its_outputs_and_puts_out_one_gradient():
    """It serves the input, the bias and both kernels."""
    forward, backward = loops(program(elman, weights=ELMAN, of_xs=True))
    assert forward == Loop([ROW], [ROW], [ROW], [ROW])
    assert backward == Loop([ROW], [ROW, ROW], [ROW], [ROW])  # given what was put out, and its gradient


def test_lax_scan_sums_gradients_of_kernels_at_every_step():
    """What the tests here look for is there to be found."""
    backward = loops(program(elman, weights=ELMAN, run=jax.lax.scan))[1]
    assert backward.carries.count(KERNEL.shape) == 2 and len(backward.products) == 3


def lstm(w, state, x):
    cell, hidden = state
    i, f, g, o = jnp.split(x @ w["in"] + hidden @ w["on"], 4, -1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (cell, hidden), hidden


def test_an_lstm_has_one_product_there_and_one_back():
    weights = {"in": np.tile(KERNEL, 4), "on": np.tile(KERNEL, 4)}
    forward, backward = loops(program(lstm, (START, START), weights=weights))
    gates = (BATCH, 4 * SIZE)
    assert (forward.products, backward.products) == ([gates], [ROW])
    assert forward.put_out == [ROW] * 7  # h; c, i, f, g, o and tanh c
    assert backward.carries == [ROW] * 2 and backward.put_out == [gates]


def test_a_mask_is_not_stacked_in_the_shape_that_it_is_broadcast_to():

    def step(w, carry, x):
        x, mask = x
        new = jnp.where(mask[:, None], jnp.tanh(x + carry @ w), carry)
        return new, new

    masks = jnp.ones((STEPS, BATCH), bool)
    forward, backward = loops(program(step, xs=(XS, masks), weights=KERNEL))
    assert sorted(forward.given) == [(BATCH,), ROW]
    assert forward.put_out == [ROW, ROW]  # the outputs and tanh
    assert sorted(backward.given) == [(BATCH,), ROW, ROW]  # tanh, and the gradients of the outputs


def test_inputs_of_a_product_that_are_kept_anyway_are_not_kept_again():
    """The reset gate's product reads what the gate's gradient needs, and the carry."""

    def step(w, carry, x):
        reset = jax.nn.sigmoid(x + carry @ w["gate"])
        new = jnp.tanh(x + (reset * carry) @ w["new"])
        return new, new

    forward, _ = loops(program(step, weights={"gate": KERNEL, "new": KERNEL}))
    assert forward.put_out == [ROW] * 2


def feeding(w, carry, x):
    hidden, fed = carry
    hidden = jnp.tanh(x @ w["in"] + hidden @ w["on"] + fed @ w["fed"])
    fed = jnp.tanh(hidden @ w["out"])
    return (hidden, fed), fed


def test_products_that_are_added_are_one():
    weights = dict.fromkeys(("in", "on", "fed", "out"), KERNEL)
    forward, backward = loops(program(feeding, (START, START), weights=weights))
    assert forward.products == [ROW, ROW]
    assert backward.products == [ROW, (BATCH, 2 * SIZE)]
    assert forward.put_out == [ROW, ROW]  # what is multiplied is joined of them


def test_of_joined_rows_only_what_is_new_is_kept():
    """[context; hidden], where the hidden state is put out anyway."""

    def step(w, carry, x):
        hidden, fed = carry
        hidden = jnp.tanh(x + hidden @ w["on"] + fed @ w["fed"])
        context = jnp.sin(hidden)
        fed = jnp.tanh(context @ w["context"] + hidden @ w["out"])
        return (hidden, fed), (hidden, fed)

    forward, _ = loops(program(step, (START, START), weights=dict.fromkeys(("on", "fed", "context", "out"), KERNEL)))
    assert forward.put_out == [ROW] * 4  # both outputs, the context, and the cosine for its gradient


def test_a_carry_that_is_put_out_before_it_changes_is_the_outputs_shifted():
    def step(w, carry, x):
        return jnp.tanh(x + carry @ w), carry

    forward, _ = loops(program(step, weights=KERNEL))
    assert forward.put_out == [ROW]


def test_kernels_outside_loops_have_their_gradients_from_all_rows_as_one_axis():
    found = operations(program(elman, weights=ELMAN), "dot_general")
    summed = [product.invars[0].aval.shape for product in found if product.outvars[0].aval.shape == KERNEL.shape]
    assert summed == [(SIZE, STEPS * BATCH)] * 2


def additive(w, query):
    return jnp.tanh(query[:, None] + w["keys"]) @ w["score"]


@pytest.mark.parametrize("on_the_cycle", [True, False])
def test_additive_attention_holds_the_sums_of_one_step_alone(on_the_cycle):
    """[B, S, H], which would be [T, B, S, H]: neither kept for the backward pass, nor computed at once."""

    def step(w, carry, x):
        new = jnp.tanh(x + carry @ w["on"])
        scores = additive(w, new)
        context = jnp.einsum("bs,bsh->bh", jax.nn.softmax(scores), w["keys"])
        return (context if on_the_cycle else new), context

    weights = {"on": KERNEL, "keys": np.ones((BATCH, SOURCE, SIZE), np.float32), "score": KERNEL[0]}
    jaxpr = program(step, weights=weights)
    one = BATCH * SOURCE * SIZE
    assert one <= largest(jaxpr) < STEPS * one
    assert largest(program(step, weights=weights, run=jax.lax.scan)) == STEPS * one
    assert len(loops(jaxpr)) == (2 if on_the_cycle else 4)
    assert not any(KERNEL.shape in loop.carries for loop in loops(jaxpr))


def test_rows_of_a_table_have_their_gradients_after_the_loop():
    table = np.ones((11, SIZE), np.float32)

    def step(table, carry, x):
        carry = jnp.tanh(carry + table[jnp.argmax(carry + x, -1)])
        return carry, carry

    _, backward = loops(program(step, weights=table))
    assert backward.carries == [ROW]


def test_attention_has_the_gradients_of_its_memory_after_the_loop():
    def step(memory, carry, x):
        weights = jax.nn.softmax(jnp.einsum("bh,bsh->bs", carry, memory))
        carry = jnp.tanh(x + jnp.einsum("bs,bsh->bh", weights, memory))
        return carry, carry

    _, backward = loops(program(step, weights=np.ones((BATCH, SOURCE, SIZE), np.float32)))
    assert backward.carries == [ROW] and len(backward.products) == 2


def test_a_last_carry_needs_no_outputs():
    (forward,) = loops(jax.make_jaxpr(lambda: scan(lambda *now: (elman(ELMAN, *now)[0], None), START, XS))().jaxpr)
    assert forward.put_out == []


def test_directions_side_by_side_are_one_loop():
    """Two kernels under vmap, as a layer of both directions has them."""

    def step(w, carry, x):
        new = jax.vmap(lambda w, carry, x: jnp.tanh(x @ w["in"] + carry @ w["on"]))(w, carry, x)
        return new, new

    weights = {name: np.stack([KERNEL, KERNEL]) for name in ("in", "on")}
    jaxpr = program(step, jnp.stack([START] * 2), jnp.stack([XS] * 2, axis=1), weights=weights)
    forward, backward = loops(jaxpr)
    assert forward.products == backward.products == [(2, *ROW)]
    assert backward.carries == [(2, *ROW)] and backward.put_out == [(2, *ROW)]


def test_a_trip_has_many_steps_on_a_gpu_alone():
    jaxpr = jax.make_jaxpr(lambda: scan(lambda carry, x: elman(ELMAN, carry, x), START, XS))().jaxpr
    (choice,) = operations(jaxpr, "cond")
    trips = [branch.jaxpr.eqns[0].params["unroll"] for branch in choice.params["branches"]]
    assert sorted(trips) == [1, STEPS]


@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_matmul_and_its_gradients_are_those_of_numpy(leading):
    draw = np.random.default_rng(0).standard_normal
    x, kernel, bias, direction = draw((*leading, 5)), draw((5, 4)), draw(4), draw((*leading, 4))

    def loss(x, kernel, bias):
        result = matmul(x, kernel, bias)
        return jnp.vdot(direction, result), result

    with jax.enable_x64(True):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, result), (d_x, d_kernel, d_bias) = jax.device_get(gradient(x, kernel, bias))
    np.testing.assert_allclose(result, x @ kernel + bias, rtol=1e-12)
    np.testing.assert_allclose(d_bias, direction.reshape(-1, 4).sum(0), rtol=1e-12)
    np.testing.assert_allclose(d_x, direction @ kernel.T, rtol=1e-12)
    expected = sum(np.outer(x[index], direction[index]) for index in np.ndindex(*leading))
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-12)
