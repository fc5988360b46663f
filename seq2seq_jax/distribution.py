"""What of a step runs once, for all steps at once, or in a loop: loop distribution (Allen and Kennedy 1987).

The step's equations are the nodes of a graph, with an edge from each carry to
what a step hands on in its place. Its strongly connected components are the only
loops there have to be. They are found as sets of carries that need each other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from seq2seq_jax.equations import Equation, Graph, divide, needed_for, read_by, results_of, without


class Stage(NamedTuple):
    """Equations that run together: in a loop, or for all steps at once.

    A loop without carries is there so that large arrays are not stacked over
    time. A carry without a loop is at every step what its next was one step
    earlier, and nothing is computed.
    """

    equations: list[Equation]
    loop: bool
    carries: dict[int, int]  # values that a step of the loop is given, and what it makes of them for the next
    outputs: tuple[int, ...] = ()  # values that other stages or the caller want

    def reads(self) -> list[int]:
        """Values that it needs and does not make."""
        known = results_of(self.equations).union(self.carries)
        return [n for n in dict.fromkeys((*read_by(self.equations), *self.carries.values())) if n not in known]


class Schedule(NamedTuple):
    """Where every equation of a step runs."""

    once: list[Equation]  # what depends neither on xs nor on a carry that changes
    stages: list[Stage]  # everything else, in order
    usual: int
    """Elements of the largest value that a step takes, hands on, multiplies with a fixed kernel, or gets from a product
    with what is the same at every step. Nothing larger, such as additive attention's sum for every source
    position, is stacked over time."""


def distribute(graph: Graph, num_carries: int, *, one_loop: bool) -> Schedule:
    """Cuts a step apart, of whose inputs and outputs the first are the carries.

    `one_loop`: whether all cycles, with what lies between them, stay together.
    """
    pairs = zip(graph.inputs[:num_carries], graph.outputs[:num_carries], strict=True)
    carries = {carry: new for carry, new in pairs if carry != new}
    sources = {*carries, *graph.inputs[num_carries:]}
    once, inside = divide(needed_for(graph.equations, graph.outputs), sources, effects=True)
    changing = sources | results_of(inside)
    usual = _usual_size(graph, inside, changing)
    copies = _copies(graph, [*once, *inside], changing)
    if any(equation.effect for equation in inside):
        stages = [Stage(inside, True, carries)]  # what a step prints stays in its order
    else:
        uses = Counter((*graph.outputs, *(n for equation in inside for n in equation.inputs)))
        stages = [
            _with_products_joined(graph, part, uses, changing, once)
            for stage in _stages(inside, carries, one_loop)
            for part in _without_large(graph, stage, usual, changing)
        ]
    stages = [stage._replace(equations=_with_copies(stage.equations, copies)) for stage in stages]
    usual = max((usual, *(_usual_size(graph, stage.equations, changing) for stage in stages)))  # joined rows are longer
    return Schedule(once, _with_outputs(stages, graph.outputs[num_carries:]), usual)


def _usual_size(graph: Graph, equations: list[Equation], changing: set[int]) -> int:
    products = [e for e in equations if e.primitive == "dot_general" and not changing.issuperset(e.inputs)]
    axes = lambda n: graph.types[n].ndim  # noqa: E731
    plain = (e for e in products if graph.multiplies_rows(e) and axes(e.inputs[0]) == axes(e.inputs[1]))
    values = (*graph.inputs, *graph.outputs, *results_of(products), *(e.inputs[0] for e in plain))
    return max(map(graph.size, values), default=0)


# ---- cycles


def _stages(equations: list[Equation], carries: dict[int, int], one_loop: bool) -> list[Stage]:
    """Loops and shifts, each after those it depends on, and after each what can run for all steps at once then."""
    needs = {carry: {carry} for carry in carries}  # of every value the carries that it depends on within a step
    for equation in equations:
        needs |= dict.fromkeys(equation.outputs, _union(needs, equation.inputs))
    feeds: dict[int, set[int]] = {}  # of every value the carries that a step makes of it
    for carry, new in carries.items():
        feeds[new] = feeds.get(new, set()) | {carry}
    for equation in reversed(equations):
        fed = _union(feeds, equation.outputs)
        feeds |= {n: feeds.get(n, set()) | fed for n in equation.inputs}

    components = _components({carry: needs.get(new, set()) for carry, new in carries.items()}, one_loop)
    rank = {carry: number for number, (members, _) in enumerate(components) for carry in members}
    on_cycle, after = defaultdict(list), defaultdict(list)
    for equation in equations:
        last = max((rank[carry] for carry in _union(needs, equation.inputs)), default=-1)
        cyclic = any(rank[carry] == last for carry in _union(feeds, equation.outputs))
        (on_cycle if cyclic else after)[last].append(equation)
    stages = [Stage(after[-1], False, {})]
    for number, (members, loop) in enumerate(components):
        stages.append(Stage(on_cycle[number], loop, {carry: carries[carry] for carry in members}))
        stages.append(Stage(after[number], False, {}))
    return stages


def _components(edges: dict[int, set[int]], one_loop: bool) -> list[tuple[list[int], bool]]:
    """Strongly connected components, each after those it depends on, and whether they are cycles."""
    reach = _closed(edges)
    if one_loop:
        cyclic = {node for node in reach if node in reach[node]}
        reach = _closed({node: found | cyclic if node in cyclic else found for node, found in reach.items()})
    components = {}
    for node in sorted(reach, key=lambda node: len(reach[node] | {node})):
        members = sorted({node} | {other for other in reach[node] if node in reach[other]})
        components[members[0]] = members, node in reach[node]
    return list(components.values())


def _closed(edges: dict[int, set[int]]) -> dict[int, set[int]]:
    """What can be reached in any number of steps, from what is in one (Warshall 1962)."""
    reach = {node: set(found) for node, found in edges.items()}
    for middle in reach:
        for found in reach.values():
            if middle in found:
                found |= reach[middle]
    return reach


def _union(sets: dict[int, set[int]], keys: Iterable[int]) -> set[int]:
    return set().union(*(sets.get(key, ()) for key in keys))


def _with_outputs(stages: list[Stage], wanted: Iterable[int]) -> list[Stage]:
    """Says of every stage what is wanted of it. A loop's carry that is wanted elsewhere is its outputs, shifted."""
    needed, found = set(wanted), []
    for stage in reversed(stages):
        made, new_carries = results_of(stage.equations), set(stage.carries.values())
        for carry, new in stage.carries.items():
            if not stage.loop or (carry in needed and new in made):
                found.append(Stage([], False, {carry: new}))
                needed = needed - {carry} | {new}
        equations = needed_for(stage.equations, needed | new_carries)
        if stage.loop or equations:
            outputs = tuple(sorted(needed & made.union(stage.carries)))
            found.append(stage._replace(equations=equations, outputs=outputs))
            needed.update(read_by(equations), new_carries - made)
    return found[::-1]


