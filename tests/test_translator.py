import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seq2seq_jax import translator as translator_module
from seq2seq_jax.build import model_graph
from seq2seq_jax.config import DecodeConfig, to_json
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import Vocabulary
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import BOS, EOS
from seq2seq_jax.translator import Translator, load, vocab_sizes
from tests.tiny import sentences, tiny_config

LINES = sentences(30, seed=4)


@pytest.fixture(scope="module")
def translator(trained):
    return load(trained)


def variant(translator: Translator, **fields) -> Translator:
    """The same model under another search."""
    decode = replace(translator.decode, **fields)
    return Translator(translator.config, translator.vocabularies, translator.params, decode)


def token_log_probs(translator: Translator, source: str, target: str) -> list[np.ndarray]:
    """Log-probabilities of all tokens at each target position, one decoder step at a time, by numpy's arithmetic."""
    vocabularies = translator.vocabularies
    model = nnx.merge(model_graph(translator.config.model, vocab_sizes(vocabularies)), translator.params)
    tokens = jnp.asarray([ids(vocabularies.source, source)])
    encoded = model.encode(Padded(tokens, jnp.asarray([tokens.shape[1]])))
    state = jax.tree.map(lambda leaf: leaf[:, None], encoded.state)
    found = []
    for previous in [BOS, *ids(vocabularies.target, target)[:-1]]:
        state, logits = model.search_step(model.search_tables(), encoded, state, jnp.full((1, 1), previous))
        logits = np.asarray(logits[0, 0], np.float64)
        found.append(logits - np.log(np.exp(logits).sum()))
    return found


def ids(vocabulary: Vocabulary, line: str) -> list[int]:
    return [*vocabulary.encode([line])[0].tolist(), EOS]


def log_prob(translator: Translator, source: str, target: str) -> float:
    tokens = ids(translator.vocabularies.target, target)
    return sum(
        float(row[token]) for row, token in zip(token_log_probs(translator, source, target), tokens, strict=True)
    )


def test_translations_come_in_the_order_of_the_lines_whatever_their_lengths(translator):
    backwards = translator.translate(LINES[::-1])[::-1]
    assert [found.text for found in translator.translate(LINES)] == [found.text for found in backwards]
    right = sum(found.text == line.upper() for found, line in zip(backwards, LINES, strict=True))
    assert right > 20  # so the model has learnt which line is which


def test_an_empty_line_gives_an_empty_one_in_its_place(translator):
    found = translator.translate(["", "ant bee", " \t ", "cat", ""])
    assert [hypothesis.text for hypothesis in found] == ["", "ANT BEE", "", "CAT", ""]
    assert translator.translate([]) == []
    assert [hypothesis.text for hypothesis in translator.translate([""])] == [""]


def test_one_string_is_not_taken_for_many_lines(translator):
    with pytest.raises(TypeError, match="got one string; use"):
        translator.translate("a b c")


def test_lines_may_come_from_anything_that_yields_text(translator):
    expected = translator.translate(LINES[:3])
    assert translator.translate(iter(LINES[:3])) == translator.translate(line for line in LINES[:3]) == expected
    assert translator.score(iter(["ant"]), iter(["ANT"])) == translator.score(["ant"], ["ANT"])


def test_what_is_not_text_is_named_with_its_place(translator):
    with pytest.raises(TypeError, match=r"lines\[1\] is of type bytes, not text"):
        translator.translate(iter(["ant", b"bee"]))
    with pytest.raises(TypeError, match="targets is a list of lines, got one string"):
        translator.score(["ant"], "ANT")
    with pytest.raises(ValueError, match="2 sources and 1 targets"):
        translator.score(["ant", "bee"], ["ANT"])


def test_ids_are_translated_as_their_lines_are(translator):
    lines = [*LINES[:5], "", "cat"]
    sources = encode_lines(translator.vocabularies, lines).sources
    assert translator.translate_ids(sources, lines) == translator.translate(lines)


def test_an_output_that_the_limit_ends_is_marked_and_warned_of(translator, monkeypatch):
    """Half of the source and no more: three words and the end mark become two tokens."""
    monkeypatch.setattr(translator_module, "EXTRA_LENGTH", 0)
    lines = ["ant bee cat", "", "dog eel fox gnu"]
    for beam_size in (1, 3):
        short = variant(translator, max_length_ratio=0.5, beam_size=beam_size)
        with pytest.warns(
            UserWarning, match="2 of 3 outputs reached the limit of decode.max_length_ratio 0.5 .*--decode"
        ):
            found = short.translate(lines)
        assert [hypothesis.cut for hypothesis in found] == [True, False, True]
        assert [len(hypothesis.text.split()) for hypothesis in found] == [1, 0, 2]
        whole = variant(translator, max_length_ratio=1.0, beam_size=beam_size).translate(lines)  # just enough
        assert [hypothesis.cut for hypothesis in whole] == [False] * 3


