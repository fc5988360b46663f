"""Encoders: from embedded sources to what attention looks at and where the decoder starts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax.cells import UNREGULARIZED, Cell, Keep, Regularizers, State
from seq2seq_jax.cells import step as cell_step
from seq2seq_jax.dropout import Keys, drop, split_keys
from seq2seq_jax.linear import Linear
from seq2seq_jax.recurrence import in_pieces, scan


class Read(NamedTuple):
    """What an encoder makes of a batch of sources."""

    outputs: Float[Array, "S B E"]
    """Of the top layer, directions side by side."""
    states: list[State]
    """Every layer's last one, directions side by side."""
    mask: Bool[Array, "S B"]
    """True at real positions."""


class Layers(nnx.Module):
    """Recurrent layers one above another, each in one or both directions (Schuster and Paliwal 1997).

    Args:
      layers: for every layer the cells of its directions, alike but for their
        weights; the second reads the sequence from its end.
      regularizers: of every layer.
      residual: for every layer whether its input is added to its output (Wu et
        al. 2016, section 3.1); by default for none.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Cell]],
        regularizers: Regularizers = UNREGULARIZED,
        residual: Sequence[bool] = (),
    ) -> None:
        self.layers, self.regularizers = nnx.List([nnx.List(cells) for cells in layers]), regularizers
        self.residual = tuple(residual) or (False,) * len(layers)

    def __call__(
        self, inputs: Float[Array, "S B D"], mask: Bool[Array, "S B"], keys: Keys | None = None, piece: int = 0
    ) -> Read:
        """Reads embedded sources; `piece`: positions of a piece, see `recurrence.in_pieces`."""
        states, below = [], inputs
        for depth, (cells, key) in enumerate(zip(self.layers, split_keys(keys, len(self.layers)), strict=True)):
            keep = self.keep(depth, key, below.shape)
            outputs, state = _run(cells, drop(below, keep.inputs), mask, piece, self.regularizers, keep)
            states.append(state)
            below = outputs + below if self.residual[depth] else outputs
        return Read(below, states, mask)

    def keep(self, depth: int, keys: Keys | None, shape: tuple[int, ...]) -> Keep:
        """Draws what is left of a layer with inputs [S, B, D], at all positions: [S, directions, B, H] within it."""
        cells, between, within = self.layers[depth], keys, None
        if self.regularizers.within:
            between, within = split_keys(keys, 2)
        num_steps, _, size = shape
        kept = self.regularizers.draw(within, (num_steps, len(cells), cells[0].size))
        return kept._replace(inputs=self.regularizers.inputs.draw(between, (num_steps, size))) if depth else kept


class Pointwise(nnx.Module):
    """A linear map of each position by itself: an encoder without order or state."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear

    def __call__(
        self, inputs: Float[Array, "S B D"], mask: Bool[Array, "S B"], keys: Keys | None = None, piece: int = 0
    ) -> Read:
        """As `Layers.__call__`, without states."""
        return Read(self.linear(inputs), [], mask)


class Apart(nnx.Module):
    """Reads the tags of a source, its first positions, and its text each by itself.

    What an encoder puts out stands at the place of what it read, so attention looks at both.

    Args:
      text: reads the text; its last states are those of the whole.
      tags: reads the tags; it may be the same module.
    """

    def __init__(self, text: Layers, tags: Layers | Pointwise) -> None:
        self.text, self.tags = text, tags

    def __call__(
        self,
        inputs: Float[Array, "S B D"],
        mask: Bool[Array, "S B"],
        is_tag: Bool[Array, "S B"],
        keys: Keys | None = None,
        piece: int = 0,
    ) -> Read:
        """As `Layers.__call__`; `is_tag`: True at the first positions of each source that are tags."""
        first, second = split_keys(keys, 2)
        num_tags = is_tag.sum(0)
        of_text = jnp.arange(mask.shape[0])[:, None] < mask.sum(0) - num_tags
        text = self.text(_moved(inputs, num_tags), of_text, first, piece)
        tags = self.tags(inputs, is_tag, second, piece)
        outputs = jnp.where(is_tag[..., None], tags.outputs, _moved(text.outputs, -num_tags))
        return Read(outputs, text.states, mask)


def _moved(x: Float[Array, "S B D"], by: Array) -> Float[Array, "S B D"]:
    """Every row begun at the position `by` of it, [B]; what stands before comes last."""
    places = (jnp.arange(x.shape[0])[:, None] + by) % x.shape[0]
    return jnp.take_along_axis(x, places[..., None], axis=0)


def _run(
    cells: Sequence[Cell],
    inputs: Float[Array, "S B D"],
    mask: Bool[Array, "S B"],
    piece: int,
    regularizers: Regularizers,
    keep: Keep,
) -> tuple[Float[Array, "S B E"], State]:
    """One layer. Its directions run side by side in one loop, each over a copy of the inputs in its own order."""
    structure, _ = nnx.split(cells[0])
    weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(cell) for cell in cells))

    def step_of(weights: Any, state: State, x: Array, keep: Keep) -> State:
        return cell_step(nnx.merge(structure, weights), state, x, regularizers=regularizers, keep=keep)

    def step(state: State, x: tuple[Array, Array, Keep]) -> tuple[State, Array]:
        inputs, mask, keep = x
        new = jax.vmap(step_of)(weights, state, inputs, keep)
        # In the padding the state stays; the second direction meets it first, and keeps its zeros.
        state = tuple(jnp.where(mask[..., None], after, before) for after, before in zip(new, state, strict=True))
        return state, state[-1]

    def each(*ways: Array) -> Array:
        """For every direction its own, in its own order."""
        return jnp.stack([jnp.flip(x, 0) if n else x for n, x in enumerate(ways[: len(cells)])], axis=1)

    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(c.start(inputs.shape[1], inputs.dtype) for c in cells))
    # What is dropped at a position does not depend on the padding behind it: masks are flipped as inputs are.
    within = jax.tree.map(lambda kept: each(*jnp.unstack(kept, axis=1)), keep._replace(inputs=None))
    xs = each(inputs, inputs), each(mask, mask), within
    state, ys = in_pieces(lambda state, xs: scan(step, state, xs), start, xs, piece)
    outputs = [ys[:, 0], *(jnp.flip(ys[:, n], 0) for n in range(1, len(cells)))]
    return jnp.concatenate(outputs, axis=-1), tuple(jnp.concatenate(list(part), axis=-1) for part in state)
