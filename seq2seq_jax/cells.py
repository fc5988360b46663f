"""Recurrent cells: one step as the papers write it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from seq2seq_jax.dropout import Dropout, Keys, Mask, drop, keep_mask, share_kept, split_keys
from seq2seq_jax.linear import Linear, Weights

State = tuple[Array, ...]
"""What a cell hands on, [B, H] each; the hidden state h, its output, comes last."""


class Keep(NamedTuple):
    """What is left of a layer, of one step or of all; None for everything."""

    inputs: Mask | None = None
    """Of what comes from the layer below."""
    state: Mask | None = None
    """Of h where it enters a product."""
    candidate: Mask | None = None
    """Of what the step adds to the memory."""
    memory: Mask | None = None
    """Units of all parts of the state but h that become new; the others are zoned out."""
    hidden: Mask | None = None
    """Units of h that become new."""


EVERYTHING = Keep()


class Cell(nnx.Module):
    """A recurrent cell: `(state, *inputs) -> state`.

    The cells below also take `keep`, for what is dropped within a step: `state` and
    `candidate` of it. All else is done around the step.

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

    def between(self, old: State, new: State, share: float) -> State:
        """What lies between two states without their h: so much of the old one, and the rest of the new one."""
        return tuple(share * before + (1 - share) * after for before, after in zip(old, new, strict=True))

    def recurrent_kernels(self) -> list[nnx.Param]:
        """The weights that h is multiplied with."""
        return list(self.recurrent.kernels) if self.sees_past else []


class RNN(Cell):
    """Simple recurrent network, Elman 1990: `h' = tanh(W x + U h + b)`."""

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        (hidden,) = state
        return (jnp.tanh(self.input(*inputs) + self.recurrent(drop(hidden, keep.state))),)


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

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        (hidden,) = state
        past = drop(hidden, keep.state)
        reset, update = jnp.split(jax.nn.sigmoid(self.input(*inputs) + self.recurrent(past)), 2, axis=-1)
        candidate = jnp.tanh(self.candidate(*inputs, reset * past))
        return (update * hidden + (1 - update) * drop(candidate, keep.candidate),)

    def recurrent_kernels(self) -> list[nnx.Param]:
        return [*super().recurrent_kernels(), self.candidate.kernels[-1]]


class GRUv2(Cell):
    """Gated recurrent unit with the reset gate after the product: the first version of Cho et al. 2014, and cuDNN's.

    r, z = sigmoid(W x + U h + b);  c = tanh(W_c x + b_c + r (U_c h + b_h));  h' = z h + (1 - z) c
    """

    num_gates = 3

    def __init__(self, input_sizes: Sequence[int], size: int, weights: Weights, forget_bias: float = 0.0) -> None:
        super().__init__(input_sizes, size, weights, forget_bias)
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        (hidden,) = state
        *of_inputs, candidate = jnp.split(self.input(*inputs), 3, axis=-1)
        *of_state, past = jnp.split(self.recurrent(drop(hidden, keep.state)), 3, axis=-1)
        reset, update = (jax.nn.sigmoid(x + h) for x, h in zip(of_inputs, of_state, strict=True))
        candidate = jnp.tanh(candidate + reset * (past + self.bias[...].astype(past.dtype)))
        return (update * hidden + (1 - update) * drop(candidate, keep.candidate),)


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

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        cell, hidden = state
        return lstm_cell(self.input(*inputs) + self.recurrent(drop(hidden, keep.state)), cell, keep.candidate)


@jax.custom_vjp
def lstm_cell(
    gates: Float[Array, "*B G"], cell: Float[Array, "*B H"], keep: Mask | None = None
) -> tuple[Float[Array, "*B H"], Float[Array, "*B H"]]:
    """The LSTM's equations after the products.

    Args:
      gates: pre-activations, four blocks of H (G = 4H) in the order input, forget,
        candidate, output.
      cell: the state c before the step. Its dtype is the one the step computes in.
      keep: of tanh(g).

    Returns:
      The new cell state, in the dtype of `cell`, and the new hidden state, in
      the dtype of `gates`.
    """
    return _lstm_forward(gates, cell, keep)[0]


