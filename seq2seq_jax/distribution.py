"""What of a step runs once, for all steps at once, or in a loop: loop distribution (Allen and Kennedy 1987).

The step's equations are the nodes of a graph, with an edge from each carry to
what a step hands on in its place. Its strongly connected components are the only
loops there have to be. They are found as sets of carries that need each other.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seq2seq_jax.equations import Equation, Graph, largest_inside, multiplies_rows, needed_for, read_by, results_of


class Stage(NamedTuple):
    """Equations that run together.

    Attributes:
      equations: in an order in which they can be run.
      carries: places, among all carries, of those that the loop hands on.
      loop: whether it is a loop. One without carries is there so that large
        arrays are not stacked over time, or for what has an effect.
      shifted: the place of a carry on no cycle. It is at every step what was
        handed on one step earlier; nothing is computed.
    """

    equations: list[Equation]
    carries: tuple[int, ...] = ()
    loop: bool = False
    shifted: int | None = None


class Schedule(NamedTuple):
    """Where every equation of a step runs.

    Attributes:
      once: equations that depend neither on the carry nor on xs.
      stages: everything else, in order.
      usual: elements of the largest value that a step takes, hands on, or gets
        from a product with what is the same at every step. Nothing larger, such
        as additive attention's sum for every source position, is stacked over time.
      constant: carries that a step hands on as they are.
    """

    once: list[Equation]
    stages: list[Stage]
    usual: int
    constant: list[int]


def distribute(graph: Graph, carries: Sequence[int], *, one_loop: bool) -> Schedule:
    """Cuts a step apart.

    Args:
      graph: the step. The first of its inputs and outputs are the carries.
      carries: their numbers, as the step is given them.
      one_loop: whether all cycles, with what lies between them, stay together.
    """
    new_carries = graph.outputs[: len(carries)]
    constant = [place for place, pair in enumerate(zip(carries, new_carries, strict=True)) if pair[0] == pair[1]]
    equations = needed_for(graph.equations, graph.outputs)
    moving = set(graph.inputs) - {carries[place] for place in constant}
    once, inside = [], []
    for equation in equations:
        if equation.effect or not moving.isdisjoint(equation.inputs):
            inside.append(equation)
            moving.update(equation.outputs)
        else:
            once.append(equation)
    usual = _usual_size(graph, inside, moving)
    stages = _stages(graph, inside, carries, new_carries, set(constant), one_loop)
    stages = [
        part for stage in stages for part in ([stage] if stage.loop else _without_large(graph, stage, usual, moving))
    ]
    stages = [_with_products_joined(graph, stage, stages, moving, once) for stage in stages]
    stages = _with_copies(graph, stages, once, moving)
    return Schedule(
        needed_for(once, {n for stage in stages for n in read_by(stage.equations)} | set(graph.outputs)),
        stages,
        usual,
        constant,
    )


def _stages(
    graph: Graph,
    equations: list[Equation],
    carries: Sequence[int],
    new_carries: list[int],
    constant: set[int],
    one_loop: bool,
) -> list[Stage]:
    """Loops and shifts, each after those it depends on, and between them what runs for all steps at once."""
    bits = {carry: 1 << place for place, carry in enumerate(carries) if place not in constant}
    needs = []  # of every equation the carries, as bits, that it depends on within a step
    for equation in equations:
        needs.append(_union(bits.get(n, 0) for n in equation.inputs))
        bits.update(dict.fromkeys(equation.outputs, needs[-1]))
    places = [place for place in range(len(carries)) if place not in constant]
    cycles = _components({place: bits.get(new_carries[place], 0) for place in places}, one_loop)

    feeds: dict[int, int] = {}  # of every value the carries, as bits, that a step hands on and that depend on it
    for place in places:
        feeds[new_carries[place]] = feeds.get(new_carries[place], 0) | 1 << place
    for equation in reversed(equations):
        fed = _union(feeds.get(n, 0) for n in equation.outputs)
        feeds |= {n: feeds.get(n, 0) | fed for n in equation.inputs}

    between: list[list[Equation]] = [[] for _ in range(len(cycles) + 1)]
    for equation, need in zip(equations, needs, strict=True):
        fed = _union(feeds.get(n, 0) for n in equation.outputs)
        met = [number for number, cycle in enumerate(cycles) if any(need >> place & 1 for place in _members(cycle))]
        home = [n for n in met if cycles[n].loop and any(fed >> place & 1 for place in cycles[n].carries)]
        (cycles[home[0]].equations if home else between[max(met, default=-1) + 1]).append(equation)
    stages = [Stage(between[0])]
    for cycle, after in zip(cycles, between[1:], strict=True):
        stages += [cycle, Stage(after)]
    return [stage for stage in stages if stage.equations or stage.loop or stage.shifted is not None]


def _components(reach: dict[int, int], one_loop: bool) -> list[Stage]:
    """The cycles of a graph of carries, and the carries on none, each after those it depends on.

    Args:
      reach: of every carry the carries, as bits, that the step makes the next one of.
      one_loop: whether all cycles, and what lies between them, count as one.
    """
    reach = _closed(reach)
    if one_loop:
        cyclic = _union(1 << place for place in reach if reach[place] >> place & 1)
        feeding = _union(reach[place] for place in _members(cyclic))
        together = _union(1 << place for place in reach if reach[place] & cyclic and (cyclic | feeding) >> place & 1)
        reach = _closed({place: found | (together if together >> place & 1 else 0) for place, found in reach.items()})
    stages: list[Stage] = []
    done = 0
    for place in sorted(reach, key=lambda place: (reach[place] | 1 << place).bit_count()):
        if done >> place & 1:
            continue
        loop = bool(reach[place] >> place & 1)
        mutual = (other for other in _members(reach[place]) if reach[other] >> place & 1)
        stages.append(Stage([], tuple(mutual), True) if loop else Stage([], shifted=place))
        done |= _union(1 << other for other in _members(stages[-1]))
    return stages


def _closed(reach: dict[int, int]) -> dict[int, int]:
    """What can be reached in any number of steps, from what is in one (Warshall 1962)."""
    reach = dict(reach)
    for middle in reach:
        for place in reach:
            if reach[place] >> middle & 1:
                reach[place] |= reach[middle]
    return reach


def _members(of: Stage | int) -> list[int]:
    if isinstance(of, Stage):
        return list(of.carries) if of.loop else [of.shifted] if of.shifted is not None else []
    return [place for place in range(of.bit_length()) if of >> place & 1]


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


# ---- large arrays


def _usual_size(graph: Graph, equations: list[Equation], moving: set[int]) -> int:
    products = (e for e in equations if e.primitive == "dot_general" and not moving.issuperset(e.inputs))
    values = (*graph.inputs, *graph.outputs, *(equation.outputs[0] for equation in products))
    return max((graph.size(n) for n in values), default=0)


def _without_large(graph: Graph, stage: Stage, usual: int, moving: set[int]) -> list[Stage]:
    """Takes what forms large arrays, or has an effect, out of what runs for all steps at once: into a loop."""

    def large(equation: Equation) -> bool:
        values = {*equation.inputs, *equation.outputs} & moving
        return equation.effect or max(largest_inside(equation), *map(graph.size, values)) > usual

    touched = [equation for equation in stage.equations if large(equation)]
    if not touched:
        return [stage]
    later, reached = [], set(results_of(touched))
    for equation in stage.equations:
        if equation in touched or not reached.isdisjoint(equation.inputs):
            later.append(equation)
            reached.update(equation.outputs)
    looped = needed_for(later, {n for equation in touched for n in (*equation.inputs, *equation.outputs)})
    parts = (
        Stage([equation for equation in stage.equations if equation not in later], shifted=stage.shifted),
        Stage(looped, loop=True),
        Stage([equation for equation in later if equation not in looped]),
    )
    return [part for part in parts if part.equations or part.shifted is not None]


# ---- small products


def _with_products_joined(
    graph: Graph, stage: Stage, stages: list[Stage], moving: set[int], once: list[Equation]
) -> Stage:
    """Makes one product of those in a loop that are only added: [x; h] @ [W; U] for x @ W + h @ U."""
    if not stage.carries:
        return stage
    uses = Counter(n for other in stages for equation in other.equations for n in equation.inputs) + Counter(
        graph.outputs
    )
    maker = {equation.outputs[0]: equation for equation in stage.equations if equation.outputs}

    def terms(n: int, root: bool = False) -> list[int]:
        """What a sum adds up."""
        equation = maker.get(n)
        if equation is None or equation.primitive != "add" or len(equation.inputs) < 2 or (uses[n] > 1 and not root):
            return [n]
        return [term for part in equation.inputs for term in terms(part)]

    replaced: dict[int, list[Equation]] = {}
    removed: set[int] = set()
    for equation in reversed(stage.equations):
        if equation.primitive != "add" or equation.outputs[0] in removed:
            continue
        addends = terms(equation.outputs[0], root=True)
        products = [n for n in addends if uses[n] == 1 and n in maker and _multiplies_rows(graph, maker[n], moving)]
        products = [n for n in products if maker[n].params == maker[products[0]].params]
        if len(products) > 1:
            rest = [n for n in addends if n not in products]
            replaced[equation.outputs[0]] = _joined(graph, [maker[n] for n in products], rest, equation, once)
            removed |= set(products) | _inner_sums(equation, maker, uses)
    equations = []
    for equation in stage.equations:
        if equation.outputs and equation.outputs[0] in removed:
            continue
        equations += replaced.get(equation.outputs[0], [equation]) if equation.outputs else [equation]
    return stage._replace(equations=equations)


def _inner_sums(equation: Equation, maker: dict[int, Equation], uses: Counter) -> set[int]:
    found = set()
    for n in equation.inputs:
        if n in maker and maker[n].primitive == "add" and uses[n] == 1:
            found |= {n} | _inner_sums(maker[n], maker, uses)
    return found


def _multiplies_rows(graph: Graph, equation: Equation, moving: set[int]) -> bool:
    """Whether a product is of rows that change with kernels that do not."""
    return multiplies_rows(graph, equation) and equation.inputs[0] in moving and equation.inputs[1] not in moving


def _joined(
    graph: Graph, products: list[Equation], rest: list[int], total: Equation, once: list[Equation]
) -> list[Equation]:
    """The product of all, and its sum with the rest, in place of the equation `total`."""

    def concatenation(parts: list[int], axis: int) -> Equation:
        types = [graph.types[n] for n in parts]
        result = jax.eval_shape(lambda *parts: jnp.concatenate(parts, axis), *types)
        apply = lambda *parts: [jnp.concatenate(parts, axis)]  # noqa: E731
        return Equation("concatenate", {}, tuple(parts), (graph.new(result),), apply)

    rows = concatenation([product.inputs[0] for product in products], -1)
    kernels = concatenation([product.inputs[1] for product in products], -2)
    once.append(kernels)
    params, result = products[0].params, graph.types[products[0].outputs[0]]
    outputs = [graph.new(result) for _ in rest] + [total.outputs[0]]
    multiply = lambda rows, kernels: [jax.lax.dot_general(rows, kernels, **params)]  # noqa: E731
    equations = [rows, Equation("dot_general", params, (rows.outputs[0], kernels.outputs[0]), (outputs[0],), multiply)]
    for n, term in enumerate(rest):
        equations.append(Equation("add", {}, (outputs[n], term), (outputs[n + 1],), lambda a, b: [a + b]))
    return equations


# ---- what is cheaper to form anew than to keep


def _with_copies(graph: Graph, stages: list[Stage], once: list[Equation], moving: set[int]) -> list[Stage]:
    """Gives every stage its own copy of broadcasts, and of what is made of literals: they would be stacked over time."""
    everything = [equation for stage in stages for equation in stage.equations]
    copied = {e.outputs[0]: e for e in everything if e.primitive == "broadcast_in_dim"}
    literal = set(graph.literals)
    for equation in once:
        if literal.issuperset(equation.inputs):
            literal.update(equation.outputs)
            copied |= dict.fromkeys(equation.outputs, equation)

    def completed(equations: list[Equation]) -> list[Equation]:
        missing = list({id(copied[n]): copied[n] for n in read_by(equations) if n in copied}.values())
        return completed([*missing, *equations]) if missing else equations

    stages = [stage._replace(equations=completed(stage.equations)) for stage in stages]
    needed, found = set(graph.outputs), []
    for stage in reversed(stages):
        kept = needed_for(stage.equations, needed)
        needed.update(read_by(kept))
        found.append(stage._replace(equations=kept))
    return [s for s in reversed(found) if s.equations or s.loop or s.shifted is not None]
