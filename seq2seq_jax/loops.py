"""One loop over time whose gradients of what stays the same are formed after it.

Automatic differentiation of `jax.lax.scan` adds the gradient of a weight to an
accumulator at every step: one skinny product and one pass over the accumulator
each time. Here the backward loop puts out the gradient of each *result* that is
linear in such an operand, and the operand's gradient is one product over all
steps and rows after the loop.
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
from seq2seq_jax.products import gradient_of_steps, sum_to

LINEAR = ("dot_general", "gather", "dynamic_slice", "mul", "select_n", "concatenate", "add", "sub")
"""Primitives that are linear, but for what is added, in an operand that may be the same at every step."""
CHEAP = frozenset(
    """
    add sub mul neg div integer_pow square max min abs sign select_n copy iota not and or eq ne lt le gt ge
    convert_element_type stop_gradient broadcast_in_dim reshape squeeze expand_dims transpose concatenate slice
    split
    """.split()
)
"""Primitives whose results the backward pass forms again where it has what they are made of."""
STEPS_A_TRIP = 16
"""On a GPU, where every trip of a loop costs some kernels that do nothing but count and copy."""


class Time(NamedTuple):
    """How many steps there are, and in which order; and how many a trip of a loop does, if that is said."""

    length: int
    reverse: bool = False
    unroll: int | None = None

    def loop(self, step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
        """`jax.lax.scan` with as many steps in a trip as the device likes, unless it is said."""

        length = self.length if isinstance(self.length, int) else None  # a symbol, in an export: that of xs

        def scan(unroll: int) -> Callable:
            return lambda carry, xs: jax.lax.scan(step, carry, xs, length, self.reverse, unroll)

        if self.unroll is not None or length is None or length == 1:
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
      fixed: values that are the same at every step, among them those that the stage reads.
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
        passes = passes_of(differentiated(graph, stage, tuple(map(list, given)), moving, usual), usual)
        results, kept = _forward(passes, time, *jax.tree.map(lambda leaf: leaf.value, given))
        return results, Partial(partial(_backward, passes, time), *kept)

    run.defvjp(forward, lambda backward, cotangents: backward(*cotangents), symbolic_zeros=True)
    read = [n for n in stage.reads() if n not in graph.literals]
    starts = {n: starts[n] for n in stage.carries}
    return run({n: fixed[n] for n in read if n in fixed}, starts, {n: stacked[n] for n in read if n in stacked})


# ---- gradients after the loop


class Tap(NamedTuple):
    """A use of a fixed value whose gradient is formed after the loop, from the gradients of the use's results."""

    equation: Equation
    operand: int
    others: tuple[int, ...]  # its other operands, where the gradient depends on them
    zero: int  # number of a zero that is added to the result, and so has its gradient

    def tapped(self) -> Equation:
        """The equation with the zero as its last operand, and ~n for the operand n: the same, without a gradient."""

        def apply(*values: Array) -> list[Array]:
            return [_plus_zero(self.equation.apply(*values[:-1])[0], values[-1])]

        inputs = (~n if n == self.operand else n for n in self.equation.inputs)
        return self.equation._replace(inputs=(*inputs, self.zero), apply=apply)

    def gradient(self, graph: Graph, operand: Array, stacked: Values, fixed: Values, d_results: Array) -> Array:
        """The operand's: one product over all steps.

        Args:
          stacked, fixed: the other operands: those of all steps, and those that are the same at each.
          d_results: gradients of the results of all steps.
        """
        equation = self.equation
        if equation.primitive in ("add", "sub"):
            total = sum_to(operand.shape, d_results)
            return -total if equation.primitive == "sub" and equation.inputs[-1] == self.operand else total
        if graph.multiplies_rows(equation) and equation.inputs[1] == self.operand:
            return gradient_of_steps(stacked[equation.inputs[0]], operand, d_results)

        def results(operand: Array) -> Array:
            found = graph.run_at_once([equation], stacked, fixed | {self.operand: operand}, len(d_results))
            return found[equation.outputs[0]]

        return jax.linear_transpose(results, operand)(d_results)[0]


