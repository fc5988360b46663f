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
A cycle of `h' = a h + b` with nothing in a and b that sees the past is solved
without a loop (affine.py).
`plan` says in words what runs where.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from seq2seq_jax import distribution
from seq2seq_jax.affine import is_affine, solve
from seq2seq_jax.distribution import Schedule, Stage
from seq2seq_jax.equations import (
    Equation,
    Graph,
    Values,
    divide,
    needed_for,
    read_by,
    results_of,
    trace,
)
from seq2seq_jax.loops import Time, run_loop, taps_of
from seq2seq_jax.products import add_to_all, multiply_steps

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

    Gradients are taken in reverse (`jax.grad`, `jax.vjp`), any number of times, and
    under `jax.vmap`, `jax.jit`, `jax.checkpoint` and `jax.shard_map`. There is no
    forward mode (`jax.jvp`, `jax.jacfwd`). A step with an effect, such as
    `jax.debug.print`, runs whole, in one loop.

    Args:
      step: `(carry, x) -> (carry, y)`, pure, on trees of arrays. It may close over
        anything, and everything it closes over gets its gradient.
      carry: state before the first step.
      xs: tree of arrays, [T, ...], or None.
      length: T; to be given where xs has no arrays.
      reverse: from the last step to the first; ys keep the order of xs.
      unroll: steps in a trip of a loop; by default as many as the device likes.
      distribute: whether each cycle of the step becomes a loop of its own. False
        keeps all of them in one loop, with what lies between them.

    Returns:
      The state after the last step, and the ys, [T, ...].

    Raises:
      TypeError: the step is no function; it returns a carry of another structure,
        shape or dtype, or no pair of trees of arrays.
      ValueError: arrays of xs differ in length, or there is no length.
    """
    if not callable(step):
        raise TypeError(
            f"the first argument is the step, a function (carry, x) -> (carry, y), not {type(step).__name__}."
        )
    length = _length(xs, length)
    if length == 0:
        return jax.lax.scan(step, carry, xs, length, reverse)
    traced = _trace(step, carry, xs)
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


# ---- what runs where


class PlannedStage(NamedTuple):
    """Equations of a step that run together.

    Attributes:
      where: "once", "all steps at once", "loop", "solved" or "one step earlier".
      carries: names of those that a loop hands on; of the one that is solved for
        all steps at once; or of the one that is at every step what a value was one
        step earlier.
      products: matrix products, by the shapes of their operands at one step.
      later: shapes of what a loop reads that is the same at every step, and whose
        gradient is formed after the backward loop.
      num_equations: operations in all.
    """

    where: str
    carries: list[str]
    products: list[str]
    later: list[str]
    num_equations: int

    def __str__(self) -> str:
        names = ", ".join(self.carries)
        if self.where == "one step earlier":
            return f"{names} is what it was handed on as one step earlier"
        if self.where == "solved":
            return f"{names} is solved for all steps at once"
        name = f"loop over {names}" if names else "loop without a carry" if self.where == "loop" else self.where
        later = f"; gradients after it: {', '.join(self.later)}" if self.later else ""
        return f"{name}: {', '.join(self.products) or 'no product'}{later}"


class Plan(NamedTuple):
    """What of a step runs where, in order. Its text has a line for each stage."""

    stages: list[PlannedStage]

    @property
    def loops(self) -> list[PlannedStage]:
        """Those that run step by step."""
        return [stage for stage in self.stages if stage.where == "loop"]

    def __str__(self) -> str:
        return "\n".join(map(str, self.stages))


def plan(step: Step, carry: Any, xs: Any = None, length: int | None = None, *, distribute: bool = True) -> Plan:
    """Says what `scan` makes of a step, which it traces but does not run; arguments as for `scan`, and as abstract.

    Raises:
      TypeError, ValueError: as `scan` does.
    """
    found: list[Plan] = []

    def look(carry: Any, xs: Any) -> None:
        _length(xs, length)
        traced = _trace(step, carry, xs)
        found.append(_plan(traced, distribution.distribute(traced.graph, len(traced.names), one_loop=not distribute)))

    jax.eval_shape(look, carry, xs)
    return found[0]


def _plan(traced: "_Traced", schedule: Schedule) -> Plan:
    graph, names = traced.graph, dict(zip(traced.graph.inputs, traced.names, strict=False))
    changing = {n for stage in schedule.stages for n in (*results_of(stage.equations), *stage.carries)}
    changing.update(graph.inputs[len(names) :])

    def planned(stage: Stage, where: str) -> PlannedStage:
        shapes = lambda numbers: [str(list(graph.types[n].shape)) for n in numbers]  # noqa: E731
        products = [" @ ".join(shapes(e.inputs)) for e in stage.equations if e.primitive == "dot_general"]
        fixed = {n for n in stage.reads() if n not in changing and graph.is_real(n)} if stage.loop else set()
        later = dict.fromkeys(tap.operand for tap in taps_of(graph, stage, fixed, schedule.usual))
        carries = [names[n] for n in stage.carries]
        return PlannedStage(where, carries, products, shapes(later), len(stage.equations))

    stages = [planned(Stage(schedule.once, False, {}), "once")] if schedule.once else []
    for stage in schedule.stages:
        stages.append(planned(stage, _where(graph, stage)))
    return Plan(stages)


def _where(graph: Graph, stage: Stage) -> str:
    if stage.loop:
        return "solved" if is_affine(graph, stage) else "loop"
    return "one step earlier" if stage.carries else "all steps at once"


# ---- what the step is


class _Traced(NamedTuple):
    """A step's equations; the first of its inputs and outputs are the carries."""

    graph: Graph
    starts: list[Array]  # the carry before the first step
    names: list[str]  # its paths
    arrays: list[Array]  # of xs
    carry: Any  # how the carry is built
    ys: Any  # and ys


