"""`scan` is `jax.lax.scan`: values, gradients and errors, whatever the step; what runs where is in test_loops.py."""

import inspect
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from seq2seq_jax.recurrence import in_pieces, prepare, resume, scan
from tests.models import run_compiled

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


def assert_is_lax_scan(step, inputs, tolerance=1e-10, **settings):
    """Values and gradients of `step(w, carry, x)`."""
    lengths, reverse = [len(x) for x in jax.tree.leaves(inputs[2])] or [STEPS], settings.get("reverse", False)

    def both(_):
        ours = lambda w, *rest: scan(partial(step, w), *rest, lengths[0], **settings)  # noqa: E731
        reference = lambda w, *rest: jax.lax.scan(partial(step, w), *rest, lengths[0], reverse)  # noqa: E731
        return value_and_gradients(ours, inputs), value_and_gradients(reference, inputs)

    with jax.enable_x64(True):
        assert_close(*run_compiled(both, 0), tolerance)


CHOICES = st.fixed_dictionaries({"distribute": st.booleans(), "reverse": st.booleans()})
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@given(steps(), CHOICES)
@settings(max_examples=12, derandomize=True, database=None, phases=[Phase.generate], **QUIET)
def test_scan_is_lax_scan(description, choices):
    num_carries, has_xs, parts = description
    assert_is_lax_scan(partial(step_of, *parts), arguments(num_carries, has_xs), **choices)


@pytest.mark.slow
@given(steps(), CHOICES, st.sampled_from([0, 1, 2, 5]))
@settings(max_examples=500, print_blob=True, **QUIET)
def test_scan_is_lax_scan_for_many_steps(description, choices, length):
    num_carries, has_xs, parts = description
    assert_is_lax_scan(partial(step_of, *parts), arguments(num_carries, has_xs, length), **choices)


@pytest.mark.parametrize("names", [sorted(OPERATIONS)[n::7] for n in range(7)], ids=", ".join)
def test_an_operation_may_stand_before_in_and_after_a_loop(names):
    """Values 0 to 2 are the carry and xs. Each is applied to what the one before made."""
    before = [(name, 1 if n == 0 else 2 + n, 2) for n, name in enumerate(names)]
    inside = [("product", 0, 0), *((name, 3 + len(names) + n, 2 + len(names)) for n, name in enumerate(names))]
    last = 3 + 2 * len(names)
    after = [("add", last, 2), *((name, last + 1 + n, 1) for n, name in enumerate(names))]
    parts = [*before, *inside, *after], "counts", [last], [last + 1 + len(names)]
    assert_is_lax_scan(partial(step_of, *parts), arguments(1, True))


CARRIES = {
    "stays": lambda w, a, b, c, x: (a, jnp.tanh(b + a * x), c),
    "is what another was": lambda w, a, b, c, x: (x, a, b),
    "changes places": lambda w, a, b, c, x: (b, a, c * a),
    "goes round": lambda w, a, b, c, x: (b, c, a),
    "becomes a weight": lambda w, a, b, c, x: (w["start"], a * b, w["start"] * 1.0),
    "becomes a number": lambda w, a, b, c, x: (jnp.ones_like(a), a * b, jnp.tanh(b + c)),
    "is not read": lambda w, a, b, c, x: (jnp.sin(x), jnp.tanh(b * x), x * 2),
}


@pytest.mark.parametrize("name", CARRIES)
@pytest.mark.parametrize("distribute", [True, False])
def test_a_carry_that(name, distribute):
    def step(w, carry, x):
        new = CARRIES[name](w, *carry, x)
        return new, (carry[2] * x, new[1])

    w, (carry, _), xs = arguments(3, True)
    assert_is_lax_scan(step, (w, carry, xs["floats"][0]), distribute=distribute)


