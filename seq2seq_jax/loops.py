"""One loop over time whose gradients of what stays the same are formed after it.

Automatic differentiation of `jax.lax.scan` adds the gradient of a weight to an
accumulator at every step: one skinny product and one pass over the accumulator
each time. Here the backward loop puts out the gradient of each *result* that is
linear in such an operand, and the operand's gradient is one product over all
steps and rows after the loop.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial
from jaxtyping import Array

from seq2seq_jax.equations import Equation, Graph, divide, multiplies_rows, needed_for, read_by, results_of, trace
from seq2seq_jax.products import kernel_gradient, sum_to

PRODUCTS = ("dot_general", "gather", "dynamic_slice", "mul", "select_n")
"""Primitives linear in an operand whose gradient depends on the other operands."""
SUMS = ("add", "sub", "concatenate")
"""Primitives linear in an operand whose gradient does not."""
CHEAP = (
    *("add", "sub", "mul", "neg", "not", "and", "or", "eq", "ne", "lt", "le", "gt", "ge", "select_n", "copy"),
    *("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "expand_dims", "transpose", "stop_gradient"),
    *("concatenate", "slice", "split", "iota"),
)
"""Primitives whose results the backward loop computes again where it has what they are made of."""
STEPS_A_TRIP = 16
"""On a GPU, where every trip of a loop costs some kernels that do nothing but count and copy."""


class Time(NamedTuple):
    """How many steps there are, from the last to the first if `reverse`; and steps in a trip of a loop, if said."""

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


class Body(NamedTuple):
    """What is done at every step of a loop; values are known by their numbers in `graph`.

    Attributes:
      equations: in an order in which they can be run.
      fixed: values that are the same at every step.
      each: values of which every step has its own.
      carries: values handed from one step to the next, as a step is given them.
      new_carries: the same as a step hands them on.
      outputs: values wanted of every step.
      usual: elements of the largest value that may be stacked over time for a gradient.
    """

    graph: Graph
    equations: list[Equation]
    fixed: list[int]
    each: list[int]
    carries: list[int]
    new_carries: list[int]
    outputs: list[int]
    usual: int


def run_loop(body: Body, fixed: list, carry: list, each: list, time: Time) -> tuple[list, list]:
    """Returns the last carries, and the outputs of all steps, [T, ...]."""

    @jax.custom_vjp
    def run(fixed: list, carry: list, each: list) -> tuple[list, list]:
        def step(carry: list, now: list) -> tuple[list, list]:
            known = zip((*body.fixed, *body.carries, *body.each), (*fixed, *carry, *now), strict=True)
            values = body.graph.run(body.equations, dict(known))
            return [values[n] for n in body.new_carries], [values[n] for n in body.outputs]

        return time.loop(step, carry, each)

    def forward(*arguments: Any) -> tuple[tuple[list, list], Partial]:
        values, perturbed = (
            jax.tree.map(lambda leaf, name=name: getattr(leaf, name), arguments) for name in ("value", "perturbed")
        )
        numbers = zip((*body.fixed, *body.each), (*perturbed[0], *perturbed[2]), strict=True)
        moving = {n for n, moves in numbers if moves and body.graph.is_real(n)}
        passes = _passes(body, moving)
        results, kept = _forward(passes, time, *values)
        return results, Partial(partial(_backward, passes, time), *kept)

    run.defvjp(forward, lambda backward, cotangents: backward(*cotangents), symbolic_zeros=True)
    return run(fixed, carry, each)


# ---- gradients after the loop


class Tap(NamedTuple):
    """A use of a fixed operand whose gradient is formed after the loop, from that of its result.

    Attributes:
      equation: the use.
      operand: the fixed value.
      others: its other operands, where the gradient depends on them.
      added: number of a zero that is added to the result: it has the result's gradient.
    """

    equation: Equation
    operand: int
    others: tuple[int, ...]
    added: int

    def applied(self, *values: Array) -> list[Array]:
        """The equation's result, in which the operand has no gradient and the last value has the result's."""
        *values, added = values
        places = zip(self.equation.inputs, values, strict=True)
        values = [jax.lax.stop_gradient(value) if n == self.operand else value for n, value in places]
        return [_tapped(self.equation.apply(*values)[0], added)]

    def gradient(self, graph: Graph, operand: Array, others: dict[int, Array], axes: dict, d_results: Array) -> Array:
        """The operand's, from the other operands and the gradients of the result at all steps: one product."""
        equation = self.equation

        def step(operand: Array, others: dict[int, Array]) -> Array:
            return equation.apply(*(operand if n == self.operand else others[n] for n in equation.inputs))[0]

        if equation.primitive in SUMS:
            types = [(n, graph.types[n]) for n in equation.inputs if n != self.operand]
            zeros = {n: jnp.zeros(type_.shape, type_.dtype) for n, type_ in types}
            total = sum_to(d_results.shape[1:], d_results)
            return jax.vjp(lambda operand: step(operand, zeros), operand)[1](total)[0]
        if multiplies_rows(graph, equation) and equation.inputs[1] == self.operand:
            rows = others[equation.inputs[0]]
            if operand.ndim == 2:
                return _kernel_gradient(rows, d_results)
            return jnp.stack([_kernel_gradient(rows[:, z], d_results[:, z]) for z in range(len(operand))])
        every_step = lambda operand: jax.vmap(step, (None, axes))(operand, others)  # noqa: E731
        return jax.vjp(every_step, operand)[1](d_results)[0]


