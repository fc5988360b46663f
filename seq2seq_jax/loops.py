"""One loop over time whose gradients of what stays the same are formed after it.

Automatic differentiation of `jax.lax.scan` adds the gradient of a weight to an
accumulator at every step: one skinny product and one pass over the accumulator
each time. Here the backward loop puts out the gradient of each *result* that is
linear in such an operand, and the operand's gradient is one product over all
steps and rows after the loop.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial
from jaxtyping import Array

from seq2seq_jax.equations import Equation, Graph, multiplies_rows, needed_for, read_by, trace
from seq2seq_jax.products import kernel_gradient, sum_to

LINEAR = ("dot_general", "gather", "add", "sub", "mul")
"""Primitives whose result is linear (or affine) in each operand that may be the same at every step."""
FORMED_AGAIN = (
    *("add", "sub", "mul", "neg", "not", "and", "or", "eq", "ne", "lt", "le", "gt", "ge", "select_n", "copy"),
    *("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "expand_dims", "transpose", "stop_gradient"),
)
"""Primitives so cheap that the backward loop computes their results again where it has what they are made of."""
STEPS_A_TRIP = 16
"""On a GPU, where every trip of a loop costs some kernels that do nothing but count and copy."""


class Body(NamedTuple):
    """What is done at every step of a loop; values are known by their numbers in `graph`.

    Attributes:
      equations: in an order in which they can be run.
      fixed: values that are the same at every step.
      each: values of which every step has its own.
      carries: values handed from one step to the next, as a step is given them.
      new_carries: the same as a step hands them on.
      outputs: values wanted of every step.
      usual: elements of the largest value that may be stacked over time for a gradient after the loop.
    """

    graph: Graph
    equations: list[Equation]
    fixed: list[int]
    each: list[int]
    carries: list[int]
    new_carries: list[int]
    outputs: list[int]
    usual: int

    def step(self, known: dict[int, Any]) -> tuple[list[Array], list[Array]]:
        values = self.graph.run(self.equations, known)
        return [values[n] for n in self.new_carries], [values[n] for n in self.outputs]


def run_loop(
    body: Body, fixed: list[Array], carry: list[Array], each: list[Array], length: int, unroll: int | None
) -> tuple[list[Array], list[Array]]:
    """Returns the last carries, and the outputs of all steps, [T, ...]."""

    @jax.custom_vjp
    def run(fixed: list[Array], carry: list[Array], each: list[Array]) -> tuple[list[Array], list[Array]]:
        known = dict(zip(body.fixed, fixed, strict=True))

        def step(carry: list[Array], now: list[Array]) -> tuple[list[Array], list[Array]]:
            return body.step(known | dict(zip((*body.carries, *body.each), (*carry, *now), strict=True)))

        return steps(step, carry, each, length, unroll=unroll)

    def forward(*arguments: Any) -> tuple[tuple[list[Array], list[Array]], Partial]:
        values, perturbed = (
            jax.tree.map(lambda leaf, name=name: getattr(leaf, name), arguments) for name in ("value", "perturbed")
        )
        return _Differentiated(body, perturbed[0], perturbed[2], length, unroll).forward(*values)

    run.defvjp(forward, lambda backward, cotangents: backward(*cotangents), symbolic_zeros=True)
    return run(fixed, carry, each)


def steps(
    step: Callable, carry: Any, xs: Any, length: int, *, reverse: bool = False, unroll: int | None = None
) -> tuple[Any, Any]:
    """`jax.lax.scan` with as many steps in a trip of the loop as the device likes, unless `unroll` says how many."""

    def scan(num_steps: int) -> Callable:
        return lambda carry, xs: jax.lax.scan(step, carry, xs, length, reverse, num_steps)

    if unroll is not None or length == 1:
        return scan(unroll or 1)(carry, xs)
    many = scan(min(length, STEPS_A_TRIP))
    return jax.lax.platform_dependent(carry, xs, cuda=many, rocm=many, default=scan(1))


class _Tap(NamedTuple):
    """A use of a fixed operand whose gradient waits until after the loop."""

    equation: Equation
    operand: int
    lefts: tuple[int, ...]
    """The other operand, if there is one."""


class _Differentiated:
    """A loop with its backward loop."""

    def __init__(
        self, body: Body, fixed_moves: list[bool], each_moves: list[bool], length: int, unroll: int | None
    ) -> None:
        self.body, self.length, self.unroll = body, length, unroll
        self.types = body.graph.types
        moving = {n for n, moves in zip(body.fixed, fixed_moves, strict=True) if moves and self._is_real(n)}
        self.taps = [tap for equation in body.equations if (tap := self._tap(equation, moving))]
        tapped = {tap.equation.outputs[0]: tap.operand for tap in self.taps}
        self.summed = [
            n
            for n in body.fixed
            if n in moving
            and any(n in e.inputs and tapped.get(e.outputs[0] if e.outputs else -1) != n for e in body.equations)
        ]
        """Fixed operands whose gradients are added up in the loop."""
        self.each = [n for n, moves in zip(body.each, each_moves, strict=True) if moves and self._is_real(n)]
        self.carried = [place for place, n in enumerate(body.carries) if self._is_real(n)]
        self.wanted = [place for place, n in enumerate(body.outputs) if self._is_real(n)]

    def _is_real(self, number: int) -> bool:
        return jnp.issubdtype(self.types[number].dtype, jnp.inexact)

    def _tap(self, equation: Equation, moving: set[int]) -> _Tap | None:
        if equation.primitive not in LINEAR or len(moving.intersection(equation.inputs)) != 1:
            return None
        (operand,) = moving.intersection(equation.inputs)
        lefts = tuple(n for n in equation.inputs if n != operand)
        if (
            equation.inputs.count(operand) != 1
            or max(map(self.body.graph.size, (*lefts, *equation.outputs))) > self.body.usual
        ):
            return None
        return _Tap(equation, operand, () if equation.primitive in ("add", "sub") else lefts)

    # ---- one step and its linearisation

    def _linearize(self) -> None:
        """Traces a step with what its backward step needs of it, and that."""
        body, structure = self.body, []
        operands = [body.fixed, body.carries, body.each]

        def forward(*values: list[Array]) -> Any:
            known = dict(zip(sum(operands, []), sum(values, []), strict=True))
            moving = [
                [known[n] for n in self.summed],
                [values[1][p] for p in self.carried],
                [known[n] for n in self.each],
            ]
            taps = [jnp.zeros(t.shape, t.dtype) for t in (self.types[tap.equation.outputs[0]] for tap in self.taps)]
            _, pullback, results = jax.vjp(lambda *moving: self._step(known, *moving), *moving, taps, has_aux=True)
            structure[:] = [jax.tree.structure(pullback)]
            return *results, jax.tree.leaves(pullback)

        self.forward_graph, shapes = trace(forward, *([self.types[n] for n in part] for part in operands))
        self.inputs = _split(self.forward_graph.inputs, operands)
        self.results = _split(self.forward_graph.outputs, shapes)  # new carries, outputs, left sides, residuals

        def backward(residuals: list[Array], d_carry: list[Array], d_outputs: list[Array]) -> Any:
            return jax.tree.unflatten(structure[0], residuals)((d_carry, d_outputs))

        arguments = (
            shapes[3],
            [self.types[body.new_carries[p]] for p in self.carried],
            [self.types[body.outputs[p]] for p in self.wanted],
        )
        self.backward_graph, shapes = trace(backward, *arguments)
        self.backward_equations = needed_for(self.backward_graph.equations, self.backward_graph.outputs)
        self.residuals, self.d_carry, self.d_outputs = _split(self.backward_graph.inputs, arguments)
        self.d_summed, self.d_carried, self.d_each, self.d_taps = _split(self.backward_graph.outputs, shapes)

    def _step(self, known: dict[int, Array], summed: list, carried: list, each: list, taps: list) -> Any:
        """A step as a function of what it is differentiated by; and all of its results beside."""
        body = self.body
        carries = [body.carries[place] for place in self.carried]
        values = body.graph.literals | known
        values |= dict(zip((*self.summed, *carries, *self.each), (*summed, *carried, *each), strict=True))
        tap_of = {id(tap.equation): (tap, added) for tap, added in zip(self.taps, taps, strict=True)}
        for equation in body.equations:
            inputs = {n: values[n] for n in equation.inputs}
            tap, added = tap_of.get(id(equation), (None, None))
            if tap:
                inputs[tap.operand] = known[tap.operand]
            results = equation.apply(*(inputs[n] for n in equation.inputs))
            values.update(zip(equation.outputs, [_tapped(results[0], added)] if tap else results, strict=True))
        new_carries, outputs = ([values[n] for n in numbers] for numbers in (body.new_carries, body.outputs))
        lefts = [[values[n] for n in tap.lefts] for tap in self.taps]
        moved = [new_carries[place] for place in self.carried], [outputs[place] for place in self.wanted]
        return moved, (new_carries, outputs, lefts)

    # ---- what the backward loop is given

    def _choose_residuals(self) -> None:
        """Of what the backward pass needs, nothing is kept that is there anyway or is formed again cheaply."""
        graph, body = self.forward_graph, self.body
        fixed, carries, each = self.inputs
        new_carries, outputs, lefts, residuals = self.results
        self.constant = set(fixed) | set(graph.constants) | set(graph.literals)
        self.once = []
        for equation in graph.equations:
            if self.constant.issuperset(equation.inputs) and not equation.effect:
                self.once.append(equation)
                self.constant.update(equation.outputs)
        used = set(read_by(self.backward_equations)) | set(self.backward_graph.outputs)
        self.used = [(n, value) for n, value in zip(self.residuals, residuals, strict=True) if n in used]
        in_loop = [value for _, value in self.used if value not in self.constant]
        # A carry is what was put out one step earlier.
        self.before = {
            carry: new for carry, new in zip(carries, new_carries, strict=True) if new in outputs and new not in each
        }
        available = self.constant | set(each) | set(outputs) | set(self.before)
        maker = {value: equation for equation in graph.equations for value in equation.outputs}
        self.saved: list[int] = []

        def find(value: int) -> bool:
            """Whether a value can be had in the backward loop."""
            equation = maker.get(value)
            cheap = equation is not None and equation.primitive in FORMED_AGAIN and not equation.effect
            return value in available or (cheap and all(map(find, equation.inputs)))

        order = {value: place for place, value in enumerate((*graph.inputs, *maker))}
        left_sides = [value for pair in lefts for value in pair if value not in self.constant]
        for value in sorted(set(in_loop), key=lambda value: order.get(value, -1)):
            if not find(value):
                self.saved.append(value)
                available.add(value)
        self.again = needed_for([e for e in graph.equations if available.isdisjoint(e.outputs)], in_loop)
        self.read = [
            value
            for value in dict.fromkeys((*read_by(self.again), *in_loop))
            if value in available and value not in self.constant
        ]
        for value in dict.fromkeys(left_sides):
            if value not in available:
                self.saved.append(value)
                available.add(value)

    # ---- the two passes

    def forward(self, fixed: list[Array], carry: list[Array], each: list[Array]) -> Any:
        """The loop's results, and the function that takes their gradients to those of its arguments."""
        self._linearize()
        self._choose_residuals()
        graph, body = self.forward_graph, self.body
        fixed_numbers, carry_numbers, each_numbers = self.inputs
        constants = graph.run(self.once, graph.constants | dict(zip(fixed_numbers, fixed, strict=True)))
        new_carries, outputs, lefts, _ = self.results
        wanted = list(dict.fromkeys((*outputs, *self.saved)))
        equations = needed_for(
            [e for e in graph.equations if not self.constant.issuperset(e.outputs) or e.effect], (*new_carries, *wanted)
        )

        def step(carry: list[Array], now: list[Array]) -> tuple[list[Array], list[Array]]:
            known = dict(zip((*carry_numbers, *each_numbers), (*carry, *now), strict=True))
            values = graph.run(equations, constants | known)
            return [values[n] for n in new_carries], [values[n] for n in wanted]

        last, found = steps(step, carry, each, self.length, unroll=self.unroll)
        stacked = dict(zip(wanted, found, strict=True)) | dict(zip(each_numbers, each, strict=True))
        starts = dict(zip(carry_numbers, carry, strict=True))
        stacked |= {
            value: before(starts[value], stacked[self.before[value]])
            for value in (*self.read, *(left for pair in lefts for left in pair))
            if value in self.before and value not in stacked
        }
        kept = {value: stacked[value] for value in self.read}
        kept_lefts = [[stacked[n] if n in stacked else constants[n] for n in pair] for pair in lefts]
        needed = {value for _, value in self.used} | set(read_by(self.again)) | set(self.body.fixed and fixed_numbers)
        kept_constants = {n: constants[n] for n in needed if n in constants and n not in graph.literals}
        return (last, [stacked[n] for n in outputs]), Partial(self.backward, kept_constants, kept, kept_lefts)

    def backward(
        self, constants: dict[int, Array], kept: dict[int, Array], lefts: list, d_last: list, d_outputs: list
    ) -> tuple[list, list, list]:
        """Gradients of the loop's arguments; None stands for those that nobody wants."""
        body, graph = self.body, self.backward_graph
        wanted = [(n, d_outputs[place]) for n, place in zip(self.d_outputs, self.wanted, strict=True)]
        given = {n: d for n, d in wanted if not isinstance(d, SymbolicZero)}
        zeros = {n: jnp.zeros(d.shape[1:], d.dtype) for n, d in wanted if isinstance(d, SymbolicZero)}
        stacked_outputs = list(dict.fromkeys((*self.d_each, *self.d_taps)))

        def step(carry: tuple[list, list], now: tuple[dict, dict]) -> tuple[tuple[list, list], list]:
            d_carry, sums = carry
            values = self.forward_graph.run(self.again, constants | now[0])
            known = {n: values[value] for n, value in self.used} | zeros | now[1]
            found = graph.run(
                self.backward_equations, graph.constants | known | dict(zip(self.d_carry, d_carry, strict=True))
            )
            sums = [total + found[n] for total, n in zip(sums, self.d_summed, strict=True)]
            return ([found[n] for n in self.d_carried], sums), [found[n] for n in stacked_outputs]

        start = (
            [_instantiated(d_last[place]) for place in self.carried],
            [_zeros(graph.types[n]) for n in self.d_summed],
        )
        (d_carry, sums), found = steps(step, start, (kept, given), self.length, reverse=True, unroll=self.unroll)
        stacked = dict(zip(stacked_outputs, found, strict=True))
        d_fixed = dict(zip(self.summed, sums, strict=True))
        fixed = dict(zip(body.fixed, self.inputs[0], strict=True))
        for tap, d_tap, left in zip(self.taps, self.d_taps, lefts, strict=True):
            gradient = _operand_gradient(body.graph, tap, constants[fixed[tap.operand]], left, stacked[d_tap])
            d_fixed[tap.operand] = d_fixed[tap.operand] + gradient if tap.operand in d_fixed else gradient
        d_each = dict(zip(self.each, self.d_each, strict=True))
        carried = dict(zip(self.carried, d_carry, strict=True))
        return (
            [d_fixed.get(n) for n in body.fixed],
            [carried.get(place) for place in range(len(body.carries))],
            [stacked[d_each[n]] if n in d_each else None for n in body.each],
        )


