"""One loop over time whose gradients of what stays the same are formed after it.

Automatic differentiation of `jax.lax.scan` adds the gradient of a weight to an
accumulator at every step: one skinny product and one pass over the accumulator
each time. Here the backward loop does only what its carries need. All else waits
until after it, and there the sum of a product over all steps is one product.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial
from jaxtyping import Array

from seq2seq_jax.distribution import Stage
from seq2seq_jax.equations import Equation, Graph, Values, divide, needed_for, read_by, results_of, trace, without
from seq2seq_jax.products import sum_of_products, sum_to

CHEAP = (
    *("add", "sub", "mul", "neg", "not", "and", "or", "eq", "ne", "lt", "le", "gt", "ge", "select_n", "copy", "iota"),
    *("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "expand_dims", "transpose", "stop_gradient"),
    *("concatenate", "slice", "split"),
)
"""Primitives whose results the backward pass computes again where it has what they are made of."""
LINEAR = (
    *("add_any", "neg", "copy", "reduce_sum", "convert_element_type"),
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"),
)
"""Primitives whose sum over all steps is what they make of the sums of their operands."""
STEPS_A_TRIP = 16
"""On a GPU, where every trip of a loop costs some kernels that do nothing but count and copy."""


class Time(NamedTuple):
    """How many steps there are, and in which order; and how many a trip of a loop does, if that is said."""

    length: int
    reverse: bool = False
    unroll: int | None = None

    def loop(self, step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
        """`jax.lax.scan` with as many steps in a trip as the device likes, unless it is said."""

        def scan(unroll: int) -> Callable:
            return lambda carry, xs: jax.lax.scan(step, carry, xs, self.length, self.reverse, unroll)

        if self.unroll is not None or self.length == 1:
            return scan(1 if self.unroll is None else self.unroll)(carry, xs)
        many = scan(min(self.length, STEPS_A_TRIP))
        return jax.lax.platform_dependent(carry, xs, cuda=many, rocm=many, default=scan(1))

    def before(self, start: Array, stacked: Array) -> Array:
        """Of every step what it was one step earlier, [T, ...]."""
        return jnp.concatenate([stacked[1:], start[None]] if self.reverse else [start[None], stacked[:-1]])

    def last(self, stacked: Array) -> Array:
        """What it is at the last step."""
        return stacked[0 if self.reverse else -1]


def run_loop(
    graph: Graph, stage: Stage, fixed: Values, starts: Values, stacked: Values, usual: int, time: Time
) -> tuple[Values, Values]:
    """Returns the last carries, and the stage's outputs of all steps, [T, ...].

    Args:
      fixed: values that are the same at every step, among them those that it reads.
      starts: the carries before the first step.
      stacked: values of all steps, among them those that it reads.
      usual: elements of the largest value that may be stacked for a gradient.
    """

    @jax.custom_vjp
    def run(fixed: Values, starts: Values, each: Values) -> tuple[Values, Values]:
        def step(carry: Values, now: Values) -> tuple[Values, Values]:
            values = graph.run(stage.equations, fixed | carry | now)
            return {n: values[new] for n, new in stage.carries.items()}, {n: values[n] for n in stage.outputs}

        return time.loop(step, starts, each)

    def forward(*given: Values) -> tuple[tuple[Values, Values], Partial]:
        moving = {n for part in given for n, leaf in part.items() if leaf.perturbed and graph.is_real(n)}
        passes = passes_of(graph, stage, *map(list, given), moving=moving, usual=usual)
        results, kept = _forward(passes, time, *jax.tree.map(lambda leaf: leaf.value, given))
        return results, Partial(partial(_backward, passes, time), *kept)

    run.defvjp(forward, lambda backward, cotangents: backward(*cotangents), symbolic_zeros=True)
    read = stage.reads()
    return run(
        {n: fixed[n] for n in read if n in fixed and n not in graph.literals},
        {n: starts[n] for n in stage.carries},
        {n: stacked[n] for n in read if n in stacked},
    )


# ---- a step there and back


class Pair(NamedTuple):
    """A step and its backward step as one graph. Dicts are keyed by the numbers of values in the step's own graph."""

    stage: Stage
    given: tuple[list[int], list[int], list[int]]
    """What the step reads: the same at every step, carries, and what every step has for itself."""
    graph: Graph
    at: dict[int, int]
    """Numbers in this graph of the step's values,"""
    gradients: dict[int, int]
    """of the gradients of those that it reads,"""
    d_carries: dict[int, int]
    """and of what a backward step is given: gradients of the carries handed on, by the carries handed in,"""
    d_outputs: dict[int, int]
    """and of the outputs."""
    there: list[Equation]
    back: list[Equation]


