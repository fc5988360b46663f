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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from seq2seq_jax.distribution import Schedule, Stage, distribute as distributed
from seq2seq_jax.equations import Equation, Graph, multiplies_rows, needed_for, read_by, results_of, trace
from seq2seq_jax.loops import Body, before, run_loop
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
    if length == 0:
        return jax.lax.scan(step, carry, xs, length)
    if reverse:
        xs = jax.tree.map(lambda x: jnp.flip(x, 0), xs)
    traced = _trace(step, carry, xs)
    last, ys = _Run(
        traced, distributed(traced.graph, traced.carries, one_loop=not distribute), length, unroll
    ).results()
    return last, jax.tree.map(lambda y: jnp.flip(y, 0), ys) if reverse else ys


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


class _Traced(NamedTuple):
    """A step's equations, and which of its values are what.

    Attributes:
      carries, new_carries: values of the carry, as a step is given it and as it hands it on.
      starts: the carry before the first step.
      xs, ys: values of a step's own input and output.
      arrays: the stacked inputs, [T, ...].
    """

    graph: Graph
    carries: list[int]
    new_carries: list[int]
    starts: list[Array]
    xs: list[int]
    ys: list[int]
    arrays: list[Array]
    names: list[str]
    structure: tuple[Any, Any]


def _trace(step: Step, carry: Any, xs: Any) -> _Traced:
    carry, xs = jax.tree.map(jnp.asarray, (carry, xs))
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    graph, result = trace(step, carry, first)
    _check(carry, result)
    starts, num_carries = jax.tree.leaves(carry), len(jax.tree.leaves(carry))
    names = [jax.tree_util.keystr(path) or "carry" for path, _ in jax.tree.leaves_with_path(carry)]
    return _Traced(
        graph,
        graph.inputs[:num_carries],
        graph.outputs[:num_carries],
        starts,
        graph.inputs[num_carries:],
        graph.outputs[num_carries:],
        jax.tree.leaves(xs),
        names,
        tuple(map(jax.tree.structure, result)),
    )


def _check(carry: Any, result: Any) -> None:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"a step returns (carry, y), not {type(result).__name__}.")
    if jax.tree.structure(carry) != jax.tree.structure(result[0]):
        raise TypeError(
            f"the carry that the step returns is built like {jax.tree.structure(result[0])},"
            f" the one it is given like {jax.tree.structure(carry)}; they must be alike."
        )
    for (path, given), found in zip(jax.tree.leaves_with_path(carry), jax.tree.leaves(result[0]), strict=True):
        if (given.shape, given.dtype) != (found.shape, found.dtype):
            raise TypeError(
                f"carry{jax.tree_util.keystr(path)} is {given.dtype}{list(given.shape)} when the step is given it, and"
                f" {found.dtype}{list(found.shape)} when it returns it; they must be the same."
            )


def _length(xs: Any, length: int | None) -> int:
    lengths = {} if length is None else {"length": length}
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


