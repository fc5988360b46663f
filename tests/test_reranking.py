import numpy as np
import pytest

from seq2seq_jax.reranking import rerank
from seq2seq_jax.translator import Hypothesis, load

LINES = ["ant bee", "", "cat"]
FOUND = [
    [Hypothesis("CAT", -0.1), Hypothesis("ANT BEE", -0.9), Hypothesis("ANT", -1.0)],
    [Hypothesis("", 0.0)],
    [Hypothesis("CAT", -0.2)],
]


@pytest.fixture(scope="module")
def scorer(trained):
    return load(trained)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_scores_are_a_mean_of_both_models_and_the_best_comes_first(scorer, weight):
    found = rerank(scorer, LINES, FOUND, weight, 0.8)
    for line, before, after in zip(LINES, FOUND, found, strict=True):
        theirs = scorer.score([line] * len(before), [each.text for each in before])
        lengths = [len(each.text.split()) + 1 for each in before]
        expected = {
            each.text: (1 - weight) * each.score + weight * log_prob / ((5 + length) / 6) ** 0.8
            for each, log_prob, length in zip(before, theirs, lengths, strict=True)
        }
        assert {each.text: each.score for each in after} == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose([each.score for each in after], sorted(expected.values(), reverse=True), rtol=1e-6)
    assert found[0][0].text == ("CAT" if weight == 0 else "ANT BEE")


def test_nothing_is_ranked_as_nothing(scorer):
    assert rerank(scorer, [], [], 0.5, 1.0) == []
