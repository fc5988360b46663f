"""What JAX takes out of arrays and puts into them, in ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from seq2seq_jax.errors import UserError
from seq2seq_jax.onnx_export.elements import Node
from seq2seq_jax.onnx_export.graph import WAY_OUT, Graph, Value, aval_of, element_type
from seq2seq_jax.onnx_export.shapes import counted, permuted, reshaped_known, shape_of, whole


def _gather(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    value, index = whole(graph, equation, values)
    shape, axes = aval_of(equation.invars[0]).shape, list(map(int, numbers.start_index_map))
    batch = list(map(int, numbers.operand_batching_dims))
    if index.known is not None and index.known.ndim == 1:
        return [_cut(graph, value, dict(zip(axes, index.known, strict=True)), sizes, numbers, shape_of(equation))]
    rest = [axis for axis in range(len(shape)) if axis not in (*axes, *batch)]
    if sorted(numbers.collapsed_slice_dims) != sorted(axes) or any(sizes[axis] != shape[axis] for axis in rest):
        raise UserError(f"This model takes parts of arrays at places not known; {WAY_OUT}")
    of_index = list(map(int, numbers.start_indices_batching_dims))
    others = [axis for axis in range(len(index.shape) - 1) if axis not in of_index]
    index = permuted(graph, index, [*of_index, *others, len(index.shape) - 1])
    value = permuted(graph, value, [*batch, *axes, *rest])
    found = _looked_up(graph, equation, value, index, len(batch))
    # As it is: what is looked up by, in the order of `index`, and then what is taken whole.
    places = [axis for axis in range(len(shape_of(equation))) if axis not in numbers.offset_dims]
    now = [*(places[axis] for axis in (*of_index, *others)), *numbers.offset_dims]
    return [permuted(graph, found, np.argsort(now).tolist())]


def _looked_up(graph: Graph, equation: JaxprEqn, value: Value, index: Value, num_batch: int) -> Value:
    """Rows by index: [batch, indexed axes, rest] and [batch, others, numbers of axes] give [batch, others, rest]."""
    depth = index.shape[-1]
    lies = (*index.shape[:-1], *value.shape[num_batch + depth :])
    inside = None
    if equation.params["mode"] != GatherScatterMode.PROMISE_IN_BOUNDS:
        index, inside = _bounded(graph, index, value.shape[num_batch : num_batch + depth])
    if not num_batch and depth == 1:
        name = graph.add("Gather", graph.name(value), graph.add("Squeeze", graph.name(index), graph.ints(-1)), axis=0)
    else:
        where = graph.add("Cast", graph.name(index), to=element_type(np.int64))
        name = graph.add("GatherND", graph.name(value), where, batch_dims=num_batch)
    if inside is not None and equation.params["mode"] == GatherScatterMode.FILL_OR_DROP:
        dtype = np.dtype(aval_of(equation.outvars[0]).dtype)
        fill = equation.params["fill_value"]
        fill = fill if fill is not None else np.nan if dtype.kind == "f" else np.iinfo(np.int32).min
        axes = range(len(index.shape) - 1, len(lies))
        mask = graph.add("Unsqueeze", inside, graph.ints(*axes)) if axes else inside
        name = graph.add("Where", mask, name, graph.constant(fill, dtype))
    return Value(name, lies)


def _bounded(graph: Graph, index: Value, sizes: Sequence[Any]) -> tuple[Value, str]:
    """Indices within sizes, and whether each was, [..., numbers of axes] -> [...]."""
    last = graph.add(
        "Sub", graph.add("Cast", graph.shape(sizes), to=element_type(np.int32)), graph.constant(1, np.int32)
    )
    bounded = graph.add("Min", graph.add("Max", graph.name(index), graph.constant(0, np.int32)), last)
    same = graph.add("Cast", graph.add("Equal", bounded, graph.name(index)), to=element_type(np.int32))
    inside = graph.add("ReduceMin", same, graph.ints(-1), keepdims=0)
    return Value(bounded, index.shape), graph.add("Cast", inside, to=element_type(np.bool_))


def _cut(
    graph: Graph, value: Value, starts: dict[int, Any], sizes: Sequence[Any], numbers: Any, shape: tuple[Any, ...]
) -> Value:
    """A part at a place that is known."""
    axes = list(starts)
    ends = graph.shape([int(start) + sizes[axis] for axis, start in starts.items()])
    name = graph.add("Slice", graph.name(value), graph.ints(*starts.values()), ends, graph.ints(*axes))
    if numbers.collapsed_slice_dims:
        name = graph.add("Squeeze", name, graph.ints(*numbers.collapsed_slice_dims))
    return Value(name, shape)


def _scatter(added: bool) -> Node:
    def node(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
        value, index, updates = whole(graph, equation, values)
        numbers = equation.params["dimension_numbers"]
        axes = list(map(int, numbers.scatter_dims_to_operand_dims))
        if len(axes) != 1 or list(numbers.inserted_window_dims) != axes:
            raise UserError(f"This model writes parts of arrays; {WAY_OUT}")
        batch = list(map(int, numbers.operand_batching_dims))
        if index.known is not None and not batch:
            return [_put(graph, value, index.known.reshape(-1), updates, numbers, axes[0], added)]
        is_last = batch == list(range(axes[0])) and axes[0] == len(value.shape) - 1
        if not is_last or numbers.update_window_dims or list(numbers.scatter_indices_batching_dims) != batch:
            raise UserError(f"This model writes parts of arrays at places not known; {WAY_OUT}")
        return [_put_elements(graph, equation, value, index, updates, added)]

    return node


def _put(graph: Graph, value: Value, places: Any, updates: Value, numbers: Any, axis: int, added: bool) -> Value:
    """Updates at some places of an axis that are known."""
    at = [place for place in range(len(updates.shape)) if place not in numbers.update_window_dims]
    window = [place for place in range(len(updates.shape)) if place in numbers.update_window_dims]
    if at:
        updates = permuted(graph, updates, [*window[:axis], *at, *window[axis:]])
    else:
        lies = (*updates.shape[:axis], 1, *updates.shape[axis:])
        updates = Value(graph.add("Unsqueeze", graph.name(updates), graph.ints(axis)), lies)
    name, lies = graph.name(value), [1] * len(value.shape)
    lies[axis] = value.shape[axis]
    count = graph.name(reshaped_known(graph, counted(graph, value.shape[axis], np.int64), lies))
    parts = graph.add_many("Split", len(places), graph.name(updates), graph.ints(*[1] * len(places)), axis=axis)
    for place, part in zip(places, parts, strict=True):
        here = graph.add("Equal", count, graph.constant(place, np.int64))
        name = graph.add("Where", here, graph.add("Add", name, part) if added else part, name)
    return Value(name, value.shape)


def _put_elements(graph: Graph, equation: JaxprEqn, value: Value, index: Value, updates: Value, added: bool) -> Value:
    """Updates at places of the last axis, which differ by row; those beyond it are written behind it, and left out."""
    size = value.shape[-1]
    last = graph.add("Cast", graph.size(size), to=element_type(np.int32))
    index_name = graph.add("Squeeze", graph.name(index), graph.ints(-1))
    outside = graph.add("Less", index_name, graph.constant(0, np.int32))
    index_name = graph.add("Where", outside, last, graph.add("Min", index_name, last))
    rank = len(value.shape)
    padded = graph.add("Pad", graph.name(value), graph.ints(*[0] * (2 * rank - 1), 1))
    put = graph.add(
        "ScatterElements", padded, index_name, graph.name(updates), axis=-1, reduction="add" if added else "none"
    )
    name = graph.add("Slice", put, graph.ints(0), graph.size(size), graph.ints(-1))
    return Value(name, value.shape)


def _dynamic_slice(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    value, *starts = whole(graph, equation, values)
    axes = [axis for axis, size in enumerate(shape_of(equation)) if size != value.shape[axis]]
    sizes, room = (graph.shape([shape[axis] for axis in axes]) for shape in (shape_of(equation), value.shape))
    first = graph.add("Concat", *(_start(graph, starts[axis]) for axis in axes), axis=0) if axes else graph.ints()
    first = graph.add("Min", graph.add("Max", first, graph.ints(0)), graph.add("Sub", room, sizes))
    cut = graph.add("Slice", graph.name(value), first, graph.add("Add", first, sizes), graph.ints(*axes))
    return [Value(cut, shape_of(equation))]


def _start(graph: Graph, start: Value) -> str:
    return graph.add("Reshape", graph.add("Cast", graph.name(start), to=element_type(np.int64)), graph.ints(1))


def _dynamic_update_slice(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    value, update, *starts = whole(graph, equation, values)
    axes = [axis for axis, size in enumerate(update.shape) if size != value.shape[axis]]
    if len(axes) != 1 or update.shape[axes[0]] != 1:
        raise UserError(f"This model writes parts of arrays at places not known; {WAY_OUT}")
    (axis,) = axes
    last = graph.add("Sub", graph.size(value.shape[axis]), graph.ints(1))
    start = graph.add("Min", graph.add("Max", _start(graph, starts[axis]), graph.ints(0)), last)
    lies = [1] * len(value.shape)
    lies[axis] = value.shape[axis]
    here = graph.name(reshaped_known(graph, counted(graph, value.shape[axis], np.int64), lies))
    return [Value(graph.add("Where", graph.add("Equal", here, start), *map(graph.name, (update, value))), value.shape)]


PARTS: dict[str, Node] = {
    "gather": _gather,
    "scatter": _scatter(added=False),
    "scatter-add": _scatter(added=True),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
}
