"""A vocabulary over several devices, each of which holds some rows of its tables (Shoeybi et al. 2019, section 3).

The devices along `MODEL` stand for these words, each for some. What is brought from
one to the others is ids and vectors of their tokens, never a table or logits. All
functions here are for the program of a device (`sharding.share_out`), and each
device gives its own tokens, as many as every other one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.sharding import MODEL


def of_all(x: Array) -> Array:
    """The rows of all devices, one device after another, [M N, ...]; their gradients come back added up."""
    return jax.lax.all_gather(x, MODEL, tiled=True)


def places_here(ids: Int[Array, "*N"], num_rows: int) -> tuple[Int[Array, "*N"], Bool[Array, "*N"]]:
    """The place of each id among this device's so many words, and whether it is one of them; other places are 0."""
    place = ids - jax.lax.axis_index(MODEL) * num_rows
    here = (place >= 0) & (place < num_rows)
    return jnp.where(here, place, 0), here


def own_of_all(x: Array, number: int) -> Array:
    """Of the rows of all devices, as `of_all` has them, this device's so many."""
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(MODEL) * number, number)


def embed(table: Float[Array, "P D"], tokens: Int[Array, "*N"], dtype: Any) -> Float[Array, "*N D"]:
    """Rows of a table, of which this device holds P, for its own tokens."""
    place, here = places_here(of_all(tokens.reshape(-1)), len(table))
    rows = jnp.where(here[:, None], table[place].astype(dtype), 0)
    return jax.lax.psum_scatter(rows, MODEL, tiled=True).reshape(*tokens.shape, -1)