def taps_of(body: Body, moving: Iterable[int]) -> list[Tap]:
    """Uses of fixed values that get their gradients after the loop, of those that have one."""
    moving, taps = set(moving).intersection(body.fixed), []
    for equation in body.equations:
        operands = [n for n in equation.inputs if n in moving]
        others = tuple(n for n in equation.inputs if n not in moving)
        large = max(map(body.graph.size, (*others, *equation.outputs)), default=0) > body.usual
        if equation.primitive in (*PRODUCTS, *SUMS) and len(operands) == 1 and not large:
            others = others if equation.primitive in PRODUCTS else ()
            added = body.graph.new(body.graph.types[equation.outputs[0]])
            taps.append(Tap(equation, operands[0], others, added))
    return taps


@jax.custom_vjp
def _tapped(result: Array, added: Array) -> Array:
    """`result + added` for a zero that is not read."""
    return result


_tapped.defvjp(lambda result, added: (result, None), lambda _, cotangent: (cotangent, cotangent))


def _kernel_gradient(rows: Array, d_results: Array) -> Array:
    return kernel_gradient(rows.reshape(-1, rows.shape[-1]), d_results.reshape(-1, d_results.shape[-1]))


# ---- a step there and back


class Passes(NamedTuple):
    """A step of a loop and its backward step: equations of one graph.

    Attributes:
      at: numbers in this graph of the body's values.
      gradients: numbers of the gradients of the body's values, and of what taps add.
      d_carries: numbers of the gradients of the carries handed on, by place: a backward step is given them.
      d_outputs: numbers of the gradients of the outputs, by number in the body.
      once: what is the same at every step, run before the forward loop.
      forward: the forward loop.
      kept: what it puts out besides its outputs.
      backward: the backward loop; the first equations form again what was not kept.
      after: what gradients after the loop need, formed for all steps at once.
      before: of carries, by number, the value that each is one step later.
      read: values that the backward loop, and what comes after it, read of the forward pass.
    """

    body: Body
    taps: list[Tap]
    graph: Graph
    at: dict[int, int]
    gradients: dict[int, int]
    d_carries: dict[int, int]
    d_outputs: dict[int, int]
    once: list[Equation]
    forward: list[Equation]
    kept: list[int]
    backward: list[Equation]
    after: list[Equation]
    before: dict[int, int]
    read: list[int]


def _passes(body: Body, moving: set[int]) -> Passes:
    """Differentiates a step by the carries, by the moving ones of the values it reads, and by what taps add."""
    taps = taps_of(body, moving)
    graph, at, residuals, gradients, d_carries, d_outputs = _there_and_back(body, taps, moving)
    there, _ = divide(graph.equations, (*d_carries.values(), *d_outputs.values()))
    there = needed_for(there, (*at.values(), *residuals))
    ids = set(map(id, there))
    back = [e for e in needed_for(graph.equations, gradients.values()) if id(e) not in ids]
    changing = {at[n] for n in (*body.carries, *body.each)}
    once, forward = divide(there, changing, effects=True)
    changing |= results_of(forward)

    # Nothing is kept that is there anyway: a carry is what was put out one step earlier.
    each, outputs = ({at[n] for n in numbers} for numbers in (body.each, body.outputs))
    pairs = zip(body.carries, body.new_carries, strict=True)
    before = {at[c]: at[new] for c, new in pairs if at[new] in results_of(forward) | each}
    found = each | outputs | set(before)
    in_loop = [n for n in (*read_by(back), *gradients.values()) if n in changing]
    stuck = [at[c] for c in body.carries if at[c] not in before]
    kept, again = _keep(graph, forward, found, stuck, in_loop, body.usual)
    lefts = [at[n] for tap in taps for n in tap.others]
    more, after = _keep(graph, forward, found.union(kept), stuck, [n for n in lefts if n in changing], math.inf)
    backward = [*again, *back]
    operands = (at[tap.operand] for tap in taps)
    read = list(dict.fromkeys((*read_by(backward), *in_loop, *read_by(after), *lefts, *operands)))
    put_out = [before[n] for n in read if n in before and before[n] not in each]
    kept = [n for n in dict.fromkeys((*kept, *more, *put_out)) if n not in outputs]
    wanted = (*(at[n] for n in body.new_carries), *outputs, *kept)
    forward = needed_for(forward, wanted)
    return Passes(
        body, taps, graph, at, gradients, d_carries, d_outputs, once, forward, kept, backward, after, before, read
    )