def before(start: Array, stacked: Array) -> Array:
    """Of every step what it was one step earlier, [T, ...]."""
    return jnp.concatenate([start[None], stacked[:-1]])


def _operand_gradient(graph: Graph, tap: _Tap, operand: Array, left: list[Array], d_results: Array) -> Array:
    """The one product over all steps."""
    equation = tap.equation
    if equation.primitive in ("add", "sub"):
        gradient = sum_to(operand.shape, d_results)
        return -gradient if equation.primitive == "sub" and equation.inputs[-1] == tap.operand else gradient
    if multiplies_rows(graph, equation) and equation.inputs[1] == tap.operand:
        flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        if operand.ndim == 2:
            return kernel_gradient(flat(left[0]), flat(d_results))
        pairs = ((left[0][:, z], d_results[:, z]) for z in range(len(operand)))
        return jnp.stack([kernel_gradient(flat(rows), flat(d_rows)) for rows, d_rows in pairs])

    def of_all_steps(operand: Array) -> Array:
        def of_a_step(*left: Array) -> Array:
            others = iter(left)
            return equation.apply(*(operand if n == tap.operand else next(others) for n in equation.inputs))[0]

        return jax.vmap(of_a_step)(*left)

    return jax.vjp(of_all_steps, operand)[1](d_results)[0]


@jax.custom_vjp
def _tapped(result: Array, tap: Array) -> Array:
    """`result + tap` for a tap that is zero, without reading it."""
    return result


_tapped.defvjp(lambda result, tap: (result, None), lambda _, cotangent: (cotangent, cotangent))


def _split(values: Sequence[Any], like: Any) -> Any:
    """The values, in the order of the leaves of a tree, as that tree."""
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _zeros(type_: Any) -> Array:
    return jnp.zeros(type_.shape, type_.dtype)


def _instantiated(cotangent: Any) -> Array:
    return _zeros(cotangent) if isinstance(cotangent, SymbolicZero) else cotangent
