"""What of a step runs once, for all steps at once, or in a loop: loop distribution (Allen and Kennedy 1987).

The step's equations are the nodes of a graph, with an edge from each carry to
what a step hands on in its place. Its strongly connected components are the only
loops there have to be. They are found as sets of carries that need each other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from seq2seq_jax.equations import (
    Equation,
    Graph,
    divide,
    largest_inside,
    multiplies_rows,
    needed_for,
    read_by,
    results_of,
)

Pairs = Mapping[int, tuple[int, int]]
"""By its place, of every carry that changes, the value that a step is given and the one that it hands on."""


class Stage(NamedTuple):
    """Equations that run together: in a loop, or for all steps at once.

    Attributes:
      equations: in an order in which they can be run.
      loop: whether it is a loop. One without carries is there so that large
        arrays are not stacked over time.
      carries: places, among all carries, of those that the loop hands on. Without
        a loop, of one that is at every step what was handed on one step earlier:
        nothing is computed.
      outputs: values that other stages or the caller want of it.
    """

    equations: list[Equation]
    loop: bool = False
    carries: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


class Schedule(NamedTuple):
    """Where every equation of a step runs.

    Attributes:
      once: equations that depend neither on the carry nor on xs.
      stages: everything else, in order.
      constant: places of carries that a step hands on as they are.
      usual: elements of the largest value that a step takes, hands on, or gets
        from a product with what is the same at every step. Nothing larger, such
        as additive attention's sum for every source position, is stacked over time.
    """

    once: list[Equation]
    stages: list[Stage]
    constant: list[int]
    usual: int


def distribute(graph: Graph, num_carries: int, *, one_loop: bool) -> Schedule:
    """Cuts a step apart.

    Args:
      graph: the step. The first of its inputs and outputs are the carries.
      num_carries: how many.
      one_loop: whether all cycles, with what lies between them, stay together.
    """
    pairs = dict(enumerate(zip(graph.inputs[:num_carries], graph.outputs[:num_carries], strict=True)))
    constant = [place for place, (carry, new) in pairs.items() if carry == new]
    pairs = {place: pair for place, pair in pairs.items() if place not in constant}
    sources = {carry for carry, _ in pairs.values()}.union(graph.inputs[num_carries:])
    once, inside = divide(needed_for(graph.equations, graph.outputs), sources, effects=True)
    moving = sources | results_of(inside)
    usual = _usual_size(graph, inside, moving)
    copies = _copies(graph, [*once, *inside], moving)
    if any(equation.effect for equation in inside):  # what a step prints stays in its order
        stages = [Stage(inside, True, tuple(pairs))]
    else:
        stages = [
            part for stage in _stages(inside, pairs, one_loop) for part in _without_large(graph, stage, usual, moving)
        ]
        uses = Counter(graph.outputs) + Counter(n for equation in inside for n in equation.inputs)
        stages = [_with_products_joined(graph, stage, uses, moving, once) for stage in stages]
    stages = [stage._replace(equations=_with_copies(stage.equations, copies)) for stage in stages]
    return Schedule(once, _with_outputs(stages, pairs, graph.outputs[num_carries:]), constant, usual)


# ---- cycles


def _stages(equations: list[Equation], pairs: Pairs, one_loop: bool) -> list[Stage]:
    """Loops and shifts, each after those it depends on, and after each what can run for all steps at once then."""
    needs: dict[int, set[int]] = {carry: {place} for place, (carry, _) in pairs.items()}
    for equation in equations:  # places of the carries that a value depends on, within a step
        needs |= dict.fromkeys(equation.outputs, _union(needs, equation.inputs))
    feeds: dict[int, set[int]] = defaultdict(set)
    for place, (_, new) in pairs.items():  # places of the carries that a step makes of a value
        feeds[new].add(place)
    for equation in reversed(equations):
        fed = _union(feeds, equation.outputs)
        feeds |= {n: feeds.get(n, set()) | fed for n in equation.inputs}

    components = _components({place: needs.get(new, set()) for place, (_, new) in pairs.items()}, one_loop)
    rank = {place: number for number, component in enumerate(components) for place in component.carries}
    after: dict[int, list[Equation]] = defaultdict(list)
    for equation in equations:
        last = max((rank[place] for place in _union(needs, equation.inputs)), default=-1)
        on_cycle = any(rank[place] == last for place in _union(feeds, equation.outputs))
        (components[last].equations if on_cycle else after[last]).append(equation)
    stages = [Stage(after[-1])]
    for number, component in enumerate(components):
        stages += [component, Stage(after[number])]
    return [stage for stage in stages if stage.equations or stage.carries]


def _components(edges: dict[int, set[int]], one_loop: bool) -> list[Stage]:
    """The cycles of a graph of carries as loops, the carries on none as shifts, each after those it depends on."""
    reach = _closed(edges)
    if one_loop:
        cyclic = {place for place in reach if place in reach[place]}
        reach = _closed({place: found | cyclic if place in cyclic else found for place, found in reach.items()})
    components: dict[tuple[int, ...], Stage] = {}
    for place in sorted(reach, key=lambda place: len(reach[place] | {place})):
        members = tuple(sorted({place} | {other for other in reach[place] if place in reach[other]}))
        components[members] = Stage([], place in reach[place], members)
    return list(components.values())


def _closed(edges: dict[int, set[int]]) -> dict[int, set[int]]:
    """What can be reached in any number of steps, from what is in one (Warshall 1962)."""
    reach = {place: set(found) for place, found in edges.items()}
    for middle in reach:
        for found in reach.values():
            if middle in found:
                found |= reach[middle]
    return reach


def _union(sets: Mapping[int, set[int]], keys: Iterable[int]) -> set[int]:
    return set().union(*(sets.get(key, ()) for key in keys))


def _with_outputs(stages: list[Stage], pairs: Pairs, wanted: Iterable[int]) -> list[Stage]:
    """Says of every stage what is wanted of it. A carry that is wanted outside its loop is a shift of what that puts out."""
    needed, found = set(wanted), []
    for stage in reversed(stages):
        carries, new_carries = ({pairs[place][side] for place in stage.carries} for side in (0, 1))
        made = results_of(stage.equations)
        for place in stage.carries:
            carry, new = pairs[place]
            if not stage.loop or (carry in needed and new in made):
                found.append(Stage([], carries=(place,)))
                needed = needed - {carry} | {new}
        equations = needed_for(stage.equations, needed | new_carries)
        if stage.loop or equations:
            found.append(stage._replace(equations=equations, outputs=tuple(sorted((made | carries) & needed))))
            needed.update(read_by(equations), new_carries - made)
    return found[::-1]


# ---- large arrays


def _usual_size(graph: Graph, equations: list[Equation], moving: set[int]) -> int:
    products = (e for e in equations if e.primitive == "dot_general" and not moving.issuperset(e.inputs))
    values = (*graph.inputs, *graph.outputs, *(equation.outputs[0] for equation in products))
    return max((graph.size(n) for n in values), default=0)


def _without_large(graph: Graph, stage: Stage, usual: int, moving: set[int]) -> list[Stage]:
    """Takes what forms or reads large arrays out of what runs for all steps at once: into a loop."""

    def large(equation: Equation) -> bool:
        values = moving.intersection((*equation.inputs, *equation.outputs))
        return max(largest_inside(equation), *map(graph.size, values)) > usual

    touched = [] if stage.carries else [equation for equation in stage.equations if large(equation)]
    if not touched:
        return [stage]
    reached = results_of(touched)
    reached |= results_of(divide(stage.equations, reached)[1])
    first, later = _parted(stage.equations, reached)
    inside = needed_for(later, (*read_by(touched), *results_of(touched)))
    last, inside = _parted(later, results_of(inside))
    return [part for part in (Stage(first), Stage(inside, loop=True), Stage(last)) if part.equations]


def _parted(equations: list[Equation], values: set[int]) -> tuple[list[Equation], list[Equation]]:
    """The equations that make none of the values, and those that do."""
    makes = [not values.isdisjoint(equation.outputs) for equation in equations]
    return tuple([e for e, made in zip(equations, makes, strict=True) if made == wanted] for wanted in (False, True))


# ---- small products


def _with_products_joined(
    graph: Graph, stage: Stage, uses: Mapping[int, int], moving: set[int], once: list[Equation]
) -> Stage:
    """Makes one product of those in a loop that are only added: [x; h] @ [W; U] for x @ W + h @ U."""
    if not (stage.loop and stage.carries):
        return stage
    maker = {e.outputs[0]: e for e in stage.equations if len(e.outputs) == 1 and uses[e.outputs[0]] == 1}

    def terms(total: Equation) -> list[int]:
        """What a sum adds up, each after the sum that it is a term of."""
        found = []
        for n in total.inputs:
            found += [n, *terms(maker[n])] if n in maker and _is_sum(maker[n]) else [n]
        return found

    equations, gone = [], set()
    for equation in reversed(stage.equations):
        if not gone.isdisjoint(equation.outputs):
            continue
        added = terms(equation) if _is_sum(equation) else []
        products = [n for n in added if n in maker and _multiplies_rows(graph, maker[n], moving)]
        products = [n for n in products if maker[n].params == maker[products[0]].params]
        if len(products) < 2:
            equations.append(equation)
            continue
        sums = {n for n in added if n in maker and _is_sum(maker[n])}
        rest = [n for n in added if n not in sums and n not in products]
        gone |= sums.union(products)
        equations += reversed(_joined(graph, [maker[n] for n in products], rest, equation, once))
    return stage._replace(equations=equations[::-1])


def _is_sum(equation: Equation) -> bool:
    return equation.primitive == "add" and len(equation.inputs) == 2


def _multiplies_rows(graph: Graph, equation: Equation, moving: set[int]) -> bool:
    """Whether a product is of rows that change with kernels that do not."""
    return multiplies_rows(graph, equation) and equation.inputs[0] in moving and equation.inputs[1] not in moving


def _joined(
    graph: Graph, products: list[Equation], rest: list[int], total: Equation, once: list[Equation]
) -> list[Equation]:
    """The product of all, and its sum with the rest, in place of the equation `total`."""
    rows, kernels = zip(*(product.inputs for product in products), strict=True)
    first, (kernel,) = graph.call(lambda *kernels: jnp.concatenate(kernels, -2), *kernels)
    once += first

    def product_and_sum(kernel: Array, *values: Array) -> Array:
        rows, rest = jnp.concatenate(values[: len(products)], -1), values[len(products) :]
        return sum(rest, jax.lax.dot_general(rows, kernel, **products[0].params))

    *others, last = graph.call(product_and_sum, kernel, *rows, *rest)[0]
    return [*others, last._replace(outputs=total.outputs)]


# ---- what is cheaper to form anew than to keep


def _copies(graph: Graph, equations: list[Equation], moving: set[int]) -> dict[int, Equation]:
    """Broadcasts by their results, of literals or of what changes: stages copy them, for they'd be stacked over time."""
    return {
        equation.outputs[0]: equation
        for equation in equations
        if equation.primitive in ("broadcast_in_dim", "iota") and set(equation.inputs) <= moving.union(graph.literals)
    }


def _with_copies(equations: list[Equation], copies: Mapping[int, Equation]) -> list[Equation]:
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
