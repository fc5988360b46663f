"""What is asked of outputs, through a trained model: rules themselves are checked in tests/decoding."""

from dataclasses import replace

import numpy as np
import pytest

from seq2seq_jax.config import DecodeConfig, greedy
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.errors import UserError
from seq2seq_jax.translator import Translator, load
from tests.test_translator import log_prob

LINES = ["ant bee cat", "dog", "", "eel eel fox gnu"]


@pytest.fixture(scope="module")
def translator(trained):
    return load(trained)


def variant(translator: Translator, **fields) -> Translator:
    decode = replace(translator.decode, **fields)
    return Translator(translator.config, translator.vocabularies, translator.params, decode)


def texts(found) -> list[str]:
    return [hypothesis.text for hypothesis in found]


def test_outputs_begin_as_they_are_asked_to(translator):
    prefixes = ["HEN", "", "ANT", "EEL FOX"]
    found = translator.translate(LINES, prefixes=prefixes)
    assert texts(found)[0].startswith("HEN ") and texts(found)[1:3] == ["DOG", ""]
    assert texts(found)[3].startswith("EEL FOX")
    assert texts(found)[1] == texts(translator.translate(LINES))[1]
    for line, hypothesis in zip(LINES, found, strict=True):
        if line:
            length = len(hypothesis.text.split()) + 1
            expected = (
                log_prob(translator, line, hypothesis.text) / ((5 + length) / 6) ** translator.decode.length_penalty
            )
            assert hypothesis.score == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_outputs_have_what_they_must(translator, beam_size):
    required = [["HEN HEN", "BEE"], [], ["ANT"], ["GNU FOX"]]
    found = texts(variant(translator, beam_size=beam_size).translate(LINES, required=required))
    for text, phrases in zip(found[:2] + found[3:], required[:2] + required[3:], strict=True):
        assert all(f" {phrase} " in f" {text} " for phrase in phrases)
    assert found[1] == "DOG" and found[2] == ""


def test_there_is_room_for_what_is_asked_in_whatever_the_limit_is(translator, monkeypatch):
    short = variant(translator, max_length_ratio=0.01)
    long = " ".join(["ANT"] * 30)
    (found,) = short.translate(["dog"], prefixes=[long])
    assert found.text.startswith(long)
    (found,) = variant(translator, max_length_ratio=0.01, min_length=25).translate(["dog"])
    assert len(found.text.split()) >= 25


def test_what_is_avoided_is_not_written(translator):
    assert "BEE" in texts(translator.translate(LINES))[0]
    found = texts(variant(translator, avoid=("BEE", "FOX GNU")).translate(LINES))
    assert "BEE" not in found[0] and "FOX GNU" not in found[3] and found[1] == "DOG"


def test_no_word_pair_comes_twice(translator):
    line = "gnu hen gnu hen gnu"
    (free,), (ruled,) = translator.translate([line]), variant(translator, no_repeat_ngram=2).translate([line])
    pairs = lambda text: list(zip(text.split(), text.split()[1:], strict=False))  # noqa: E731
    assert len(set(pairs(free.text))) < len(pairs(free.text))
    assert len(set(pairs(ruled.text))) == len(pairs(ruled.text))


def test_what_cannot_be_met_is_told_and_gets_an_empty_line(translator):
    with pytest.warns(UserWarning, match="no output that fits.* for 1 of 4 lines, the first of them line 11;"):
        found = variant(translator, avoid=("HEN",)).translate(LINES, required=[["HEN"], [], [], []], first_line=11)
    assert (found[0].text, found[0].score, found[1].text) == ("", -np.inf, "DOG")


def test_symbols_that_cannot_be_written_are_refused_by_line(translator):
    with pytest.raises(UserError, match="The prefix of line 3, 'ZEBRA', has symbols that the vocabulary lacks"):
        translator.translate(LINES, prefixes=["", "ANT", "ZEBRA", ""])
    with pytest.raises(UserError, match="A phrase for line 12, 'A ZEBRA', has symbols"):
        translator.translate(LINES, required=[[], ["ANT", "A ZEBRA"], [], []], first_line=11)
    with pytest.raises(UserError, match="A phrase for line 1 has no text; leave it out."):
        translator.translate(LINES, required=[[" "], [], [], []])
    with pytest.raises(UserError, match="decode.avoid 'ZEBRA' has symbols that the vocabulary lacks; leave it out"):
        variant(translator, avoid=("ZEBRA",))
    with pytest.raises(UserError, match="decode.avoid '  ' has no text"):
        variant(translator, avoid=("  ",))


def test_there_is_one_for_each_line(translator):
    with pytest.raises(ValueError, match="1 prefixes and 4 lines"):
        translator.translate(LINES, prefixes=["ANT"])
    with pytest.raises(ValueError, match="2 required and 4 lines"):
        translator.translate(LINES, required=[[], []])


