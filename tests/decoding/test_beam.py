import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding.beam import beam_search
from seq2seq_jax.decoding.greedy import greedy_search
from seq2seq_jax.symbols import EOS
from tests.decoding.tiny_rnn import TinyRNN

compiled_beam_search = jax.jit(
    beam_search,
    static_argnums=0,
    static_argnames=("beam_size", "max_length", "length_penalty", "num_best", "num_groups", "diversity"),
)


MODEL = TinyRNN(vocab_size=20, end_bias=1.0)
LIMITS = [9, 2, 12, 5, 12, 1]
OPTIONS = dict(beam_size=5, max_length=12, length_penalty=0.7)


def search(model, sentences, limits, **options):
    """The sequences found, each without its padding, and everything else as numpy."""
    found = compiled_beam_search(model.step, (), model.carry(sentences), max_lengths=jnp.asarray(limits), **options)
    tokens, scores, log_probs, lengths = map(np.asarray, found[:4])
    sequences = [
        [tuple(row[:length].tolist()) for row, length in zip(rows, counts, strict=True)]
        for rows, counts in zip(tokens, lengths, strict=True)
    ]
    return sequences, tokens, scores, log_probs, lengths


def score(log_prob: float, length: int, alpha: float) -> float:
    return log_prob / ((5 + length) / 6) ** alpha


def search_in_python(model, sentence: int, limit: int, vocab_size: int, beam_size: int, alpha: float):
    """Beam search as its definition reads, without an early exit."""
    beam, finished = [((), 0.0)], []
    for length in range(1, limit + 1):
        allowed = [EOS] if length == limit else range(EOS, vocab_size)
        longer = []
        for prefix, log_prob in beam:
            following = model.log_probs(sentence, prefix)
            longer += [((*prefix, token), log_prob + following[token]) for token in allowed]
        longer = sorted(longer, key=lambda item: -item[1])[:beam_size]
        finished += [(score(log_prob, length, alpha), sequence) for sequence, log_prob in longer if sequence[-1] == EOS]
        beam = [item for item in longer if item[0][-1] != EOS]
    return [sequence for _, sequence in sorted(finished, reverse=True)[:beam_size]]


