"""Intervals, tests and classes against their definitions, computed in other ways."""

import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.reporting.statistics import (
    FREQUENCIES,
    by_frequency,
    equal_parts,
    mcnemar,
    resample,
    sentence_scores,
    wilson,
)

WORDS = "the cat sat on a mat and saw another dog".split()


def lines(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(4, 9))) for _ in range(count)]


def changed(texts: list[str], share: float, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(w if random.random() > share else random.choice(WORDS) for w in text.split()) for text in texts]


@pytest.fixture(scope="module")
def systems() -> tuple[list[list[str]], list[list[str]]]:
    """Two systems of different quality, and what they are compared with: one or two references."""
    truth = lines(12, seed=1)
    references = [[text, *changed([text], 0.3, seed=9)][: 1 + number % 2] for number, text in enumerate(truth)]
    return [changed(truth, 0.2, seed=2), changed(truth, 0.5, seed=3)], references


@pytest.mark.parametrize(
    "metric", [sacrebleu.BLEU(tokenize="none", force=True), sacrebleu.CHRF()], ids=["bleu", "chrf"]
)
def test_intervals_and_p_values_are_those_of_scores_of_resampled_sentences(systems, metric):
    outputs, references = systems
    found = resample(metric, outputs, references)

    def score(texts, places):
        streams = [[(references[place] + [None])[depth] for place in places] for depth in range(2)]
        return metric.corpus_score([texts[place] for place in places], streams).score

    whole = [score(texts, range(12)) for texts in outputs]
    draws = np.random.default_rng(12345).choice(12, size=(1000, 12), replace=True)
    scores = np.array([[score(texts, places) for places in draws] for texts in outputs])
    for each, of_system, expected in zip(found, scores, whole, strict=True):
        assert each.score == pytest.approx(expected)
        assert each.mean == pytest.approx(of_system.mean(), abs=1e-3)  # sacreBLEU adds up in float32
        ordered = np.sort(of_system)
        assert each.half == pytest.approx((ordered[974] - ordered[25]) / 2, abs=1e-3)
        assert each.bootstrap == "bs:1000|seed:12345"
    # Koehn 2004 by shifting: how often is a difference of resamples as far from their mean as the real one from none?
    gaps = np.abs(scores[1] - scores[0])
    expected = ((gaps - gaps.mean() > abs(whole[1] - whole[0])).sum() + 1) / 1001
    assert found[0].p_value is None and found[1].p_value == pytest.approx(expected, abs=2e-3)
    assert whole[0] > whole[1] + 5 and expected < 0.1


def test_a_system_does_not_differ_from_itself(systems):
    outputs, references = systems
    found = resample(sacrebleu.CHRF(), [outputs[0], outputs[0]], references)
    assert found[1].p_value == 1 and found[0].half == found[1].half > 0
    assert resample(sacrebleu.CHRF(), [["a b"], ["a  b"]], [["a b c"]])[1].p_value == 1


@given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilsons_interval_ends_where_the_share_is_1_96_standard_errors_away(counts):
    successes, total = counts
    low, high = wilson(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            error = math.sqrt(end * (1 - end) / total)
            assert abs(successes / total - end) == pytest.approx(1.959964 * error, rel=1e-5)
    assert (low == pytest.approx(0, abs=1e-12)) == (successes == 0)
    assert (high == pytest.approx(1)) == (successes == total)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_mcnemar_counts_all_ways_in_which_the_differing_sentences_could_have_fallen(pairs):
    first, second = (np.array([pair[side] for pair in pairs], bool) for side in (0, 1))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    gap = abs(sum(1 if pair[1] else -1 for pair in differing))
    ways = [bin(number).count("1") for number in range(2 ** len(differing))]
    extreme = sum(abs(2 * ones - len(differing)) >= gap for ones in ways)
    assert mcnemar(first, second) == pytest.approx(extreme / len(ways))
    assert mcnemar(first, second) == pytest.approx(mcnemar(second, first))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.integers(1, 8))
def test_every_length_is_in_one_range_and_ranges_are_as_equal_as_lengths_allow(lengths, most):
    ranges = equal_parts(np.array(lengths), most)
    assert 1 <= len(ranges) <= most and ranges[0][0] == min(lengths) and ranges[-1][1] == max(lengths)
    assert all(before[1] + 1 == after[0] for before, after in zip(ranges, ranges[1:], strict=False))
    largest = max(Counter(lengths).values())
    for first, last in ranges:
        assert 0 < sum(first <= length <= last for length in lengths) < len(lengths) / most + largest + 1


def test_words_are_matched_sentence_by_sentence_and_classed_by_their_frequency():
    frequencies = {word: 10**power // 2 for power, word in enumerate(WORDS[:6])}
    references, outputs = lines(40, seed=4), changed(lines(40, seed=4), 0.4, seed=5)
    found = by_frequency(outputs, references, frequencies, str.split)
    for each in found:
        last = math.inf if each.last is None else each.last
        words = [word for word in WORDS if each.first <= frequencies.get(word, 0) <= last]
        pairs = [(output.split(), reference.split()) for output, reference in zip(outputs, references, strict=True)]
        matched = sum(min(output.count(word), reference.count(word)) for output, reference in pairs for word in words)
        assert each.matched == matched
        assert each.references == sum(reference.count(word) for _, reference in pairs for word in words)
        assert each.outputs == sum(output.count(word) for output, _ in pairs for word in words)
        assert each.f1 == pytest.approx(2 / (1 / each.recall + 1 / each.precision))
    assert sum(each.references for each in found) == sum(len(text.split()) for text in references)
    assert [each.first for each in found] == [start for start in FREQUENCIES if start in (0, 5, 10, 100, 1000)]


def test_a_class_without_words_on_one_side_has_no_such_share():
    (only,) = by_frequency(["new"], [""], {}, str.split)
    assert only.precision == 0 and math.isnan(only.recall) and only.f1 == 0
    assert by_frequency(["", ""], ["", ""], {}, str.split) == []


def test_a_sentences_chrf_is_with_its_best_reference():
    texts, references = ["the cat", "A dog"], [["a cat", "the cats"], ["a dog"]]
    found = sentence_scores(texts, references, lowercase=False)
    best = max(sacrebleu.sentence_chrf("the cat", [text]).score for text in references[0])
    assert found[0] == pytest.approx(best) and found[1] < 100
    assert sentence_scores(["a dog"], [["A DOG"]], lowercase=True) == pytest.approx([100])
