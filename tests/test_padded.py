import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.padded import Padded


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_the_mask_says_what_is_no_padding_whatever_stands_there(array):
    batch = Padded(array([[5, 0, 7], [0, 0, 0], [1, 2, 3]]), array([2, 0, 3]))
    np.testing.assert_array_equal(batch.mask, [[True, True, False], [False, False, False], [True, True, True]])