def test_a_translation_does_not_depend_on_the_other_lines_of_its_batch(translator):
    together = translator.translate(LINES)
    for index in (0, 7, 20):
        (alone,) = translator.translate([LINES[index]])
        assert alone.text == together[index].text
        assert alone.score == pytest.approx(together[index].score, rel=1e-4, abs=1e-5)


def test_beam_one_takes_the_likeliest_token_at_every_step(translator):
    lines = ["ant bee fox", "gnu hen gnu hen gnu hen gnu"]  # one well known and one longer than any
    greedy = variant(translator, beam_size=1, length_penalty=0.0)
    for line, found in zip(lines, greedy.translate(lines), strict=True):
        rows = token_log_probs(translator, line, found.text)
        assert [int(row.argmax()) for row in rows] == ids(translator.vocabularies.target, found.text)
        assert found.score == pytest.approx(sum(float(row.max()) for row in rows), rel=1e-4, abs=1e-5)


def test_a_wider_beam_never_finds_a_less_likely_translation(translator):
    """True of these lines, not of all: a beam may lose what greedy search finds."""
    narrow, wide = (variant(translator, beam_size=size, length_penalty=0.0).translate(LINES) for size in (1, 4))
    assert all(w.score >= n.score - 1e-4 for n, w in zip(narrow, wide, strict=True))


def test_the_score_of_a_pair_is_the_sum_of_its_token_log_probabilities(translator):
    sources = ["ant bee cat", "dog", "eel eel fox gnu hen"]
    targets = ["ANT BEE CAT", "DOG CAT", "HEN"]
    expected = [log_prob(translator, *pair) for pair in zip(sources, targets, strict=True)]
    np.testing.assert_allclose(translator.score(sources, targets), expected, rtol=1e-4)


def test_the_score_of_a_hypothesis_is_its_log_probability_over_the_length_penalty(translator):
    line = "ant bee cat dog"
    (found,) = variant(translator, length_penalty=0.6).translate([line])
    length = len(found.text.split()) + 1
    expected = log_prob(translator, line, found.text) / ((5 + length) / 6) ** 0.6
    assert found.score == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*(seen in training|reached the limit)")
def test_a_line_far_too_long_is_answered_with_an_empty_one_and_a_warning(translator, monkeypatch):
    monkeypatch.setattr(translator_module, "LONGEST_SOURCE", 10)  # ten times data.max_length, 80, is more
    fits, beyond = (" ".join(["ant"] * number) for number in (79, 80))  # and the end mark
    with pytest.warns(UserWarning, match="1 of 3 lines have more than 80 tokens, the most that are translated"):
        found = translator.translate(["bee", beyond, fits], details=True)
    assert found[1][:3] == ("", -np.inf, True) and found[1].alignment == ()
    assert [found[0].text, found[2].text] == [hypothesis.text for hypothesis in translator.translate(["bee", fits])]


def test_symbols_that_the_vocabulary_lacks_are_told(translator):
    with pytest.warns(UserWarning, match="1 of 3 source lines is read with unknown symbols.* the first: 'ant zebra'"):
        translator.translate(["bee", "ant zebra", "ant"])
    with pytest.warns(UserWarning, match="2 of 2 target lines are read with unknown symbols.* the first: 'zebra'"):
        translator.score(["bee", "ant"], ["zebra", "ANT zebra"])


def test_a_line_longer_than_any_in_training_is_translated_with_a_warning(translator):
    long = " ".join(["ant"] * 9)  # ten tokens with the end mark, and data.max_length is 8
    with pytest.warns(UserWarning, match="1 of 2 lines are longer than the 8 tokens seen in training.* with 10: 'ant"):
        found = translator.translate(["bee", long])
    assert found[0].text == "BEE" and found[1].text


def test_alignments_have_a_source_position_for_each_output_token(translator):
    lines = ["ant bee cat", "", "dog"]
    found = translator.translate(lines, details=True)
    for line, hypothesis in zip(lines, found, strict=True):
        length = len(hypothesis.text.split()) + 1 if line else 0
        assert hypothesis.alignment is not None and len(hypothesis.alignment) == length
        assert all(0 <= position <= len(line.split()) for position in hypothesis.alignment)
    assert [hypothesis.text for hypothesis in found] == [hypothesis.text for hypothesis in translator.translate(lines)]


