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
    """Blocks of H that the weights of the inputs give for a step."""
    sees_past = True
    """Whether as many come from h."""

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        self.size = size
        kernel = weights.matrix(sum(input_sizes), self.num_gates * size)
        self.input = Linear(input_sizes, kernel, self.first_bias(forget_bias))
        if self.sees_past:
            self.recurrent = Linear([size], weights.recurrent(size, self.num_gates))

    def first_bias(self, forget_bias: float) -> Float[Array, " G"] | None:
        """Zeros, where there is no forget gate; None for no bias."""
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


class GRUv2(Cell):
    """Gated recurrent unit with the reset gate after the product: the first version of Cho et al. 2014, and cuDNN's.

    r, z = sigmoid(W x + U h + b);  c = tanh(W_c x + b_c + r (U_c h + b_h));  h' = z h + (1 - z) c
    """

    num_gates = 3

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        super().__init__(input_sizes, size, weights, forget_bias)
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        (hidden,) = state
        *of_inputs, candidate = jnp.split(self.input(*inputs), 3, axis=-1)
        *of_state, past = jnp.split(self.recurrent(hidden), 3, axis=-1)
        reset, update = (jax.nn.sigmoid(x + h) for x, h in zip(of_inputs, of_state, strict=True))
        candidate = jnp.tanh(candidate + reset * (past + self.bias[...].astype(past.dtype)))
        return (update * hidden + (1 - update) * candidate,)


class LSTM(Cell):
    """Long short-term memory with a forget gate, Gers et al. 2000.

        i, f, g, o = W x + U h + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    The state is (c, h). c is float32 or wider: it sums over all steps, and in
    bfloat16 small additions would vanish.
    """

    num_gates = 4

    def first_bias(self, forget_bias: float) -> Float[Array, " G"] | None:
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


