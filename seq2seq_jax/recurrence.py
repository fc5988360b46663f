"""A step over time, written once as its paper writes it; what runs in the loop is found by looking at it.

    def step(carry, x):
        hidden = jnp.tanh(x @ input_kernel + carry @ recurrent_kernel + bias)
        return hidden, jnp.tanh(hidden @ output_kernel)

    last, ys = scan(step, start, xs)

`scan` has the signature, the values and the gradients of `jax.lax.scan`. It
traces the step, draws the graph of what depends on what, and finds its cycles
through the carry (loop distribution, Allen and Kennedy 1987): only they are
loops. All else is computed for all steps at once, before or after the loop it
belongs to, as one large product instead of many skinny ones: here
`x @ input_kernel` before the loop, and `hidden @ output_kernel` after it.
`plan` says in words what runs where.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from seq2seq_jax import distribution
from seq2seq_jax.distribution import Schedule, Stage
from seq2seq_jax.equations import Equation, Graph, divide, multiplies_rows, needed_for, read_by, results_of, trace
from seq2seq_jax.loops import Body, Time, run_loop
from seq2seq_jax.products import add_to_all, matmul

Step = Callable[[Any, Any], tuple[Any, Any]]


def scan(
    step: Step,
    carry: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | None = None,
    *,
    distribute: bool = True,
) -> tuple[Any, Any]:
    """Runs `step` over the leading axis of `xs`, as `jax.lax.scan` does.

    Args:
      step: `(carry, x) -> (carry, y)`, pure, on trees of arrays. It may close over
        anything, and everything it closes over gets its gradient.
      carry: state before the first step.
      xs: tree of arrays, [T, ...], or None.
      length: T; to be given where xs has no arrays.
      reverse: from the last step to the first; ys keep the order of xs.
      unroll: steps in a trip of a loop; by default as many as the device likes.
      distribute: whether each cycle of the step becomes a loop of its own. False
        keeps them in one loop, which has less latency where the products are tiny.

    Returns:
      The state after the last step, and the ys, [T, ...].

    Raises:
      TypeError: a step returns a carry of another structure, shape or dtype, or no pair.
      ValueError: arrays of xs differ in length, or there is no length.
    """
    length = _length(xs, length)
    traced = _trace(step, carry, xs)
    if length == 0:
        return jax.lax.scan(step, carry, xs, length)
    schedule = distribution.distribute(traced.graph, len(traced.starts), one_loop=not distribute)
    return _run(traced, schedule, Time(length, reverse, unroll))


def in_pieces(run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """Runs `run` over the leading axis of `xs` in pieces, so that its backward pass needs the memory of one piece.

    Only the carries between pieces are kept; what else the backward pass needs of
    a piece is computed again when it gets there (Chen et al. 2016, section 3).

    Args:
      run: `(carry, xs) -> (carry, ys)` for any number of steps, as `scan` is.
      carry: state before the first step.
      xs: tree of arrays, [T, ...].
      length: steps of a piece, the last one may have fewer; 0 for all at once,
        with nothing computed twice.

    Returns:
      The state after the last step, and the ys, [T, ...].
    """
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    if not length or length >= num_steps:
        return run(carry, xs)
    num_pieces, rest = divmod(num_steps, length)
    pieces = jax.tree.map(lambda x: x[: num_steps - rest].reshape(num_pieces, length, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, pieces)
    ys = jax.tree.map(lambda y: y.reshape(num_pieces * length, *y.shape[2:]), ys)
    if rest:
        carry, last = jax.checkpoint(run)(carry, jax.tree.map(lambda x: x[num_steps - rest :], xs))
        ys = jax.tree.map(lambda first, last: jnp.concatenate([first, last]), ys, last)
    return carry, ys


# ---- what the step is


class _Step(NamedTuple):
    """A step's equations; the first of its inputs and outputs are the carries.

    Attributes:
      starts: the carry before the first step.
      names: the carries' paths.
      arrays: the stacked inputs, [T, ...].
      result: structures of the carry and of y.
    """

    graph: Graph
    starts: list[Array]
    names: list[str]
    arrays: list[Array]
    result: tuple[Any, Any]


def _trace(step: Step, carry: Any, xs: Any) -> _Step:
    carry, xs = jax.tree.map(jnp.asarray, (carry, xs))
    now = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    graph, result = trace(step, carry, now)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(f"a step returns (carry, y), not {type(result).__name__}.")
    promoted = _promoted(carry, result[0])
    if promoted is not None:
        return _trace(step, promoted, xs)
    paths, starts = zip(*jax.tree.leaves_with_path(carry), strict=True) if jax.tree.leaves(carry) else ((), ())
    names = [f"carry{jax.tree_util.keystr(path)}" for path in paths]
    return _Step(graph, list(starts), names, jax.tree.leaves(xs), tuple(map(jax.tree.structure, result)))


def _promoted(carry: Any, new: Any) -> Any:
    """Checks that a carry is alike before and after a step.

    Returns:
      The carry with Python's numbers in the dtypes that the step makes of them, if they differ, as `jax.lax.scan` does.
    """
    if jax.tree.structure(carry) != jax.tree.structure(new):
        raise TypeError(
            f"the carry that the step returns is built like {jax.tree.structure(new)},"
            f" the one it is given like {jax.tree.structure(carry)}; they must be alike."
        )
    pairs = list(zip(jax.tree.leaves(carry), jax.tree.leaves(new), strict=True))
    types = [jnp.result_type(old, found) if old.weak_type else old.dtype for old, found in pairs]
    if any(old.dtype != dtype for (old, _), dtype in zip(pairs, types, strict=True)):
        leaves = [old.astype(dtype) for (old, _), dtype in zip(pairs, types, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(carry), leaves)
    for (path, old), found in zip(jax.tree.leaves_with_path(carry), jax.tree.leaves(new), strict=True):
        if (old.shape, old.dtype) != (found.shape, found.dtype):
            raise TypeError(
                f"carry{jax.tree_util.keystr(path)} is {old.dtype}{list(old.shape)} when the step is given it, and"
                f" {found.dtype}{list(found.shape)} when it returns it; they must be the same."
            )
    return None


def _length(xs: Any, length: int | None) -> int:
    lengths = {} if length is None else {"length": int(length)}
    for path, x in jax.tree.leaves_with_path(xs):
        name = f"xs{jax.tree_util.keystr(path)}"
        if not jnp.ndim(x):
            raise ValueError(f"{name} is a single number; the first axis of every array of xs is time.")
        lengths[name] = jnp.shape(x)[0]
    if not lengths:
        raise ValueError("xs has no arrays; say how many steps there are: length=...")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {number}" for name, number in lengths.items())
        raise ValueError(f"the numbers of steps differ: {said}.")
    return next(iter(lengths.values()))


# ---- running it


class _Values(NamedTuple):
    """Values of a step: those that are the same at every step, and those of all steps, [T, ...]."""

    graph: Graph
    time: Time
    fixed: dict[int, Any]
    stacked: dict[int, Any]

    def all(self, n: int) -> Array:
        """A value of all steps."""
        if n in self.stacked:
            return self.stacked[n]
        return jnp.broadcast_to(self.fixed[n], (self.time.length, *self.graph.types[n].shape))


def _run(traced: _Step, schedule: Schedule, time: Time) -> tuple[Any, Any]:
    """The last carry and the ys, stage by stage."""
    graph, num_carries = traced.graph, len(traced.starts)
    carries, new_carries = graph.inputs[:num_carries], graph.outputs[:num_carries]
    last = {place: traced.starts[place] for place in schedule.constant}
    fixed = graph.run(schedule.once, graph.constants | {carries[place]: start for place, start in last.items()})
    values = _Values(graph, time, fixed, dict(zip(graph.inputs[num_carries:], traced.arrays, strict=True)))
    for stage in schedule.stages:
        starts = [traced.starts[place] for place in stage.carries]
        if stage.loop:
            body = _body(graph, stage, schedule.usual, set(fixed))
            each = [values.stacked[n] for n in body.each]
            found, outputs = run_loop(body, [fixed[n] for n in body.fixed], starts, each, time)
            last |= dict(zip(stage.carries, found, strict=True))
            values.stacked.update(zip(body.outputs, outputs, strict=True))
        elif stage.carries:
            new = values.all(new_carries[stage.carries[0]])
            values.stacked[carries[stage.carries[0]]] = time.before(starts[0], new)
        else:
            _run_at_once(stage.equations, values)
    for place, new in enumerate(new_carries):
        if place not in last:
            last[place] = time.last(values.all(new))
    carry, ys = traced.result
    leaves = [last[place] for place in range(num_carries)]
    return jax.tree.unflatten(carry, leaves), jax.tree.unflatten(ys, map(values.all, graph.outputs[num_carries:]))


def _body(graph: Graph, stage: Stage, usual: int, fixed: set[int]) -> Body:
    carries, new_carries = ([numbers[place] for place in stage.carries] for numbers in (graph.inputs, graph.outputs))
    made = results_of(stage.equations).union(carries, graph.literals)
    read = [n for n in dict.fromkeys((*read_by(stage.equations), *new_carries)) if n not in made]
    same, each = ([n for n in read if (n in fixed) == wanted] for wanted in (True, False))
    return Body(graph, stage.equations, same, each, carries, new_carries, list(stage.outputs), usual)


def _run_at_once(equations: Sequence[Equation], values: _Values) -> None:
    """Products with the same kernel at every step become one of all rows; the rest is vectorised over time."""
    waiting: list[Equation] = []

    def vectorise() -> None:
        found = values.graph.run_at_once(waiting, values.stacked, values.fixed, values.time.length)
        values.stacked.update(found)
        waiting.clear()

    for equation in equations:
        product = multiplies_rows(values.graph, equation) and equation.inputs[1] in values.fixed
        total = equation.primitive == "add" and len(values.fixed.keys() & set(equation.inputs)) == 1
        if not (product or total):
            waiting.append(equation)
            continue
        if not results_of(waiting).isdisjoint(equation.inputs):
            vectorise()
        moving, fixed = sorted(equation.inputs, key=lambda n: n in values.fixed)
        multiply_or_add = _multiply if product else add_to_all
        values.stacked[equation.outputs[0]] = multiply_or_add(values.stacked[moving], values.fixed[fixed])
    vectorise()


def _multiply(rows: Array, kernel: Array) -> Array:
    if kernel.ndim == 2:
        return matmul(rows, kernel)
    return jnp.stack([matmul(rows[:, z], kernel[z]) for z in range(len(kernel))], axis=1)


# ---- what a step makes of its input alone


def prepare(step: Callable[[Any, Any], Any], others: Any, x: Any) -> list[Array]:
    """Computes what `step(others, x)` makes of x alone, for `resume` to go on from.

    `others` may be abstract: nothing of it is computed.
    """
    cut = _cut(step, others, x)
    values = cut.graph.run(
        [*cut.fixed, *cut.first], cut.graph.constants | dict(zip(cut.of_x, jax.tree.leaves(x), strict=True))
    )
    return [values[n] for n in cut.crossing]


def resume(step: Callable[[Any, Any], Any], others: Any, x: Any, prepared: Sequence[Any]) -> Any:
    """Returns `step(others, x)`, going on from what `prepare` gave; x itself may be abstract."""
    cut = _cut(step, others, x)
    given = dict(zip(cut.crossing, prepared, strict=True)) | dict(zip(cut.graph.inputs, jax.tree.leaves(others)))
    values = cut.graph.run([*cut.fixed, *cut.rest], cut.graph.constants | given)
    return jax.tree.unflatten(cut.result, [values[n] for n in cut.graph.outputs])


class _Cut(NamedTuple):
    """The equations of a step that depend on no argument, on x alone, and the rest; and the values that these need of x."""

    graph: Graph
    result: Any
    of_x: list[int]
    fixed: list[Equation]
    first: list[Equation]
    rest: list[Equation]
    crossing: list[int]


def _cut(step: Callable[[Any, Any], Any], others: Any, x: Any) -> _Cut:
    graph, result = trace(step, others, x)
    num_others = len(jax.tree.leaves(others))
    of_x = graph.inputs[num_others:]
    alone, rest = divide(needed_for(graph.equations, graph.outputs), graph.inputs[:num_others])
    fixed, first = divide(alone, of_x)
    known = results_of(first).union(of_x)
    crossing = [n for n in dict.fromkeys((*read_by(rest), *graph.outputs)) if n in known]
    return _Cut(graph, jax.tree.structure(result), of_x, fixed, first, rest, crossing)