def step(w, carry, x):
    """A layer, additive attention that nothing feeds on, and a second layer that feeds on dot attention."""
    low, top, vector = carry
    low = jnp.tanh(x @ w["square"] + low @ w["other"] + w["bias"])
    context = attention(w, low, jnp.tanh((low @ w["other"])[:, None] + w["memory"]) @ w["bias"])
    top = jnp.tanh(low @ w["square"] + top @ w["other"] + vector @ w["square"])
    vector = jnp.tanh(
        jnp.concatenate([attention(w, top, jnp.einsum("bh,bsh->bs", top, w["memory"])), top], -1) @ w["wide"]
    )
    return (low, top, vector), (context, vector)


def real_arguments(dtype=np.float64):
    w, (carry, _), xs = arguments(3, True)
    seen = w.pop("seen")
    return jax.tree.map(lambda x: np.asarray(x, dtype), (w, carry, xs["floats"][0])), seen


def loss_of(run, seen):
    def loss(w, carry, xs):
        result = run(partial(step, {**w, "seen": seen}), carry, xs)
        return sum((n + 1.0) * jnp.sum(jnp.sin(leaf)) for n, leaf in enumerate(jax.tree.leaves(result)))

    return loss


def seeds(loss):
    """Of three models at once, and their gradients."""
    return jax.vmap(jax.grad(lambda w, *rest: loss(jax.tree.map(lambda x: x * 0.9, w), *rest)), (0, None, None))


def several(tree):
    return jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, -x]), tree)


TRANSFORMED = {
    "grad of jit": lambda loss, w, carry, xs: jax.grad(jax.jit(loss), (0, 1, 2))(w, carry, xs),
    "vmap of grad over weights": lambda loss, w, carry, xs: seeds(loss)(several(w), carry, xs),
    "grad of vmap over weights": lambda loss, w, carry, xs: jax.grad(
        lambda w: jax.vmap(loss, (0, None, None))(several(w), carry, xs).sum()
    )(w),
    "vmap over sentences that share the weights": lambda loss, w, carry, xs: jax.vmap(
        jax.value_and_grad(loss, (0, 1)), (None, 0, 0)
    )(w, several(carry), several(xs)),
    "checkpoint": lambda loss, w, carry, xs: jax.grad(jax.checkpoint(loss), (0, 1, 2))(w, carry, xs),
    "grad of grad": lambda loss, w, carry, xs: jax.grad(
        lambda *inputs: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(jax.grad(loss, (0, 1, 2))(*inputs))),
        (0, 1, 2),
    )(w, carry, xs),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformed_as_lax_scan_is(name):
    with jax.enable_x64(True):
        inputs, seen = real_arguments()
        found, expected = run_compiled(
            lambda *inputs: [TRANSFORMED[name](loss_of(run, seen), *inputs) for run in (scan, jax.lax.scan)], *inputs
        )
    assert_close(found, expected)


def test_called_eagerly():
    w, start = np.float32([[0.5, -0.2], [0.1, 0.3]]), np.ones((BATCH, 2), np.float32)

    def loss(w, run):
        return run(lambda carry, x: (jnp.tanh(carry @ w + x), carry), start, jnp.ones((STEPS, 2)))[1].sum()

    np.testing.assert_allclose(*(jax.grad(partial(loss, run=run))(w) for run in (scan, jax.lax.scan)), rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_in_training_precision(dtype, tolerance):
    """Relative to the largest entry: some hundred roundings of float32, a dozen of bfloat16."""
    inputs, seen = real_arguments(dtype)
    found, expected = run_compiled(
        lambda *inputs: [jax.grad(loss_of(run, seen), (0, 1, 2))(*inputs) for run in (scan, jax.lax.scan)], *inputs
    )
    assert_close(*jax.tree.map(lambda x: x.astype(np.float32), (found, expected)), tolerance)
    assert all(a.dtype == b.dtype == dtype for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True))


