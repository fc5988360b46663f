"""What a function computes, as equations that can be cut apart, reordered and run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
"""Primitives that only call a function, and where they keep it."""


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
    constants: dict[int, Any]
    literals: dict[int, np.ndarray]

    def new(self, type_: Any) -> int:
        """The number of a new value."""
        self.types.append(type_)
        return len(self.types) - 1

    def size(self, value: int) -> int:
        """Elements of a value."""
        return self.types[value].size

    def run(self, equations: Iterable[Equation], known: dict[int, Any]) -> dict[int, Any]:
        """Adds to the known values those that the equations compute."""
        values = self.literals | known
        for equation in equations:
            results = equation.apply(*(values[number] for number in equation.inputs))
            values.update(zip(equation.outputs, results, strict=True))
        return values


def trace(function: Callable, *arguments: Any) -> tuple[Graph, Any]:
    """Returns the equations of a function of trees of arrays, calls inlined, and what its result looks like."""
    closed, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = Graph([], [], [], [], {}, {})
    inputs = [graph.new(variable.aval) for variable in closed.jaxpr.invars]
    graph.inputs, graph.outputs = inputs, _inline(graph, closed.jaxpr, closed.consts, inputs)
    return graph, result


def _inline(graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[int]) -> list[int]:
    """Adds a jaxpr's equations to the graph; the numbers of its results."""
    numbers = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        numbers[variable] = graph.new(variable.aval)
        graph.constants[numbers[variable]] = jnp.asarray(constant)  # NumPy arrays are kept as they were closed over

    def number(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return numbers[atom]
        literal = graph.new(atom.aval)
        graph.literals[literal] = np.asarray(atom.val, atom.aval.dtype)
        return literal

    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            called = equation.params[_CALLS[equation.primitive.name]]
            results = _inline(graph, called.jaxpr, called.consts, [number(atom) for atom in equation.invars])
            numbers.update(zip(equation.outvars, results, strict=True))
            continue
        made = [variable for variable in equation.outvars if not isinstance(variable, DropVar)]
        numbers.update((variable, graph.new(variable.aval)) for variable in made)
        operands = [atom for atom in equation.invars if not isinstance(atom, Literal)]
        graph.equations.append(
            Equation(
                equation.primitive.name,
                equation.params,
                tuple(numbers[atom] for atom in operands),
                tuple(numbers[variable] for variable in made),
                _function_of(equation, operands, made, jaxpr.debug_info),
                bool(equation.effects),
            )
        )
    return [number(atom) for atom in jaxpr.outvars]


def _function_of(equation: JaxprEqn, operands: list[Any], made: list[Any], debug_info: Any) -> Callable:
    """Equations are run as small jaxprs: what it takes to bind a primitive changes from one JAX to the next."""
    once = list(dict.fromkeys(operands))
    jaxpr = Jaxpr((), once, made, [equation], equation.effects, debug_info)
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))
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


def results_of(equations: Iterable[Equation]) -> set[int]:
    """All values that the equations compute."""
    return {value for equation in equations for value in equation.outputs}


def read_by(equations: Iterable[Equation]) -> list[int]:
    """Values that the equations need and do not compute, in the order in which they are read first."""
    equations = list(equations)
    made = results_of(equations)
    return list(dict.fromkeys(value for equation in equations for value in equation.inputs if value not in made))


def largest_inside(equation: Equation) -> int:
    """Elements of the largest array that an equation forms on the way to its results, if it is a function's call."""
    inner = (jaxpr for jaxpr in _jaxprs(equation.params))
    return max((v.aval.size for jaxpr in inner for v in _variables(jaxpr) if hasattr(v.aval, "size")), default=0)


def _variables(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in _jaxprs(equation.params):
            yield from _variables(inner)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item


FEW = 4
"""Kernels side by side, such as those of two directions, that are multiplied one after another."""


def multiplies_rows(graph: Graph, equation: Equation) -> bool:
    """Whether an equation is the product of rows [..., I] with a kernel [I, O], or of [Z, ..., I] with a few [Z, I, O]."""
    if equation.primitive != "dot_general":
        return False
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    rows, kernel = (graph.types[n] for n in equation.inputs)
    batch = tuple(range(kernel.ndim - 2))
    return (
        (not batch or (len(batch) == 1 and kernel.shape[0] <= FEW and rows.ndim > 2))
        and tuple(left_batch) == tuple(right_batch) == batch
        and (tuple(left), tuple(right)) == ((rows.ndim - 1,), (len(batch),))
    )