class LayerNormLSTM(LSTM):
    """LSTM with layer normalisation, Ba et al. 2016, equations 20 to 22, each gate normalised by itself.

        i, f, g, o = LN(W x) + LN(U h) + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(LN(c'))

    As written there a mean and a variance are of all four gates together. By
    gate they are taken in RNMT+ (Chen et al. 2018, section 3.1).
    """

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        super().__init__(input_sizes, size, weights)
        self.bias = nnx.Param(super().first_bias(forget_bias))
        self.norms = nnx.List([LayerNorm(4, size), LayerNorm(4, size), LayerNorm(1, size)])
        self.cell_bias = nnx.Param(jnp.zeros(size))

    def first_bias(self, forget_bias: float) -> None:
        """None: it is added to what is normalised."""

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        cell, hidden = state
        of_inputs, of_state, of_cell = self.norms
        gates = of_inputs(self.input(*inputs)) + of_state(self.recurrent(hidden)) + self.bias[...].astype(hidden.dtype)
        i, f, g, o = jnp.split(gates.astype(cell.dtype), 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        squashed = jnp.tanh(of_cell(cell) + self.cell_bias[...])
        return cell, (jax.nn.sigmoid(o) * squashed).astype(hidden.dtype)


class LayerNormGRU(Cell):
    """Gated recurrent unit with layer normalisation, Ba et al. 2016, equations 26 to 29, each gate by itself.

        z, r = LN(W x) + LN(U h) + b;  c = tanh(LN(W_c x) + b_c + sigmoid(r) LN(U_c h));
        h' = (1 - sigmoid(z)) h + sigmoid(z) c

    The reset gate acts after the product, and the update gate says how much is new.
    """

    num_gates = 3

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        super().__init__(input_sizes, size, weights)
        self.bias = nnx.Param(super().first_bias(forget_bias))
        self.norms = nnx.List([LayerNorm(3, size), LayerNorm(3, size)])

    def first_bias(self, forget_bias: float) -> None:
        """None: it is added to what is normalised."""

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        (hidden,) = state
        of_inputs, of_state = self.norms
        gates = of_inputs(self.input(*inputs)) + self.bias[...].astype(hidden.dtype)
        *given, candidate = jnp.split(gates, 3, axis=-1)
        *past, of_candidate = jnp.split(of_state(self.recurrent(hidden)), 3, axis=-1)
        update, reset = (jax.nn.sigmoid(x + h) for x, h in zip(given, past, strict=True))
        candidate = jnp.tanh(candidate + reset * of_candidate)
        return ((1 - update) * hidden + update * candidate,)


class MinGRU(Cell):
    """Minimal gated recurrent unit, Feng et al. 2024, section 3.1.

        z = sigmoid(W_z x + b_z);  c = W_c x + b_c;  h' = (1 - z) h + z c

    No gate sees the past: all steps are solved at once, see `recurrence.scan`.
    """

    num_gates, sees_past = 2, False

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        (hidden,) = state
        update, candidate = jnp.split(self.input(*inputs), 2, axis=-1)
        update = jax.nn.sigmoid(update)
        return ((1 - update) * hidden + update * candidate,)


class MinLSTM(Cell):
    """Minimal LSTM, Feng et al. 2024, section 3.2: forget and input gate add up to 1.

        f, i = sigmoid(W x + b);  c = W_c x + b_c;  h' = f / (f + i) h + i / (f + i) c

    No gate sees the past: all steps are solved at once, see `recurrence.scan`.
    """

    num_gates, sees_past = 3, False

    def first_bias(self, forget_bias: float) -> Float[Array, " G"]:
        return jnp.zeros((3, self.size)).at[0].set(forget_bias).reshape(-1)

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        (hidden,) = state
        forget, new, candidate = jnp.split(self.input(*inputs), 3, axis=-1)
        # f / (f + i) without the quotient of two small numbers: both are 1 / (1 + exp(-x)).
        forget = jax.nn.sigmoid(jax.nn.log_sigmoid(forget) - jax.nn.log_sigmoid(new))
        return (forget * hidden + (1 - forget) * candidate,)


class SLSTM(Cell):
    """LSTM with exponential gates, Beck et al. 2024, equations 8 to 17, with one head.

        i, f, z, o = W x + U h + b;  m' = max(log sigmoid(f) + m, i)
        i' = exp(i - m');  f' = exp(log sigmoid(f) + m - m')
        c' = f' c + i' tanh(z);  n' = f' n + i';  h' = sigmoid(o) c' / n'

    The forget gate is the sigmoid, of the two that the paper allows. The state is
    (c, n, m, h); all but h are float32 or wider.
    """

    num_gates = 4

    def first_bias(self, forget_bias: float) -> Float[Array, " G"]:
        return jnp.zeros((4, self.size)).at[1].set(forget_bias).reshape(-1)

    def start(self, batch: int, dtype: Any) -> State:
        """Zeros, but for m: before the first step there is nothing to be scaled."""
        shape, wide = (batch, self.size), jnp.promote_types(dtype, jnp.float32)
        zeros = jnp.zeros(shape, wide)
        return zeros, zeros, jnp.full(shape, -1e30, wide), jnp.zeros(shape, dtype)

    def __call__(self, state: State, *inputs: Float[Array, "B _"]) -> State:
        cell, normalizer, largest, hidden = state
        gates = (self.input(*inputs) + self.recurrent(hidden)).astype(cell.dtype)
        i, f, z, o = jnp.split(gates, 4, axis=-1)
        kept = jax.nn.log_sigmoid(f) + largest
        largest = jnp.maximum(kept, i)
        i, f = jnp.exp(i - largest), jnp.exp(kept - largest)
        cell, normalizer = f * cell + i * jnp.tanh(z), f * normalizer + i
        return cell, normalizer, largest, (jax.nn.sigmoid(o) * cell / normalizer).astype(hidden.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation, Ba et al. 2016, equation 4, without a bias, of blocks of features each by itself."""

    def __init__(self, num_blocks: int, size: int) -> None:
        self.num_blocks = num_blocks
        self.gain = nnx.Param(jnp.ones(num_blocks * size))

    def __call__(self, x: Float[Array, "*N G"]) -> Float[Array, "*N G"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:-1], self.num_blocks, -1)
        centred = wide - wide.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return (scaled.reshape(x.shape) * self.gain[...]).astype(x.dtype)


def step(cell: Cell, state: State, *inputs: Float[Array, "B _"]) -> State:
    """One step of a cell.

    Raises:
      TypeError: what the cell returns is no state like the one that it was given.
    """
    new = cell(state, *inputs)
    if not isinstance(new, tuple) or list(map(_shape, new)) != list(map(_shape, state)):
        found = f"({', '.join(map(_shape, new))})" if isinstance(new, tuple) else _shape(new)
        raise TypeError(
            f"{type(cell).__name__} was given the state ({', '.join(map(_shape, state))}) and returned {found}; a cell"
            " returns its new state, a tuple of arrays like those of the old one."
        )
    return new


def _shape(part: Any) -> str:
    return str(list(part.shape)) if hasattr(part, "shape") else type(part).__name__


class Stack(nnx.Module):
    """Cells one above another, with dropout between them (Zaremba et al. 2014, section 3.1).

    Args:
      cells: from the lowest to the top one.
      dropout_rate: between them.
      residual: for every cell whether what comes from below is added to its
        output (Wu et al. 2016, section 3.1).
    """

    def __init__(self, cells: Sequence[Cell], dropout_rate: float, residual: Sequence[bool] = ()) -> None:
        self.cells, self.dropout_rate = nnx.List(cells), dropout_rate
        self.residual = tuple(residual) or (False,) * len(cells)

    def __call__(
        self,
        states: Sequence[State],
        below: Float[Array, "B _"],
        *others: Float[Array, "B _"],
        keep: Sequence[Bool[Array, "B H"] | None],
        first: int = 0,
        shared: Sequence[Float[Array, "B _"]] = (),
    ) -> tuple[tuple[State, ...], Float[Array, "B H"]]:
        """One step of as many cells as there are states: their new states, and the output of the last one.

        Args:
          states: of the cell `first`, counted from the lowest, and of those above it.
          below: what is the input of the cell `first`: of the lowest, or the output of the one below.
          others: further inputs of the lowest cell.
          keep: for every cell but the top one, which of its features go up; None for all.
          first: the first cell that runs.
          shared: further inputs of every cell but the lowest.
        """
        new: list[State] = []
        for depth, state in enumerate(states, first):
            given = (drop(below, self.dropout_rate, keep[depth - 1]), *shared) if depth else (below, *others)
            new.append(step(self.cells[depth], state, *given))
            below = new[-1][-1] + below if self.residual[depth] else new[-1][-1]
        return tuple(new), below

    def start(self, batch: int, dtype: Any) -> list[State]:
        """The states of all cells before anything is known."""
        return [cell.start(batch, dtype) for cell in self.cells]

    def keep(self, keys: Keys | None, num_steps: int) -> list[Bool[Array, "T B H"] | None]:
        """Draws for every cell but the top one what goes up, at all steps."""
        sizes = [cell.size for cell in self.cells][:-1]
        batch = 0 if keys is None else len(keys)
        kept = keep_mask(keys, self.dropout_rate, (num_steps, len(sizes), batch, max(sizes, default=0)))
        return [None if kept is None else kept[:, n] for n in range(len(sizes))]
