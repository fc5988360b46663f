import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.dropout import Dropout, Mask, drop, piece_keys, split_keys


def row_keys(num_rows, seed=0):
    """A key for each row of a batch."""
    return jax.random.split(jax.random.key(seed), num_rows)


def drawn(mask: Mask | None) -> np.ndarray:
    """What a mask keeps; there is one."""
    assert mask is not None
    return np.asarray(mask.keep)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.ones((1, 500, 403))  # not a multiple of 4 features
    dropped = np.asarray(Dropout(0.3)(x, row_keys(500)))[0]
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.004)  # 1/512 for whole bytes, and twice the standard deviation
    assert dropped.mean() == pytest.approx(1.0, abs=4 * np.sqrt(0.3 / 0.7 / x.size))
    assert len(set(dropped[kept])) == 1
    assert np.ptp(kept.mean(0)) < 0.2 and np.ptp(kept.mean(1)) < 0.25  # no row or feature is favoured


def test_dropout_without_keys_or_rate_is_the_identity():
    x = jnp.ones((1, 2, 3))
    assert Dropout(0.3)(x, None) is x
    assert Dropout(0.0)(x, row_keys(2)) is x


@pytest.mark.parametrize("per_sequence", [False, True])
def test_what_is_dropped_in_a_row_does_not_depend_on_the_rows_beside_it(per_sequence):
    x, keys, dropout = jnp.ones((3, 8, 37)), row_keys(8), Dropout(0.3, per_sequence)  # [T, B, D]
    whole = np.asarray(dropout(x, keys))
    np.testing.assert_array_equal(whole[:, 2:5], dropout(x[:, 2:5], keys[2:5]))
    assert len({row.tobytes() for row in np.moveaxis(whole, 1, 0)}) == 8


@pytest.mark.parametrize("per_sequence", [False, True])
def test_what_is_dropped_at_a_step_does_not_depend_on_the_steps_after_it(per_sequence):
    draw = Dropout(0.3, per_sequence).draw
    few, many = (drawn(draw(row_keys(4), (num_steps, 2, 7))) for num_steps in (3, 5))
    np.testing.assert_array_equal(few, many[:3])


def test_once_for_a_sequence_all_steps_have_one_mask():
    keep = drawn(Dropout(0.3, per_sequence=True).draw(row_keys(500), (4, 2, 41)))
    assert keep.shape == (4, 2, 500, 41)
    assert np.all(keep == keep[0])
    assert keep.mean() == pytest.approx(0.7, abs=0.01)
    anew = drawn(Dropout(0.3).draw(row_keys(500), (4, 2, 41)))
    assert (anew[0] == anew[1]).mean() == pytest.approx(0.7**2 + 0.3**2, abs=0.01)


def test_a_mask_drawn_before_drops_what_dropout_drops():
    x, keys, dropout = jnp.arange(1.0, 31.0).reshape(2, 3, 5), row_keys(3), Dropout(0.4)
    mask = dropout.draw(keys, (2, 5))
    np.testing.assert_array_equal(drop(x, mask), dropout(x, keys))
    assert 0 < drawn(mask).sum() < x.size


@pytest.mark.parametrize("per_sequence", [False, True])
def test_words_are_dropped_whole_and_once_for_a_sequence_everywhere_in_it(per_sequence):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 5, (30, 400)))
    mask = Dropout(0.25, per_sequence).draw_words(row_keys(400), tokens)
    keep = drawn(mask)
    assert keep.shape == (30, 400, 1)
    assert keep.mean() == pytest.approx(0.75, abs=0.03)
    alike = [len(set(keep[np.asarray(tokens[:, row]) == word, row, 0])) == 1 for row in range(400) for word in range(5)]
    assert np.mean(alike) > 0.99 if per_sequence else np.mean(alike) < 0.5
    np.testing.assert_allclose(drop(jnp.ones((30, 400, 3)), mask), np.where(keep, 4 / 3, 0) * np.ones(3), rtol=1e-6)


def test_pieces_of_a_sequence_share_what_is_drawn_once_for_it():
    keys = row_keys(6)
    rest, first = piece_keys(keys, keys)
    _, second = piece_keys(rest, keys)
    draws = {
        once: [drawn(Dropout(0.5, once).draw(split_keys(of, 2)[1], (2, 9))) for of in (first, second, keys)]
        for once in (False, True)
    }
    assert not np.array_equal(draws[False][0], draws[False][1])
    assert all(np.array_equal(keep, draws[True][2]) for keep in draws[True])
