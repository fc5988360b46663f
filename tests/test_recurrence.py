"""`scan` is `jax.lax.scan`: values, gradients and errors, whatever the step; what it makes of it is in test_plan.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from seq2seq_jax.recurrence import scan

# Steps this small cost nothing to run and everything to compile: leave out what only makes code faster.
QUICK_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **({} if jax.__version__ >= "0.12" else {"xla_cpu_use_fusion_emitters": False}),
}


def run_compiled(function, *arguments):
    """`jax.jit(function)(*arguments)`, compiled with less care, as NumPy arrays."""
    return jax.device_get(jax.jit(function).lower(*arguments).compile(compiler_options=QUICK_COMPILE)(*arguments))


STEPS, BATCH, SIZE, SOURCE = 4, 3, 5, 6

# ---- random steps: lists of operations on a growing list of [BATCH, SIZE] values


@jax.custom_vjp
def cubed(a):
    return a * a * a


cubed.defvjp(lambda a: (a * a * a, a), lambda a, d: (3 * a * a * d,))


@jax.custom_jvp
def wave(a):
    return jnp.sin(a)


wave.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), jnp.cos(primals[0]) * tangents[0]))


def attention(w, a, scores):
    weights = jax.nn.softmax(jnp.where(w["seen"], scores, -1e9))
    return jnp.einsum("bs,bsh->bh", weights, w["memory"])


OPERATIONS = {
    "product": lambda w, s, a, b: jnp.tanh(a @ w["square"]),
    "two products": lambda w, s, a, b: jnp.tanh(a @ w["square"] + w["bias"] + b @ w["other"]),
    "product of both": lambda w, s, a, b: jnp.tanh(jnp.concatenate([a, b], -1) @ w["wide"]),
    "kernel on the left": lambda w, s, a, b: jnp.tanh(w["square"] @ a.T).T,
    "kernel for every row": lambda w, s, a, b: jnp.tanh(jnp.einsum("bh,bhg->bg", a, w["rows"])),
    "dot attention": lambda w, s, a, b: attention(w, a, jnp.einsum("bh,bsh->bs", a, w["memory"])),
    "additive attention": lambda w, s, a, b: attention(w, a, jnp.tanh(a[:, None] + w["memory"]) @ w["bias"]),
    "add": lambda w, s, a, b: a + b,
    "subtract": lambda w, s, a, b: a - b,
    "multiply": lambda w, s, a, b: jnp.tanh(a) * b,
    "bias": lambda w, s, a, b: w["bias"] - a,
    "scale": lambda w, s, a, b: a * w["bias"],
    "mask": lambda w, s, a, b: jnp.where(s["mask"][:, None], a, b),
    "mask of a carry": lambda w, s, a, b: jnp.where(a > b, a, w["start"]),
    "rows of a table": lambda w, s, a, b: w["table"][s["index"]] + a,
    "rows that a value finds": lambda w, s, a, b: w["table"][jnp.argmax(a, -1)] * b,
    "row of a table": lambda w, s, a, b: w["table"][s["count"] % SOURCE] + a,
    "custom_vjp": lambda w, s, a, b: cubed(jnp.tanh(a)),
    "custom_jvp": lambda w, s, a, b: wave(a),
    "softmax": lambda w, s, a, b: jax.nn.softmax(a) - b,
    "inner loop": lambda w, s, a, b: jax.lax.scan(lambda c, row: (jnp.tanh(c * row + b), None), a, w["table"])[0],
    "condition": lambda w, s, a, b: jax.lax.cond(s["count"] > 1, lambda a: a * w["bias"], jnp.sin, a),
    "checkpoint": lambda w, s, a, b: jax.checkpoint(lambda a: jnp.tanh(a @ w["square"]) @ w["other"])(a),
    "fixed": lambda w, s, a, b: w["start"] @ w["square"],
    "constant": lambda w, s, a, b: jnp.full_like(a, 0.5),
    "stopped": lambda w, s, a, b: jax.lax.stop_gradient(a) * b,
}
INTEGERS = {
    "stays": lambda s, a: (s["count"], s["index"]),
    "counts": lambda s, a: (s["count"] + 1, s["index"]),
    "is found": lambda s, a: (s["count"] + s["mask"].sum(), jnp.argmax(a, -1)),
    "is read": lambda s, a: (s["count"], s["token"]),
}


def step_of(operations, integers, new_carry, ys, w, carry, x):
    """The step that the lists describe: places count in the list of values, which grows with every operation."""
    floats, (count, index) = carry
    values = [*floats, *(() if x is None else x["floats"])]
    state = {"mask": jnp.arange(BATCH) > 0, "token": index} if x is None else x
    state = {**state, "count": count, "index": index}
    pick = lambda place: values[place % len(values)]  # noqa: E731
    for name, a, b in operations:
        values.append(OPERATIONS[name](w, state, pick(a), pick(b)))
    integers = INTEGERS[integers](state, pick(-1))
    integers = tuple(jnp.asarray(i, jnp.int32) for i in integers)
    return (tuple(map(pick, new_carry)), integers), None if ys is None else [*map(pick, ys), index]


places = st.integers(0, 12)


@st.composite
def steps(draw):
    """`(number of carries, whether there are xs, w, carry, x -> carry, y)`."""
    num_carries = draw(st.integers(1, 4))
    operations = draw(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), places, places), min_size=2, max_size=9))
    new_carry = draw(st.lists(places, min_size=num_carries, max_size=num_carries))
    ys = draw(st.none() | st.lists(places, min_size=1, max_size=3))
    return (
        num_carries,
        draw(st.booleans()) or draw(st.booleans()),
        (operations, draw(st.sampled_from(sorted(INTEGERS))), new_carry, ys),
    )


def arguments(num_carries, has_xs, length=STEPS):
    """Weights, carry and xs in float64."""
    draw = lambda *shape: np.random.default_rng(sum(shape)).uniform(-0.7, 0.7, shape)  # noqa: E731
    random = np.random.default_rng(0)
    w = {
        "square": draw(SIZE, SIZE),
        "other": draw(SIZE, SIZE) + 0.1,
        "wide": draw(2 * SIZE, SIZE),
        "rows": draw(BATCH, SIZE, SIZE),
        "memory": draw(BATCH, SOURCE, SIZE),
        "seen": np.arange(SOURCE) < np.array([[6], [4], [1]]),
        "bias": draw(SIZE),
        "table": draw(SOURCE, SIZE),
        "start": draw(BATCH, SIZE),
    }
    carry = tuple(draw(BATCH, SIZE) + n / 10 for n in range(num_carries)), (np.int32(0), np.array([0, 2, 1], np.int32))
    xs = {
        "floats": [draw(length, BATCH, SIZE), draw(length, BATCH, SIZE) ** 2],
        "mask": random.random((length, BATCH)) < 0.6,
        "token": random.integers(0, SOURCE, (length, BATCH)).astype(np.int32),
    }
    return w, carry, xs if has_xs else None


def is_float(leaf):
    return np.issubdtype(np.asarray(leaf).dtype, np.floating)


def value_and_gradients(run, inputs):
    """What a run gives, and the gradient of a function of all of it with respect to every real input."""
    leaves, structure = jax.tree.flatten(inputs)
    moving = [leaf for leaf in leaves if is_float(leaf)]

    def loss(moving):
        given = iter(moving)
        w, carry, xs = jax.tree.unflatten(structure, [next(given) if is_float(leaf) else leaf for leaf in leaves])
        result = run(w, carry, xs)
        total = sum(
            (n + 1) * jnp.sum(jnp.sin(leaf.astype(jnp.float64))) for n, leaf in enumerate(jax.tree.leaves(result))
        )
        return total * 1.0, result

    return jax.value_and_grad(loss, has_aux=True)(moving)


def assert_close(found, expected, tolerance=1e-10):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, value), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert value.dtype == other.dtype
        size = max(1.0, np.abs(other).max(initial=0))
        np.testing.assert_allclose(
            value / size, other / size, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )


def assert_is_lax_scan(description, **settings):
    num_carries, has_xs, parts = description
    length = settings.pop("length", STEPS)
    inputs = arguments(num_carries, has_xs, length)
    step = partial(step_of, *parts)

    def both(leaves):
        inputs_ = inputs

        def reference(w, carry, xs):
            return jax.lax.scan(partial(step, w), carry, xs, length, settings.get("reverse", False))

        def ours(w, carry, xs):
            return scan(partial(step, w), carry, xs, length, **settings)

        return value_and_gradients(ours, inputs_), value_and_gradients(reference, inputs_)

    with jax.enable_x64(True):
        found, expected = run_compiled(both, 0)
    assert_close(found, expected)


FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@given(steps(), st.booleans(), st.booleans())
@FEW
def test_scan_is_lax_scan(description, distribute, reverse):
    assert_is_lax_scan(description, distribute=distribute, reverse=reverse)


@pytest.mark.slow
@given(steps(), st.booleans(), st.booleans(), st.sampled_from([0, 1, 2, 5]))
@MANY
def test_scan_is_lax_scan_for_many_steps(description, distribute, reverse, length):
    assert_is_lax_scan(description, distribute=distribute, reverse=reverse, length=length)