def _there_and_back(body: Body, taps: list[Tap], moving: set[int]) -> tuple[Graph, dict, list, dict, dict, dict]:
    """One graph of a step and of its backward step; the numbers in it of what `Passes` says, and of what joins the two."""
    of_equation = {id(tap.equation): tap for tap in taps}
    equations, read = [], {*body.new_carries, *body.outputs}
    for equation in body.equations:
        tap = of_equation.get(id(equation))
        read.update(n for n in equation.inputs if tap is None or n != tap.operand)
        inputs = equation.inputs if tap is None else (*equation.inputs, tap.added)
        equations.append(equation if tap is None else equation._replace(inputs=inputs, apply=tap.applied))
    types, real = body.graph.types, body.graph.is_real
    given = (*body.fixed, *body.carries, *body.each)
    sources = [n for n in (*body.fixed, *body.each) if n in moving & read] + list(filter(real, body.carries))
    new_carries = {place: n for place, n in enumerate(body.new_carries) if real(n)}
    outputs = {n: n for n in body.outputs if real(n)}
    wanted = {*body.new_carries, *body.outputs}.union(*(tap.others for tap in taps))

    def both(given: dict[int, Array], d_carries: dict[int, Array], d_outputs: dict[int, Array]) -> Any:
        known = given | {tap.added: _zeros(types[tap.added]) for tap in taps}

        def step(moving: dict[int, Array]) -> Any:
            values = body.graph.run(equations, known | moving)
            results = ({key: values[n] for key, n in numbers.items()} for numbers in (new_carries, outputs))
            return tuple(results), {n: values[n] for n in wanted}

        moving = {n: known[n] for n in (*sources, *(tap.added for tap in taps))}
        _, pullback, values = jax.vjp(step, moving, has_aux=True)
        return values, jax.tree.leaves(pullback), pullback((d_carries, d_outputs))[0]

    arguments = [{key: types[n] for key, n in keys.items()} for keys in (dict(zip(given, given)), new_carries, outputs)]
    graph, result = trace(both, *arguments)
    at, d_carries, d_outputs = jax.tree.unflatten(jax.tree.structure(arguments), graph.inputs)
    values, residuals, gradients = jax.tree.unflatten(jax.tree.structure(result), graph.outputs)
    return graph, at | values, residuals, gradients, d_carries, d_outputs


def _keep(
    graph: Graph, equations: list[Equation], found: set[int], stuck: list[int], wanted: list[int], usual: float
) -> tuple[list[int], list[Equation]]:
    """What has to be kept so that the wanted values are there later, and the equations that form the rest of them again.

    Formed again is what is cheap to form of what is there, and what is larger than usual.

    Args:
      found: values of the loop that are there anyway.
      stuck: carries that are not.
    """
    large = {id(e) for e in equations if not e.effect and max(map(graph.size, e.outputs), default=0) > usual}
    needed = set(wanted)
    for equation in reversed(equations):
        if id(equation) in large and not needed.isdisjoint(equation.outputs):
            needed.update(equation.inputs)
    kept = [n for n in stuck if n in needed]
    missing, again = results_of(equations).union(stuck) - found.union(kept), []
    for equation in equations:
        cheap = id(equation) in large or (equation.primitive in CHEAP and not equation.effect)
        if cheap and missing.isdisjoint(equation.inputs):
            again += [equation] if not missing.isdisjoint(equation.outputs) else []
            missing.difference_update(equation.outputs)
        else:
            kept += [n for n in equation.outputs if n in missing and n in needed]
            missing.difference_update(kept)
    return kept, needed_for(again, wanted)


