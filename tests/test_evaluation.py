import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax import evaluation
from seq2seq_jax.build import build_model
from seq2seq_jax.config import FURTHER_SCORES, Config, DataConfig, DecodeConfig
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.evaluation import evaluate_lines, evaluate_split, make_items, output_scores, remarks, teacher_forced
from seq2seq_jax.metrics import score_further
from seq2seq_jax.translator import Hypothesis, Translator, load, output_limits, vocab_sizes
from tests.data.pairs import Pairs
from tests.tiny import rows, sentences, tiny_config

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
    assert scores["step"] == 300  # that of the best checkpoint


def outputs(*texts: str) -> list[Hypothesis]:
    return [Hypothesis(text, 0.0) for text in texts]


def scores_of(translator, texts, references):
    sources = [""] * len(references)
    encoded = encode_lines(translator.vocabularies, sources, references)
    items = make_items(translator.config, translator.vocabularies, encoded, sources, references)
    return output_scores(translator, outputs(*texts), items)


def test_exact_match_is_with_the_reference_as_the_vocabulary_gives_it_back(translator):
    scores = scores_of(translator, ["ANT BEE", "CAT", "DOG"], ["ANT  BEE", "CAT ", "EEL"])
    assert scores["exact_match"] == pytest.approx(200 / 3) and scores["exact_match_raw"] == 0


def test_an_unknown_symbol_written_is_no_match_of_an_unknown_word(translator):
    scores = scores_of(translator, ["\u2047", "CAT"], ["ZEBRA", "CAT"])
    assert scores["exact_match"] == 50 and "exact_match_raw" not in scores


def test_lowercased_outputs_are_scored_with_lowercased_references(translator, tmp_path):
    data = tiny_config(tmp_path, data={"lowercase": True}).data
    vocabularies = build_vocabularies(data, Pairs(LINES, REFERENCES))
    lower = Translator(replace(translator.config, data=data), vocabularies, translator.params)
    scores = scores_of(lower, LINES, REFERENCES)
    assert [scores[name] for name in ("bleu", "chrf", "exact_match")] == pytest.approx([100] * 3)
    assert "case:lc" in scores["bleu_signature"] and scores["exact_match_raw"] == 0


def test_blank_lines_keep_their_places_and_are_scored_like_others(translator):
    """By hand: log-probabilities over words and end marks, of which an empty target has one."""
    sources, references = ["", "ant bee", "cat", ""], ["HEN", "ANT BEE", "", ""]
    scores, hypotheses = evaluate_lines(translator, sources, references)
    assert hypotheses == ["", "ANT BEE", "CAT", ""] and scores["exact_match"] == 50
    assert scores["loss"] == pytest.approx(-sum(translator.score(sources, references)) / 7, rel=1e-4)
    assert all(math.isfinite(value) for value in scores.values() if isinstance(value, float))


def test_validation_and_evaluation_of_the_same_text_give_the_same_scores(trained, translator):
    """The last row of the run is of its last step, which is the best one."""
    greedy = load(trained, replace(translator.decode, beam_size=1))
    files = translator.config.data.validation_files
    sources, references = (Path(name).read_text().splitlines() for name in files)
    scores, _ = evaluate_lines(greedy, sources, references)
    row = {name: value for row in rows(trained) for name, value in row.items() if name.startswith("validation_")}
    assert row.keys() > {"validation_loss", "validation_exact_match", "validation_cut_outputs"}
    for name, value in row.items():
        assert scores[name.removeprefix("validation_")] == pytest.approx(value, rel=1e-6), name


# several references


def grouping(translator, **settings):
    """The same model, with the references of a source together."""
    data = replace(translator.config.data, group_references=True)
    return Translator(replace(translator.config, data=data, **settings), translator.vocabularies, translator.params)


def items_of(translator, sources, targets, most=None):
    encoded = encode_lines(translator.vocabularies, sources, targets)
    return make_items(translator.config, translator.vocabularies, encoded, sources, targets, most)


SOURCES = ["bee cat", "dog", "bee cat", "", "dog", "bee cat"]
TARGETS = ["BEE", "DOG", "zebra", "ANT", "EEL  EEL", "BEE CAT"]


