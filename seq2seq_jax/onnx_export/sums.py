"""Sums, products and the best of arrays of JAX, in ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from seq2seq_jax.onnx_export.elements import Node
from seq2seq_jax.onnx_export.graph import Graph, Value, aval_of, element_type
from seq2seq_jax.onnx_export.shapes import permuted, reshaped, reshaped_known, shape_of, whole


def _reduce(op: str) -> Node:
    def node(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
        name = graph.name(whole(graph, equation, values)[0])
        is_bool = aval_of(equation.invars[0]).dtype == np.bool_
        if is_bool:
            name = graph.add("Cast", name, to=element_type(np.int32))
        name = graph.add(op, name, graph.ints(*equation.params["axes"]), keepdims=0)
        return [Value(graph.add("Cast", name, to=element_type(np.bool_)) if is_bool else name, shape_of(equation))]

    return node


def _arg_max(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    (axis,) = equation.params["axes"]
    name = graph.add("ArgMax", graph.name(whole(graph, equation, values)[0]), axis=int(axis), keepdims=0)
    return [Value(graph.add("Cast", name, to=element_type(equation.params["index_dtype"])), shape_of(equation))]


def _cumsum(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    axis, name = graph.constant(equation.params["axis"], np.int64), graph.name(whole(graph, equation, values)[0])
    return [Value(graph.add("CumSum", name, axis, reverse=int(equation.params["reverse"])), shape_of(equation))]


def _top_k(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    rank = len(shape_of(equation))
    axis, count = int(equation.params.get("axis", rank - 1)), graph.ints(equation.params["k"])
    best, places = graph.add_many("TopK", 2, graph.name(whole(graph, equation, values)[0]), count, axis=axis)
    places = graph.add("Cast", places, to=element_type(aval_of(equation.outvars[1]).dtype))
    return [Value(best, shape_of(equation)), Value(places, shape_of(equation, 1))]


def _dot_general(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    (contracted, batched), (left, right) = equation.params["dimension_numbers"], whole(graph, equation, values)
    contracted, batched = ([tuple(map(int, axes)) for axes in pair] for pair in (contracted, batched))
    if left.known is not None and right.known is None:  # a weight stands on the right, where it can be quantised
        product = _product(graph, right, left, contracted[::-1], batched[::-1])
        num_batch, num_right = len(batched[0]), len(right.shape) - len(batched[1]) - len(contracted[1])
        order = range(len(product.shape))
        ends = num_batch, num_batch + num_right
        return [permuted(graph, product, [*order[: ends[0]], *order[ends[1] :], *order[ends[0] : ends[1]]])]
    return [_product(graph, left, right, contracted, batched)]


def _product(graph: Graph, left: Value, right: Value, contracted: Any, batched: Any) -> Value:
    """The product, its axes those of the batch, then the other ones of the left side, then those of the right side."""
    sides = []
    for side, value in enumerate((left, right)):
        used = (*batched[side], *contracted[side])
        free = [axis for axis in range(len(value.shape)) if axis not in used]
        order = [*batched[side], *(free if side == 0 else contracted[side])]
        order += contracted[side] if side == 0 else free
        sides.append((permuted(graph, value, order), [value.shape[axis] for axis in free]))
    (left, rows), (right, columns) = sides
    num_batch, num_contracted = len(batched[0]), len(contracted[0])
    batch, inner = left.shape[:num_batch], right.shape[num_batch : num_batch + num_contracted]
    length = _size_of(inner)
    right = reshaped_known(graph, right, (*batch, length, _size_of(columns)))
    if batch:
        left = reshaped(graph, left, (*batch, _size_of(rows), length))
    else:
        left = reshaped(graph, left, (*rows, length) if rows else (1, length))
    if right.known is not None and num_batch == 1:
        name = _products_apart(graph, left, right.known)
    else:
        name = graph.add("MatMul", graph.name(left), graph.name(right))
    return reshaped(graph, Value(name, (*left.shape[:-1], right.shape[-1])), (*batch, *rows, *columns))


def _products_apart(graph: Graph, left: Value, weights: np.ndarray) -> str:
    """The product with each of a few weights by itself, for fast kernels know one weight only."""
    parts = graph.add_many("Split", len(weights), graph.name(left), graph.ints(*[1] * len(weights)), axis=0)
    products = [graph.add("MatMul", part, graph.constant(weight)) for part, weight in zip(parts, weights, strict=True)]
    return graph.add("Concat", *products, axis=0)


def _size_of(shape: Sequence[Any]) -> Any:
    size: Any = 1
    for each in shape:
        size = size * each
    return size


SUMS: dict[str, Node] = {
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_and": _reduce("ReduceMin"),
    "argmax": _arg_max,
    "cumsum": _cumsum,
    "top_k": _top_k,
    "dot_general": _dot_general,
}