def taps_of(graph: Graph, stage: Stage, moving: set[int], usual: int) -> list[Tap]:
    """The uses of moving fixed values, but for those whose results or other operands are too large to be stacked."""
    taps = []
    for equation in stage.equations:
        operands = [n for n in equation.inputs if n in moving]
        others = tuple(n for n in equation.inputs if n not in moving and n not in graph.literals)
        small = max(map(graph.size, (*others, *equation.outputs)), default=0) <= usual
        if equation.primitive in LINEAR and len(operands) == 1 and small:
            others = () if equation.primitive in ("add", "sub") else others
            taps.append(Tap(equation, operands[0], others, graph.new(graph.types[equation.outputs[0]])))
    return taps


@jax.custom_vjp
def _plus_zero(result: Array, zero: Array) -> Array:
    return result


_plus_zero.defvjp(lambda result, zero: (result, None), lambda _, cotangent: (cotangent, cotangent))


# ---- a step there and back


class Differentiated(NamedTuple):
    """A step and its backward step as one graph. The dicts are keyed by the numbers of the step's own graph."""

    step: Graph
    stage: Stage
    taps: list[Tap]
    given: tuple[list[int], ...]  # what the step reads: the same at every step, carries, and what each has for itself
    graph: Graph
    at: dict[int, int]  # numbers in this graph of the step's values
    residuals: list[int]  # of what a backward step needs of the step
    gradients: dict[int, int]  # of the gradients of what the step reads, and of taps' zeros
    d_carries: dict[int, int]  # of the gradients that a backward step is given: of what comes of the carries,
    d_outputs: dict[int, int]  # and of the outputs


def differentiated(
    graph: Graph, stage: Stage, given: tuple[list[int], ...], moving: set[int], usual: int
) -> Differentiated:
    """Differentiates a step by its carries, by the moving ones of what else it reads, and by the taps' zeros."""
    taps = taps_of(graph, stage, moving.intersection(given[0]), usual)
    tapped = {id(tap.equation): tap.tapped() for tap in taps}
    equations = [tapped.get(id(equation), equation) for equation in stage.equations]
    carries = {carry: new for carry, new in stage.carries.items() if graph.is_real(carry)}
    outputs = {n: n for n in stage.outputs if graph.is_real(n)}
    results = {*stage.carries.values(), *stage.outputs}.union(*(tap.others for tap in taps))
    untapped = results.union(*(e.inputs for e in stage.equations if id(e) not in tapped))
    moving = moving.difference(tap.operand for tap in taps if tap.operand not in untapped).union(carries)

    def both(known: Values, d_carries: Values, d_outputs: Values) -> Any:
        def step(moved: Values) -> tuple[tuple[Values, Values], Values]:
            values = graph.run(equations, known | {~n: x for n, x in known.items()} | moved)
            new, out = ({key: values[n] for key, n in numbers.items()} for numbers in (carries, outputs))
            return (new, out), {n: values[n] for n in results}

        moved = {n: x for n, x in known.items() if n in moving} | {tap.zero: _zeros(graph, tap.zero) for tap in taps}
        _, pullback, found = jax.vjp(step, moved, has_aux=True)
        return found, jax.tree.leaves(pullback), pullback((d_carries, d_outputs))[0]

    parts = ({n: n for part in given for n in part}, carries, outputs)
    arguments = [{key: graph.types[n] for key, n in part.items()} for part in parts]
    pair, found = trace(both, *arguments)
    at, *d_given = jax.tree.unflatten(jax.tree.structure(arguments), pair.inputs)
    values, residuals, gradients = jax.tree.unflatten(jax.tree.structure(found), pair.outputs)
    return Differentiated(graph, stage, taps, given, pair, at | values, residuals, gradients, *d_given)