class _Run:
    """Values of all steps, stage by stage."""

    def __init__(self, traced: _Traced, schedule: Schedule, length: int, unroll: int | None) -> None:
        self.traced, self.graph, self.length, self.unroll = traced, traced.graph, length, unroll
        self.usual = schedule.usual
        known = self.graph.constants | {traced.carries[place]: traced.starts[place] for place in schedule.constant}
        self.fixed = self.graph.run(schedule.once, known)
        self.stacked = dict(zip(traced.xs, traced.arrays, strict=True))
        self.last = {place: traced.starts[place] for place in schedule.constant}
        read = [set(read_by(stage.equations)) for stage in schedule.stages]
        for number, stage in enumerate(schedule.stages):
            wanted = set(traced.ys).union(traced.new_carries, *read[number + 1 :])
            if stage.shifted is not None:
                self._shift(stage.shifted)
            if stage.loop:
                self._loop(stage, wanted)
            else:
                self._at_once(stage.equations)

    def results(self) -> tuple[Any, Any]:
        carry, ys = self.traced.structure
        last = [self.last[p] if p in self.last else self._all(n)[-1] for p, n in enumerate(self.traced.new_carries)]
        return jax.tree.unflatten(carry, last), jax.tree.unflatten(ys, map(self._all, self.traced.ys))

    def _all(self, n: int) -> Array:
        """A value of all steps, [T, ...]."""
        if n in self.stacked:
            return self.stacked[n]
        return jnp.broadcast_to(self.fixed[n], (self.length, *self.graph.types[n].shape))

    def _shift(self, place: int) -> None:
        new = self._all(self.traced.new_carries[place])
        self.stacked[self.traced.carries[place]] = before(self.traced.starts[place], new)

    def _loop(self, stage: Stage, wanted: set[int]) -> None:
        traced = self.traced
        carries, new_carries = ([numbers[p] for p in stage.carries] for numbers in (traced.carries, traced.new_carries))
        made = results_of(stage.equations) | set(carries)
        read = [n for n in dict.fromkeys((*read_by(stage.equations), *new_carries)) if n not in made]
        body = Body(
            self.graph,
            stage.equations,
            fixed=[n for n in read if n in self.fixed and n not in self.graph.literals],
            each=[n for n in read if n in self.stacked],
            carries=carries,
            new_carries=new_carries,
            outputs=sorted(made & wanted),
            usual=self.usual,
        )
        values = (
            [known[n] for n in numbers] for known, numbers in ((self.fixed, body.fixed), (self.stacked, body.each))
        )
        fixed, each = values
        starts = [traced.starts[place] for place in stage.carries]
        last, outputs = run_loop(body, fixed, starts, each, self.length, self.unroll)
        self.last |= dict(zip(stage.carries, last, strict=True))
        self.stacked |= dict(zip(body.outputs, outputs, strict=True))

    def _at_once(self, equations: list[Equation]) -> None:
        """Products with the same kernel at every step become one of all rows; the rest is vectorised over time."""
        others: list[Equation] = []
        for equation in equations:
            special = self._product if self._is_product(equation) else self._sum if self._is_sum(equation) else None
            if special is None:
                others.append(equation)
                continue
            self._vectorise(others)
            others = []
            self.stacked[equation.outputs[0]] = special(equation)
        self._vectorise(others)

    def _vectorise(self, equations: list[Equation]) -> None:
        if not equations:
            return
        read = [n for n in read_by(equations) if n not in self.graph.literals]
        made = sorted(results_of(equations))

        def step(*values: Array) -> list[Array]:
            found = self.graph.run(equations, dict(zip(read, values, strict=True)))
            return [found[n] for n in made]

        axes = [0 if n in self.stacked else None for n in read]
        values = [self.stacked.get(n, self.fixed.get(n)) for n in read]
        self.stacked |= dict(zip(made, jax.vmap(step, axes, axis_size=self.length)(*values), strict=True))

    def _is_product(self, equation: Equation) -> bool:
        return (
            multiplies_rows(self.graph, equation)
            and equation.inputs[0] not in self.fixed
            and equation.inputs[1] in self.fixed
            and equation.params["preferred_element_type"] in (None, self.graph.types[equation.inputs[0]].dtype)
        )

    def _product(self, equation: Equation) -> Array:
        rows, kernel = self.stacked[equation.inputs[0]], self.fixed[equation.inputs[1]]
        if kernel.ndim == 2:
            return matmul(rows, kernel)
        return jnp.stack([matmul(rows[:, z], kernel[z]) for z in range(len(kernel))], axis=1)

    def _is_sum(self, equation: Equation) -> bool:
        return (
            equation.primitive == "add"
            and len(equation.inputs) == 2
            and sum(n in self.fixed for n in equation.inputs) == 1
        )

    def _sum(self, equation: Equation) -> Array:
        value, rows = sorted(equation.inputs, key=lambda n: n in self.stacked)
        return add_to_all(self.stacked[rows], self.fixed[value])


# ---- what a step makes of its input alone


def prepare(step: Callable[[Any, Any], Any], others: Any, x: Any) -> list[Array]:
    """Computes what `step(others, x)` makes of x alone, for `resume` to go on from.

    `others` may be abstract: nothing of it is computed.
    """
    graph, first, _, crossing = _cut(step, others, x)
    num_others = len(jax.tree.leaves(others))
    values = graph.run(first, graph.constants | dict(zip(graph.inputs[num_others:], jax.tree.leaves(x), strict=True)))
    return [values[n] for n in crossing]


def resume(step: Callable[[Any, Any], Any], others: Any, x: Any, prepared: Any) -> Any:
    """Returns `step(others, x)`, going on from what `prepare` gave; x itself may be abstract."""
    graph, _, rest, crossing = _cut(step, others, x)
    given = dict(zip(crossing, prepared, strict=True)) | dict(zip(graph.inputs, jax.tree.leaves(others)))
    values = graph.run(rest, graph.constants | given)
    result = jax.eval_shape(step, others, x)
    return jax.tree.unflatten(jax.tree.structure(result), [values[n] for n in graph.outputs])


def _cut(
    step: Callable[[Any, Any], Any], others: Any, x: Any
) -> tuple[Graph, list[Equation], list[Equation], list[int]]:
    """The equations that depend on x alone, the rest, and the values that the rest needs of them."""
    graph, _ = trace(step, others, x)
    num_others = len(jax.tree.leaves(others))
    of_x, of_others = set(graph.inputs[num_others:]), set(graph.inputs[:num_others])
    first, rest = [], []
    for equation in needed_for(graph.equations, graph.outputs):
        if not of_others.isdisjoint(equation.inputs):
            of_others.update(equation.outputs)
            rest.append(equation)
        elif not of_x.isdisjoint(equation.inputs):
            of_x.update(equation.outputs)
            first.append(equation)
        else:  # of constants alone, for whoever needs it
            first.append(equation)
            rest.append(equation)
    crossing = [n for n in dict.fromkeys((*read_by(rest), *graph.outputs)) if n in of_x]
    return graph, needed_for(first, crossing), needed_for(rest, graph.outputs), crossing
