"""What a function computes, as equations that can be cut apart, reordered and run."""

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params

Values = dict[int, Any]
"""Arrays by the numbers of the values that they are."""
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
"""Primitives that only call a function, and where they keep it."""
FEW = 4
"""Kernels side by side, such as those of two directions, that are multiplied one after another."""


class Equation(NamedTuple):
    """One operation on values, which are known by numbers."""

    primitive: str
    params: dict[str, Any]
    inputs: tuple[int, ...]  # in the order of the operands; those written into it as literals have no number
    outputs: tuple[int, ...]
    apply: Callable[..., Sequence[Any]]  # from the operands to the list of results
    effect: bool = False  # whether it does more than that, such as printing


class Graph(NamedTuple):
    """The equations of a function, in an order in which they can be run."""

    equations: list[Equation]
    inputs: list[int]
    outputs: list[int]
    types: list[Any]  # shape and dtype of every value
    constants: Values  # arrays that the function closes over
    literals: Values  # numbers written into it

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

    def run(self, equations: Iterable[Equation], known: Values) -> Values:
        """Adds to the known values those that the equations compute."""
        values = self.literals | known
        for equation in equations:
            results = equation.apply(*(values[n] for n in equation.inputs))
            values.update(zip(equation.outputs, results, strict=True))
        return values

    def run_at_once(self, equations: Sequence[Equation], stacked: Values, fixed: Values, length: int) -> Values:
        """What the equations make of values of all steps, [T, ...], and of others that are the same at every step."""
        read, made = read_by(equations), results_of(equations)
        stacked, fixed = ({n: known[n] for n in read if n in known} for known in (stacked, fixed))

        def step(now: Values) -> Values:
            values = self.run(equations, fixed | now)
            return {n: values[n] for n in made}

        return jax.vmap(step, axis_size=length)(stacked)

    def call(self, function: Callable, *inputs: int) -> tuple[list[Equation], list[int]]:
        """The equations of a function of some values, and the numbers of its results."""
        return _inlined(self, jax.make_jaxpr(function)(*(self.types[n] for n in inputs)), inputs)

    def is_large(self, equation: Equation, changing: Set[int], usual: int) -> bool:
        """Whether an equation reads or forms an array of more elements that is not the same at every step."""
        sizes = (self.size(n) for n in (*equation.inputs, *equation.outputs) if n in changing)
        return max((_largest_inside(equation.params), *sizes)) > usual

    def adds(self, equation: Equation) -> bool:
        """Whether it is the sum of two values with fractions, of which the second may be broadcast."""
        return equation.primitive == "add" and len(equation.inputs) == 2 and self.is_real(equation.outputs[0])

    def multiplies_rows(self, equation: Equation) -> bool:
        """Whether it is `rows @ kernel` of [..., I] with [I, O], or of [Z, ..., I] with a few [Z, I, O]."""
        if equation.primitive != "dot_general" or len(equation.inputs) != 2:
            return False
        sides, batch = equation.params["dimension_numbers"]
        rows, kernel = (self.types[n] for n in equation.inputs)
        shared = tuple(range(kernel.ndim - 2))
        return (
            (not shared or (len(shared) == 1 and kernel.shape[0] <= FEW and rows.ndim > 2))
            and tuple(map(tuple, batch)) == (shared, shared)
            and tuple(map(tuple, sides)) == ((rows.ndim - 1,), (len(shared),))
            and rows.dtype == kernel.dtype
            and self.is_real(equation.inputs[0])
            and equation.params["preferred_element_type"] in (None, rows.dtype)
            and equation.params["precision"] is None
        )


def trace(function: Callable, *arguments: Any) -> tuple[Graph, Any]:
    """Returns the equations of a function of trees of arrays, calls inlined, and what its result looks like."""
    closed, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
    graph = Graph([], [], [], [], {}, {})
    inputs = [graph.new(variable.aval) for variable in closed.jaxpr.invars]
    equations, outputs = _inlined(graph, closed, inputs)
    return graph._replace(equations=equations, inputs=inputs, outputs=outputs), result


def _inlined(graph: Graph, closed: ClosedJaxpr, inputs: Sequence[int]) -> tuple[list[Equation], list[int]]:
    """A jaxpr's equations with numbers of the graph, and the numbers of its results."""
    equations, numbers = [], dict(zip(closed.jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        numbers[variable] = graph.new(variable.aval)
        graph.constants[numbers[variable]] = jnp.asarray(constant)

    def number(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return numbers[atom]
        literal = graph.new(atom.aval)
        graph.literals[literal] = np.asarray(atom.val, atom.aval.dtype)
        return literal

    for equation in closed.jaxpr.eqns:
        name = equation.primitive.name
        if name in _CALLS:
            inner, results = _inlined(graph, equation.params[_CALLS[name]], [number(atom) for atom in equation.invars])
            equations += inner
            numbers.update(zip(equation.outvars, results, strict=True))
            continue
        operands = [atom for atom in equation.invars if not isinstance(atom, Literal)]
        made = [variable for variable in equation.outvars if not isinstance(variable, DropVar)]
        numbers.update((variable, graph.new(variable.aval)) for variable in made)
        values = (tuple(numbers[variable] for variable in variables) for variables in (operands, made))
        apply = _function_of(equation, operands, made, closed.jaxpr.debug_info.with_unknown_names())
        equations.append(Equation(name, equation.params, *values, apply, bool(equation.effects)))
    return equations, [number(atom) for atom in closed.jaxpr.outvars]


def _function_of(equation: JaxprEqn, operands: list[Any], made: list[Any], debug_info: Any) -> Callable:
    """Equations are run as small jaxprs: what it takes to bind a primitive changes from one JAX to the next."""
    once = list(dict.fromkeys(operands))
    run = jaxpr_as_fun(ClosedJaxpr(Jaxpr((), once, made, [equation], equation.effects, debug_info), ()))
    places = [operands.index(variable) for variable in once]
    return lambda *values: run(*(values[place] for place in places))


def _largest_inside(params: dict[str, Any]) -> int:
    """Elements of the largest array that the functions among a primitive's parameters form."""
    inside = [equation for jaxpr in jaxprs_in_params(params) for equation in jaxpr.eqns]
    sizes = (getattr(variable.aval, "size", 0) for equation in inside for variable in equation.outvars)
    return max((*sizes, *(_largest_inside(equation.params) for equation in inside)), default=0)


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


def without(equations: Iterable[Equation], others: Iterable[Equation]) -> list[Equation]:
    """The equations but for the others."""
    excluded = set(map(id, others))
    return [equation for equation in equations if id(equation) not in excluded]


def results_of(equations: Iterable[Equation]) -> set[int]:
    """All values that the equations compute."""
    return {n for equation in equations for n in equation.outputs}


def read_by(equations: Sequence[Equation]) -> list[int]:
    """Values that the equations need and do not compute, in the order in which they are read first."""
    made = results_of(equations)
    return list(dict.fromkeys(n for equation in equations for n in equation.inputs if n not in made))