def _trace(step: Step, carry: Any, xs: Any) -> _Traced:
    carry, xs = jax.tree.map(jnp.asarray, (carry, xs))
    graph, result = trace(partial(_pair, step), carry, jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], xs)))
    leaves = _checked(carry, result[0])
    if leaves is not None:
        return _trace(step, jax.tree.unflatten(jax.tree.structure(carry), leaves), xs)
    names = [f"carry{jax.tree_util.keystr(path)}" for path, _ in jax.tree.leaves_with_path(carry)]
    return _Traced(graph, jax.tree.leaves(carry), names, jax.tree.leaves(xs), *map(jax.tree.structure, result))


def _pair(step: Step, carry: Any, x: Any) -> tuple[Any, Any]:
    """What a step returns, checked to be two trees of arrays."""
    result = step(carry, x)
    if not isinstance(result, tuple | list) or len(result) != 2:
        found = f"{len(result)} things" if isinstance(result, tuple | list) else "one thing"
        raise TypeError(f"a step returns a pair, (carry, y), not {found}.")
    for name, tree in zip(("carry", "y"), result, strict=True):
        for path, leaf in jax.tree.leaves_with_path(tree):
            if not isinstance(leaf, Array | np.ndarray | np.generic | bool | int | float | complex):
                where = name + jax.tree_util.keystr(path)
                raise TypeError(f"{where} is of type {type(leaf).__name__} when the step returns it, not an array.")
    return result[0], result[1]


