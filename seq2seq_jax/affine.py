"""Cycles that only multiply and add, feature by feature: `h' = a h + b`, where a and b do not see the past.

Such a recurrence needs no loop. It is solved for all steps at once by an
associative scan (Blelloch 1990, section 1.4), in a number of operations that
grows with the logarithm of the steps. A CPU, which does one after the other
anyway, runs the loop of a product and a sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seq2seq_jax.distribution import Stage
from seq2seq_jax.equations import Equation, Graph, Values
from seq2seq_jax.loops import Time

_LINEAR = ("add", "sub", "add_any", "neg", "copy", "convert_element_type")


def is_affine(graph: Graph, stage: Stage) -> bool:
    """Whether a loop has one carry and is affine in it, feature by feature."""
    if not stage.loop or len(stage.carries) != 1 or any(equation.effect for equation in stage.equations):
        return False
    ((carry, new),) = stage.carries.items()
    shape, reached = graph.types[carry].shape, {carry}
    for equation in stage.equations:
        if reached.isdisjoint(equation.inputs):
            continue
        if not _is_affine_in(equation, reached) or any(graph.types[n].shape != shape for n in equation.outputs):
            return False
        reached.update(equation.outputs)
    return new in reached and all(map(graph.is_real, reached))


def _is_affine_in(equation: Equation, reached: set[int]) -> bool:
    places = [place for place, n in enumerate(equation.inputs) if n in reached]
    if equation.primitive == "mul":
        return len(places) == 1
    if equation.primitive == "div":
        return places == [0]
    if equation.primitive == "select_n":
        return places[0] > 0
    return equation.primitive in _LINEAR


def solve(
    graph: Graph, stage: Stage, fixed: Values, starts: Values, stacked: Values, time: Time
) -> tuple[Values, Values]:
    """What `loops.run_loop` returns for a stage that is affine."""
    ((carry, new),) = stage.carries.items()
    type_ = graph.types[carry]
    read = [n for n in stage.reads() if n not in graph.literals]

    def coefficients(now: Values) -> tuple[Array, Array]:
        def step(state: Array) -> Array:
            return graph.run(stage.equations, fixed | now | {carry: state})[new]

        # What becomes of zero is b; the derivative is a, for the step is affine.
        return jax.jvp(step, (jnp.zeros(type_.shape, type_.dtype),), (jnp.ones(type_.shape, type_.dtype),))

    given = {n: stacked[n] for n in read if n in stacked}
    added, factors = jax.vmap(coefficients, axis_size=time.length)(given)
    states = linear_recurrence(factors, added, starts[carry], time.reverse)
    others = [n for n in stage.outputs if n != new]
    found = {new: states} if new in stage.outputs else {}
    if others:
        before = {carry: time.before(starts[carry], states)}
        known = given | before
        found |= {n: x for n, x in graph.run_at_once(stage.equations, known, fixed, time.length).items() if n in others}
        found |= {n: x for n, x in before.items() if n in others}
    return {carry: time.last(states)}, found


def linear_recurrence(
    factors: Float[Array, "T ..."], added: Float[Array, "T ..."], start: Float[Array, "..."], reverse: bool = False
) -> Float[Array, "T ..."]:
    """Returns all states of `h_t = a_t h_{t-1} + b_t`, or from the last to the first.

    Half precision is widened on the way, for the products of many factors.
    """
    wide = jnp.promote_types(added.dtype, jnp.float32)
    states = _recurrence(reverse, *(x.astype(wide) for x in (factors, added, start)))
    return states.astype(added.dtype)


def _run(reverse: bool, factors: Array, added: Array, start: Array) -> Array:
    def one_by_one(factors: Array, added: Array, start: Array) -> Array:
        def step(state: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
            state = x[0] * state + x[1]
            return state, state

        return jax.lax.scan(step, start, (factors, added), reverse=reverse)[1]

    def at_once(factors: Array, added: Array, start: Array) -> Array:
        def after(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
            return first[0] * then[0], then[0] * first[1] + then[1]

        factors, added = jax.lax.associative_scan(after, (factors, added), reverse=reverse)
        return factors * start + added

    if not isinstance(factors.shape[0], int):  # a symbol, in an export, of which an associative scan knows nothing
        return one_by_one(factors, added, start)
    return jax.lax.platform_dependent(factors, added, start, cpu=one_by_one, default=at_once)


def _forward(reverse: bool, factors: Array, added: Array, start: Array) -> tuple[Array, Any]:
    states = _run(reverse, factors, added, start)
    return states, (factors, states, start)


def _backward(reverse: bool, kept: Any, d_states: Array) -> tuple[Array, Array, Array]:
    """The gradients obey the same recurrence, the other way round."""
    factors, states, start = kept
    time = Time(states.shape[0], reverse)
    later = Time(states.shape[0], not reverse)
    d_added = _recurrence(not reverse, later.before(jnp.zeros_like(start), factors), d_states, jnp.zeros_like(start))
    first = -1 if reverse else 0
    return d_added * time.before(start, states), d_added, factors[first] * d_added[first]


_recurrence = jax.custom_vjp(_run, nondiff_argnums=(0,))
_recurrence.defvjp(_forward, _backward)
