"""Dropout, Srivastava et al. 2014: one key for each row of a batch.

What is dropped in a row does not depend on the rows beside it, nor on the device
that computes it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Keys = Key[Array, " B"]
"""Random keys, one for each row of a batch."""


def dropout(x: Float[Array, "... B D"], rate: float, keys: Keys | None) -> Float[Array, "... B D"]:
    """Sets features to zero with probability `rate` and scales the rest up; the identity without keys."""
    return drop(x, rate, keep_mask(keys, rate, x.shape))


def drop(x: Float[Array, "... B D"], rate: float, keep: Bool[Array, "... B D"] | None) -> Float[Array, "... B D"]:
    """Sets to zero what is not kept and scales the rest up; the identity without a mask."""
    return x if keep is None else jnp.where(keep, x / (_kept_of_256(rate) / 256), 0)


def keep_mask(keys: Keys | None, rate: float, shape: tuple[int, ...]) -> Bool[Array, "... B D"] | None:
    """Random booleans in an array [..., B, D], True with probability 1 - rate (to the nearest 1/256).

    One random byte decides a feature: a quarter of the random bits, which cost
    as much as the products they sit between. None without keys, or where nothing
    is dropped.
    """
    if keys is None or rate == 0.0:
        return None
    num_features = shape[-1]
    of_row = partial(jax.random.bits, shape=(*shape[:-2], -(-num_features // 4)), dtype=jnp.uint32)
    words = jax.vmap(of_row, out_axes=-2)(keys)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*shape[:-1], 4 * words.shape[-1])
    return octets[..., :num_features] < _kept_of_256(rate)


def split_keys(keys: Keys | None, num: int) -> list[Keys] | list[None]:
    """New keys for every row, `num` times."""
    if keys is None:
        return [None] * num
    return list(jax.vmap(partial(jax.random.split, num=num), out_axes=1)(keys))


def _kept_of_256(rate: float) -> int:
    return max(1, round(256 * (1 - rate)))