def _checked(carry: Any, new: Any) -> list[Array] | None:
    """Checks that a carry is alike before and after a step.

    Python's numbers have no dtype of their own, and get the one that the step
    gives them, as in `jax.lax.scan`: then returns all leaves of the carry anew.
    """
    named, found = (
        {f"carry{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (carry, new)
    )
    if jax.tree.structure(carry) != jax.tree.structure(new):
        lost, added = (", ".join(a.keys() - b.keys()) or "nothing" for a, b in ((named, found), (found, named)))
        raise TypeError(
            f"the step is given a carry like {jax.tree.structure(carry)} and returns one like"
            f" {jax.tree.structure(new)}; they must be alike. It loses {lost} and adds {added}."
        )
    dtypes = {n: jnp.result_type(x, found[n]) if jax.typeof(x).weak_type else x.dtype for n, x in named.items()}
    if any(dtypes[name] != x.dtype for name, x in named.items()):
        return [x if x.dtype == dtypes[name] else x.astype(dtypes[name]) for name, x in named.items()]
    for name, x in named.items():
        old, new = (f"{leaf.dtype}{list(leaf.shape)}" for leaf in (x, found[name]))
        if old != new:
            raise TypeError(
                f"{name} is {old} when the step is given it, and {new} when it returns it; they must be the same."
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


def _run(traced: _Traced, schedule: Schedule, time: Time) -> tuple[Any, Any]:
    """The last carry and the ys, stage by stage."""
    graph, num_carries = traced.graph, len(traced.starts)
    pairs = list(zip(graph.inputs[:num_carries], graph.outputs[:num_carries], strict=True))
    starts = {carry: start for (carry, _), start in zip(pairs, traced.starts, strict=True)}
    last = {carry: starts[carry] for carry, new in pairs if carry == new}
    fixed = graph.run(schedule.once, graph.constants | last)
    stacked = dict(zip(graph.inputs[num_carries:], traced.arrays, strict=True))

    def all_steps(n: int) -> Array:
        return stacked[n] if n in stacked else jnp.broadcast_to(fixed[n], (time.length, *graph.types[n].shape))

    for stage in schedule.stages:
        if stage.loop:
            if is_affine(graph, stage):
                found, outputs = solve(graph, stage, fixed, starts, stacked, time)
            else:
                found, outputs = run_loop(graph, stage, fixed, starts, stacked, schedule.usual, time)
            last.update(found)
            stacked.update(outputs)
        elif stage.carries:
            ((carry, new),) = stage.carries.items()
            stacked[carry] = time.before(starts[carry], all_steps(new))
        else:
            _run_at_once(graph, stage.equations, stacked, fixed, time.length)
    carry = [last[carry] if carry in last else time.last(all_steps(new)) for carry, new in pairs]
    ys = map(all_steps, graph.outputs[num_carries:])
    return jax.tree.unflatten(traced.carry, carry), jax.tree.unflatten(traced.ys, ys)


def _run_at_once(graph: Graph, equations: Sequence[Equation], stacked: Values, fixed: Values, length: int) -> None:
    """Adds to the stacked values what the equations make of them.

    Products with the same kernel at every step become one of all rows; the rest is vectorised over time.
    """
    waiting: list[Equation] = []
    for equation in equations:
        product = graph.multiplies_rows(equation) and equation.inputs[1] in fixed
        rows, same = ([n for n in equation.inputs if (n in fixed) == wanted] for wanted in (False, True))
        total = graph.adds(equation) and same and graph.size(rows[0]) == graph.size(equation.outputs[0])
        if not (product or total):
            waiting.append(equation)
            continue
        if not results_of(waiting).isdisjoint(equation.inputs):
            stacked |= graph.run_at_once(waiting, stacked, fixed, length)
            waiting = []
        stacked[equation.outputs[0]] = (multiply_steps if product else add_to_all)(stacked[rows[0]], fixed[same[0]])
    stacked |= graph.run_at_once(waiting, stacked, fixed, length)


# ---- what a step makes of its input alone


def prepare(step: Callable[[Any, Any], Any], others: Any, x: Any) -> list[Array]:
    """Computes what `step(others, x)` makes of x alone, for `resume` to go on from.

    `others` may be abstract: nothing of it is computed.
    """
    graph, _, crossing, _ = _cut(step, others, x)
    inputs = zip(graph.inputs[len(jax.tree.leaves(others)) :], jax.tree.leaves(x), strict=True)
    values = graph.run(needed_for(graph.equations, crossing), graph.constants | dict(inputs))
    return [values[n] for n in crossing]


def resume(step: Callable[[Any, Any], Any], others: Any, x: Any, prepared: Sequence[Any]) -> Any:
    """Returns `step(others, x)`, going on from what `prepare` gave; x itself may be abstract."""
    graph, result, crossing, rest = _cut(step, others, x)
    inputs = zip(graph.inputs, jax.tree.leaves(others), strict=False)
    values = graph.run(rest, graph.constants | dict(inputs) | dict(zip(crossing, prepared, strict=True)))
    return jax.tree.unflatten(jax.tree.structure(result), [values[n] for n in graph.outputs])


def _cut(step: Callable[[Any, Any], Any], others: Any, x: Any) -> tuple[Graph, Any, list[int], list[Equation]]:
    """A step, what its result looks like, what it makes of x alone and needs for the rest, and the rest."""
    graph, result = trace(step, others, x)
    num_others = len(jax.tree.leaves(others))
    alone, rest = divide(graph.equations, graph.inputs[:num_others])
    same, first = divide(alone, graph.inputs[num_others:])
    of_x = results_of(first).union(graph.inputs[num_others:])
    rest = needed_for([*same, *rest], graph.outputs)
    return graph, result, [n for n in dict.fromkeys((*read_by(rest), *graph.outputs)) if n in of_x], rest
