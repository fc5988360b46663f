"""Encoders: from embedded sources to what attention looks at and where the decoder starts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax.cells import Cell, State
from seq2seq_jax.dropout import Keys, dropout, split_keys
from seq2seq_jax.recurrence import in_pieces, scan


class Layers(nnx.Module):
    """Recurrent layers one above another, each in one or both directions (Schuster and Paliwal 1997).

    Args:
      layers: for every layer the cells of its directions, alike but for their
        weights; the second reads the sequence from its end.
      dropout_rate: between layers.
    """

    def __init__(self, layers: Sequence[Sequence[Cell]], dropout_rate: float) -> None:
        self.layers, self.dropout_rate = nnx.List([nnx.List(cells) for cells in layers]), dropout_rate

    def __call__(
        self, inputs: Float[Array, "S B D"], mask: Bool[Array, "S B"], keys: Keys | None = None, piece: int = 0
    ) -> tuple[Float[Array, "S B E"], list[State]]:
        """Returns the top layer's outputs and every layer's last state, directions joined along features.

        `piece`: positions of a piece, see `recurrence.in_pieces`.
        """
        states = []
        for depth, (cells, key) in enumerate(zip(self.layers, split_keys(keys, len(self.layers)), strict=True)):
            if depth:
                inputs = dropout(inputs, self.dropout_rate, key)
            inputs, state = _run(cells, inputs, mask, piece)
            states.append(state)
        return inputs, states


def _run(
    cells: Sequence[Cell], inputs: Float[Array, "S B D"], mask: Bool[Array, "S B"], piece: int
) -> tuple[Float[Array, "S B E"], State]:
    """One layer. Its directions run side by side in one loop, each over a copy of the inputs in its own order."""
    structure, _ = nnx.split(cells[0])
    weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(cell) for cell in cells))

    def step(state: State, x: tuple[Array, Array]) -> tuple[State, Array]:
        inputs, mask = x
        new = jax.vmap(lambda weights, *inputs: nnx.merge(structure, weights)(*inputs))(weights, state, inputs)
        # In the padding the state stays; the second direction meets it first, and keeps its zeros.
        state = tuple(jnp.where(mask[..., None], after, before) for after, before in zip(new, state, strict=True))
        return state, state[-1]

    def both(x: Array) -> Array:
        return jnp.stack([x, jnp.flip(x, 0)][: len(cells)], axis=1)

    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c.start(inputs.shape[1], inputs.dtype) for c in cells))
    state, ys = in_pieces(lambda state, xs: scan(step, state, xs), start, (both(inputs), both(mask)), piece)
    outputs = [ys[:, 0], *(jnp.flip(ys[:, n], 0) for n in range(1, len(cells)))]
    return jnp.concatenate(outputs, axis=-1), tuple(jnp.concatenate(list(part), axis=-1) for part in state)
