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
from jaxtyping import Array, Float

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


def in_segments(run: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """Runs `run` over the leading axis of `xs` in pieces, so that its backward pass needs the memory of one piece.

    Only the carries between pieces are kept; what else the backward pass needs of
    a piece is computed again when it gets there (Chen et al. 2016, section 3).

    Args:
      run: `(carry, xs) -> (carry, ys)` for any number of steps, as `scan` is.
      carry: state before the first step.
      xs: pytree of arrays, [T, ...].
      length: steps of a piece, the last one may have fewer; 0 for all at once,
        with nothing computed twice.

    Returns:
      The state after the last step, and the ys, [T, ...].
    """
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    if not length or length >= num_steps:
        return run(carry, xs)
    num_pieces, rest = divmod(num_steps, length)
    pieces = jax.tree.map(lambda x: x[: num_steps - rest].reshape(num_pieces, length, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, pieces)
    ys = jax.tree.map(lambda y: y.reshape(num_pieces * length, *y.shape[2:]), ys)
    if rest:
        carry, last = jax.checkpoint(run)(carry, jax.tree.map(lambda x: x[num_steps - rest :], xs))
        ys = jax.tree.map(lambda first, last: jnp.concatenate([first, last]), ys, last)
    return carry, ys


def direct_product(specs: dict[str, str], operands: dict[str, Array], added: dict[str, Array] | None = None) -> Product:
    """The `product` of a single step outside any loop."""

    def product(name: str, left: Array) -> Array:
        result = _einsum(specs[name], left, operands[name])
        return result + added[name] if added and name in added else result

    return product


def matmul(
    x: Float[Array, "*N I"], kernel: Float[Array, "I O"], bias: Float[Array, " O"] | None = None
) -> Float[Array, "*N O"]:
    """`x @ kernel + bias` with the leading axes made one, and gradients as the device likes them.

    The kernel's gradient then sums over one axis, too. Over two the compiler would
    first write a transposed copy of the result's gradient: of the logits' size for
    the output layer.
    """
    rows = x.reshape(-1, x.shape[-1])
    result = _matmul(rows, kernel) if bias is None else _add_bias(_matmul(rows, kernel), bias)
    return result.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _matmul(x: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float[Array, "N O"]:
    return x @ kernel


def _matmul_forward(x: Any, kernel: Any) -> tuple[Array, tuple[Array | None, Array]]:
    """Inside a fast scan a kernel has no gradient, and the backward pass no need of x."""
    return x.value @ kernel.value, (x.value if kernel.perturbed else None, kernel.value)


def _matmul_backward(residuals: tuple[Array | None, Array], d_result: Array) -> tuple[Array, Array | None]:
    x, kernel = residuals
    return d_result @ kernel.T, None if x is None else _kernel_gradient(x, d_result)


_matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


@jax.custom_vjp
def _add_bias(result: Float[Array, "N O"], bias: Float[Array, " O"]) -> Float[Array, "N O"]:
    return result + bias


_add_bias.defvjp(lambda result, bias: (result + bias, None), lambda _, d_result: (d_result, _bias_gradient(d_result)))


def _bias_gradient(d_result: Float[Array, "N O"]) -> Float[Array, " O"]:
    """Sum over the rows; on a CPU a product with ones.

    The sum's own kernel there copies the array first, and then reads it column by
    column: 157 instead of 7 ms for [1600, 32000] (Zen 3).
    """
    return jax.lax.platform_dependent(
        d_result,
        cpu=lambda d_result: jnp.ones(len(d_result), d_result.dtype) @ d_result,
        default=lambda d_result: d_result.sum(0),
    )


def _kernel_gradient(x: Float[Array, "N I"], d_result: Float[Array, "N O"]) -> Float[Array, "I O"]:
    """`x.T @ d_result`, where a CPU has the transposed copy written out.

    XLA leaves the quick kernels of a CPU to products over the left side's last
    axis, and takes `x.T` apart into one over the first unless a barrier stands
    between: 125 instead of 175 GFLOP/s on two cores (Zen 3).
    """
    return jax.lax.platform_dependent(
        x,
        d_result,
        cpu=lambda x, d_result: jax.lax.optimization_barrier(x.T) @ d_result,
        default=lambda x, d_result: x.T @ d_result,
    )


def _einsum(spec: str, left: Array, operand: Array) -> Array:
    axes, _, right = spec.partition(",")
    plain = operand.ndim == 2 and axes[-1] == right[0] and right[1] not in axes
    return matmul(left, operand) if plain else jnp.einsum(spec, left, operand)


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
        gradient = _over_steps(left, result, right, lefts[name], d_result)
        d_operands[name] = gradient.astype(operands[name].dtype)
    return d_operands, d_shared, d_carry, d_added, d_xs


def _over_steps(left: str, result: str, right: str, lefts: Array, d_results: Array) -> Array:
    """The one product over all steps and rows: [t,b,i], [t,b,o] -> [i,o]."""
    if left[0] == "z":  # one for each direction
        parts = [
            _over_steps(left[1:], result[1:], right[1:], lefts[:, z], d_results[:, z]) for z in range(lefts.shape[1])
        ]
        return jnp.stack(parts)
    if left[0] == result[0] and left[0] not in right:  # steps and rows as one axis, see `matmul`
        lefts, d_results = (x.reshape(-1, *x.shape[2:]) for x in (lefts, d_results))
        if lefts.ndim == d_results.ndim == 2 and right == left[1] + result[1]:
            return _kernel_gradient(lefts, d_results)
        return jnp.einsum(f"{left},{result}->{right}", lefts, d_results)
    return jnp.einsum(f"t{left},t{result}->{right}", lefts, d_results)


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
