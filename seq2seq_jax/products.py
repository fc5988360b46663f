"""Products and sums over many rows, with gradients as the device likes them: for everything outside a loop."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def matmul(
    x: Float[Array, "*N I"], kernel: Float[Array, "I O"], bias: Float[Array, " O"] | None = None
) -> Float[Array, "*N O"]:
    """Returns `x @ kernel + bias`, with the leading axes made one.

    The kernel's gradient then sums over one axis, too. Over two the compiler would
    first write a transposed copy of the result's gradient: of the logits' size for
    the output layer.
    """
    rows = x.reshape(-1, x.shape[-1])
    result = _matmul(rows, kernel) if bias is None else add_to_all(_matmul(rows, kernel), bias)
    return result.reshape(*x.shape[:-1], kernel.shape[-1])


def multiply_steps(rows: Float[Array, "T *N I"], kernel: Float[Array, "*Z I O"]) -> Float[Array, "T *N O"]:
    """Returns `rows @ kernel` of all steps: with one kernel, or with a few [Z, I, O] for rows [T, Z, ..., I]."""
    if kernel.ndim == 2:
        return matmul(rows, kernel)
    return jnp.stack([matmul(rows[:, z], kernel[z]) for z in range(len(kernel))], axis=1)


def gradient_of_steps(
    rows: Float[Array, "T *N I"], kernel: Float[Array, "*Z I O"], d_result: Float[Array, "T *N O"]
) -> Float[Array, "*Z I O"]:
    """The kernel's gradient by what `multiply_steps` returns."""
    if kernel.ndim == 2:
        return kernel_gradient(rows.reshape(-1, rows.shape[-1]), d_result.reshape(-1, d_result.shape[-1]))
    each = (gradient_of_steps(rows[:, z], kernel[z], d_result[:, z]) for z in range(len(kernel)))
    return jnp.stack(list(each))


@jax.custom_vjp
def _matmul(x: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float[Array, "N O"]:
    return x @ kernel


_matmul.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda kept, d_result: (d_result @ kept[1].T, kernel_gradient(kept[0], d_result)),
)


@jax.custom_vjp
def add_to_all(x: Float[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x + value`, the value being broadcast to x."""
    return x + value


add_to_all.defvjp(
    lambda x, value: (x + value, value), lambda value, d_result: (d_result, sum_to(value.shape, d_result))
)


def sum_to(shape: tuple[int, ...], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sums `x` down to a shape that can be broadcast to its own: the gradient of what was broadcast.

    Over the leading axes on a CPU by a product with ones. The sum's own kernel
    there copies the array first, and then reads it column by column: 157 instead
    of 7 ms for [1600, 32000] (Zen 3).
    """
    padded = (1,) * (x.ndim - len(shape)) + shape
    num_leading = next((axis for axis, size in enumerate(padded) if size != 1), x.ndim)
    rows = x.reshape(math.prod(x.shape[:num_leading]), math.prod(x.shape[num_leading:]))
    total = jax.lax.platform_dependent(
        rows, cpu=lambda rows: jnp.ones(len(rows), rows.dtype) @ rows, default=lambda rows: rows.sum(0)
    ).reshape(padded[:num_leading] + x.shape[num_leading:])
    axes = [axis for axis, size in enumerate(padded) if size == 1 and total.shape[axis] != 1]
    return total.sum(axes, keepdims=True).reshape(shape)


def kernel_gradient(x: Float[Array, "N I"], d_result: Float[Array, "N O"]) -> Float[Array, "I O"]:
    """Returns `x.T @ d_result`, where a CPU has the transposed copy written out.

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