def _there_and_back(graph: Graph, stage: Stage, given: tuple[list[int], ...], moving: set[int]) -> Pair:
    """Differentiates a step by its carries, and by the moving ones of the values that it reads."""
    carries = {carry: new for carry, new in stage.carries.items() if graph.is_real(carry)}
    outputs = {n: n for n in stage.outputs if graph.is_real(n)}

    def both(known: Values, d_carries: Values, d_outputs: Values) -> Any:
        def step(moved: Values) -> tuple[tuple[Values, Values], Values]:
            values = graph.run(stage.equations, known | moved)
            new, out = ({key: values[n] for key, n in numbers.items()} for numbers in (carries, outputs))
            return (new, out), {n: values[n] for n in (*stage.carries.values(), *stage.outputs)}

        moved = {n: known[n] for n in known if n in moving or n in carries}
        _, pullback, results = jax.vjp(step, moved, has_aux=True)
        return results, jax.tree.leaves(pullback), pullback((d_carries, d_outputs))[0]

    known = {n: n for part in given for n in part}
    arguments = [{key: graph.types[n] for key, n in numbers.items()} for numbers in (known, carries, outputs)]
    pair, found = trace(both, *arguments)
    at, d_carries, d_outputs = jax.tree.unflatten(jax.tree.structure(arguments), pair.inputs)
    results, residuals, gradients = jax.tree.unflatten(jax.tree.structure(found), pair.outputs)
    there, _ = divide(pair.equations, (*d_carries.values(), *d_outputs.values()))
    there = needed_for(there, (*results.values(), *residuals))
    back = needed_for(without(pair.equations, there), gradients.values())
    return Pair(stage, given, pair, at | results, gradients, d_carries, d_outputs, there, back)


class Sums:
    """Sums over all steps of what the equations of a step make.

    Args:
      equations: those that may run for all steps at once; what they read of others is known of all steps.
      changing: values that are not the same at every step.
    """

    def __init__(self, graph: Graph, equations: list[Equation], changing: set[int]) -> None:
        self.graph, self.equations, self.changing = graph, equations, changing
        self.maker = {n: equation for equation in equations for n in equation.outputs}

    def terms(self, value: int) -> list[int]:
        """Values of which `total` needs those of all steps."""
        equation, product = self.maker.get(value), self._product(value)
        if product is not None:
            return list(product.inputs)
        if equation is not None and self._is_linear(equation):
            return [term for n in equation.inputs for term in self.terms(n)]
        if equation is not None and self._adds_rows(equation):
            return [*self.terms(equation.inputs[0]), *equation.inputs[1:]]
        return [value]

    def total(self, value: int, all_steps: Callable[[int], Array]) -> Array:
        """The sum of a value over all steps; `all_steps` gives those of its terms, [T, ...]."""
        equation, product = self.maker.get(value), self._product(value)
        if product is not None:
            names = ("dimension_numbers", "precision", "preferred_element_type")
            return sum_of_products(*map(all_steps, product.inputs), *(product.params[name] for name in names))
        if equation is not None and self._is_linear(equation):
            return equation.apply(*(self.total(n, all_steps) for n in equation.inputs))[0]
        if equation is not None and self._adds_rows(equation):
            table, indices, updates = equation.inputs
            return _scatter_all(equation, self.total(table, all_steps), all_steps(indices), all_steps(updates))
        stacked = all_steps(value)
        return sum_to(stacked.shape[1:], stacked) if value in self.changing else stacked[0] * len(stacked)

    def are_large(self, values: list[int], usual: int) -> bool:
        """Whether values of one step, or what they are made of, have more elements than usual."""
        forming = (self.graph.is_large(e, self.changing, usual) for e in needed_for(self.equations, values))
        return any(self.graph.size(n) > usual for n in self.changing.intersection(values)) or any(forming)

    def _is_linear(self, equation: Equation) -> bool:
        return equation.primitive in LINEAR and not self.changing.isdisjoint(equation.inputs)

    def _adds_rows(self, equation: Equation) -> bool:
        """Whether it is the gradient of a look-up."""
        return equation.primitive == "scatter-add" and len(equation.inputs) == 3

    def _product(self, value: int) -> Equation | None:
        """The product that makes a value; with its sides exchanged, where the value is the transposed product."""
        equation = self.maker.get(value)
        if equation is not None and equation.primitive == "transpose":
            inner = self._product(equation.inputs[0])
            return None if inner is None else _exchanged(self.graph, inner, equation.params["permutation"])
        is_product = equation is not None and equation.primitive == "dot_general" and len(equation.inputs) == 2
        return equation if is_product and self.changing.issuperset(equation.inputs) else None


