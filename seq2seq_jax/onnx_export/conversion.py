"""Programs of JAX as graphs of ONNX: a jaxpr's equations become nodes, its scans Scan, its unknown sizes names.

Sizes may be symbols (`jax.export.symbolic_shape`). What depends on constants only is
computed here, so that weights stay weights. A broadcast is left to the node that
reads it where that node broadcasts anyway.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from seq2seq_jax.errors import UserError
from seq2seq_jax.onnx_export.elements import ELEMENTWISE, NAMED, Node
from seq2seq_jax.onnx_export.graph import WAY_OUT, Graph, Value, aval_of, is_static, known
from seq2seq_jax.onnx_export.parts import PARTS
from seq2seq_jax.onnx_export.shapes import SHAPES, shape_of, whole
from seq2seq_jax.onnx_export.sums import SUMS

DTYPES = (np.float32, np.int32, np.bool_)
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "custom_vjp_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Calls, and where they keep what they call."""
NEVER_FOLDED = ("while", "scan", "dim_as_value", "dot_general", "broadcast_in_dim")


def convert(graph: Graph, jaxpr: core.Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
    """Adds a jaxpr to a graph; returns what it puts out."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    return run(graph, jaxpr.eqns, values, jaxpr.outvars)


def run(
    graph: Graph, equations: Sequence[core.JaxprEqn], values: dict[core.Var, Value], wanted: Sequence[Any]
) -> list[Value]:
    """Adds those equations that `wanted` needs, given `values`, which gets those on the way.

    Raises:
      UserError: one has no counterpart in ONNX, or another dtype than float32, int32 and bool.
    """
    for equation in needed(_with_plain_indices(equations, wanted), wanted):
        inputs = [value_of(atom, values) for atom in equation.invars]
        name = equation.primitive.name
        for var in equation.outvars:
            if aval_of(var).dtype not in DTYPES:
                raise UserError(
                    f"ONNX is written in float32, and this model computes in {aval_of(var).dtype}; {WAY_OUT}"
                )
        if name in INLINED and (divide := NAMED.get(equation.params.get("name"))) and _is_integer(equation):
            results = divide(graph, inputs)
        elif name in INLINED:
            called = equation.params[INLINED[name]]
            results = convert(graph, called.jaxpr, [known(const) for const in called.consts], inputs)
        elif (constants := _fold(equation, inputs)) is not None:
            results = constants
        elif name in NODES:
            results = NODES[name](graph, equation, inputs)
        else:
            raise UserError(f"This model computes {name!r}, which has no ONNX node here; {WAY_OUT}")
        values.update(zip(equation.outvars, results, strict=True))
    return [value_of(atom, values) for atom in wanted]


def needed(equations: Sequence[core.JaxprEqn], wanted: Sequence[Any]) -> list[core.JaxprEqn]:
    """Those equations on which `wanted` depends."""
    missing, found = {atom for atom in wanted if isinstance(atom, core.Var)}, []
    for equation in reversed(equations):
        if not missing.isdisjoint(equation.outvars):
            found.append(equation)
            missing.update(atom for atom in equation.invars if isinstance(atom, core.Var))
    return found[::-1]


def _is_integer(equation: core.JaxprEqn) -> bool:
    return aval_of(equation.outvars[0]).dtype == np.int32


def _with_plain_indices(equations: Sequence[core.JaxprEqn], wanted: Sequence[Any]) -> list[core.JaxprEqn]:
    """The equations, with an index in place of `where(index < 0, index + size, index)` in look-ups.

    ONNX counts negative indices from the end, too.
    """
    makers = {var: equation for equation in equations for var in equation.outvars}
    uses: dict[core.Var, list[tuple[core.JaxprEqn, int]]] = {}
    for equation in equations:
        for place, atom in enumerate(equation.invars):
            if isinstance(atom, core.Var):
                uses.setdefault(atom, []).append((equation, place))

    def is_index(var: core.Var) -> bool:
        return var not in wanted and all(
            (
                use.primitive.name == "gather"
                and place == 1
                and use.params["mode"] == GatherScatterMode.PROMISE_IN_BOUNDS
            )
            or (use.primitive.name == "broadcast_in_dim" and is_index(use.outvars[0]))
            for use, place in uses.get(var, [])
        )

    plain: dict[core.Var, Any] = {}
    for equation in equations:
        if equation.primitive.name == "select_n" and isinstance(equation.invars[0], core.Var):
            test, index, more = equation.invars
            below, above = makers.get(test), makers.get(more) if isinstance(more, core.Var) else None
            is_wrapped = below is not None and below.primitive.name == "lt" and below.invars[0] is index
            if is_wrapped and above is not None and above.primitive.name == "add" and above.invars[0] is index:
                if is_index(equation.outvars[0]):
                    plain[equation.outvars[0]] = index
    return [
        equation.replace(
            invars=[plain.get(atom, atom) if isinstance(atom, core.Var) else atom for atom in equation.invars]
        )
        for equation in equations
    ]


def value_of(atom: Any, values: Mapping[core.Var, Value]) -> Value:
    """What stands for a variable or a literal."""
    if isinstance(atom, core.Literal):
        return known(np.asarray(atom.val, aval_of(atom).dtype))
    return values[atom]


def _fold(equation: core.JaxprEqn, inputs: Sequence[Value]) -> list[Value] | None:
    """The results of an equation of constants; None where it is none, or they had better be computed by the graph.

    Those are products and look-ups, which may take more room than what they are made of.
    """
    arrays = [value.known for value in inputs if value.known is not None]
    if len(arrays) < len(inputs) or equation.primitive.name in NEVER_FOLDED:
        return None
    if equation.primitive.name in ELEMENTWISE:
        arrays = np.broadcast_arrays(*arrays)
    elif not is_static([size for var in (*equation.invars, *equation.outvars) for size in aval_of(var).shape]):
        return None
    else:
        arrays = [np.broadcast_to(x, aval_of(atom).shape) for x, atom in zip(arrays, equation.invars, strict=True)]
        if equation.primitive.name == "gather" and arrays[0].dtype.kind == "f":
            if aval_of(equation.outvars[0]).size >= arrays[0].size:
                return None
    results = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
    return [known(result) for result in (results if equation.primitive.multiple_results else [results])]


def _cumlogsumexp(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    axis = equation.params["axis"]

    def run(x: jax.Array) -> jax.Array:
        def step(total: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            largest = jnp.maximum(total, x)
            total = largest + jnp.log(jnp.exp(total - largest) + jnp.exp(x - largest))
            return total, total

        x = jnp.moveaxis(x, axis, 0)
        least = jnp.full(x.shape[1:], jnp.finfo(x.dtype).min)
        return jnp.moveaxis(jax.lax.scan(step, least, x, reverse=equation.params["reverse"])[1], 0, axis)

    aval = aval_of(equation.invars[0])
    traced = jax.make_jaxpr(run)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
    return convert(graph, traced.jaxpr, list(map(known, traced.consts)), values)


def _scan(graph: Graph, equation: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    params, body = equation.params, equation.params["jaxpr"].jaxpr
    num_fixed, num_carries = params["num_consts"], params["num_carry"]
    fixed, moving = values[:num_fixed], whole(graph, equation, values)[num_fixed:]
    num_stacked = len(moving) - num_carries
    if not num_stacked:
        raise UserError(f"This model has a loop over nothing; {WAY_OUT}")
    avals = [aval_of(var) for var in body.invars[num_fixed:]]
    names = [graph.new_name() for _ in avals]
    inner = Graph(
        {name: jax.ShapeDtypeStruct(aval.shape, aval.dtype) for name, aval in zip(names, avals, strict=True)}, graph
    )
    consts = list(map(known, params["jaxpr"].consts))
    results = convert(inner, body, consts, [*fixed, *inner.inputs()])
    for result, var in zip(results, body.outvars, strict=True):
        inner.output(graph.new_name(), result, aval_of(var))
    backwards, num_outputs = [int(params["reverse"])], len(results) - num_carries
    directions = {"scan_input_directions": backwards * num_stacked}
    if num_outputs:
        directions["scan_output_directions"] = backwards * num_outputs
    body, names = inner.proto("body"), map(graph.name, moving)
    outputs = graph.add_many("Scan", len(results), *names, body=body, num_scan_inputs=num_stacked, **directions)
    return [Value(name, shape_of(equation, number)) for number, name in enumerate(outputs)]


NODES: dict[str, Node] = ELEMENTWISE | SHAPES | SUMS | PARTS | {"cumlogsumexp": _cumlogsumexp, "scan": _scan}
