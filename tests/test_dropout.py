import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.dropout import drop, dropout, keep_mask


def row_keys(num_rows, seed=0):
    """A key for each row of a batch."""
    return jax.random.split(jax.random.key(seed), num_rows)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.ones((500, 403))  # not a multiple of 4 features
    dropped = np.asarray(dropout(x, 0.3, row_keys(500)))
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.004)  # 1/512 for whole bytes, and twice the standard deviation
    assert dropped.mean() == pytest.approx(1.0, abs=4 * np.sqrt(0.3 / 0.7 / x.size))
    assert len(set(dropped[kept])) == 1
    assert np.ptp(kept.mean(0)) < 0.2 and np.ptp(kept.mean(1)) < 0.25  # no row or feature is favoured


def test_dropout_without_keys_or_rate_is_the_identity():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.3, None) is x
    assert dropout(x, 0.0, row_keys(2)) is x


def test_what_is_dropped_in_a_row_does_not_depend_on_the_rows_beside_it():
    x, keys = jnp.ones((3, 8, 37)), row_keys(8)  # [T, B, D]
    whole = np.asarray(dropout(x, 0.3, keys))
    np.testing.assert_array_equal(whole[:, 2:5], dropout(x[:, 2:5], 0.3, keys[2:5]))
    assert len({row.tobytes() for row in np.moveaxis(whole, 1, 0)}) == 8


def test_a_mask_drawn_before_drops_what_dropout_drops():
    x, keys = jnp.arange(1.0, 31.0).reshape(2, 3, 5), row_keys(3)
    mask = keep_mask(keys, 0.4, x.shape)
    np.testing.assert_array_equal(drop(x, 0.4, mask), dropout(x, 0.4, keys))
    assert 0 < np.asarray(mask).sum() < x.size