def _exchanged(graph: Graph, product: Equation, permutation: tuple[int, ...]) -> Equation | None:
    """The product with its sides exchanged, if that is what the permutation makes of it."""
    sides, batch = product.params["dimension_numbers"]
    num_batch, precision = len(batch[0]), product.params["precision"]
    left, right = (graph.types[n].ndim - num_batch - len(side) for n, side in zip(product.inputs, sides, strict=True))
    axes = tuple(range(num_batch + left + right))
    if tuple(permutation) != (*axes[:num_batch], *axes[num_batch + left :], *axes[num_batch : num_batch + left]):
        return None
    exchanged = {"dimension_numbers": (sides[::-1], batch[::-1]), "precision": precision and precision[::-1]}
    return product._replace(inputs=product.inputs[::-1], params=product.params | exchanged)


def _scatter_all(equation: Equation, table: Array, indices: Array, updates: Array) -> Array:
    """Adds the rows of all steps to a table."""
    numbers = equation.params["dimension_numbers"]
    numbers = numbers._replace(
        update_window_dims=tuple(axis + 1 for axis in numbers.update_window_dims),
        scatter_indices_batching_dims=tuple(axis + 1 for axis in numbers.scatter_indices_batching_dims),
    )
    return jax.lax.scatter_add(table, indices, updates, numbers, mode=equation.params["mode"])


class Backward(NamedTuple):
    """What runs in the backward loop, and what after it."""

    loop: list[Equation]
    wanted: list[int]
    """What the loop makes for the next step, and for the gradients inside."""
    inside: list[int]
    """Values of the step, by its own numbers, whose gradients the loop puts out or, where they are fixed, sums."""
    put_out: set[int]
    """What it puts out besides, for what comes after it."""
    after: list[Equation]
    """What runs after it for all steps at once."""
    late: list[int]
    """What that makes: gradients, or what their sums over all steps are made of."""
    sums: Sums


def _backward_of(pair: Pair, changing: set[int], usual: int) -> Backward:
    """In the loop is what the carries' gradients need, and what would be too large to be stacked over time."""
    changing = changing.union(pair.d_carries.values(), pair.d_outputs.values())
    changing |= results_of(divide(pair.back, changing)[1])

    def cut(inside: list[int]) -> tuple[Backward, dict[int, list[int]]]:
        wanted = [pair.gradients[n] for n in (*pair.d_carries, *inside)]
        loop = needed_for(pair.back, wanted)
        bound = divide(loop, pair.d_carries.values())[1]
        sums = Sums(pair.graph, without(pair.back, bound), changing)
        terms = {n: number for n, number in pair.gradients.items() if n not in (*pair.d_carries, *inside)}
        terms = {n: sums.terms(number) if n in pair.given[0] else [number] for n, number in terms.items()}
        late = [n for numbers in terms.values() for n in numbers]
        after = needed_for(sums.equations, late)
        put_out = results_of(bound).union(pair.d_carries.values()).intersection((*read_by(after), *late))
        return Backward(loop, wanted, inside, put_out, after, late, sums), terms

    back, terms = cut([])
    return cut([n for n, numbers in terms.items() if back.sums.are_large(numbers, usual)])[0]


