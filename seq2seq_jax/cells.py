"""Recurrent cells: one step as the papers write it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax.dropout import Keys, drop, keep_mask
from seq2seq_jax.linear import Linear, Weights

State = tuple[Array, ...]
"""What a cell hands on, [B, H] each; the hidden state h, its output, comes last."""


class Cell(nnx.Module):
    """A recurrent cell: `(state, *inputs) -> state`.

    Args:
      input_sizes: features of the inputs; each has a kernel of its own.
      size: H, features of the state.
      weights: draws their first values.
      forget_bias: first bias of a forget gate; a cell without one has no use for it.
    """

    num_gates = 1
    """Blocks of H that the weights give for a step."""

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        self.size = size
        kernel = weights.matrix(sum(input_sizes), self.num_gates * size)
        self.input = Linear(input_sizes, kernel, self.first_bias(forget_bias))
        self.recurrent = Linear([size], weights.recurrent(size, self.num_gates))

    def first_bias(self, forget_bias: float) -> Float[Array, " G"]:
        """Zeros, where there is no forget gate."""
        return jnp.zeros(self.num_gates * self.size)

    def start(self, batch: int, dtype: Any) -> State:
        """The state before the first step: zeros."""
        return (jnp.zeros((batch, self.size), dtype),)

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        """One step."""
        raise NotImplementedError


class RNN(Cell):
    """Simple recurrent network, Elman 1990: `h' = tanh(W x + U h + b)`."""

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        (hidden,) = state
        return (jnp.tanh(self.input(*inputs) + self.recurrent(hidden)),)


class GRU(Cell):
    """Gated recurrent unit, Cho et al. 2014, equations 5 to 8, with biases.

        r, z = sigmoid(W x + U h + b);  c = tanh(W_c [x; r h] + b_c);  h' = z h + (1 - z) c

    As in the paper the reset gate acts before the product with W_c. cuDNN and
    PyTorch have it act after, which is another function.
    """

    num_gates = 2

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        super().__init__(input_sizes, size, weights, forget_bias)
        kernel = jnp.concatenate([weights.matrix(sum(input_sizes), size), weights.recurrent(size)])
        self.candidate = Linear([*input_sizes, size], kernel, jnp.zeros(size))

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        (hidden,) = state
        reset, update = jnp.split(jax.nn.sigmoid(self.input(*inputs) + self.recurrent(hidden)), 2, axis=-1)
        candidate = jnp.tanh(self.candidate(*inputs, reset * hidden))
        return (update * hidden + (1 - update) * candidate,)


class LSTM(Cell):
    """Long short-term memory with a forget gate, Gers et al. 2000.

        i, f, g, o = W x + U h + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    The state is (c, h). c is float32 or wider: it sums over all steps, and in
    bfloat16 small additions would vanish.
    """

    num_gates = 4

    def first_bias(self, forget_bias: float) -> Float[Array, " G"]:
        return jnp.zeros((4, self.size)).at[1].set(forget_bias).reshape(-1)

    def start(self, batch: int, dtype: Any) -> State:
        shape = batch, self.size
        return jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)), jnp.zeros(shape, dtype)

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        cell, hidden = state
        return lstm_cell(self.input(*inputs) + self.recurrent(hidden), cell)


@jax.custom_vjp
def lstm_cell(
    gates: Float[Array, "*B G"], cell: Float[Array, "*B H"]
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """The LSTM's equations after the products.

    Args:
      gates: pre-activations, four blocks of H (G = 4H) in the order input, forget,
        candidate, output.
      cell: the state c before the step. Its dtype is the one the step computes in.

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
    # Five blocks of H are all the backward pass needs; automatic differentiation would keep six.
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


class Stack(nnx.Module):
    """Cells one above another, with dropout between them (Zaremba et al. 2014, section 3.1)."""

    def __init__(self, cells: Sequence[Cell], dropout_rate: float) -> None:
        self.cells, self.dropout_rate = nnx.List(cells), dropout_rate

    def __call__(
        self, states: Sequence[State], *inputs: Float[Array, "B _"], keep: Sequence[Bool[Array, "B H"] | None]
    ) -> tuple[tuple[State, ...], Float[Array, "B H"]]:
        """One step of all cells: their states, and the hidden state of the top one.

        `keep` says for every cell but the top one which of its features go up; None for all.
        """
        new: list[State] = []
        for cell, state, kept in zip(self.cells, states, (None, *keep), strict=True):
            inputs = (drop(new[-1][-1], self.dropout_rate, kept),) if new else inputs
            new.append(cell(state, *inputs))
        return tuple(new), new[-1][-1]

    def keep(self, keys: Keys | None, num_steps: int) -> list[Bool[Array, "T B H"] | None]:
        """Draws for every cell but the top one what goes up, at all steps."""
        sizes = [cell.size for cell in self.cells][:-1]
        batch = 0 if keys is None else len(keys)
        kept = keep_mask(keys, self.dropout_rate, (num_steps, len(sizes), batch, max(sizes, default=0)))
        return [None if kept is None else kept[:, n] for n in range(len(sizes))]