class Passes(NamedTuple):
    """What the two loops of a differentiated step do."""

    of: Differentiated
    once: list[Equation]  # before the forward loop
    forward: list[Equation]
    kept: list[int]  # what the forward loop puts out besides its outputs
    before: dict[int, int]  # of carries what each is one step later
    backward: list[Equation]  # the first ones form again what was not kept
    after: list[Equation]  # what forms again, for all steps at once, what gradients after the loop need
    read: list[int]  # what the backward pass reads of the forward one


def passes_of(of: Differentiated, usual: int) -> Passes:
    """Parts a step from its backward step.

    Nothing is kept for the backward step that is there anyway: what the step
    reads and puts out, and carries, which are what was put out one step earlier.
    """
    graph, at, stage = of.graph, of.at, of.stage
    there, _ = divide(graph.equations, (*of.d_carries.values(), *of.d_outputs.values()))
    there = needed_for(there, (*at.values(), *of.residuals))
    back = needed_for(without(graph.equations, there), of.gradients.values())
    carries, each, outputs = ({at[n] for n in numbers} for numbers in (*of.given[1:], stage.outputs))
    once, forward = divide(there, carries | each, effects=True)
    made = results_of(forward)
    before = {at[n]: at[new] for n, new in stage.carries.items() if at[new] in made | each}

    found, stuck = each | outputs | {*before, *before.values()}, carries - set(before)
    wanted = [*read_by(back), *of.gradients.values()]
    kept, again = _keep(graph, forward, found, stuck, wanted, usual)
    others = [at[n] for tap in of.taps for n in tap.others]
    more, after = _keep(graph, forward, found.union(kept), stuck, others, math.inf)
    backward = [*again, *back]
    operands = (at[tap.operand] for tap in of.taps)
    read = list(dict.fromkeys((*read_by(backward), *wanted, *read_by(after), *others, *operands)))
    handed_on = [before.get(n, n) for n in read if n in before or n in before.values()]
    kept = [n for n in dict.fromkeys((*kept, *more, *handed_on)) if n not in outputs | each]
    forward = needed_for(forward, (*(at[n] for n in (*stage.carries.values(), *stage.outputs)), *kept))
    return Passes(of, once, forward, kept, before, backward, after, read)


def _keep(
    graph: Graph, equations: list[Equation], found: set[int], stuck: set[int], wanted: list[int], usual: float
) -> tuple[list[int], list[Equation]]:
    """What to keep of a step so that the wanted values are there later, and the equations that form the rest again.

    Formed again is what is cheap to form of what is there, and what is larger than usual.

    Args:
      found: values that are there anyway.
      stuck: carries that are not.
    """
    large = {id(e) for e in equations if not e.effect and max(map(graph.size, e.outputs), default=0) > usual}
    needed = set(wanted)
    for equation in reversed(equations):
        joins = equation.primitive == "concatenate" and not found.isdisjoint(equation.inputs)
        if (joins or id(equation) in large) and not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
    kept = sorted(stuck & needed)
    missing, again = (results_of(equations) | stuck) - found.union(kept), []
    for equation in equations:
        formed = id(equation) in large or (equation.primitive in CHEAP and not equation.effect)
        if formed and missing.isdisjoint(equation.inputs) and not missing.isdisjoint(equation.outputs):
            again.append(equation)
            missing.difference_update(equation.outputs)
        else:
            kept += [n for n in equation.outputs if n in missing and n in needed]
            missing.difference_update(kept)
    return kept, needed_for(again, wanted)


# ---- the two loops