def test_items_are_the_sources_in_the_order_in_which_they_appear_with_all_of_their_targets(translator):
    items = items_of(grouping(translator), SOURCES, TARGETS)
    assert items.sources == ["bee cat", "dog", ""]
    assert items.references == [["BEE", "zebra", "BEE CAT"], ["DOG", "EEL  EEL"], ["ANT"]]
    assert items.restored == [["BEE", None, "BEE CAT"], ["DOG", "EEL EEL"], ["ANT"]]
    ids = encode_lines(translator.vocabularies, items.sources).sources
    assert [items.ids[index].tolist() for index in range(3)] == [ids[index].tolist() for index in range(3)]
    few = items_of(grouping(translator), SOURCES, TARGETS, 2)
    assert (few.sources, few.references, few.restored) == (items.sources[:2], items.references[:2], items.restored[:2])
    assert len(few.ids) == 2


def test_an_item_is_a_pair_unless_the_configuration_says_otherwise(translator):
    items = items_of(translator, SOURCES, TARGETS)
    assert items.sources == SOURCES and items.references == [[target] for target in TARGETS]


def test_a_source_with_other_tags_is_another_item(translator):
    items = items_of(grouping(translator), ["bee\tV;PST", "bee\tV", "bee\tV;PST"], ["A", "B", "C"])
    assert items.references == [["A", "C"], ["B"]]


def test_a_source_is_decoded_once_and_any_of_its_references_may_be_matched(translator):
    scores, hypotheses = evaluate_lines(grouping(translator, metrics=("token_errors",)), SOURCES, TARGETS)
    assert hypotheses == ["BEE CAT", "DOG", ""] and (scores["sentences"], scores["pairs"]) == (3, 6)
    assert scores["exact_match"] == pytest.approx(200 / 3)
    assert scores["sequence_error_rate"] == pytest.approx(100 / 3)
    assert scores["token_error_rate"] == pytest.approx(100 / 4)  # ANT, of BEE CAT, DOG and ANT
    assert "nrefs:var" in scores["bleu_signature"]
    single_scores, _ = evaluate_lines(translator, SOURCES, TARGETS)
    assert single_scores["exact_match"] == pytest.approx(200 / 6) and "pairs" not in single_scores
    for name in ("loss", "perplexity", "token_accuracy"):  # over pairs in both
        assert scores[name] == single_scores[name]


def test_sources_that_occur_once_have_the_scores_that_they_have_by_themselves(translator):
    lines = [*dict.fromkeys(LINES)]
    references = [line.upper() for line in lines]
    together, hypotheses = evaluate_lines(grouping(translator), lines, references)
    alone, same = evaluate_lines(translator, lines, references)
    clocks = {"sentences_per_second", "pairs", "step"}
    assert hypotheses == same and together["pairs"] == len(lines)
    assert {name: together[name] for name in together.keys() - clocks} == {
        name: alone[name] for name in alone.keys() - clocks
    }


def test_sources_are_written_beside_the_hypotheses_where_these_are_fewer_than_the_lines(translator, tmp_path):
    evaluate_split(grouping(translator), tmp_path, "held_out", SOURCES, TARGETS)
    folder = tmp_path / "evaluations"
    assert (folder / "held_out.sources.txt").read_text() == "bee cat\ndog\n\n"
    assert (folder / "held_out.hypotheses.txt").read_text() == "BEE CAT\nDOG\n\n"
    assert json.loads((folder / "held_out.json").read_text())["pairs"] == 6
    evaluate_split(translator, tmp_path, "single", SOURCES, TARGETS)
    assert not (folder / "single.sources.txt").exists()


def test_further_metrics_are_scored_with_their_signatures(translator):
    several = ("token_errors", "edit_distance", "distinct")
    config = replace(translator.config, metrics=several)
    scores, hypotheses = evaluate_lines(
        Translator(config, translator.vocabularies, translator.params), LINES, REFERENCES
    )
    for metric in several:
        for name in {*FURTHER_SCORES[metric]} - {"sequence_error_rate"}:
            expected = score_further(metric, hypotheses, [[text] for text in REFERENCES])[name]
            assert (scores[name], scores[f"{name}_signature"]) == expected
    assert scores["sequence_error_rate"] == 100 - scores["exact_match"]
    assert not {*FURTHER_SCORES["token_errors"]} & evaluate_lines(translator, LINES, REFERENCES)[0].keys()


# what is said of the references