@pytest.mark.parametrize("unroll", [3, 16])
def test_several_steps_a_trip(unroll):
    """As on a GPU."""
    (w, carry, xs), seen = real_arguments()
    assert_is_lax_scan(lambda w, *rest: step({**w, "seen": seen}, *rest), (w, carry, xs), unroll=unroll)


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from tests.test_recurrence import loss_of, real_arguments
from seq2seq_jax.recurrence import scan

jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
(w, carry, xs), seen = real_arguments()
twice = lambda x, axis=0: np.concatenate([x, 0.9 * x], axis)
carry, xs = jax.tree.map(twice, carry), twice(xs, 1)
w |= {name: twice(w[name]) for name in ("memory", "start", "rows")}
specs = {name: P("rows") if name in ("memory", "start", "rows") else P() for name in w}, P("rows"), P(None, "rows")
for check in (False, True):
    found = []
    for run in (scan, jax.lax.scan):
        def gradients(w, carry, xs):
            d_w, *rest = jax.grad(loss_of(run, seen), (0, 1, 2))(w, carry, xs)
            if not check:  # what every device has whole has its gradient on none whole
                d_w = {name: jax.lax.psum(d, "rows") if specs[0][name] == P() else d for name, d in d_w.items()}
            return d_w, *rest
        mapped = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check)
        found.append(jax.jit(mapped)(w, carry, xs))
    worst = jax.tree.map(lambda a, b: np.abs(a - b).max(), *found)
    assert max(jax.tree.leaves(worst)) < 1e-10, (check, worst)
