"""What JAX computes one element at a time, in ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from seq2seq_jax.onnx_export.graph import Graph, Value, aval_of, element_type, is_static

Node = Callable[[Graph, JaxprEqn, Sequence[Value]], list[Value]]
"""Adds what an equation computes to a graph."""


def _broadcast(values: Sequence[Value]) -> tuple[Any, ...]:
    """The shape of what is computed of values element by element, as it lies."""
    rank = max(len(value.shape) for value in values)
    shapes = [(1,) * (rank - len(value.shape)) + value.shape for value in values]
    return tuple(
        next((size for size in sizes if not is_static([size]) or size != 1), 1) for sizes in zip(*shapes, strict=True)
    )


def _elementwise(op: str) -> Node:
    def node(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
        return [Value(graph.add(op, *map(graph.name, values)), _broadcast(values))]

    return node


def _composed(function: Callable[..., str]) -> Node:
    """Of several nodes: `function` is given the graph, the equation and the names of the inputs."""

    def node(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
        return [Value(function(graph, equation, *map(graph.name, values)), _broadcast(values))]

    return node


def _one(graph: Graph, equation: JaxprEqn) -> str:
    return graph.constant(1, aval_of(equation.outvars[0]).dtype)


def _logical(op: str, on_bits: str) -> Node:
    def node(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
        is_bool = aval_of(equation.invars[0]).dtype == np.bool_
        return _elementwise(op if is_bool else on_bits)(graph, equation, values)

    return node


def _select(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    which, no, yes = values
    if aval_of(equation.outvars[0]).dtype == np.bool_:
        which, no, yes = map(graph.name, values)
        there = graph.add("And", which, yes)
        return [Value(graph.add("Or", there, graph.add("And", graph.add("Not", which), no)), _broadcast(values))]
    return [Value(graph.add("Where", *map(graph.name, (which, yes, no))), _broadcast(values))]


def _cast(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    if aval_of(equation.invars[0]).dtype == aval_of(equation.outvars[0]).dtype:
        return list(values)
    to = element_type(aval_of(equation.outvars[0]).dtype)
    return [Value(graph.add("Cast", graph.name(values[0]), to=to), values[0].shape)]


def _is_finite(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.add("Not", graph.add("Or", graph.add("IsInf", x), graph.add("IsNaN", x)))


def _integer_pow(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.add("Pow", x, graph.constant(equation.params["y"], aval_of(equation.outvars[0]).dtype))


def _log1p(graph: Graph, equation: JaxprEqn, x: str) -> str:
    return graph.add("Log", graph.add("Add", x, _one(graph, equation)))


ELEMENTWISE: dict[str, Node] = {
    **{
        name: _elementwise(op)
        for name, op in {
            "add": "Add",
            "add_any": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "div": "Div",
            "max": "Max",
            "min": "Min",
            "pow": "Pow",
            "neg": "Neg",
            "sign": "Sign",
            "abs": "Abs",
            "exp": "Exp",
            "log": "Log",
            "tanh": "Tanh",
            "logistic": "Sigmoid",
            "sqrt": "Sqrt",
            "erf": "Erf",
            "floor": "Floor",
            "ceil": "Ceil",
            "eq": "Equal",
            "lt": "Less",
            "le": "LessOrEqual",
            "gt": "Greater",
            "ge": "GreaterOrEqual",
            "copy": "Identity",
            "stop_gradient": "Identity",
        }.items()
    },
    "and": _logical("And", "BitwiseAnd"),
    "or": _logical("Or", "BitwiseOr"),
    "xor": _logical("Xor", "BitwiseXor"),
    "not": _logical("Not", "BitwiseNot"),
    "ne": _composed(lambda graph, equation, *names: graph.add("Not", graph.add("Equal", *names))),
    "rem": _composed(lambda graph, equation, *names: graph.add("Mod", *names, fmod=1)),
    "square": _composed(lambda graph, equation, x: graph.add("Mul", x, x)),
    "rsqrt": _composed(lambda graph, equation, x: graph.add("Reciprocal", graph.add("Sqrt", x))),
    "expm1": _composed(lambda graph, equation, x: graph.add("Sub", graph.add("Exp", x), _one(graph, equation))),
    "clamp": _composed(lambda graph, equation, low, x, high: graph.add("Min", graph.add("Max", x, low), high)),
    "log1p": _composed(_log1p),
    "integer_pow": _composed(_integer_pow),
    "is_finite": _composed(_is_finite),
    "select_n": _select,
    "convert_element_type": _cast,
}


def _floor_divide(graph: Graph, values: Sequence[Value]) -> list[Value]:
    left, right = map(graph.name, values)
    whole = graph.add("Sub", left, graph.add("Mod", left, right))
    return [Value(graph.add("Div", whole, right), _broadcast(values))]


def _remainder(graph: Graph, values: Sequence[Value]) -> list[Value]:
    return [Value(graph.add("Mod", *map(graph.name, values)), _broadcast(values))]


NAMED = {"floor_divide": _floor_divide, "remainder": _remainder}
"""Functions of whole numbers that JAX writes as many equations, by the names of their calls."""