def said(sources, targets, **data) -> list[str]:
    """Remarks on lines of the words a to e and A to E."""
    config = Config(data=DataConfig(**{"vocabulary": "words", "joint_vocabulary": False} | data))
    vocabularies = build_vocabularies(config.data, Pairs(["a b c d e"], ["A B C D E"]))
    encoded = encode_lines(vocabularies, sources, targets)
    return list(remarks(config, DecodeConfig(), encoded, targets, "validation "))


def test_targets_longer_than_the_decoder_may_write_are_told_with_the_ratio_that_would_do():
    """Two tokens of source allow 14; 20 words and an end mark need a ratio above 5: ceil(2 * 5.1) is 11."""
    assert said(["a", "a", "", "a"], ["A " * 13, "A " * 14, "A " * 40, "A " * 20]) == [
        "2 of 4 validation targets are longer than the decoder may write (decode.max_length_ratio 2);"
        " --decode.max-length-ratio 5.1 would do"
    ]
    assert said(["a"], ["A " * 13]) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_ratio_told_is_the_least_of_one_decimal(seed):
    random = np.random.default_rng(seed)
    source, target = random.integers(2, 30, 50), random.integers(1, 400, 50)
    ratio = evaluation._needed_ratio(source, target)
    assert (target <= output_limits(source, ratio)).all()
    assert (target > output_limits(source, round(ratio - 0.1, 1))).any()


def test_sources_that_lose_turns_are_told():
    settings = {"turns": "turn", "context_turns": 1, "joint_vocabulary": True, "max_length": 5}
    assert said(["a b\tc", "a b c\td"], ["A B", "B C"], **settings) == [
        "1 of 2 validation sources is read without the oldest turns, to fit data.max_length 5"
    ]


def test_what_no_model_could_have_right_is_told():
    assert said(["a b c d e", "b"], ["A", "B \u1234"], max_length=5) == [
        "1 of 2 validation sources is longer than data.max_length 5, so than any in training",
        "1 of 2 validation targets is impossible to match exactly: the vocabulary lacks symbols",
    ]
    assert said(["a b", "b"], ["A B", "B A"], lowercase=True) == [
        "references are lowercased before they are compared (data.lowercase); for exact_match_raw they are not"
    ]


def test_scores_and_hypotheses_are_written_beside_each_other(translator, tmp_path):
    scores = evaluate_split(translator, tmp_path, "held_out", LINES, REFERENCES)
    assert json.loads((tmp_path / "evaluations" / "held_out.json").read_text()) == scores
    assert {"loss", "perplexity", "bleu", "chrf", "exact_match", "bleu_signature"} <= scores.keys()
    written = (tmp_path / "evaluations" / "held_out.hypotheses.txt").read_text().split("\n")
    assert written == [hypothesis.text for hypothesis in translator.translate(LINES)] + [""]


def test_a_perplexity_beyond_all_numbers_is_infinite_and_null_in_json(translator, tmp_path, monkeypatch):
    token_scores = translator.token_scores
    monkeypatch.setattr(translator, "token_scores", lambda encoded: scaled(token_scores(encoded)))
    scores = evaluate_split(translator, tmp_path, "test", LINES[:2], REFERENCES[:2], {"source_file": "a"})
    assert scores["loss"] > 1_000 and scores["perplexity"] == math.inf
    written = json.loads((tmp_path / "evaluations" / "test.json").read_text())
    assert written["perplexity"] is None and written["source_file"] == "a"


def scaled(scores):
    return scores._replace(loss=1e9 * np.abs(scores.loss) + 1e9)


def test_no_mark_of_sentencepiece_is_left_in_a_hypothesis(tmp_path):
    """Weights by chance: they write pieces of words and blanks in any order."""
    config = tiny_config(tmp_path, data={"vocabulary": "bpe", "vocab_size": 40}, decode={"beam_size": 1})
    vocabularies = build_vocabularies(config.data, Pairs(LINES, REFERENCES))
    model = build_model(config.model, vocab_sizes(vocabularies), jax.random.key(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    evaluate_split(Translator(config, vocabularies, params), tmp_path, "test", LINES, REFERENCES)
    hypotheses = (tmp_path / "evaluations" / "test.hypotheses.txt").read_text()
    assert len(set(hypotheses)) > 5 and "\u2581" not in hypotheses
