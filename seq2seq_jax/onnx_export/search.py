"""A model's search as graphs of ONNX: what comes before its loop, a step of the loop, and what comes after it.

The search is traced as a whole, for any number and length of sentences, and cut at
its loop. So it is that of `translate`, whatever its settings are. The loop itself is
the runner's, which takes out the rows of sentences that have ended.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import onnx
from jax.extend import core

from seq2seq_jax import programs
from seq2seq_jax.onnx_export.conversion import needed, run, value_of
from seq2seq_jax.onnx_export.graph import Graph, Value, known
from seq2seq_jax.seq2seq import SearchTables


def search_graphs(
    graph: Any, params: Any, search: Callable[..., Any], given: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, onnx.ModelProto]:
    """The graphs of a search: tables, begin, step and end.

    A graph is given values by the names of its inputs, and what it calls `next.NAME`
    is NAME from then on. `tables` makes what every search uses, `begin` what is there
    before the loop, and `step` goes on by one token; its output `open` says which rows
    need more of them. `end` makes `tokens`.

    Args:
      graph, params: of the model.
      search: of params, tables and what is `given`, to the tokens of the best outputs.
      given: ids, lengths and limits, whose sizes may be symbols.

    Raises:
      UserError: see `conversion.run`.
    """

    def tables_of() -> tuple[list[SearchTables], Any]:
        return jax.tree.flatten(
            programs.search_tables(graph, params), is_leaf=lambda leaf: isinstance(leaf, SearchTables)
        )

    parts, structure = tables_of()

    def whole(first: list[list[jax.Array]], *given: Any) -> Any:
        tables = [part._replace(first=arrays) for part, arrays in zip(parts, first, strict=True)]
        return search(params, jax.tree.unflatten(structure, tables), *given)

    first = jax.eval_shape(lambda: [part.first for part in tables_of()[0]])
    inputs = {f"table{number}": aval for number, aval in enumerate(jax.tree.leaves(first))} | dict(given)
    made = jax.make_jaxpr(lambda: [part.first for part in tables_of()[0]])()
    tables = Graph({})
    results = run(tables, made.eqns, _constants(made), made.jaxpr.outvars)
    for name, result, var in zip(inputs, results, made.jaxpr.outvars, strict=False):
        tables.output(f"next.{name}", result, var.aval)
    return {"tables": tables.model("tables")} | _cut(jax.make_jaxpr(whole)(first, *given.values()), inputs)


def _constants(closed: core.ClosedJaxpr) -> dict[core.Var, Value]:
    return dict(zip(closed.jaxpr.constvars, map(known, closed.consts), strict=True))


def _cut(closed: core.ClosedJaxpr, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, onnx.ModelProto]:
    """The graphs before, in and after the only loop of a search, whose inputs have these names."""
    jaxpr = closed.jaxpr
    (place,) = (n for n, equation in enumerate(jaxpr.eqns) if equation.primitive.name == "while")
    before, after = jaxpr.eqns[:place], jaxpr.eqns[place + 1 :]
    loop = _loop_of(jaxpr.eqns[place], _read(after, jaxpr.outvars))
    carries = [f"carry{number}" for number in range(len(loop.starts))]

    begin = Graph(inputs)
    values = _constants(closed) | dict(zip(jaxpr.invars, begin.inputs(), strict=True))
    names = dict(zip(jaxpr.invars, inputs, strict=True))
    later = [var for var in _read(after, jaxpr.outvars) if var not in loop.ends]
    kept = list(dict.fromkeys(atom for atom in (*loop.fixed.values(), *later) if isinstance(atom, core.Var)))
    results = run(begin, before, values, [*kept, *loop.starts])
    values |= dict(zip(kept, results, strict=False))
    for var in kept:
        if values[var].known is None and var not in names:
            names[var] = f"fixed{len(names)}"
            begin.output(f"next.{names[var]}", values[var], var.aval)
    for name, value, atom in zip(carries, results[len(kept) :], loop.starts, strict=True):
        begin.output(f"next.{name}", value, atom.aval)

    handed = {name: var.aval for name, var in zip(carries, loop.olds, strict=True)}
    step, of_step = _given(loop.fixed, names, values, dict(zip(loop.olds, carries, strict=True)), handed)
    results = run(step, loop.body.eqns, _constants(loop.body) | of_step, loop.news)
    for name, result, old, new in zip(carries, results, loop.olds, loop.news, strict=True):
        if new is not old:
            step.output(f"next.{name}", result, new.aval)
    of_test = _constants(loop.test) | dict(zip(loop.tested, results, strict=True))
    step.output("open", *run(step, loop.test.eqns, of_test, [loop.is_open]), loop.is_open.aval)

    itself = {var: var for var in later}
    end, of_end = _given(itself, names, values, dict(zip(loop.ends, carries, strict=True)), handed)
    end.output("tokens", *run(end, after, of_end, jaxpr.outvars), jaxpr.outvars[0].aval)
    return {name: graph.model(name) for name, graph in (("begin", begin), ("step", step), ("end", end))}


class _Loop(NamedTuple):
    """A loop over rows while any of them is open, without carries that make no difference to its result.

    Attributes:
      fixed: what the body reads that stays the same, and what that is outside.
      starts, ends: the carries before and after the loop.
      olds, news: those that the body is given and those it makes.
      tested: those that the test is given.
      is_open: which rows are open, of the test.
    """

    body: core.ClosedJaxpr
    test: core.ClosedJaxpr
    fixed: dict[core.Var, Any]
    starts: list[Any]
    ends: list[core.Var]
    olds: list[core.Var]
    news: list[Any]
    tested: list[core.Var]
    is_open: core.Var


def _loop_of(equation: core.JaxprEqn, read: Sequence[core.Var]) -> _Loop:
    """The loop that a `while` is, after which `read` is read."""
    params = equation.params
    body, test, num_fixed = params["body_jaxpr"], params["cond_jaxpr"], params["body_nconsts"]
    given, tested = equation.invars[params["cond_nconsts"] :], test.jaxpr.invars[params["cond_nconsts"] :]
    olds, news = body.jaxpr.invars[num_fixed:], body.jaxpr.outvars
    summed = next(equation.invars[0] for equation in test.eqns if equation.primitive.name == "reduce_sum")
    is_open = next(equation.invars[0] for equation in test.eqns if equation.outvars == [summed])  # of bool
    by_test = _read(test.eqns, [is_open])
    live = {n for n, var in enumerate(equation.outvars) if var in read or tested[n] in by_test}
    while more := {n for n, old in enumerate(olds) if old in _read(body.eqns, [news[m] for m in live])} - live:
        live |= more
    keep = lambda parts: [part for n, part in enumerate(parts) if n in live]  # noqa: E731
    by_body = _read(body.eqns, keep(news))
    fixed = {var: atom for var, atom in zip(body.jaxpr.invars, given[:num_fixed], strict=False) if var in by_body}
    parts = map(keep, (given[num_fixed:], equation.outvars, olds, news, tested))
    return _Loop(body, test, fixed, *parts, is_open)


def _read(equations: Sequence[core.JaxprEqn], wanted: Sequence[Any]) -> list[core.Var]:
    """What those equations that `wanted` depends on are given."""
    used = needed(equations, wanted)
    atoms = [atom for equation in used for atom in equation.invars] + list(wanted)
    made = {var for equation in used for var in equation.outvars}
    return [atom for atom in dict.fromkeys(a for a in atoms if isinstance(a, core.Var)) if atom not in made]


def _given(
    fixed: Mapping[core.Var, Any],
    names: Mapping[core.Var, str],
    values: Mapping[core.Var, Value],
    carries: Mapping[core.Var, str],
    handed: Mapping[str, Any],
) -> tuple[Graph, dict[core.Var, Value]]:
    """A graph that is given by name what is fixed, unless it is constant, and carries; and these in it."""
    given = {names[atom]: atom.aval for atom in fixed.values() if isinstance(atom, core.Var) and atom in names}
    graph = Graph(given | dict(handed))
    by_name = dict(zip((*given, *handed), graph.inputs(), strict=True))
    found = {var: by_name[name] for var, name in carries.items()}
    for var, atom in fixed.items():
        named = isinstance(atom, core.Var) and atom in names
        found[var] = by_name[names[atom]] if named else value_of(atom, values)
    return graph, found


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights of products and look-ups in 8 bits, and products of 8 bits.

    Weights have 7 bits, a scale for each column: sums of products of 8 bits overflow
    on CPUs without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"EnableSubgraph": True, "MatMulConstBOnly": True}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it warns of every tensor that is no float
        try:
            quantize_dynamic(
                model, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8, extra_options=options
            )
        finally:
            logging.root.setLevel(level)
        return onnx.load(path)