"""


def test_on_two_devices(repository):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED]
    subprocess.run(command, check=True, env=os.environ | flags | {"PYTHONPATH": str(repository)}, cwd=repository)


def test_modules_that_a_step_closes_over():
    structure, weights = nnx.split(nnx.Linear(SIZE, SIZE, rngs=nnx.Rngs(0)))
    carry, xs = jnp.ones((BATCH, SIZE)), jnp.ones((STEPS, BATCH, SIZE))

    def loss(weights, run):
        module = nnx.merge(structure, weights)
        return run(lambda carry, x: (jnp.tanh(module(carry) + x), carry), carry, xs)[1].sum()

    found, expected = run_compiled(
        lambda weights: [jax.grad(partial(loss, run=run))(weights) for run in (scan, jax.lax.scan)], weights
    )
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad], ids=["", "grad"])
def test_what_a_step_prints_comes_once_and_in_order(capsys, transform):
    def step(carry, x):
        jax.debug.print("given {}", x)
        carry = jnp.sin(carry) + x
        jax.debug.print("after {}", jnp.square(x))
        return carry, carry

    jax.jit(transform(lambda xs: scan(step, 0.0, xs)[1].sum()))(jnp.arange(3.0))
    jax.effects_barrier()
    assert capsys.readouterr().out.split("\n")[:-1] == [
        f"{word} {x**power}" for x in (0.0, 1.0, 2.0) for word, power in (("given", 1), ("after", 2))
    ]


@pytest.mark.parametrize("start", [0, 0.0, np.float32(0), True], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32])
def test_numbers_as_carries_get_the_dtypes_that_lax_scan_gives_them(start, dtype):
    def types(run):
        try:
            return jax.tree.map(
                lambda x: x.dtype,
                jax.eval_shape(lambda xs: run(lambda c, x: (c + x, c), start, xs), np.arange(3).astype(dtype)),
            )
        except TypeError:
            return TypeError

    assert types(scan) == types(jax.lax.scan)


def test_random_keys():
    def both(run):
        def step(carry, key):
            mine, total = carry
            mine, now = jax.random.split(mine)
            return (mine, total + jax.random.normal(now, (3,)) * jax.random.uniform(key, (3,))), total

        (key, total), ys = run(step, (jax.random.key(0), jnp.zeros(3)), jax.random.split(jax.random.key(1), STEPS))
        return jax.random.key_data(key), total, ys

    found, expected = run_compiled(lambda: (both(scan), both(jax.lax.scan)))
    assert_close(found, expected, 1e-6)


def test_no_step_at_all():
    last, ys = scan(lambda carry, x: (carry + x, x), jnp.ones(2), jnp.zeros((0, 2)))
    assert last.tolist() == [1, 1] and ys.shape == (0, 2)


def test_jax_finds_nothing_to_complain_of():
    """With all of its own checks."""
    (w, carry, xs), seen = real_arguments(np.float32)
    with jax.enable_checks(True):
        jax.make_jaxpr(jax.grad(loss_of(scan, seen)))(w, carry, xs)


CARRY, XS = {"a": jnp.zeros(2), "b": jnp.zeros((2, 3))}, {"p": jnp.zeros((4, 2)), "q": jnp.zeros((4, 3))}


@pytest.mark.parametrize(
    "step, carry, xs, message",
    [
        (lambda c, x: ({"a": c["a"]}, None), CARRY, XS, r"TypeError: .*loses carry\['b'\] and adds nothing"),
        (
            lambda c, x: (c | {"a": c["b"]}, None),
            CARRY,
            XS,
            r"TypeError: carry\['a'\] is float32\[2\] .* float32\[2, 3\] when",
        ),
        (lambda c, x: (c.astype(int), None), jnp.zeros(2), XS, r"TypeError: carry is float32\[2\] .* int32\[2\] when"),
        (lambda c, x: c, jnp.zeros(3), XS, r"TypeError: a step returns a pair, \(carry, y\), not one thing"),
        (lambda c, x: (c, c, c), CARRY, XS, r"TypeError: a step returns a pair, \(carry, y\), not 3 things"),
        (lambda c, x: (c, ["done", x]), CARRY, XS, r"TypeError: y\[0\] is of type str when the step returns it"),
        (lambda c, x: (c, c), CARRY, {**XS, "r": jnp.zeros(5)}, r"ValueError: .*xs\['p'\] has 4, .*xs\['r'\] has 5"),
        (lambda c, x: (c, c), CARRY, {"p": 1.0}, r"ValueError: xs\['p'\] is a single number"),
        (lambda c, x: (c, c), CARRY, None, r"ValueError: xs has no arrays; say how many steps there are: length=..."),
    ],
)
def test_errors_name_what_is_wrong(step, carry, xs, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        scan(step, carry, xs)
    assert re.search(message, f"{caught.type.__name__}: {caught.value}"), caught.value
    assert caught.value.__cause__ is None


def test_arguments_in_another_order_are_told():
    unchecked = inspect.unwrap(scan)  # the tests' own check of types would be first
    with pytest.raises(TypeError, match="the first argument is the step, .* not dict"):
        unchecked(CARRY, lambda c, x: (c, c), XS)


def test_length_must_be_that_of_xs():
    with pytest.raises(ValueError, match=r"length has 5, xs\['p'\] has 4"):
        scan(lambda c, x: (c, c), CARRY, XS, 5)


# ---- pieces, and what of a step its input alone decides


@pytest.mark.parametrize("length", [0, 3])
def test_pieces_make_no_difference(length):
    with jax.enable_x64(True):
        inputs, seen = real_arguments()
        pieces = lambda step, carry, xs: in_pieces(partial(scan, step), carry, xs, length)  # noqa: E731
        found, expected = run_compiled(
            lambda *inputs: [jax.grad(loss_of(run, seen), (0, 1, 2))(*inputs) for run in (pieces, scan)], *inputs
        )
    assert_close(found, expected)


def test_a_step_goes_on_from_what_was_prepared_of_its_input():
    (w, carry, xs), seen = real_arguments(np.float32)
    whole = lambda carry, x: step({**w, "seen": seen}, carry, x.astype(np.float32))  # noqa: E731
    abstract = jax.eval_shape(lambda: (carry, xs[0]))
    prepared = prepare(whole, abstract[0], xs[0])
    assert [x.shape for x in prepared] == [(BATCH, SIZE)]  # the product
    assert_close(resume(whole, carry, abstract[1], prepared), whole(carry, xs[0]), 1e-6)
