"""Every rule against the list of all sequences, each judged by plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding.beam import beam_search
from seq2seq_jax.decoding.hypotheses import with_rest
from seq2seq_jax.decoding.phrases import by_banks, make_phrases, progress_after
from seq2seq_jax.decoding.rules import (
    Asked,
    begun,
    complete,
    covering,
    no_repeated_ngram,
    no_shorter_than,
    nothing_written,
    ruled,
    without,
)
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import EOS, PAD
from tests.decoding.tiny_rnn import SOURCE_LENGTH, TinyRNN

VOCABULARY = 6  # three tokens to write: 3, 4, 5
LIMITS = [1, 3, 5, 5]
ALPHA = 0.7
SOURCE = Padded(np.zeros((4, SOURCE_LENGTH), np.int32), np.array([3, 2, 3, 1], np.int32))
MODEL = TinyRNN(VOCABULARY, seed=1)
NOTHING = Asked()


def search(rules, asked=NOTHING, *, beam_size=150, needs_coverage=False, model=MODEL, **options):
    """Sequences found for each sentence with their log-probabilities and scores, best first."""
    most, source = max(LIMITS), SOURCE if needs_coverage else None
    options = dict(choose=by_banks if asked.phrases else None) | options
    options = {name: value for name, value in options.items() if value is not None}

    @jax.jit
    def run(asked):
        return beam_search(
            ruled(model.attending_step, rules),
            ((), asked),
            (model.carry(range(4)), nothing_written(asked, 4, most, source)),
            beam_size=beam_size,
            max_lengths=jnp.asarray(LIMITS),
            max_length=most,
            length_penalty=ALPHA,
            **options,
        )

    found = jax.tree.map(np.asarray, run(asked))
    each = []
    for row in range(4):
        there = [place for place in range(found.lengths.shape[1]) if found.lengths[row, place]]
        sequences = [tuple(found.tokens[row, place, : found.lengths[row, place]].tolist()) for place in there]
        each.append((sequences, found.log_probs[row, there], found.scores[row, there]))
    return each


def all_sequences(limit: int):
    return [(*p, EOS) for n in range(limit) for p in itertools.product(range(3, VOCABULARY), repeat=n)]


def has(sequence, phrase) -> bool:
    return any(sequence[i : i + len(phrase)] == tuple(phrase) for i in range(len(sequence)))


def repeats(sequence, size: int) -> bool:
    grams = [sequence[i : i + size] for i in range(len(sequence) - size)]  # the end mark is in none
    return len(set(grams)) < len(grams)


def penalty(length: int) -> float:
    return ((5 + length) / 6) ** ALPHA


def check(found, allowed, bonus=lambda row, sequence: 0.0):
    """All allowed sequences, and no other, in the order of their scores."""
    for row, limit in enumerate(LIMITS):
        expected = [
            (MODEL.log_prob(row, sequence) / penalty(len(sequence)) + bonus(row, sequence), sequence)
            for sequence in all_sequences(limit)
            if allowed(row, sequence)
        ]
        expected = sorted(expected, reverse=True)
        sequences, _, scores = found[row]
        assert sequences == [sequence for _, sequence in expected]
        np.testing.assert_allclose(scores, [value for value, _ in expected], rtol=1e-4, atol=1e-5)
    assert any(0 < len(sequences) for sequences, _, _ in found)


@pytest.mark.parametrize("least", [1, 2, 4])
def test_no_output_is_too_short(least):
    check(search([no_shorter_than(least)]), lambda row, sequence: len(sequence) - 1 >= least)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(size):
    check(search([no_repeated_ngram(size)]), lambda row, sequence: not repeats(sequence, size))
    assert any(repeats(sequence, size) for sequence in all_sequences(max(LIMITS)))


@pytest.mark.parametrize("phrases", [[[4]], [[3, 4], [5, 5, 3]], [[5], [3, 3, 3, 4], [4, 3]]])
def test_phrases_are_avoided(phrases):
    check(search([without(phrases)]), lambda row, sequence: not any(has(sequence, phrase) for phrase in phrases))


def test_outputs_begin_as_they_are_asked_to():
    prefixes = [(), (4,), (3, 5, 5), (5, 3)]
    values = np.array([[*prefix, *[PAD] * (4 - len(prefix))] for prefix in prefixes], np.int32)
    asked = Asked(prefix=Padded(values, np.array(list(map(len, prefixes)), np.int32)))
    check(search([begun], asked), lambda row, sequence: sequence[: len(prefixes[row])] == prefixes[row])


PHRASES = [[], [[3]], [[4, 4], [3]], [[3, 3, 4], [4, 3]]]  # of the last, one overlaps itself and both each other


def test_phrases_appear():
    asked = Asked(phrases=make_phrases(PHRASES, 2, 4))
    check(search([complete], asked), lambda row, sequence: all(has(sequence, phrase) for phrase in PHRASES[row]))


def test_what_the_source_lacks_of_attention_counts_against_an_output():
    def bonus(row, sequence):
        covered = sum(MODEL.weights(row, sequence[:i]) for i in range(len(sequence)))
        return 0.4 * np.log(np.minimum(covered, 1))[: SOURCE.lengths[row]].sum()

    check(search([covering(0.4, ALPHA)], needs_coverage=True), lambda row, sequence: True, bonus)
    assert abs(bonus(2, (3, EOS))) > 0.01


def test_rules_go_together():
    rules = [no_shorter_than(2), no_repeated_ngram(2), without([[5, 3]]), complete]
    asked = Asked(phrases=make_phrases(PHRASES, 2, 4))

    def allowed(row, sequence):
        met = all(has(sequence, phrase) for phrase in PHRASES[row])
        return met and len(sequence) > 2 and not repeats(sequence, 2) and not has(sequence, (5, 3))

    check(search(rules, asked), allowed)


def test_log_probabilities_of_what_is_left_stay_those_of_the_model():
    for sequences, log_probs, _ in search([no_shorter_than(1), without([[3]])], beam_size=4):
        for sequence, log_prob in zip(sequences, log_probs, strict=True):
            row = next(row for row in range(4) if MODEL.log_prob(row, sequence) == pytest.approx(log_prob, rel=1e-4))
            assert row >= 0


def test_pad_gets_what_others_lack():
    log_probs = jnp.log(jnp.array([[[0.25, 0.25, 0.0, 0.125]]]))
    np.testing.assert_allclose(np.exp(with_rest(log_probs)), [[[0.625, 0.25, 0, 0.125]]], rtol=1e-6)


def test_where_nothing_is_allowed_there_is_no_sequence():
    rules = [no_shorter_than(4)]
    found = search(rules)
    assert [len(sequences) > 0 for sequences, _, _ in found] == [False, False, True, True]


def test_progress_in_a_phrase_is_that_of_its_latest_beginning():
    phrase, generator = [3, 3, 4, 3, 3, 5], np.random.default_rng(0)
    phrases = make_phrases([[phrase]], 1, 8)
    for _ in range(20):
        text = generator.choice([3, 3, 4, 5], size=25).tolist()
        progress = jnp.zeros((1, 1, 1), jnp.int32)
        for number in range(1, len(text) + 1):
            progress = progress_after(phrases, progress, jnp.full((1, 1), text[number - 1]))
            written = text[:number]
            fits = [n for n in range(len(phrase) + 1) if written[number - n :] == phrase[:n]]
            assert int(progress[0, 0, 0]) == (len(phrase) if has(tuple(written), phrase) else max(fits))


def banks_in_python(model, sentence, limit, vocab_size, beam_size, phrases):
    """Dynamic beam allocation as its docstring reads; returns the sequences that end, with log-probabilities."""

    def met(sequence):
        total = 0
        for phrase in phrases:
            fits = [n for n in range(len(phrase) + 1) if tuple(sequence[len(sequence) - n :]) == tuple(phrase[:n])]
            total += len(phrase) if has(sequence, phrase) else max(fits)
        return total

    whole, beam, finished = sum(map(len, phrases)), [((), 0.0)], {}
    for length in range(1, limit + 1):
        candidates, everything = {}, {}
        for prefix, log_prob in beam:
            following = model.log_probs(sentence, prefix).copy()
            if met(prefix) < whole:
                following[EOS] = -np.inf
            allowed = [EOS] if length == limit else range(EOS, vocab_size)
            ahead = {(*prefix, token): log_prob + following[token] for token in allowed if following[token] > -np.inf}
            everything |= ahead
            if length == limit:
                continue
            best = max(ahead, key=ahead.__getitem__)
            wanted = [best]
            for phrase in phrases:
                if not has(prefix, phrase):
                    fits = [n for n in range(len(phrase)) if prefix[len(prefix) - n :] == tuple(phrase[:n])]
                    wanted.append((*prefix, phrase[max(fits)]))
            candidates |= {sequence: ahead[sequence] for sequence in wanted}
        top = sorted(everything, key=everything.__getitem__, reverse=True)[:beam_size]
        candidates |= {sequence: everything[sequence] for sequence in top}
        banks = {}
        for sequence in sorted(candidates, key=candidates.__getitem__, reverse=True):
            banks.setdefault(met(sequence) if sequence[-1] != EOS else whole, []).append(sequence)
        turns = [(rank, -number, seq) for number, bank in banks.items() for rank, seq in enumerate(bank)]
        kept = [sequence for _, _, sequence in sorted(turns)[:beam_size]]
        if length == limit:
            kept = list(everything)
        finished |= {
            sequence: candidates.get(sequence, everything.get(sequence)) for sequence in kept if sequence[-1] == EOS
        }
        beam = [(sequence, candidates[sequence]) for sequence in kept if sequence[-1] != EOS]
    return finished


@pytest.mark.parametrize("beam_size", [2, 3, 5])
def test_a_narrow_beam_keeps_hypotheses_of_every_bank(beam_size):
    model, phrases = TinyRNN(9, seed=5), [[[7]], [[3, 8]], [[4, 4], [3]], [[3, 3, 4], [8]]]
    limits = [4, 5, 6, 7]

    @jax.jit
    def run(asked):
        carry = model.carry(range(4)), nothing_written(asked, 4, 7, None)
        step, options = ruled(model.attending_step, [complete]), dict(max_length=7, length_penalty=ALPHA, num_best=1)
        limit = jnp.asarray(limits)
        return beam_search(step, ((), asked), carry, beam_size=beam_size, max_lengths=limit, choose=by_banks, **options)

    found = run(Asked(phrases=make_phrases(phrases, 2, 4)))
    for row, limit in enumerate(limits):
        finished = banks_in_python(model, row, limit, 9, beam_size, phrases[row])
        best = max(finished, key=lambda sequence: finished[sequence] / penalty(len(sequence)))
        assert tuple(np.asarray(found.tokens[row, 0, : found.lengths[row, 0]]).tolist()) == best
        assert all(has(best, phrase) for phrase in phrases[row])