class Passes(NamedTuple):
    """A loop and its backward loop, and what comes after it."""

    pair: Pair
    back: Backward
    once: list[Equation]
    """What is the same at every step, run before the forward loop."""
    forward: list[Equation]
    """The forward loop's equations."""
    kept: list[int]
    """What it puts out besides its outputs."""
    before: dict[int, int]
    """Of carries what each is one step later."""
    again: list[Equation]
    """What the backward loop forms again of what is kept,"""
    again_late: list[Equation]
    """and what is formed again after it."""
    read: list[int]
    """What the backward pass reads of the forward one."""


def passes_of(
    graph: Graph, stage: Stage, fixed: list[int], carries: list[int], each: list[int], *, moving: set[int], usual: int
) -> Passes:
    """Says what runs in the two loops and after them.

    Args:
      fixed, each: values that the stage reads: the same at every step, and not.
      moving: those that need a gradient.
      usual: elements of the largest value that may be stacked over time.
    """
    pair = _there_and_back(graph, stage, (fixed, carries, each), moving)
    at_carries, at_each, outputs = ({pair.at[n] for n in numbers} for numbers in (carries, each, stage.outputs))
    once, forward = divide(pair.there, at_carries | at_each, effects=True)
    made = results_of(forward)
    back = _backward_of(pair, made | at_carries | at_each, usual)

    # Nothing is kept that is there anyway: a carry is what was put out one step earlier.
    before = {pair.at[n]: pair.at[new] for n, new in stage.carries.items() if pair.at[new] in made | at_each}
    found = at_each | outputs | set(before)
    stuck = at_carries - found
    in_loop = [n for n in (*read_by(back.loop), *back.wanted) if n in made | stuck]
    late = [n for n in (*read_by(back.after), *back.late) if n in made | stuck]
    kept, again = _keep(pair.graph, forward, found, stuck, in_loop, usual)
    more, again_late = _keep(pair.graph, forward, found.union(kept), stuck, late, math.inf)
    read = (*read_by([*again, *back.loop]), *read_by([*again_late, *back.after]), *back.wanted, *back.late)
    kept = dict.fromkeys((*kept, *more, *(before[n] for n in read if n in before)))
    kept = [n for n in kept if n not in outputs | at_each]
    forward = needed_for(forward, (*(pair.at[n] for n in (*stage.carries.values(), *stage.outputs)), *kept))
    return Passes(pair, back, once, forward, kept, before, again, again_late, list(dict.fromkeys(read)))


def _keep(
    graph: Graph, equations: list[Equation], found: set[int], stuck: set[int], wanted: list[int], usual: float
) -> tuple[list[int], list[Equation]]:
    """What to keep of a step so that the wanted values are there later, and the equations that form them again of it.

    Formed again is what is cheap to form of what is there, and what is larger than usual.

    Args:
      found: values that are there anyway.
      stuck: carries that are not.
    """
    large = {id(e) for e in equations if not e.effect and max(map(graph.size, e.outputs), default=0) > usual}
    needed = set(wanted)
    for equation in reversed(equations):
        if id(equation) in large and not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
    kept = sorted(stuck & needed)
    missing, again = (results_of(equations) | stuck) - found.union(kept), []
    for equation in equations:
        cheap = id(equation) in large or (equation.primitive in CHEAP and not equation.effect)
        if cheap and missing.isdisjoint(equation.inputs) and not missing.isdisjoint(equation.outputs):
            again.append(equation)
            missing.difference_update(equation.outputs)
        else:
            kept += [n for n in equation.outputs if n in missing and n in needed]
            missing.difference_update(kept)
    return kept, needed_for(again, wanted)


# ---- running them