# ---- what would take much memory, stacked over time


def _without_large(graph: Graph, stage: Stage, usual: int, changing: set[int]) -> list[Stage]:
    """Takes what forms or reads large arrays out of what runs for all steps at once: into a loop."""
    large = [e for e in stage.equations if graph.is_large(e, changing, usual)]
    if stage.carries or not large:
        return [stage]
    first = without(stage.equations, [*large, *divide(stage.equations, results_of(large))[1]])
    later = without(stage.equations, first)
    inside = needed_for(later, (*read_by(large), *results_of(large)))
    return [Stage(first, False, {}), Stage(inside, True, {}), Stage(without(later, inside), False, {})]


def _copies(graph: Graph, equations: list[Equation], changing: set[int]) -> dict[int, Equation]:
    """Broadcasts of literals, or of what changes, by their results: every stage has its own copy of those it reads."""
    broadcasts = (e for e in equations if e.primitive in ("broadcast_in_dim", "iota"))
    return {e.outputs[0]: e for e in broadcasts if set(e.inputs) <= changing.union(graph.literals)}


def _with_copies(equations: list[Equation], copies: dict[int, Equation]) -> list[Equation]:
    found, made = [], set()

    def put(equation: Equation) -> None:
        if made.isdisjoint(equation.outputs):
            for n in equation.inputs:
                if n in copies:
                    put(copies[n])
            found.append(equation)
            made.update(equation.outputs)

    for equation in equations:
        put(equation)
    return found


# ---- small products


def _with_products_joined(graph: Graph, stage: Stage, uses: Counter, changing: set[int], once: list[Equation]) -> Stage:
    """Makes one product of those in a loop that are only added: [x; h] @ [W; U] for x @ W + h @ U."""
    maker = {e.outputs[0]: e for e in stage.equations if uses[e.outputs[0]] == 1 and stage.loop and stage.carries}

    def terms(total: Equation) -> list[int]:
        """What a sum adds up, and the sums on the way."""
        inner = [n for n in total.inputs if n in maker and graph.adds(maker[n])]
        return [*total.inputs, *(term for n in inner for term in terms(maker[n]))]

    equations, gone = [], set()
    for equation in reversed(stage.equations):
        if not gone.isdisjoint(equation.outputs):
            continue
        added = terms(equation) if graph.adds(equation) else []
        products = [
            n for n in added if n in maker and graph.multiplies_rows(maker[n]) and maker[n].inputs[1] not in changing
        ]
        alike = lambda n: (maker[n].params, graph.types[n].shape)  # noqa: E731
        products = [n for n in products if alike(n) == alike(products[0])]
        if len(products) < 2:
            equations.append(equation)
            continue
        sums = [n for n in added if n in maker and graph.adds(maker[n])]
        gone.update(products, sums)
        rest = [n for n in added if n not in gone]
        equations += reversed(_joined(graph, [maker[n] for n in products], rest, equation, once))
    return stage._replace(equations=equations[::-1])


def _joined(
    graph: Graph, products: list[Equation], rest: list[int], total: Equation, once: list[Equation]
) -> list[Equation]:
    """The product of all, and its sum with the rest, in place of the equation `total`; `once` joins the kernels."""
    rows, kernels = zip(*(product.inputs for product in products), strict=True)
    first, (kernel,) = graph.call(lambda *kernels: jnp.concatenate(kernels, -2), *kernels)
    once += first

    def product_and_sum(kernel: Array, *values: Array) -> Array:
        rows, rest = jnp.concatenate(values[: len(products)], -1), values[len(products) :]
        return sum(rest, jax.lax.dot_general(rows, kernel, **products[0].params))

    *others, last = graph.call(product_and_sum, kernel, *rows, *rest)[0]
    return [*others, last._replace(outputs=total.outputs)]
