import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding import hypotheses
from seq2seq_jax.decoding.hypotheses import penalty, select

EOS = 2

best_continuations = jax.jit(hypotheses.best_continuations)


def random_case(batch, beam_size, vocab_size):
    draw = np.random.default_rng(beam_size).standard_normal
    logits = 3 * draw((batch, beam_size, vocab_size)).astype(np.float32)
    return logits, -np.abs(draw((batch, beam_size))).astype(np.float32)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def sorted_continuations(logits, log_probs):
    """All continuations of each sentence by a full sort: log-probabilities, places, tokens."""
    values = log_softmax(logits) + log_probs[..., None]
    values[..., :EOS] = -np.inf
    flat = values.reshape(len(values), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    return np.take_along_axis(flat, order, 1), order // logits.shape[-1], order % logits.shape[-1]


@pytest.mark.parametrize(("beam_size", "vocab_size"), [(1, 5), (4, 5), (5, 64), (5, 65), (12, 1_000), (70, 130)])
def test_best_continuations_are_those_of_a_full_sort(beam_size, vocab_size):
    logits, log_probs = random_case(6, beam_size, vocab_size)
    best = best_continuations(logits, log_probs, np.zeros(6, bool))
    values, places, tokens = (part[:, :beam_size] for part in sorted_continuations(logits, log_probs))
    np.testing.assert_allclose(best.log_probs, values, rtol=1e-5)
    np.testing.assert_array_equal(best.place, places)
    np.testing.assert_array_equal(best.token, tokens)


def test_the_best_may_all_lie_in_one_block():
    logits = np.zeros((1, 2, 300), np.float32)
    logits[0, 1, 130:136] = 5 + np.arange(6)
    best = best_continuations(logits, np.zeros((1, 2), np.float32), np.zeros(1, bool))
    assert best.place.tolist() == [[1, 1]] and best.token.tolist() == [[135, 134]]


def test_empty_places_are_not_continued():
    logits, log_probs = random_case(3, 4, 100)
    log_probs[:, 2:] = -np.inf
    best = best_continuations(logits, log_probs, np.zeros(3, bool))
    assert (np.asarray(best.place) < 2).all() and np.isfinite(best.log_probs).all()


def test_only_eos_at_the_last_position():
    logits, log_probs = random_case(3, 4, 100)
    best = best_continuations(logits, log_probs, np.array([False, True, False]))
    assert best.token[1].tolist() == [EOS] * 4 and best.place[1].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(best.log_probs[1], log_probs[1] + log_softmax(logits)[1, :, EOS], rtol=1e-5)
    assert (np.asarray(best.token)[0] != EOS).any()


def test_bfloat16_logits_are_normalised_in_float32():
    logits, log_probs = random_case(3, 4, 100)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    best = best_continuations(rounded, log_probs, np.zeros(3, bool))
    values, *_ = sorted_continuations(np.asarray(rounded.astype(jnp.float32)), log_probs)
    assert best.log_probs.dtype == jnp.float32
    np.testing.assert_allclose(best.log_probs, values[:, :4], rtol=1e-5)


def test_huge_logits_do_not_overflow():
    logits = np.zeros((1, 1, 100), np.float32)
    logits[..., :3] = 1e4
    best = best_continuations(logits, np.zeros((1, 1), np.float32), np.zeros(1, bool))
    assert best.token.tolist() == [[EOS]]
    np.testing.assert_allclose(best.log_probs, [[-np.log(3.0)]], rtol=1e-3)


def test_select_moves_the_rows_of_every_leaf():
    carry = {"a": jnp.arange(12.0).reshape(2, 3, 2), "b": (jnp.arange(6).reshape(2, 3), None)}
    moved = select(carry, jnp.array([[2, 0, 0], [1, 1, 2]]))
    np.testing.assert_array_equal(moved["b"][0], [[2, 0, 0], [4, 4, 5]])
    np.testing.assert_array_equal(moved["a"][..., 0], 2 * np.array([[2, 0, 0], [4, 4, 5]]))
    assert moved["b"][1] is None


def test_penalty_is_that_of_wu_et_al():
    np.testing.assert_allclose(penalty(jnp.array([1, 7, 13]), 1.0), [1.0, 2.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(penalty(jnp.array([1, 7, 13]), 0.0), 1.0)