def _forward(passes: Passes, time: Time, fixed: Values, carry: Values, each: Values) -> Any:
    """The loop's results, and what the backward pass needs: fixed values, first carries, and stacked values."""
    pair, graph = passes.pair, passes.pair.graph
    at_fixed, starts, stacked = ({pair.at[n]: x for n, x in part.items()} for part in (fixed, carry, each))
    constants = graph.run(passes.once, graph.constants | at_fixed)

    def step(carry: Values, now: Values) -> tuple[Values, tuple[Values, Values]]:
        values = graph.run(passes.forward, constants | {pair.at[n]: x for n, x in carry.items()} | now)
        new = {n: values[pair.at[new]] for n, new in pair.stage.carries.items()}
        return new, ({n: values[pair.at[n]] for n in pair.stage.outputs}, {n: values[n] for n in passes.kept})

    last, (outputs, kept) = time.loop(step, carry, stacked)
    stacked |= kept | {pair.at[n]: x for n, x in outputs.items()}
    read = {passes.before.get(n, n) if n not in stacked else n for n in passes.read}
    return (last, outputs), (
        {n: constants[n] for n in passes.read if n in constants and n not in graph.literals},
        {n: starts[n] for n in passes.read if n in passes.before},
        {n: stacked[n] for n in read if n in stacked},
    )


def _backward(
    passes: Passes, time: Time, constants: Values, starts: Values, stacked: Values, d_last: Values, d_outputs: Values
) -> tuple[Values, Values, Values]:
    """Gradients of the loop's arguments; None stands for those that nobody wants."""
    pair, back, graph, gradients = passes.pair, passes.back, passes.pair.graph, passes.pair.gradients
    stacked = stacked | {n: time.before(x, stacked[passes.before[n]]) for n, x in starts.items() if n not in stacked}
    d_now = {at: d_outputs[n] for n, at in pair.d_outputs.items() if not isinstance(d_outputs[n], SymbolicZero)}
    absent = [at for at in pair.d_outputs.values() if at not in d_now]
    summed = [n for n in back.inside if n in pair.given[0]]
    put_out = back.put_out.union(gradients[n] for n in back.inside if n not in summed)
    equations = [*passes.again, *back.loop]

    def step(carry: tuple[Values, Values], now: Values) -> tuple[tuple[Values, Values], Values]:
        d_carries, sums = carry
        absent_now = {at: _zeros(graph.types[at]) for at in absent}
        given = {at: d_carries[n] for n, at in pair.d_carries.items()}
        values = graph.run(equations, constants | absent_now | given | now)
        d_carries = {n: values[gradients[n]] for n in d_carries}
        return (d_carries, {n: x + values[gradients[n]] for n, x in sums.items()}), {n: values[n] for n in put_out}

    start = {n: _zeros(d_last[n]) if isinstance(d_last[n], SymbolicZero) else d_last[n] for n in pair.d_carries}
    sums = {n: _zeros(graph.types[gradients[n]]) for n in summed}
    now = {n: x for n, x in (stacked | d_now).items() if n in {*read_by(equations), *back.wanted}}
    (d_carries, sums), found = time._replace(reverse=not time.reverse).loop(step, (start, sums), now)

    stacked |= found | d_now
    constants = constants | {at: _zeros(graph.types[at]) for at in absent}
    same, after = divide([*passes.again_late, *back.after], stacked)
    constants = graph.run(same, constants)
    stacked |= graph.run_at_once(after, stacked, constants, time.length)
    all_steps = partial(graph.of_all_steps, stacked=stacked, fixed=constants, length=time.length)
    fixed, _, each = pair.given
    d_fixed = {n: back.sums.total(gradients[n], all_steps) for n in fixed if n in gradients and n not in sums} | sums
    d_each = {n: all_steps(gradients[n]) for n in each if n in gradients}
    parts = zip(pair.given, (d_fixed, d_carries, d_each), strict=True)
    return tuple({n: found.get(n) for n in numbers} for numbers, found in parts)


def _zeros(type_: Any) -> Array:
    return jnp.zeros(type_.shape, type_.dtype)