def test_phrases_are_sought_by_one_beam(translator):
    for fields in (dict(sample=True), dict(groups=2, beam_size=4)):
        with pytest.raises(UserError, match=f"sought by one beam; leave decode.{next(iter(fields))} out"):
            variant(translator, **fields).translate(["ant"], required=[["BEE"]])


def test_what_is_drawn_depends_on_the_number_of_the_line_and_the_seed(translator):
    drawing = variant(translator, sample=True, temperature=3.0)
    together = drawing.translate(LINES, num_best=3)
    assert len(set(texts(together[0]))) > 1
    (alone,) = drawing.translate(LINES[3:], num_best=3, first_line=4)
    assert texts(alone) == texts(together[3])
    (other,) = drawing.translate(LINES[3:], num_best=3, first_line=9)
    assert texts(other) != texts(alone)
    (again,) = variant(translator, sample=True, temperature=3.0, seed=1).translate(LINES[3:], num_best=3, first_line=4)
    assert texts(again) != texts(alone)
    assert texts(drawing.translate(LINES)) == [each[0].text for each in together]


def test_at_a_low_temperature_the_likeliest_token_is_drawn(translator):
    cold = variant(translator, sample=True, temperature=0.01)
    assert texts(cold.translate(LINES)) == texts(variant(translator, beam_size=1).translate(LINES))


def test_groups_find_different_outputs(translator):
    one, several = (variant(translator, beam_size=4, groups=groups, diversity=4.0) for groups in (1, 4))
    for line, found in zip(LINES, several.translate(LINES, num_best=4), strict=True):
        assert len(set(texts(found))) == len(found)
        if line:
            firsts = {text.split()[:1][0] if text else "" for text in texts(found)}
            assert len(firsts) > 1
    assert [each[0].text for each in several.translate(LINES, num_best=4)] == texts(one.translate(LINES))


def test_a_coverage_penalty_lowers_scores(translator):
    plain = translator.translate(LINES[:1])[0]
    covered = variant(translator, coverage_penalty=0.3).translate(LINES[:1], details=True)[0]
    assert covered.details
    weights = np.array(covered.details.weights)
    lacking = 0.3 * np.log(np.minimum(weights.sum(0), 1)).sum()
    expected = translator.translate(LINES[:1], prefixes=[covered.text])[0]
    assert covered.text == expected.text == plain.text
    assert covered.score == pytest.approx(plain.score + lacking, rel=1e-3, abs=1e-4) and lacking < 0


def test_an_unknown_word_is_replaced_by_the_source_word_attended_to(translator, monkeypatch):
    """Output words are made unknown, and the attention says what they stand for; the end mark is never one of these."""
    replacing, lines = variant(translator, replace_unknown=True), ["ant zebra cat", "gnu yak"]
    attended = [[1, 1, 0], [3, 2, 0]]  # of each output token the source position; in the second line 3 is padding
    weights = np.zeros((3, 2, 4), np.float32)
    for row, places in enumerate(attended):
        for step, place in enumerate(places):
            weights[step, row, place] = 0.6
    weights[:, 1, 1] += 0.3  # the second best is what is taken where the best is no text
    tokens = np.array([[3, 5, 3], [3, 3, 2]], np.int32)
    monkeypatch.setattr(replacing, "_follow", lambda *_: (None, weights))
    sources = encode_lines(replacing.vocabularies, lines).sources.padded(np.array([0, 1]), 2, 4)
    replaced, copies = replacing._without_unknown(sources, tokens, lines, replacing.vocabularies.copies(lines))
    known = replacing.vocabularies.target.entries([5])[0]
    texts = replacing.vocabularies.target.decode(list(replaced), copies)
    assert texts == [f"zebra {known} ant", "yak yak"]


def test_what_goes_by_attention_is_refused_without(translator):
    config = replace(translator.config, model=replace(translator.config.model, attention="none", input_feeding=False))
    for fields in (dict(replace_unknown=True), dict(coverage_penalty=0.2)):
        with pytest.raises(
            UserError, match=f"decode.{next(iter(fields))} goes by attention, and model.attention is none"
        ):
            Translator(config, translator.vocabularies, {}, replace(translator.decode, **fields))


def test_settings_of_a_search_that_is_not_made_are_refused():
    for fields, message in (
        (dict(temperature=2.0), "decode.temperature 2.0 is of what is drawn; it goes with decode.sample True"),
        (dict(sample=True, groups=5), "decode.groups is of beam search, and decode.sample is True"),
        (dict(beam_size=5, groups=2), "decode.groups 2 does not divide decode.beam_size 5; use decode.beam_size 6"),
    ):
        with pytest.raises(UserError, match=message):
            DecodeConfig(**fields)
    drawing = DecodeConfig(sample=True, temperature=2.0, no_repeat_ngram=3)
    assert greedy(drawing) == DecodeConfig(beam_size=1, no_repeat_ngram=3)
