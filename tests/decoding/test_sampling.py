import itertools
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding.rules import Asked, no_shorter_than, nothing_written, ruled
from seq2seq_jax.decoding.sampling import sample
from seq2seq_jax.symbols import EOS
from tests.decoding.tiny_rnn import TinyRNN

VOCABULARY = 7
MODEL = TinyRNN(VOCABULARY, seed=2, end_bias=0.5)


def draw(sentences, limits, num_samples, *, numbers=None, seed=0, **options):
    found = sample(
        MODEL.step,
        (),
        MODEL.carry(sentences),
        num_samples=num_samples,
        seed=seed,
        numbers=jnp.asarray(numbers or sentences, jnp.int32),
        max_lengths=jnp.asarray(limits),
        max_length=max(limits),
        **options,
    )
    tokens, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
    return [
        [tuple(row[:n].tolist()) for row, n in zip(*each, strict=True)] for each in zip(tokens, lengths, strict=True)
    ], found


def next_token(sentence, prefix, temperature, top_k, top_p) -> dict[int, float]:
    """Probabilities of what is drawn, as the papers say it."""
    probs = {token: np.exp(MODEL.log_probs(sentence, prefix)[token] / temperature) for token in range(EOS, VOCABULARY)}
    likeliest = sorted(probs, key=probs.__getitem__, reverse=True)[: top_k or VOCABULARY]
    total, kept = sum(probs[token] for token in likeliest), []
    for token in likeliest:
        if sum(probs[each] for each in kept) >= top_p * total:
            break
        kept.append(token)
    return {token: probs[token] / sum(probs[each] for each in kept) for token in kept}


def sequences(sentence, limit, **options) -> dict[tuple[int, ...], float]:
    """All that can be drawn, with their probabilities."""
    found, open = {}, {(): 1.0}
    for length in range(1, limit + 1):
        longer = {}
        for prefix, probability in open.items():
            for token, share in next_token(sentence, prefix, **options).items():
                token = EOS if length == limit else token
                into = found if token == EOS else longer
                into[(*prefix, token)] = into.get((*prefix, token), 0) + probability * share
        open = longer
    return found


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7), (1.5, 4, 0.6)]
)
def test_sequences_come_as_often_as_they_are_likely(temperature, top_k, top_p):
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
    limits, num_samples = [3, 1, 4], 20_000
    drawn, _ = draw([0, 1, 2], limits, num_samples, **options)
    for sentence, limit in enumerate(limits):
        expected, counts = sequences(sentence, limit, **options), Counter(drawn[sentence])
        assert sum(expected.values()) == pytest.approx(1) and set(counts) <= set(expected)
        for sequence, probability in expected.items():
            if num_samples * probability < 20:
                continue  # too rare for a normal distribution
            sigma = np.sqrt(num_samples * probability * (1 - probability))
            assert abs(counts[sequence] - num_samples * probability) <= 4 * sigma + 1e-6


def test_what_is_drawn_depends_on_seed_and_number_alone():
    alone, _ = draw([3], [6], 4, numbers=[9])
    among, _ = draw([1, 3, 5], [4, 6, 6], 4, numbers=[1, 9, 2])
    assert among[1] == alone[0] and len(set(alone[0])) > 1
    assert draw([3], [6], 4, numbers=[9], seed=1)[0] != alone and draw([3], [6], 4, numbers=[8])[0] != alone


def test_scores_and_log_probabilities_are_those_of_the_model():
    drawn, found = draw([0, 1], [5, 6], 3, temperature=2.0, top_k=4, length_penalty=0.8)
    for row, place in itertools.product(range(2), range(3)):
        sequence = drawn[row][place]
        log_prob = MODEL.log_prob(row, sequence)
        assert float(found.log_probs[row, place]) == pytest.approx(log_prob, rel=1e-4)
        assert float(found.scores[row, place]) == pytest.approx(log_prob / ((5 + len(sequence)) / 6) ** 0.8, rel=1e-4)


def test_an_output_is_cut_where_something_else_than_the_end_was_drawn_at_its_limit():
    drawn, found = draw([0], [2], 200)
    cut = np.asarray(found.cut)[0]
    assert cut.any() and not cut.all()
    assert all(len(sequence) == 2 for sequence, is_cut in zip(drawn[0], cut, strict=True) if is_cut)


def test_rules_are_obeyed_and_what_cannot_be_is_no_sequence():
    def of(limit):
        carry = MODEL.carry([0]), nothing_written(Asked(), 1, 5, None)
        step = ruled(lambda *given: (*MODEL.step(*given), None), [no_shorter_than(3)])
        options = dict(seed=0, numbers=jnp.zeros(1, jnp.int32), max_length=5)
        return sample(step, ((), Asked()), carry, num_samples=50, max_lengths=jnp.array([limit]), **options)

    assert np.asarray(of(5).lengths).min() >= 4
    assert not np.asarray(of(3).lengths).any() and not np.asarray(of(3).tokens).any()