def _lstm_forward(gates: Array, cell: Array, keep: Mask | None) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    i, f, g, o = jnp.split(gates.astype(cell.dtype), 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new_cell = f * cell + i * drop(g, keep)
    hidden = (o * jnp.tanh(new_cell)).astype(gates.dtype)
    # Five blocks of H are all the backward pass needs; automatic differentiation would keep six.
    activations = jnp.concatenate([i, f, g, o], axis=-1).astype(gates.dtype)
    return (new_cell, hidden), (activations, cell, keep)


def _lstm_backward(residuals: tuple[Any, ...], cotangents: tuple[Array, Array]) -> tuple[Array, Array, None]:
    activations, cell, keep = residuals
    d_cell, d_hidden = cotangents
    i, f, g, o = jnp.split(activations.astype(cell.dtype), 4, axis=-1)
    dropped = drop(g, keep)
    squashed = jnp.tanh(f * cell + i * dropped)
    d_hidden = d_hidden.astype(cell.dtype)
    d_cell = d_cell + d_hidden * o * (1 - squashed * squashed)
    d_gates = [
        d_cell * dropped * i * (1 - i),
        d_cell * cell * f * (1 - f),
        drop(d_cell * i * (1 - g * g), keep),
        d_hidden * squashed * o * (1 - o),
    ]
    return jnp.concatenate(d_gates, axis=-1).astype(activations.dtype), d_cell * f, None


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

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        cell, hidden = state
        of_inputs, of_state, of_cell = self.norms
        past = of_state(self.recurrent(drop(hidden, keep.state)))
        gates = of_inputs(self.input(*inputs)) + past + self.bias[...].astype(hidden.dtype)
        i, f, g, o = jnp.split(gates.astype(cell.dtype), 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * drop(jnp.tanh(g), keep.candidate)
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

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        (hidden,) = state
        of_inputs, of_state = self.norms
        gates = of_inputs(self.input(*inputs)) + self.bias[...].astype(hidden.dtype)
        *given, candidate = jnp.split(gates, 3, axis=-1)
        *past, of_candidate = jnp.split(of_state(self.recurrent(drop(hidden, keep.state))), 3, axis=-1)
        update, reset = (jax.nn.sigmoid(x + h) for x, h in zip(given, past, strict=True))
        candidate = jnp.tanh(candidate + reset * of_candidate)
        return ((1 - update) * hidden + update * drop(candidate, keep.candidate),)


class MinGRU(Cell):
    """Minimal gated recurrent unit, Feng et al. 2024, section 3.1.

        z = sigmoid(W_z x + b_z);  c = W_c x + b_c;  h' = (1 - z) h + z c

    No gate sees the past: all steps are solved at once, see `recurrence.scan`.
    """

    num_gates, sees_past = 2, False

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        (hidden,) = state
        update, candidate = jnp.split(self.input(*inputs), 2, axis=-1)
        update = jax.nn.sigmoid(update)
        return ((1 - update) * hidden + update * drop(candidate, keep.candidate),)


class MinLSTM(Cell):
    """Minimal LSTM, Feng et al. 2024, section 3.2: forget and input gate add up to 1.

        f, i = sigmoid(W x + b);  c = W_c x + b_c;  h' = f / (f + i) h + i / (f + i) c

    No gate sees the past: all steps are solved at once, see `recurrence.scan`.
    """

    num_gates, sees_past = 3, False

    def first_bias(self, forget_bias: float) -> Float[Array, " G"]:
        return jnp.zeros((3, self.size)).at[0].set(forget_bias).reshape(-1)

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        (hidden,) = state
        forget, new, candidate = jnp.split(self.input(*inputs), 3, axis=-1)
        # f / (f + i) without the quotient of two small numbers: both are 1 / (1 + exp(-x)).
        forget = jax.nn.sigmoid(jax.nn.log_sigmoid(forget) - jax.nn.log_sigmoid(new))
        return (forget * hidden + (1 - forget) * drop(candidate, keep.candidate),)


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

    def __call__(self, state: State, *inputs: Float[Array, "B _"], keep: Keep = EVERYTHING) -> State:
        cell, normalizer, largest, hidden = state
        gates = (self.input(*inputs) + self.recurrent(drop(hidden, keep.state))).astype(cell.dtype)
        i, f, z, o = jnp.split(gates, 4, axis=-1)
        kept = jax.nn.log_sigmoid(f) + largest
        largest = jnp.maximum(kept, i)
        i, f = jnp.exp(i - largest), jnp.exp(kept - largest)
        cell, normalizer = f * cell + i * drop(jnp.tanh(z), keep.candidate), f * normalizer + i
        return cell, normalizer, largest, (jax.nn.sigmoid(o) * cell / normalizer).astype(hidden.dtype)

    def between(self, old: State, new: State, share: float) -> State:
        """Of the memories exp(m) c and exp(m) n, which are brought to one scale first."""
        largest = jnp.maximum(old[2], new[2])
        of_old, of_new = share * jnp.exp(old[2] - largest), (1 - share) * jnp.exp(new[2] - largest)
        return *(of_old * before + of_new * after for before, after in zip(old[:2], new[:2], strict=True)), largest


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


@dataclass(frozen=True)
class Regularizers:
    """What acts on a layer at every step; by default nothing.

    Args:
      inputs: dropout of what comes from the layer below (Zaremba et al. 2014, section 3.1).
      state: of h where it enters a product (Gal and Ghahramani 2016, section 4.1).
      candidate: of what a step adds to the memory, which so loses nothing (Semeniuta
        et al. 2016, section 3).
      zoneout_cell: probability that a unit of the memory keeps its old value (Krueger
        et al. 2017, section 3.2); of all parts of the state but h, at once.
      zoneout_hidden: likewise of h.
    """

    inputs: Dropout = Dropout()
    state: Dropout = Dropout()
    candidate: Dropout = Dropout()
    zoneout_cell: float = 0.0
    zoneout_hidden: float = 0.0

    @property
    def within(self) -> bool:
        """Whether anything acts within the steps of a layer."""
        return any((self.state.rate, self.candidate.rate, self.zoneout_cell, self.zoneout_hidden))

    def draw(self, keys: Keys | None, shape: tuple[int, ...]) -> Keep:
        """What is left within the steps, [T, ..., B, H] where `shape` is [T, ..., H]."""
        if not self.within:
            return EVERYTHING
        places = self.state, self.candidate, Dropout(self.zoneout_cell), Dropout(self.zoneout_hidden)
        drawn = [place.draw(key, shape) for place, key in zip(places, split_keys(keys, 4), strict=True)]
        return Keep(None, *drawn)


UNREGULARIZED = Regularizers()


def step(
    cell: Cell,
    state: State,
    *inputs: Float[Array, "B _"],
    regularizers: Regularizers = UNREGULARIZED,
    keep: Keep = EVERYTHING,
) -> State:
    """One step of a cell, regularised.

    Raises:
      TypeError: what the cell returns is no state like the one that it was given.
    """
    dropped = {} if keep.state is None and keep.candidate is None else {"keep": keep}
    new = cell(state, *inputs, **dropped)
    if not isinstance(new, tuple) or list(map(_shape, new)) != list(map(_shape, state)):
        found = f"({', '.join(map(_shape, new))})" if isinstance(new, tuple) else _shape(new)
        raise TypeError(
            f"{type(cell).__name__} was given the state ({', '.join(map(_shape, state))}) and returned {found}; a cell"
            " returns its new state, a tuple of arrays like those of the old one."
        )
    return _zone_out(cell, state, new, regularizers, keep)


def _zone_out(cell: Cell, old: State, new: State, regularizers: Regularizers, keep: Keep) -> State:
    """Some units keep their old values; without masks, as in a search, all are what is expected of them."""
    memory, hidden = new[:-1], new[-1:]
    if keep.memory is not None:
        memory = _chosen(keep.memory, old[:-1], memory)
    elif regularizers.zoneout_cell:
        memory = cell.between(old[:-1], memory, 1 - share_kept(regularizers.zoneout_cell))
    if keep.hidden is not None:
        hidden = _chosen(keep.hidden, old[-1:], hidden)
    elif regularizers.zoneout_hidden:
        share = 1 - share_kept(regularizers.zoneout_hidden)
        hidden = (share * old[-1] + (1 - share) * new[-1],)
    return *memory, *hidden


def _chosen(mask: Mask, old: State, new: State) -> State:
    return tuple(jnp.where(mask.keep, after, before) for before, after in zip(old, new, strict=True))


def _shape(part: Any) -> str:
    return str(list(part.shape)) if hasattr(part, "shape") else type(part).__name__


class Stack(nnx.Module):
    """Cells one above another.

    Args:
      cells: from the lowest to the top one.
      regularizers: of every layer.
      residual: for every cell whether what comes from below is added to its
        output (Wu et al. 2016, section 3.1).
    """

    def __init__(
        self, cells: Sequence[Cell], regularizers: Regularizers = UNREGULARIZED, residual: Sequence[bool] = ()
    ) -> None:
        self.cells, self.regularizers = nnx.List(cells), regularizers
        self.residual = tuple(residual) or (False,) * len(cells)

    def __call__(
        self,
        states: Sequence[State],
        below: Float[Array, "B _"],
        *others: Float[Array, "B _"],
        keep: Sequence[Keep],
        first: int = 0,
        shared: Sequence[Float[Array, "B _"]] = (),
    ) -> tuple[tuple[State, ...], Float[Array, "B H"]]:
        """One step of as many cells as there are states: their new states, and the output of the last one.

        Args:
          states: of the cell `first`, counted from the lowest, and of those above it.
          below: what is the input of the cell `first`: of the lowest, or the output of the one below.
          others: further inputs of the lowest cell.
          keep: of every cell.
          first: the first cell that runs.
          shared: further inputs of every cell but the lowest.
        """
        new: list[State] = []
        for depth, state in enumerate(states, first):
            given = (drop(below, keep[depth].inputs), *shared) if depth else (below, *others)
            new.append(step(self.cells[depth], state, *given, regularizers=self.regularizers, keep=keep[depth]))
            below = new[-1][-1] + below if self.residual[depth] else new[-1][-1]
        return tuple(new), below

    def start(self, batch: int, dtype: Any) -> list[State]:
        """The states of all cells before anything is known."""
        return [cell.start(batch, dtype) for cell in self.cells]

    def keep(self, keys: Keys | None, num_steps: int) -> list[Keep]:
        """Draws for every cell what is left, at all steps."""
        within: list[Any] = [None] * len(self.cells)
        if self.regularizers.within:
            keys, *within = split_keys(keys, 1 + len(self.cells))
        sizes = [cell.size for cell in self.cells]
        kept = [self.regularizers.draw(key, (num_steps, size)) for key, size in zip(within, sizes, strict=True)]
        for above, mask in enumerate(self._between(keys, num_steps, sizes[:-1]), 1):
            kept[above] = kept[above]._replace(inputs=mask)
        return kept

    def _between(self, keys: Keys | None, num_steps: int, sizes: Sequence[int]) -> list[Mask | None]:
        if not sizes:
            return []
        masks = self.regularizers.inputs.draw(keys, (num_steps, len(sizes), max(sizes)))
        return [None if masks is None else Mask(masks.keep[:, n], masks.rate) for n in range(len(sizes))]


def drop_weights(model: nnx.Module, rate: float, key: Key[Array, ""]) -> None:
    """Drops recurrent weights of all cells of a model, in place (DropConnect; Merity et al. 2018, section 2)."""
    cells = [module for _, module in nnx.iter_modules(model) if isinstance(module, Cell)]
    kernels = [kernel for cell in cells for kernel in cell.recurrent_kernels()]
    for kernel, row in zip(kernels, jax.random.split(key, (len(kernels), 1)), strict=True):
        inputs, results = kernel.shape
        keep = keep_mask(row, rate, (inputs, 1, results))[:, 0]
        kernel[...] = drop(kernel[...], Mask(keep, rate))