def test_details_say_how_each_token_came_about(translator):
    lines = ["ant bee cat", "", "dog eel"]
    for line, found in zip(lines, translator.translate(lines, details=True), strict=True):
        details = found.details
        if not line:
            assert (details.source_tokens, details.tokens, details.log_probs, details.weights) == ((), (), (), ())
            continue
        assert details.source_tokens == (*line.split(), "</s>") and details.tokens == (*found.text.split(), "</s>")
        rows = token_log_probs(translator, line, found.text)
        tokens = ids(translator.vocabularies.target, found.text)
        expected = [row[token] for row, token in zip(rows, tokens, strict=True)]
        np.testing.assert_allclose(details.log_probs, expected, rtol=1e-4, atol=1e-5)
        weights = np.array(details.weights)
        assert weights.shape == (len(details.tokens), len(details.source_tokens))
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
        assert found.alignment == tuple(weights.argmax(1))


def test_the_best_hypotheses_are_different_ones_in_their_order_and_the_first_is_the_best(translator):
    wide, lines = variant(translator, beam_size=4, length_penalty=0.6), ["ant bee cat", "", "dog"]
    found = wide.translate(lines, num_best=3, details=True)
    assert [len(each) for each in found] == [3, 1, 3]
    for line, each, best in zip(lines, found, wide.translate(lines, details=True), strict=True):
        assert each[0]._replace(score=0.0) == best._replace(score=0.0)
        assert each[0].score == pytest.approx(best.score, rel=1e-5)
        assert len({hypothesis.text for hypothesis in each}) == len(each)
        assert each == sorted(each, key=lambda hypothesis: -hypothesis.score)
        for hypothesis in each if line else []:
            length = len(ids(translator.vocabularies.target, hypothesis.text))
            assert len(hypothesis.alignment) == length
            expected = log_prob(translator, line, hypothesis.text) / ((5 + length) / 6) ** 0.6
            assert hypothesis.score == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_there_may_be_fewer_hypotheses_than_are_wanted(translator, monkeypatch):
    """Outputs of one token: the end, and nothing else."""
    monkeypatch.setattr(translator_module, "EXTRA_LENGTH", 0)
    short = variant(translator, max_length_ratio=0.01, beam_size=3)
    with pytest.warns(UserWarning, match="1 of 1 output reached the limit"):
        ((found,),) = short.translate(["ant"], num_best=3)
    assert (found.text, found.cut) == ("", True)


def test_more_hypotheses_than_a_search_finds_are_refused(translator):
    for num_best, beam_size, message in ((3, 2, "beam_size 2; set"), (1, 1, "greedy search; set"), (0, 2, "1 or more")):
        with pytest.raises(UserError, match=message):
            variant(translator, beam_size=beam_size).translate(["ant"], num_best=num_best)


def test_loading_what_is_not_a_run_directory_names_the_nearest_one(trained):
    with pytest.raises(UserError, match="is not a run directory: there is no .*rnu/config.json. Did you mean .*/run.$"):
        load(trained.parent / "rnu")


def test_loading_a_run_without_a_checkpoint_says_so(trained, tmp_path):
    shutil.copytree(trained / "vocabulary", tmp_path / "vocabulary")
    shutil.copy(trained / "config.json", tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint yet; train it first"):
        load(tmp_path)


def test_loading_a_run_with_a_damaged_vocabulary_names_the_file(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "vocabulary" / "source.txt"
    path.write_bytes(path.read_bytes().replace(b"ant", b"aunt"))
    with pytest.raises(UserError, match="vocabulary file .*source.txt is damaged"):
        load(tmp_path / "run")


def test_loading_a_run_with_a_damaged_configuration_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(to_json(tiny_config(tmp_path))[:-20])
    with pytest.raises(UserError, match="config.json: not a configuration"):
        load(tmp_path)


def test_the_search_can_be_another_than_the_runs_own(trained):
    assert load(trained).decode == DecodeConfig(beam_size=2, batch_size=8)
    assert load(trained, DecodeConfig(beam_size=1)).decode.beam_size == 1
    assert json.loads((trained / "config.json").read_text())["decode"]["beam_size"] == 2


def test_other_parameters_take_effect_at_once(translator):
    other = Translator(translator.config, translator.vocabularies, translator.params)
    before = other.translate(["ant bee cat"])[0].score
    other.params = jax.tree.map(lambda leaf: 0.5 * leaf, translator.params)
    fresh = Translator(translator.config, translator.vocabularies, other.params)
    assert (
        other.translate(["ant bee cat"]) == fresh.translate(["ant bee cat"])
        and fresh.translate(["ant bee cat"])[0].score != before
    )
