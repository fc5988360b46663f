import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.decoding.greedy import greedy_search

BOS, EOS = 1, 2


def table_model(table: np.ndarray):
    """Logits that depend on the sentence and the last token: `table` is [B, V, V]; the carry is the sentence."""

    def step(_, carry, tokens):
        return carry, jnp.asarray(table)[carry, tokens]

    return step, jnp.arange(len(table))[:, None]


def random_table(batch: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    table = np.random.default_rng(seed).standard_normal((batch, vocab_size, vocab_size)).astype(np.float32)
    table[:, :, :2] += 20.0  # PAD and BOS must not be written, however likely
    return table


def test_greedy_writes_the_likeliest_token_each_time():
    table, limits = random_table(12, 90), np.arange(12) + 1
    step, carry = table_model(table)
    found = jax.jit(lambda carry, limits: greedy_search(step, (), carry, max_lengths=limits, max_length=12))(
        carry, limits
    )
    for sentence, limit in enumerate(limits):
        expected, last, log_prob = [], BOS, 0.0
        while last != EOS:
            logits = table[sentence, last].astype(np.float64)
            last = EOS if len(expected) + 1 == limit else 2 + int(logits[2:].argmax())
            log_prob += logits[last] - np.log(np.exp(logits).sum())
            expected.append(last)
        assert found.tokens[sentence, 0].tolist() == expected + [0] * (12 - len(expected))
        assert found.lengths[sentence, 0] == len(expected)
        np.testing.assert_allclose(found.log_probs[sentence, 0], log_prob, rtol=1e-5)


def test_a_sequence_is_cut_where_the_likeliest_token_at_its_limit_is_not_the_end():
    table = np.zeros((4, 6, 6), np.float32)
    table[:, BOS, 3] = table[:, 3, 4] = table[:, 4, EOS] = 9.0  # 3 4 EOS
    step, carry = table_model(table)
    found = greedy_search(step, (), carry, max_lengths=jnp.array([1, 2, 3, 4]), max_length=4)
    assert found.lengths[:, 0].tolist() == [1, 2, 3, 3]
    assert found.cut[:, 0].tolist() == [True, True, False, False]


def test_length_penalty_changes_scores_only():
    step, carry = table_model(random_table(5, 9))
    options = dict(max_lengths=jnp.full((5,), 7), max_length=7)
    plain, normalised = (greedy_search(step, (), carry, **options, length_penalty=alpha) for alpha in (0.0, 0.8))
    np.testing.assert_array_equal(plain.tokens, normalised.tokens)
    np.testing.assert_array_equal(plain.scores, plain.log_probs)
    np.testing.assert_allclose(normalised.scores, plain.log_probs / ((5 + plain.lengths) / 6) ** 0.8, rtol=1e-6)


def test_loop_ends_with_the_last_sentence():
    table = np.zeros((3, 6, 6), np.float32)
    table[:, BOS, 3] = table[:, 3, 4] = table[:, 4, EOS] = 9.0
    table[0, BOS, EOS] = table[1, 3, EOS] = 99.0  # sentences of 1, 2 and 3 tokens
    step, carry = table_model(table)
    calls = []

    def counted(_, carry, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return step((), carry, tokens)

    found = greedy_search(counted, (), carry, max_lengths=jnp.full((3,), 1_000), max_length=1_000)
    jax.effects_barrier()
    assert found.lengths[:, 0].tolist() == [1, 2, 3]
    assert len(calls) == 3


def test_a_model_that_has_broken_down_still_ends():
    def step(_, carry, tokens):
        return carry, jnp.full((*tokens.shape, 8), jnp.nan)

    found = greedy_search(step, (), jnp.zeros((2, 1)), max_lengths=jnp.array([4, 5]), max_length=5)
    assert (found.lengths[:, 0] <= jnp.array([4, 5])).all()