def diverse_search_in_python(model, sentence, limit, vocab_size, beam_size, num_groups, diversity, alpha, num_best):
    """Diverse beam search as its definition reads: groups choose one after another at every position."""
    beams, finished = [[((), 0.0)] for _ in range(num_groups)], [[] for _ in range(num_groups)]
    width = beam_size // num_groups
    for length in range(1, limit + 1):
        allowed = [EOS] if length == limit else range(EOS, vocab_size)
        counts = dict.fromkeys(range(vocab_size), 0)
        for group in range(num_groups):
            longer = []
            for prefix, log_prob in beams[group]:
                following = model.log_probs(sentence, prefix)
                longer += [((*prefix, token), log_prob + following[token]) for token in allowed]
            longer = sorted(longer, key=lambda item: -(item[1] - diversity * counts[item[0][-1]]))[:width]
            for sequence, log_prob in longer:
                counts[sequence[-1]] += 1
                if sequence[-1] == EOS:
                    finished[group].append((score(log_prob, length, alpha), sequence))
            beams[group] = [item for item in longer if item[0][-1] != EOS]
    share = -(-num_best // num_groups)
    best = {item for group in finished for item in sorted(group, reverse=True)[:share]}
    return [sequence for _, sequence in sorted(best, reverse=True)[:num_best]]


@pytest.mark.parametrize(("num_groups", "num_best"), [(1, 6), (2, 6), (3, 6), (6, 6), (3, 1), (3, 4)])
def test_groups_follow_the_definition_of_diverse_beam_search(num_groups, num_best):
    model, limits = TinyRNN(9, seed=3, end_bias=1.0), [1, 3, 6, 6]
    options = dict(beam_size=6, length_penalty=0.6, num_groups=num_groups, diversity=0.8, num_best=num_best)
    sequences, _, scores, log_probs, _ = search(model, range(4), limits, max_length=6, **options)
    for sentence, limit in enumerate(limits):
        expected = diverse_search_in_python(model, sentence, limit, 9, 6, num_groups, 0.8, 0.6, num_best)
        found = [sequence for sequence in sequences[sentence] if sequence]
        assert found == expected
        for place, sequence in enumerate(found):
            assert log_probs[sentence, place] == pytest.approx(model.log_prob(sentence, sequence), rel=1e-4)
        assert sorted(scores[sentence], reverse=True) == scores[sentence].tolist()


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_wide_beam_finds_all_sequences_in_order(alpha):
    model, limits = TinyRNN(vocab_size=5), [1, 2, 4, 5]
    sequences, _, scores, _, _ = search(model, range(4), limits, beam_size=31, max_length=5, length_penalty=alpha)
    for sentence, limit in enumerate(limits):
        every = [(*p, EOS) for n in range(limit) for p in itertools.product([3, 4], repeat=n)]
        expected = sorted(((score(model.log_prob(sentence, s), len(s), alpha), s) for s in every), reverse=True)
        assert sequences[sentence][: len(every)] == [sequence for _, sequence in expected]
        np.testing.assert_allclose(scores[sentence, : len(every)], [value for value, _ in expected], rtol=1e-5)


def test_rows_without_a_sequence_are_marked():
    sequences, tokens, scores, log_probs, lengths = search(
        TinyRNN(vocab_size=5), [0, 1], [2, 4], beam_size=4, max_length=6, length_penalty=1.0
    )
    assert sequences[0][3] == () and sequences[1][3] != ()  # two positions hold three sequences: 2, 3 2, 4 2
    assert not tokens[0, 3].any() and lengths[0, 3] == 0
    assert scores[0, 3] == log_probs[0, 3] == -np.inf


@pytest.mark.parametrize(
    ("beam_size", "alpha", "vocab_size"),
    [(1, 0.0, 6), (2, 0.0, 6), (5, 1.0, 6), (2, 1.0, 150), (5, 0.0, 150), (5, 0.6, 150)],  # 150: blocks, one not full
)
def test_search_follows_its_definition(beam_size, alpha, vocab_size):
    model = TinyRNN(vocab_size, seed=beam_size, end_bias=1.0)
    limits = [1, 3, 7, 8, 8, 8]
    sequences, *_ = search(model, range(6), limits, beam_size=beam_size, max_length=8, length_penalty=alpha)
    for sentence, limit in enumerate(limits):
        expected = search_in_python(model, sentence, limit, vocab_size, beam_size, alpha)
        assert [sequence for sequence in sequences[sentence] if sequence] == expected


def test_beam_of_one_is_greedy():
    model, limits = TinyRNN(vocab_size=70, end_bias=2.0), jnp.arange(1, 17)
    options = dict(max_lengths=limits, max_length=16, length_penalty=0.9)
    beam = beam_search(model.step, (), model.carry(range(16)), beam_size=1, **options)
    greedy = greedy_search(model.step, (), model.carry(range(16)), **options)
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_array_equal(beam.lengths, greedy.lengths)
    np.testing.assert_allclose(beam.log_probs, greedy.log_probs, rtol=1e-5)
    np.testing.assert_allclose(beam.scores, greedy.scores, rtol=1e-5)


@pytest.mark.parametrize("num_best", [1, 2])
def test_wanting_fewer_does_not_change_them(num_best):
    everything = search(MODEL, range(6), LIMITS, **OPTIONS)[1:]
    fewer = search(MODEL, range(6), LIMITS, **OPTIONS, num_best=num_best)[1:]
    for some, all_found in zip(fewer, everything, strict=True):
        np.testing.assert_array_equal(some, all_found[:, :num_best])


def test_sentences_do_not_see_each_other():
    together, _, scores, *_ = search(MODEL, range(6), LIMITS, **OPTIONS)
    for sentence, limit in enumerate(LIMITS):
        alone, _, score_alone, *_ = search(MODEL, [sentence], [limit], **OPTIONS)
        assert alone == together[sentence : sentence + 1]
        np.testing.assert_allclose(score_alone, scores[sentence : sentence + 1], rtol=1e-5)


def test_log_probs_and_scores_are_the_models():
    sequences, _, scores, log_probs, _ = search(MODEL, range(6), LIMITS, **OPTIONS)
    for sentence, found in enumerate(sequences):
        for rank, sequence in enumerate(filter(None, found)):
            expected = MODEL.log_prob(sentence, sequence)
            np.testing.assert_allclose(log_probs[sentence, rank], expected, rtol=1e-5)
            np.testing.assert_allclose(scores[sentence, rank], score(expected, len(sequence), 0.7), rtol=1e-5)


def test_every_sequence_ends_once_and_holds_no_padding():
    model = TinyRNN(vocab_size=20, end_bias=-3.0)
    model.bias[:2] = 10.0  # it would rather write PAD and BOS than anything else
    limits = [0, 1, 5, 9, 99]  # 0 as 1, 99 as max_length
    sequences, tokens, _, _, lengths = search(model, range(5), limits, beam_size=3, max_length=9, length_penalty=1.0)
    for found, limit in zip(sequences, [1, 1, 5, 9, 9], strict=True):
        assert found[0]
        for sequence in filter(None, found):
            assert sequence[-1] == EOS and min(sequence) == EOS and sequence.count(EOS) == 1
            assert len(sequence) <= limit
    assert (tokens != 0).sum() == lengths.sum()


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_sequence_is_cut_where_the_model_would_have_gone_on(beam_size):
    """Some reach their limit and end there of their own; some end before it; some are cut."""
    model, limits = TinyRNN(vocab_size=6, seed=3), np.arange(16) % 4 + 1
    options = dict(max_length=4, length_penalty=0.5, max_lengths=jnp.asarray(limits))
    found = compiled_beam_search(model.step, (), model.carry(range(16)), beam_size=beam_size, **options)
    kinds = set()
    for sentence, limit in enumerate(limits):
        for rank, length in enumerate(np.asarray(found.lengths[sentence])):
            prefix = tuple(found.tokens[sentence, rank, : max(length - 1, 0)].tolist())
            likeliest = EOS + model.log_probs(sentence, prefix)[EOS:].argmax()
            expected = length == limit and likeliest != EOS
            assert found.cut[sentence, rank] == expected
            kinds.add((bool(length == limit), bool(likeliest == EOS), bool(expected)))
    assert {(True, True, False), (True, False, True)} <= kinds and any(not at_limit for at_limit, *_ in kinds)


@pytest.mark.parametrize(("num_best", "steps"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_loop_ends_when_the_results_are_settled(num_best, steps):
    """The probabilities .9 of EOS and .05 of two others make it known when nothing better can come."""
    calls = []

    def step(_, carry, tokens):
        jax.debug.callback(lambda: calls.append(1))
        return carry, jnp.broadcast_to(jnp.log(jnp.array([0.0, 0.0, 0.9, 0.05, 0.05])), (*tokens.shape, 5))

    options = dict(beam_size=4, max_lengths=jnp.full((2,), 50), max_length=50, length_penalty=0.0)
    beam_search(step, (), jnp.zeros((2, 1)), **options, num_best=num_best)
    jax.effects_barrier()
    assert len(calls) == steps


@pytest.mark.parametrize("find", [partial(beam_search, beam_size=4), greedy_search], ids=["beam", "greedy"])
def test_taking_ended_sentences_out_changes_nothing_but_the_rows(find):
    """Each of 16 sentences keeps its own memory, limit and place, whoever goes on beside it."""
    limits, rows = jnp.array([9, 2, 12, 5, 12, 1, 3, 3, 4, 6, 11, 2, 1, 7, 8, 10]), []

    def step(memory, state, tokens):
        jax.debug.callback(rows.append, len(tokens))
        (state, _), logits = MODEL.step(None, (state, memory[:, None]), tokens)
        return state, logits

    state, memory = MODEL.carry(range(16))
    options = dict(max_lengths=limits, max_length=12, length_penalty=0.7)
    together = find(step, memory[:, 0], state, **options, smallest=16)
    jax.effects_barrier()
    assert {*map(int, rows)} == {16}
    rows.clear()
    apart = find(step, memory[:, 0], state, **options, smallest=2)
    jax.effects_barrier()
    assert {*map(int, rows)} == {16, 8, 4, 2}
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_model_that_has_broken_down_still_ends():
    found = beam_search(
        lambda _, carry, tokens: (carry, jnp.full((*tokens.shape, 8), jnp.nan)),
        (),
        jnp.zeros((2, 1)),
        beam_size=3,
        max_lengths=jnp.array([4, 5]),
        max_length=5,
        length_penalty=1.0,
    )
    assert found.tokens.shape == (2, 3, 5)


def test_search_runs_with_float64_switched_on():
    expected, *_ = search(MODEL, range(6), LIMITS, **OPTIONS)
    with jax.enable_x64(True):
        found, *_ = search(MODEL, range(6), LIMITS, **OPTIONS)
    assert found == expected
