"""Sequences of different lengths in one array."""

from typing import Any, NamedTuple

import numpy as np


class Padded(NamedTuple):
    """A batch of sequences, padded at their ends.

    Attributes:
      values: [B, N, ...], such as token ids; whatever stands in the padding is never looked at.
      lengths: [B], int32; 0 for an empty row.
    """

    values: Any
    lengths: Any

    @property
    def mask(self) -> Any:
        """[B, N], True at what is no padding."""
        width = self.values.shape[1]
        if isinstance(width, int):
            return np.arange(width) < self.lengths[:, None]
        import jax.numpy as jnp  # a width that is known when an exported program runs

        return jnp.arange(width) < self.lengths[:, None]
