"""The parts on sentences, of evaluations made by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.config import Config, DataConfig
from seq2seq_jax.reporting.runs import Evaluation, Frequencies, Outputs, Run
from seq2seq_jax.reporting.sentences import frequency_section, length_section


def evaluation(hypotheses: list[str], references: list[str], *, lowercase: bool = False) -> Evaluation:
    run = Run("run", 0, Path("run"), (Path("run"),), Config(data=DataConfig(lowercase=lowercase)), [], 0, {})
    case = "lc" if lowercase else "mixed"
    scores = {"bleu_signature": f"nrefs:1|case:{case}|eff:no|tok:13a", "chrf_signature": f"nrefs:1|case:{case}"}
    exact = np.array([line == text for line, text in zip(hypotheses, references, strict=True)])
    lengths = np.array([len(text.split()) for text in references])
    texts = [[text] for text in references]
    return Evaluation("test", references, texts, lengths, lengths, [Outputs(run, scores, hypotheses, exact)])


def spoken(parts) -> list[str]:
    """What the charts say of themselves."""
    return [svg.get("aria-label") for part in parts for svg in part.iter("svg") if svg.get("role") == "img"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_are_lowercased_where_the_vocabulary_is(monkeypatch, lowercase):
    def training_words(run, tokenize):
        return Frequencies(Counter(tokenize("The cat. The cat.")), 2, 2)

    monkeypatch.setattr("seq2seq_jax.reporting.sentences.training_words", training_words)
    (said,) = spoken(frequency_section(evaluation(["the cat."], ["The cat."], lowercase=lowercase)))
    of_two = "run, 2: F1 100.0, recall 100.0, precision 100.0"
    assert (of_two in said) == lowercase
    if not lowercase:
        assert "run, 0: F1 0.0, recall –, precision 0.0" in said
        assert "run, 2: F1 80.0, recall 66.7, precision 100.0" in said


def test_ranges_of_length_have_the_scores_of_their_sentences():
    references = ["a b", "c d", "a b c d e f", "f e d c b a"]
    said = spoken(length_section(evaluation(["a b", "x y", "a b c d e f", "f e d c b a"], references)))
    assert len(said) == 6
    for text in said[2::3]:
        assert "run, 2–5 (2): 50.0" in text and "run, 6 (2): 100.0" in text
    assert "run, 6 (2): 100.0" in said[0] and "run, 2–5 (2): 100.0" not in said[1]