def _forward(passes: Passes, time: Time, fixed: Values, carry: Values, each: Values) -> Any:
    """The loop's results, and what the backward pass needs: fixed values, first carries, and stacked values."""
    graph, at, stage = passes.of.graph, passes.of.at, passes.of.stage
    constants, starts, stacked = ({at[n]: x for n, x in part.items()} for part in (fixed, carry, each))
    constants = graph.run(passes.once, graph.constants | constants)

    def step(carry: Values, now: Values) -> tuple[Values, tuple[Values, Values]]:
        values = graph.run(passes.forward, constants | {at[n]: x for n, x in carry.items()} | now)
        outputs = {n: values[at[n]] for n in stage.outputs}
        return {n: values[at[new]] for n, new in stage.carries.items()}, (outputs, {n: values[n] for n in passes.kept})

    last, (outputs, kept) = time.loop(step, carry, stacked)
    stacked |= kept | {at[n]: x for n, x in outputs.items()}
    read = {n if n in stacked else passes.before.get(n, n) for n in passes.read}
    return (last, outputs), (
        {n: constants[n] for n in read if n in constants and n not in graph.literals},
        {n: starts[n] for n in passes.read if n in passes.before},
        {n: stacked[n] for n in read if n in stacked},
    )


def _backward(
    passes: Passes, time: Time, constants: Values, starts: Values, stacked: Values, d_last: Values, d_outputs: Values
) -> tuple[Values, ...]:
    """Gradients of the loop's arguments; None stands for those that nobody wants."""
    of, graph, gradients = passes.of, passes.of.graph, passes.of.gradients
    fixed, carries, each = of.given
    constants = graph.literals | constants
    stacked = stacked | {n: time.before(x, stacked[passes.before[n]]) for n, x in starts.items() if n not in stacked}
    d_now = {to: d_outputs[n] for n, to in of.d_outputs.items() if not isinstance(d_outputs[n], SymbolicZero)}
    d_last = {n: d for n, d in d_last.items() if not isinstance(d, SymbolicZero)}
    put_out = {gradients[n] for n in (*each, *(tap.zero for tap in of.taps)) if n in gradients}

    def step(carry: tuple[Values, Values], now: Values) -> tuple[tuple[Values, Values], Values]:
        d_carries, sums = carry
        absent = {to: _zeros(graph, to) for to in of.d_outputs.values() if to not in now}
        values = {to: d_carries[n] for n, to in of.d_carries.items()}
        values = graph.run(passes.backward, constants | absent | values | now)
        sums = {n: total + values[gradients[n]] for n, total in sums.items()}
        return ({n: values[gradients[n]] for n in d_carries}, sums), {n: values[n] for n in put_out}

    start = {n: d_last[n] if n in d_last else _zeros(graph, to) for n, to in of.d_carries.items()}
    sums = {n: _zeros(graph, gradients[n]) for n in fixed if n in gradients}
    in_loop = {*read_by(passes.backward), *gradients.values()}
    now = {n: x for n, x in (stacked | d_now).items() if n in in_loop}
    (d_carries, d_fixed), d_stacked = time._replace(reverse=not time.reverse).loop(step, (start, sums), now)

    stacked |= graph.run_at_once(passes.after, stacked, constants, time.length)
    for tap in of.taps:
        others = ({n: known[of.at[n]] for n in tap.others if of.at[n] in known} for known in (stacked, constants))
        gradient = tap.gradient(of.step, constants[of.at[tap.operand]], *others, d_stacked[gradients[tap.zero]])
        d_fixed[tap.operand] = d_fixed[tap.operand] + gradient if tap.operand in d_fixed else gradient
    d_each = {n: d_stacked[gradients[n]] for n in each if n in gradients}
    parts = zip(of.given, (d_fixed, d_carries, d_each), strict=True)
    return tuple({n: found.get(n) for n in numbers} for numbers, found in parts)


def _zeros(graph: Graph, value: int) -> Array:
    """Zeros like a value; also in what varies over devices, which its type says in a way of each JAX's own."""
    return jnp.zeros_like(jax.eval_shape(lambda x: x, graph.types[value]))
