"""Any step over time: a plain scan as reference, and a fast one that takes weight gradients out of the loop.

Automatic differentiation of a scan adds a weight's gradient to an accumulator
at every step: one skinny product and one pass over the accumulator each time,
and, with the batch spread over devices, one collective each time. Here the
backward loop emits only the gradient of each product's *result*; the weight's
gradient is a single product over all steps and rows after the loop.

A step is written once, as a pure function of a `product`:

    def step(product, shared, carry, x):
        gates = product("recurrent", carry.h)
        ...
        return carry, y

`product(name, left)` is `einsum(spec[name], left, operands[name])`, plus
`added[name]` of this step where there is one. An operand is whatever stays the
same over time and is multiplied at every step: recurrent weights, and
attention's keys and values too. Products whose left side does not depend on the
carry do not belong in a step: take them before the loop, for all steps at once,
and hand them over in `added`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

Product = Callable[[str, Array], Array]
Step = Callable[[Product, Any, Any, Any], tuple[Any, Any]]
Specs = tuple[tuple[str, str], ...]
Engine = Literal["fast", "reference"]


def scan(
    step: Step,
    specs: dict[str, str],
    operands: dict[str, Array],
    shared: Any,
    carry: Any,
    added: dict[str, Array],
    xs: Any,
    *,
    engine: Engine = "fast",
) -> tuple[Any, Any]:
    """Runs `step` over the leading axis of `added` and `xs`.

    Args:
      step: `(product, shared, carry, x) -> (carry, y)`, pure, closing over no
        array that needs a gradient. Each product is taken at most once a step.
      specs: einsum specification of each product, left side first, e.g.
        `{"recurrent": "bh,hg->bg"}`. No letter `t`.
      operands: right side of each product, the same at every step.
      shared: other arrays that every step reads; their gradients are summed
        inside the loop, so they should be small or be masks.
      carry: state before the first step.
      added: time-major arrays, [T, ...], added to the results of products.
      xs: pytree of other time-major arrays, [T, ...], for the step itself.
      engine: "fast", or "reference" for the plain scan under automatic
        differentiation. Values and gradients are the same.

    Returns:
      The state after the last step, and the stacked ys, [T, ...].
    """
    if set(specs) != set(operands):
        raise ValueError(f"specs name {sorted(specs)} and operands {sorted(operands)}")
    run = _fast_scan if engine == "fast" else _reference_scan
    return run(step, tuple(sorted(specs.items())), operands, shared, carry, added, xs)


def direct_product(specs: dict[str, str], operands: dict[str, Array], added: dict[str, Array] | None = None) -> Product:
    """The `product` of a single step outside any loop."""

    def product(name: str, left: Array) -> Array:
        result = jnp.einsum(specs[name], left, operands[name])
        return result + added[name] if added and name in added else result

    return product


def _reference_scan(
    step: Step, specs: Specs, operands: Any, shared: Any, carry: Any, added: Any, xs: Any
) -> tuple[Any, Any]:
    def body(carry: Any, now: Any) -> tuple[Any, Any]:
        added, x = now
        return step(direct_product(dict(specs), operands, added), shared, carry, x)

    return jax.lax.scan(body, carry, (added, xs))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fast_scan(
    step: Step, specs: Specs, operands: Any, shared: Any, carry: Any, added: Any, xs: Any
) -> tuple[Any, Any]:
    return _reference_scan(step, specs, operands, shared, carry, added, xs)


def _fast_forward(step: Step, specs: Specs, operands: Any, shared: Any, carry: Any, added: Any, xs: Any):
    """Differentiates the scan with respect to everything but the operands.

    The gradient of every product's result comes out of the backward loop stacked
    over time: as that of what is `added` to it, or, where nothing is, of a *tap*,
    a zero in its place. With the left sides, stacked likewise, it gives the
    operand's gradient.
    """
    multiply = direct_product(dict(specs), operands)

    def tapped_scan(shared: Any, carry: Any, added: Any, taps: Any, xs: Any):
        def body(carry: Any, now: Any):
            added, taps, x = now
            lefts: dict[str, Array] = {}

            def product(name: str, left: Array) -> Array:
                lefts[name] = left
                result = multiply(name, left)
                return result + added[name] if name in added else _tap(result, taps[name])

            carry, y = step(product, shared, carry, x)
            return carry, (y, lefts)

        carry, (ys, lefts) = jax.lax.scan(body, carry, (added, taps, xs))
        return (carry, ys), lefts

    taps = _zero_taps(step, multiply, shared, carry, added, xs)
    outputs, pullback, lefts = jax.vjp(tapped_scan, shared, carry, added, taps, xs, has_aux=True)
    return outputs, (pullback, lefts, operands)


def _fast_backward(step: Step, specs: Specs, residuals: Any, cotangents: Any):
    pullback, lefts, operands = residuals
    d_shared, d_carry, d_added, d_taps, d_xs = pullback(cotangents)
    d_operands = {}
    for name, spec in specs:
        left, right_and_result = spec.split(",")
        right, result = right_and_result.split("->")
        d_result = d_added[name] if name in d_added else d_taps[name]
        # The one product over all steps and rows: [t,b,i], [t,b,o] -> [i,o].
        gradient = jnp.einsum(f"t{left},t{result}->{right}", lefts[name], d_result)
        d_operands[name] = gradient.astype(operands[name].dtype)
    return d_operands, d_shared, d_carry, d_added, d_xs


_fast_scan.defvjp(_fast_forward, _fast_backward)


@jax.custom_vjp
def _tap(result: Array, tap: Array) -> Array:
    """`result + tap` for a tap that is zero, without reading it."""
    return result


_tap.defvjp(lambda result, tap: (result, None), lambda _, cotangent: (cotangent, cotangent))


def _zero_taps(step: Step, multiply: Product, shared: Any, carry: Any, added: Any, xs: Any) -> dict[str, Array]:
    """Zeros in the shape of the results, [T, ...], of every product to which nothing is added."""
    results: dict[str, jax.ShapeDtypeStruct] = {}

    def product(name: str, left: Array) -> Array:
        if name in results:
            raise ValueError(f"product {name!r} is taken twice in a step; give each its own name")
        result = multiply(name, left)
        results[name] = jax.ShapeDtypeStruct(result.shape, result.dtype)
        return result

    first = jax.tree.map(lambda x: x[0], xs)
    jax.eval_shape(lambda shared, carry, x: step(product, shared, carry, x), shared, carry, first)
    num_steps = jax.tree.leaves((added, xs))[0].shape[0]
    free = (name for name in results if name not in added)
    return {name: jnp.zeros((num_steps, *results[name].shape), results[name].dtype) for name in free}
