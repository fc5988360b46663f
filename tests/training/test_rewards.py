"""Rewards against sacreBLEU, and against Levenshtein's table filled cell by cell."""

import jax
import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from seq2seq_jax.padded import Padded
from seq2seq_jax.training.rewards import REWARDS

WIDTH = 9
random = np.random.default_rng(0)


def padded(sequences) -> Padded:
    """In the padding stand tokens like any others: nothing may look at them."""
    values = random.integers(4, 8, (len(sequences), WIDTH), np.int32)
    for row, tokens in zip(values, sequences, strict=True):
        row[: len(tokens)] = tokens
    return Padded(values, np.array(list(map(len, sequences)), np.int32))


def pairs():
    """Outputs and references of few different tokens; some are alike, some empty, some as long as can be."""
    outputs = [random.integers(4, 8, random.integers(0, WIDTH + 1)).tolist() for _ in range(200)]
    references = [random.integers(4, 8, random.integers(1, WIDTH + 1)).tolist() for _ in range(200)]
    outputs[:20] = references[:20]
    outputs[20:30] = [tokens[:-1] for tokens in references[20:30]]
    return outputs, references


def bleu(output, reference):
    metric = BLEU(smooth_method="add-k", smooth_value=1, effective_order=False, tokenize="none")
    words = [" ".join(map(str, tokens)) for tokens in (output, reference)]
    return metric.sentence_score(words[0], [words[1]]).score / 100


def edit_similarity(output, reference):
    table = {(i, 0): i for i in range(len(output) + 1)} | {(0, j): j for j in range(len(reference) + 1)}
    for i, token in enumerate(output):
        for j, right in enumerate(reference):
            ways = table[i, j] + (token != right), table[i, j + 1] + 1, table[i + 1, j] + 1
            table[i + 1, j + 1] = min(ways)
    return 1 - table[len(output), len(reference)] / len(reference)


def exact_match(output, reference):
    return float(output == reference)


@pytest.mark.parametrize("expected", [bleu, edit_similarity, exact_match], ids=lambda function: function.__name__)
def test_a_reward_is_what_its_definition_says(expected):
    outputs, references = pairs()
    found = jax.jit(REWARDS[expected.__name__])(padded(outputs), padded(references))
    by_definition = [expected(*pair) for pair in zip(outputs, references, strict=True)]
    np.testing.assert_allclose(found, by_definition, rtol=1e-5, atol=1e-7)
    assert len(set(by_definition)) >= (2 if expected is exact_match else 20)


@pytest.mark.parametrize("name", REWARDS)
def test_the_reference_itself_has_the_whole_reward(name):
    _, references = pairs()
    found = jax.jit(REWARDS[name])(padded(references), padded(references))
    np.testing.assert_allclose(found, 1, rtol=1e-5)
