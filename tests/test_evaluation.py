import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.evaluation import evaluate_lines, evaluate_split, teacher_forced
from seq2seq_jax.model import build_model
from seq2seq_jax.translator import Translator, load, vocab_sizes
from tests.data.pairs import Pairs
from tests.tiny import sentences, tiny_config

LINES = sentences(20, seed=5)
REFERENCES = [line.upper() for line in LINES]


@pytest.fixture(scope="module")
def translator(trained):
    return load(trained)


def test_loss_and_perplexity_are_over_the_real_tokens_of_all_sentences(translator):
    """By hand: the sum of the pairs' log-probabilities over the number of words and end marks."""
    log_probs = [translator.score([line], [reference])[0] for line, reference in zip(LINES, REFERENCES, strict=True)]
    num_tokens = sum(len(reference.split()) + 1 for reference in REFERENCES)
    scores = teacher_forced(translator, encode_lines(translator.vocabularies, LINES, REFERENCES))
    assert scores["loss"] == pytest.approx(-sum(log_probs) / num_tokens, rel=1e-4)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert 50 < scores["token_accuracy"] <= 100


def test_label_smoothing_is_no_part_of_an_evaluation(translator):
    config = replace(translator.config, train=replace(translator.config.train, label_smoothing=0.5))
    smooth = Translator(config, translator.vocabularies, translator.params)
    encoded = encode_lines(translator.vocabularies, LINES, REFERENCES)
    assert teacher_forced(smooth, encoded) == teacher_forced(translator, encoded)


def test_a_wrong_reference_raises_the_loss_and_lowers_the_accuracy(translator):
    right = teacher_forced(translator, encode_lines(translator.vocabularies, LINES, REFERENCES))
    wrong = teacher_forced(translator, encode_lines(translator.vocabularies, LINES, REFERENCES[::-1]))
    assert wrong["loss"] > right["loss"] + 1
    assert wrong["token_accuracy"] < right["token_accuracy"]


def test_exact_match_counts_the_lines_that_are_right(translator):
    scores, hypotheses = evaluate_lines(translator, LINES, REFERENCES)
    right = np.mean([found == reference for found, reference in zip(hypotheses, REFERENCES, strict=True)])
    assert scores["exact_match"] == pytest.approx(100 * right)
    assert scores["sentences"] == len(LINES) and scores["sentences_per_second"] > 0


def test_scores_and_hypotheses_are_written_beside_each_other(translator, tmp_path):
    scores = evaluate_split(translator, tmp_path, "held_out", LINES, REFERENCES)
    assert json.loads((tmp_path / "evaluations" / "held_out.json").read_text()) == scores
    assert {"loss", "perplexity", "bleu", "chrf", "exact_match", "bleu_signature"} <= scores.keys()
    written = (tmp_path / "evaluations" / "held_out.hypotheses.txt").read_text().split("\n")
    assert written == [hypothesis.text for hypothesis in translator.translate(LINES)] + [""]


def test_no_mark_of_sentencepiece_is_left_in_a_hypothesis(tmp_path):
    """Weights by chance: they write pieces of words and blanks in any order."""
    config = tiny_config(tmp_path, data={"vocabulary": "bpe", "vocab_size": 40}, decode={"beam_size": 1})
    vocabularies = build_vocabularies(config.data, Pairs(LINES, REFERENCES))
    model = build_model(config.model, vocab_sizes(vocabularies), jax.random.key(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    evaluate_split(Translator(config, vocabularies, params), tmp_path, "test", LINES, REFERENCES)
    hypotheses = (tmp_path / "evaluations" / "test.hypotheses.txt").read_text()
    assert len(set(hypotheses)) > 5 and "\u2581" not in hypotheses
