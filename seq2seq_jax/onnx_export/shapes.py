"""What JAX does to the shapes of arrays, in ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from seq2seq_jax.errors import UserError
from seq2seq_jax.onnx_export.elements import Node
from seq2seq_jax.onnx_export.graph import WAY_OUT, Graph, Value, aval_of, element_type, is_static, known


def shape_of(equation: JaxprEqn, number: int = 0) -> tuple[Any, ...]:
    """The shape of one of the results of an equation."""
    return tuple(aval_of(equation.outvars[number]).shape)


def whole(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    """The inputs of an equation with their whole shapes."""
    return [graph.full(value, aval_of(atom).shape) for value, atom in zip(values, equation.invars, strict=True)]


def _broadcast_in_dim(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    (value,), places = values, list(map(int, equation.params["broadcast_dimensions"]))
    lies: list[Any] = [1] * len(shape_of(equation))
    for place, size in zip(places, value.shape, strict=True):
        lies[place] = size
    if value.known is not None:
        return [known(value.known.reshape(lies))]
    axes = [axis for axis in range(len(lies)) if axis not in places]
    name = graph.add("Unsqueeze", graph.name(value), graph.ints(*axes)) if axes else graph.name(value)
    return [Value(name, tuple(lies))]


def _reshape(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    return [reshaped(graph, whole(graph, equation, values)[0], shape_of(equation))]


def reshaped(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    """The value in another shape."""
    if value.shape == tuple(shape):
        return value
    return Value(graph.add("Reshape", graph.name(value), graph.shape(shape, free=True)), tuple(shape))


def _squeeze(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    axes = list(map(int, equation.params["dimensions"]))
    lies = tuple(size for axis, size in enumerate(values[0].shape) if axis not in axes)
    return [Value(graph.add("Squeeze", graph.name(values[0]), graph.ints(*axes)), lies)]


def _transpose(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    return [permuted(graph, values[0], equation.params["permutation"])]


def permuted(graph: Graph, value: Value, order: Sequence[int]) -> Value:
    """The value with its axes in another order."""
    order = [int(axis) for axis in order]
    if order == sorted(order):
        return value
    lies = tuple(value.shape[axis] for axis in order)
    if value.known is not None:
        return known(value.known.transpose(order))
    return Value(graph.add("Transpose", graph.name(value), perm=order), lies)


def _concatenate(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    names = map(graph.name, whole(graph, equation, values))
    return [Value(graph.add("Concat", *names, axis=int(equation.params["dimension"])), shape_of(equation))]


def _stack(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    axis = int(equation.params["axis"])
    parts = [graph.add("Unsqueeze", graph.name(value), graph.ints(axis)) for value in whole(graph, equation, values)]
    return [Value(graph.add("Concat", *parts, axis=axis), shape_of(equation))]


def _split(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    axis, sizes = int(equation.params["axis"]), equation.params["sizes"]
    name = graph.name(whole(graph, equation, values)[0])
    names = graph.add_many("Split", len(sizes), name, graph.ints(*sizes), axis=axis)
    return [Value(name, shape_of(equation, number)) for number, name in enumerate(names)]


def _slice(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    shape = aval_of(equation.invars[0]).shape
    axes = [
        axis
        for axis, cut in enumerate(zip(starts, ends, strides, strict=True))
        if not (is_static(cut[:1]) and cut[0] == 0 and cut[2] == 1 and cut[1] == shape[axis])
    ]
    vectors = (graph.shape([of[axis] for axis in axes]) for of in (starts, ends))
    name = graph.name(whole(graph, equation, values)[0])
    steps = graph.ints(*(strides[axis] for axis in axes))
    return [Value(graph.add("Slice", name, *vectors, graph.ints(*axes), steps), shape_of(equation))]


def _reverse(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    axes = list(map(int, equation.params["dimensions"]))
    ends = graph.ints(*[-1] * len(axes)), graph.ints(*[np.iinfo(np.int64).min] * len(axes))
    name = graph.name(whole(graph, equation, values)[0])
    return [
        Value(graph.add("Slice", name, *ends, graph.ints(*axes), graph.ints(*[-1] * len(axes))), shape_of(equation))
    ]


def _pad(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise UserError(f"This model pads between elements; {WAY_OUT}")
    value, fill = whole(graph, equation, values)
    return [
        Value(graph.add("Pad", graph.name(value), graph.shape((*low, *high)), graph.name(fill)), shape_of(equation))
    ]


def _iota(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    shape, axis = shape_of(equation), int(equation.params["dimension"])
    count = counted(graph, shape[axis], aval_of(equation.outvars[0]).dtype)
    lies = [1] * len(shape)
    lies[axis] = shape[axis]
    return [reshaped(graph, count, lies)]


def counted(graph: Graph, size: Any, dtype: Any) -> Value:
    """0, 1, 2 and so on."""
    if is_static([size]):
        return known(np.arange(int(size), dtype=dtype))
    end = graph.add("Squeeze", graph.size(size))
    counted = graph.add("Range", graph.constant(0, np.int64), end, graph.constant(1, np.int64))
    return Value(graph.add("Cast", counted, to=element_type(dtype)), (size,))


def _dim_as_value(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    size = graph.add("Squeeze", graph.size(equation.params["dim"]))
    return [Value(graph.add("Cast", size, to=element_type(aval_of(equation.outvars[0]).dtype)), ())]


def reshaped_known(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    """The value in another shape, computed here if it is known."""
    return reshaped(graph, value, shape) if value.known is None else known(value.known.reshape(shape))


SHAPES: dict[str, Node] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "iota": _iota,
    "dim_as_value": _dim_as_value,
}