# ---- the two loops


def _forward(passes: Passes, time: Time, fixed: list, carry: list, each: list) -> tuple[tuple[list, list], tuple]:
    """The loop's results, and what the backward pass needs: fixed values, the first carries, and stacked ones."""
    body, graph, at = passes.body, passes.graph, passes.at
    constants = graph.run(passes.once, graph.constants | {at[n]: x for n, x in zip(body.fixed, fixed, strict=True)})
    starts = {at[n]: x for n, x in zip(body.carries, carry, strict=True)}
    stacked = {at[n]: x for n, x in zip(body.each, each, strict=True)}
    put_out = [n for n in dict.fromkeys((*(at[n] for n in body.outputs), *passes.kept))]

    def step(carry: list, now: dict[int, Array]) -> tuple[list, dict[int, Array]]:
        values = graph.run(passes.forward, constants | dict(zip(starts, carry, strict=True)) | now)
        return [values[at[n]] for n in body.new_carries], {n: values[n] for n in put_out}

    last, found = time.loop(step, carry, stacked)
    stacked |= found
    kept = {passes.before.get(n, n) if n not in stacked else n for n in passes.read}
    return (last, [stacked[at[n]] for n in body.outputs]), (
        {n: constants[n] for n in passes.read if n in constants and n not in graph.literals},
        {n: starts[n] for n in passes.read if n in passes.before},
        {n: stacked[n] for n in kept if n in stacked},
    )


def _backward(
    passes: Passes, time: Time, constants: dict, starts: dict, stacked: dict, d_last: list, d_outputs: list
) -> tuple[list, list, list]:
    """Gradients of the loop's arguments; None stands for those that nobody wants."""
    body, graph, gradients = passes.body, passes.graph, passes.gradients
    stacked = stacked | {n: time.before(x, stacked[passes.before[n]]) for n, x in starts.items() if n not in stacked}
    now = {n: stacked[n] for n in (*read_by(passes.backward), *gradients.values()) if n in stacked}
    d_of = dict(zip(body.outputs, d_outputs, strict=True))
    d_now = {at: d_of[n] for n, at in passes.d_outputs.items() if not isinstance(d_of[n], SymbolicZero)}
    absent = [at for at in passes.d_outputs.values() if at not in d_now]
    summed = [n for n in body.fixed if n in gradients]
    put_out = {gradients[n] for n in (*body.each, *(tap.added for tap in passes.taps)) if n in gradients}

    def step(carry: tuple[dict, dict], now: tuple[dict, dict]) -> tuple[tuple[dict, dict], dict]:
        d_carries, sums = carry
        known = constants | {n: _zeros(graph.types[n]) for n in absent} | d_carries | now[0] | now[1]
        values = graph.run(passes.backward, known)
        sums = {n: total + values[gradients[n]] for n, total in sums.items()}
        d_carries = {at: values[gradients[body.carries[place]]] for place, at in passes.d_carries.items()}
        return (d_carries, sums), {n: values[n] for n in put_out}

    zeros = lambda d: _zeros(d) if isinstance(d, SymbolicZero) else d  # noqa: E731
    start = {at: zeros(d_last[place]) for place, at in passes.d_carries.items()}
    sums = {n: _zeros(body.graph.types[n]) for n in summed}
    (d_carries, d_fixed), found = time._replace(reverse=not time.reverse).loop(step, (start, sums), (now, d_now))
    stacked |= graph.run_at_once(passes.after, stacked, constants, time.length)
    for tap in passes.taps:
        values = {n: passes.at[n] for n in tap.others}
        axes = {n: 0 if at in stacked else None for n, at in values.items()}
        others = {n: stacked[at] if at in stacked else (graph.literals | constants)[at] for n, at in values.items()}
        operand = constants[passes.at[tap.operand]]
        gradient = tap.gradient(body.graph, operand, others, axes, found[gradients[tap.added]])
        d_fixed[tap.operand] = d_fixed[tap.operand] + gradient if tap.operand in d_fixed else gradient
    return (
        [d_fixed.get(n) for n in body.fixed],
        [d_carries.get(passes.d_carries.get(place)) for place in range(len(body.carries))],
        [found[gradients[n]] if n in gradients else None for n in body.each],
    )


def _zeros(type_: Any) -> Array:
    return jnp.zeros(type_.shape, type_.dtype)
