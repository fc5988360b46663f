"""One step of a recurrent cell: the papers' equations, nothing else.

A cell is a pure function of its pre-activations and its carry. The products
with the weights belong to whoever runs the cell over time (`recurrence.py`),
because that is where they can be taken out of the loop.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def lstm_cell(
    gates: Float[Array, "*B G"], cell: Float[Array, "*B H"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """Long short-term memory with a forget gate, Gers et al. 2000.

        i, f, g, o = gates;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
      gates: pre-activations `W x + U h + b`, four blocks of H (G = 4H) in the order
        input, forget, candidate, output.
      cell: the state c before the step. Its dtype (float32 in training) is the
        one the step computes in.

    Returns:
      The new cell state, in the dtype of `cell`, and the new hidden state, in
      the dtype of `gates`.
    """
    return _lstm_forward(gates, cell)[0]


def _lstm_forward(gates: Array, cell: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    i, f, g, o = jnp.split(gates.astype(cell.dtype), 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new_cell = f * cell + i * g
    hidden = (o * jnp.tanh(new_cell)).astype(gates.dtype)
    # Five blocks of H are all the backward pass needs; automatic differentiation would keep ten.
    activations = jnp.concatenate([i, f, g, o], axis=-1).astype(gates.dtype)
    return (new_cell, hidden), (activations, cell)


def _lstm_backward(residuals: tuple[Array, ...], cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
    activations, cell = residuals
    d_cell, d_hidden = cotangents
    i, f, g, o = jnp.split(activations.astype(cell.dtype), 4, axis=-1)
    squashed = jnp.tanh(f * cell + i * g)
    d_hidden = d_hidden.astype(cell.dtype)
    d_cell = d_cell + d_hidden * o * (1 - squashed * squashed)
    d_gates = [
        d_cell * g * i * (1 - i),
        d_cell * cell * f * (1 - f),
        d_cell * i * (1 - g * g),
        d_hidden * squashed * o * (1 - o),
    ]
    return jnp.concatenate(d_gates, axis=-1).astype(activations.dtype), d_cell * f


lstm_cell.defvjp(_lstm_forward, _lstm_backward)
