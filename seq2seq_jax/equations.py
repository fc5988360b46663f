"""What a function computes, as equations that can be cut apart, reordered and run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jaxtyping import Array

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
"""Primitives that only call a function, and where they keep it."""
FEW = 4
"""Kernels side by side, such as those of two directions, that are multiplied one after another."""


class Equation(NamedTuple):
    """One operation on values, which are known by numbers.

    Attributes:
      primitive: name of JAX's primitive.
      params: its parameters.
      inputs: numbers of its operands, in their order; those written into it as literals have none.
      outputs: numbers of its results.
      apply: from the operands to the list of results.
      effect: whether it does more than that, such as printing.
    """

    primitive: str
    params: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    apply: Callable[..., Sequence[Any]]
    effect: bool = False


@dataclass
class Graph:
    """The equations of a function in an order in which they can be run.

    Attributes:
      types: shape and dtype of every value.
      constants: arrays that the function closes over.
      literals: numbers written into it.
    """

    equations: list[Equation]
    inputs: list[int]
    outputs: list[int]
    types: list[Any]
    constants: dict[int, Array]
    literals: dict[int, np.ndarray]

    def new(self, type_: Any) -> int:
        """The number of a new value."""
        self.types.append(type_)
        return len(self.types) - 1

    def size(self, value: int) -> int:
        """Elements of a value."""
        return self.types[value].size

    def is_real(self, value: int) -> bool:
        """Whether a value can have a gradient."""
        return jnp.issubdtype(self.types[value].dtype, jnp.inexact)

    def run(self, equations: Iterable[Equation], known: dict[int, Any]) -> dict[int, Any]:
        """Adds to the known values those that the equations compute."""
        values = self.literals | known
        for equation in equations:
            results = equation.apply(*(values[number] for number in equation.inputs))
            values.update(zip(equation.outputs, results, strict=True))
        return values

    def run_at_once(
        self, equations: Sequence[Equation], stacked: dict[int, Any], fixed: dict[int, Any], length: int
    ) -> dict[int, Any]:
        """What the equations compute at all steps, [T, ...]: from values of all steps, and from others the same at each."""
        made = sorted(results_of(equations))
        read = [number for number in read_by(equations) if number not in self.literals]

        def step(*values: Any) -> list[Any]:
            found = self.run(equations, dict(zip(read, values, strict=True)))
            return [found[number] for number in made]

        axes = [0 if number in stacked else None for number in read]
        values = [stacked[number] if number in stacked else fixed[number] for number in read]
        return dict(zip(made, jax.vmap(step, axes, axis_size=length)(*values), strict=True)) if made else {}

    def call(self, function: Callable, *inputs: int) -> tuple[list[Equation], list[int]]:
        """The equations of a function of some values, and the numbers of its results."""
        return _inlined(self, jax.make_jaxpr(function)(*(self.types[number] for number in inputs)), inputs)


def trace(function: Callable, *arguments: Any) -> tuple[Graph, Any]:
    """Returns the equations of a function of trees of arrays, calls inlined, and what its result looks like."""
    closed, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = Graph([], [], [], [], {}, {})
    graph.inputs = [graph.new(variable.aval) for variable in closed.jaxpr.invars]
    graph.equations, graph.outputs = _inlined(graph, closed, graph.inputs)
    return graph, result


def _inlined(graph: Graph, closed: ClosedJaxpr, inputs: Sequence[int]) -> tuple[list[Equation], list[int]]:
    """A jaxpr's equations with values of the graph, and the numbers of its results."""
    jaxpr, equations = closed.jaxpr, []
    numbers = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, closed.consts, strict=True):
        numbers[variable] = graph.new(variable.aval)
        graph.constants[numbers[variable]] = jnp.asarray(constant)

    def number(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return numbers[atom]
        literal = graph.new(atom.aval)
        graph.literals[literal] = np.asarray(atom.val, atom.aval.dtype)
        return literal

    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            called = equation.params[_CALLS[equation.primitive.name]]
            inner, results = _inlined(graph, called, [number(atom) for atom in equation.invars])
            equations += inner
            numbers.update(zip(equation.outvars, results, strict=True))
            continue
        made = [variable for variable in equation.outvars if not isinstance(variable, DropVar)]
        operands = [atom for atom in equation.invars if not isinstance(atom, Literal)]
        numbers.update((variable, graph.new(variable.aval)) for variable in made)
        equations.append(
            Equation(
                equation.primitive.name,
                equation.params,
                tuple(numbers[atom] for atom in operands),
                tuple(numbers[variable] for variable in made),
                _function_of(equation, operands, made, jaxpr.debug_info),
                bool(equation.effects),
            )
        )
    return equations, [number(atom) for atom in jaxpr.outvars]


def _function_of(equation: JaxprEqn, operands: list[Any], made: list[Any], debug_info: Any) -> Callable:
    """Equations are run as small jaxprs: what it takes to bind a primitive changes from one JAX to the next."""
    once = list(dict.fromkeys(operands))
    run = jaxpr_as_fun(ClosedJaxpr(Jaxpr((), once, made, [equation], equation.effects, debug_info), ()))
    places = [operands.index(variable) for variable in once]
    return lambda *values: run(*(values[place] for place in places))


def needed_for(equations: Sequence[Equation], outputs: Iterable[int]) -> list[Equation]:
    """Those equations that some output depends on, or that have an effect."""
    needed, kept = set(outputs), []
    for equation in reversed(equations):
        if equation.effect or not needed.isdisjoint(equation.outputs):
            kept.append(equation)
            needed.update(equation.inputs)
    return kept[::-1]


def divide(
    equations: Iterable[Equation], values: Iterable[int], *, effects: bool = False
) -> tuple[list[Equation], list[Equation]]:
    """Those equations that depend on none of the values, and those that do, or with `effects` have one."""
    reached, apart, touched = set(values), [], []
    for equation in equations:
        if (effects and equation.effect) or not reached.isdisjoint(equation.inputs):
            touched.append(equation)
            reached.update(equation.outputs)
        else:
            apart.append(equation)
    return apart, touched


def results_of(equations: Iterable[Equation]) -> set[int]:
    """All values that the equations compute."""
    return {value for equation in equations for value in equation.outputs}


def read_by(equations: Sequence[Equation]) -> list[int]:
    """Values that the equations need and do not compute, in the order in which they are read first."""
    made = results_of(equations)
    return list(dict.fromkeys(value for equation in equations for value in equation.inputs if value not in made))


def largest_inside(equation: Equation) -> int:
    """Elements of the largest array that an equation forms on the way to its results, if it is a function's call."""
    inner = (inner for jaxpr in jaxprs_in(equation.params) for inner in jaxpr.eqns)
    types = (variable.aval for equation in _all_equations(inner) for variable in equation.outvars)
    return max((type_.size for type_ in types if hasattr(type_, "size")), default=0)


def _all_equations(equations: Iterable[JaxprEqn]) -> Iterator[JaxprEqn]:
    for equation in equations:
        yield equation
        for jaxpr in jaxprs_in(equation.params):
            yield from _all_equations(jaxpr.eqns)


def jaxprs_in(params: dict[str, Any]) -> Iterator[Any]:
    """The functions among the parameters of a primitive."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item


def multiplies_rows(graph: Graph, equation: Equation) -> bool:
    """Whether an equation is a product of rows [..., I] with a kernel [I, O], or of [Z, ..., I] with a few [Z, I, O].

    Only if it asks for no other precision or dtype than `rows @ kernel` has.
    """
    if equation.primitive != "dot_general" or len(equation.inputs) != 2:
        return False
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    rows, kernel = (graph.types[number] for number in equation.inputs)
    batch = tuple(range(kernel.ndim - 2))
    return (
        (not batch or (len(batch) == 1 and kernel.shape[0] <= FEW and rows.ndim > 2))
        and tuple(left_batch) == tuple(right_batch) == batch
        and (tuple(left), tuple(right)) == ((rows.ndim - 1,), (len(batch),))
        and rows.dtype == kernel.dtype
        and equation.params["preferred_element_type"] in (None, rows.dtype)
        and equation.params["precision"] is None
    )
