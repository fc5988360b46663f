"""Dropout, Srivastava et al. 2014: one key for each row of a batch.

What is dropped in a row does not depend on the rows beside it, nor on the device
that computes it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class PieceKeys(NamedTuple):
    """Random keys, one for each row, for some steps of sequences that are taken piece by piece."""

    piece: Key[Array, " B"]
    sequence: Key[Array, " B"]
    """The same in every piece, for what is drawn once for a sequence."""


Keys = Key[Array, " B"] | PieceKeys
"""Random keys, one for each row of a batch."""


@partial(jax.tree_util.register_dataclass, data_fields=["keep"], meta_fields=["rate"])
@dataclass(frozen=True)
class Mask:
    """What dropout leaves."""

    keep: Any
    """Booleans, [..., B, D]; or whatever `jax.tree.map` puts in their place."""
    rate: float


@dataclass(frozen=True)
class Dropout:
    """Dropout at one place of a model; by default none.

    Args:
      rate: probability that a feature is set to zero, to the nearest 1/256.
      per_sequence: one mask for all steps of a sequence (Gal and Ghahramani 2016)
        instead of one for each step.
    """

    rate: float = 0.0
    per_sequence: bool = False

    def draw(self, keys: Keys | None, shape: tuple[int, ...]) -> Mask | None:
        """Draws for all steps, [T, ..., B, D], where `shape` is [T, ..., D]; None where nothing is dropped."""
        if keys is None or self.rate == 0.0:
            return None
        num_steps, *others, size = shape
        rows = _rows(keys, self.per_sequence)
        keep = keep_mask(rows, self.rate, (1 if self.per_sequence else num_steps, *others, rows.shape[0], size))
        return Mask(jnp.broadcast_to(keep, (num_steps, *keep.shape[1:])), self.rate)

    def draw_words(self, keys: Keys | None, tokens: Int[Array, "*N"]) -> Mask | None:
        """Draws for whole tokens [T, B]: [T, B, 1]; once for a sequence: for all places of a word in it."""
        if keys is None or self.rate == 0.0:
            return None
        if not self.per_sequence:
            return self.draw(keys, (tokens.shape[0], 1))

        def octet(key: Key[Array, ""], token: Int[Array, ""]) -> Array:
            return jax.random.bits(jax.random.fold_in(key, token), (1,), jnp.uint8)

        rows = _rows(keys, per_sequence=True)
        octets = jax.vmap(jax.vmap(octet), in_axes=(None, 0))(rows, tokens)
        return Mask(octets < _kept_of_256(self.rate), self.rate)

    def __call__(self, x: Float[Array, "*N D"], keys: Keys | None) -> Float[Array, "*N D"]:
        """Drops features of all steps, [T, B, D]; the identity without keys."""
        return drop(x, self.draw(keys, (x.shape[0], x.shape[-1])))


NO_DROPOUT = Dropout()


def drop(x: Float[Array, "... D"], mask: Mask | None) -> Float[Array, "... D"]:
    """Sets to zero what is not kept and scales the rest up; the identity without a mask."""
    return x if mask is None else jnp.where(mask.keep, x / share_kept(mask.rate), 0)


def share_kept(rate: float) -> float:
    """1 - rate, as a random byte decides it."""
    return _kept_of_256(rate) / 256


def keep_mask(keys: Key[Array, " B"], rate: float, shape: tuple[int, ...]) -> Bool[Array, "... B D"]:
    """Random booleans in an array [..., B, D], True with probability 1 - rate (to the nearest 1/256).

    One random byte decides a feature: a quarter of the random bits, which cost
    as much as the products they sit between.
    """
    num_features = shape[-1]
    of_row = partial(jax.random.bits, shape=(*shape[:-2], -(-num_features // 4)), dtype=jnp.uint32)
    words = jax.vmap(of_row, out_axes=-2)(keys)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], 4 * words.shape[-1])
    return octets[..., :num_features] < _kept_of_256(rate)


def split_keys(keys: Keys | None, num: int) -> list[Keys] | list[None]:
    """New keys for every row, `num` times."""
    if keys is None:
        return [None] * num
    if isinstance(keys, PieceKeys):
        return [PieceKeys(*both) for both in zip(*(split_keys(part, num) for part in keys), strict=True)]
    return list(jax.vmap(partial(jax.random.split, num=num), out_axes=1)(keys))


def repeat_keys(keys: Key[Array, " B"], times: int) -> Key[Array, " R"]:
    """New keys for so many rows, one after another, in the place of every row."""
    return jax.vmap(partial(jax.random.split, num=times))(keys).reshape(-1)


def piece_keys(keys: Keys | None, sequence: Keys | None) -> tuple[Keys | None, Keys | None]:
    """New keys, and those of a piece of the sequences whose keys are `sequence`."""
    after, now = split_keys(keys, 2)
    if now is None or sequence is None:
        return None, None
    return after, PieceKeys(_rows(now, per_sequence=False), _rows(sequence, per_sequence=True))


def _rows(keys: Keys, per_sequence: bool) -> Key[Array, " B"]:
    if isinstance(keys, PieceKeys):
        return keys.sequence if per_sequence else keys.piece
    return keys


def _kept_of_256(rate: float) -> int:
    return max(1, round(256 * (1 - rate)))
