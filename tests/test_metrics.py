import importlib.util
import math
import sys
from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
import sacrebleu
import sacrebleu.tokenizers.tokenizer_ja_mecab
import sacrebleu.tokenizers.tokenizer_ko_mecab

from seq2seq_jax import metrics
from seq2seq_jax.config import BleuTokenizer, Config
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import advice_on_tokenizer, check_packages, score_hypotheses, score_moses_lowercase

REFERENCES = ["A man in an orange hat is staring at something.", "Two dogs play in the grass.", "A girl, aged 3."]
HYPOTHESES = ["A man in an orange cap stares at something.", "two dogs play on the Grass.", "A girl, aged 3."]


def ngrams(words, size):
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def bleu_by_hand(hypotheses, references):
    """Papineni et al. 2002, as multi-bleu.perl has it, for text whose tokens are its words."""
    matches, totals, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        words, expected = hypothesis.split(), [text.split() for text in texts]
        lengths = sorted(map(len, expected))  # of two equally near, the shorter counts
        length += len(words)
        reference_length += min(lengths, key=lambda each: abs(each - len(words)))
        for n in range(4):
            found, wanted = ngrams(words, n + 1), Counter()
            for each in expected:
                wanted |= ngrams(each, n + 1)  # a count is clipped by the most that one reference has
            matches[n] += sum((found & wanted).values())
            totals[n] += sum(found.values())
    brevity = min(1.0, math.exp(1 - reference_length / length))
    return 100 * brevity * math.exp(sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4)


def each(references):
    """Of one for every hypothesis."""
    return [[text] for text in references]


def scored(hypotheses, references, restored=None, **settings):
    """Scores with one reference for every hypothesis."""
    restored = restored and each(restored)
    return score_hypotheses(hypotheses, each(references), restored, **settings)


def test_bleu_is_that_of_the_paper():
    hypotheses = ["the cat sat on the mat today", "a dog barks at the small cat"]
    references = ["the cat sat on a mat today", "a dog barks at the very small cat"]
    assert scored(hypotheses, references)["bleu"].value == pytest.approx(bleu_by_hand(hypotheses, each(references)))


def test_equal_text_scores_one_hundred_everywhere():
    for name, score in scored(REFERENCES, REFERENCES).items():
        assert score.value == pytest.approx(100.0), name


def test_lowercase_scores_are_scores_of_lowercased_text():
    scores = scored(HYPOTHESES, REFERENCES)
    lowered = scored([line.lower() for line in HYPOTHESES], [line.lower() for line in REFERENCES])
    for name in ("bleu", "chrf"):
        assert scores[f"{name}_lowercase"].value == pytest.approx(lowered[name].value)
        assert scores[f"{name}_lowercase"].value > scores[name].value


def test_exact_match_counts_equal_lines():
    assert scored(HYPOTHESES, REFERENCES)["exact_match"].value == pytest.approx(100 / 3)


def test_signatures_tell_case_and_tokens():
    scores = scored(HYPOTHESES, REFERENCES)
    assert "case:mixed" in scores["bleu"].signature and "tok:13a" in scores["bleu"].signature
    assert "case:lc" in scores["bleu_lowercase"].signature and "case:lc" in scores["chrf_lowercase"].signature
    assert "version:" in scores["chrf"].signature


@pytest.mark.parametrize("name", ["UPPER CASE, 1.5", "lower case, 1.5"])
def test_text_in_one_case_is_scored_as_if_twice(name, monkeypatch):
    hypotheses, references = [name, name[::-1]], [name, name]
    shortcut = scored(hypotheses, references)
    monkeypatch.setattr(metrics, "_case_matters", lambda *_: True)
    assert scored(hypotheses, references) == shortcut


def test_case_matters_only_where_letters_meet():
    assert metrics._case_matters(["a", "A"], [["b"]])
    assert metrics._case_matters(["a"], [["A"]])
    assert metrics._case_matters(["ΟΔΟΣ"], [["X"]])  # its last letter has two lowercase forms
    assert metrics._case_matters(["&QUOT;"], [["X"]])
    assert not metrics._case_matters(["I_TURN_LEFT"], [["I_JUMP x"]])


def test_tokenised_text_is_scored_without_a_warning(caplog):
    scored(["it is tokenised ."] * 200, ["it is tokenised ."] * 200)
    assert not caplog.records


def test_text_with_the_sign_of_sentencepiece_is_text():
    scores = scored(["\u2581A \u2581man \u2581in \u2581black"], ["\u2581A \u2581man \u2581in \u2581black"])
    assert {round(score.value) for score in scores.values()} == {100}


def test_exact_match_is_with_what_the_vocabulary_can_write_and_the_raw_one_beside_it():
    hypotheses, references, restored = ["a b", "c", "d e"], ["a  b", "c", "d  x"], ["a b", "c", "d x"]
    scores = scored(hypotheses, references, restored)
    assert scores["exact_match"].value == pytest.approx(200 / 3)
    assert scores["exact_match_raw"].value == pytest.approx(100 / 3)
    assert "exact_match_raw" not in scored(hypotheses, references, references)


def test_an_unknown_symbol_matches_nothing_its_own_sign_neither():
    scores = scored(["\u2047", "b"], ["zebra", "b"], [None, "b"])
    assert scores["exact_match"].value == pytest.approx(50)
    assert "exact_match_raw" not in scores  # it would be the same
    scores = scored(["\u2047", "b"], ["\u2047", "b "], [None, "b"])
    assert (scores["exact_match"].value, scores["exact_match_raw"].value) == (50, 0)


def test_scores_other_than_exact_match_are_of_the_raw_references():
    plain = scored(HYPOTHESES, REFERENCES)
    scores = scored(HYPOTHESES, REFERENCES, HYPOTHESES)
    assert scores["exact_match"].value == 100 and scores["exact_match_raw"] == plain["exact_match"]
    assert all(scores[name] == plain[name] for name in ("bleu", "chrf", "bleu_lowercase", "chrf_lowercase"))


def test_what_can_only_be_lowercase_is_scored_so_and_the_signature_says_it():
    hypotheses = [line.lower() for line in HYPOTHESES]
    scores, mixed = scored(hypotheses, REFERENCES, lowercase=True), scored(hypotheses, REFERENCES)
    for name in ("bleu", "chrf"):
        assert scores[name] == scores[f"{name}_lowercase"] == mixed[f"{name}_lowercase"]
        assert scores[name].value > mixed[name].value and "case:lc" in scores[name].signature


JAPANESE = "彼らはついにそれが真実だと認めた。"


def test_a_tokenizer_of_characters_sees_what_is_right_in_text_without_blanks():
    """17 characters of which one differs: 16, 14, 12 and 10 of the 17, 16, 15 and 14 n-grams are right."""
    almost = JAPANESE.replace("真", "事")
    score = scored([almost], [JAPANESE], tokenizer="char")["bleu"]
    expected = 100 * (16 / 17 * 14 / 16 * 12 / 15 * 10 / 14) ** 0.25
    assert score.value == pytest.approx(expected) and "tok:char" in score.signature
    assert scored([almost], [JAPANESE])["bleu"].value == 0


def test_every_tokenizer_on_offer_is_one_of_sacrebleus_that_need_no_download():
    downloaded = {"spm", "flores101", "flores200", "spBLEU-1K"}
    assert set(get_args(BleuTokenizer)) == set(sacrebleu.BLEU.TOKENIZERS) - downloaded


@pytest.mark.parametrize(("tokenizer", "package"), [("ja-mecab", "ja"), ("ko-mecab", "ko")])
def test_a_tokenizer_without_its_package_is_told_beforehand(monkeypatch, tokenizer, package):
    module = sys.modules[f"sacrebleu.tokenizers.tokenizer_{package}_mecab"]
    monkeypatch.setattr(module, "MeCab", None)
    config = replace(Config(), bleu_tokenizer=tokenizer)
    with pytest.raises(UserError, match=rf"bleu_tokenizer {tokenizer} needs .*pip install 'sacrebleu\[{package}\]'"):
        check_packages(config)
    check_packages(Config())


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (JAPANESE, ["ja-mecab", "char"]),
        ("他们终于承认那是真的。", ["zh", "char"]),
        ("그들은", ["ko-mecab", "char"]),
        ("พวกเขายอมรับ", ["char"]),
        ("Hunde", ["char"]),
    ],
)
def test_references_of_one_token_are_answered_with_a_tokenizer_for_their_script(line, names):
    advice = advice_on_tokenizer([line, line, "two words", ""], "13a")
    assert advice is not None and advice.startswith("2 of 3 references are one token to BLEU's 13a")
    assert advice.endswith("; " + " or ".join(f"--bleu-tokenizer {name}" for name in names))


def test_no_advice_where_most_references_have_tokens_or_characters_are_counted():
    assert advice_on_tokenizer([JAPANESE, "two words"], "13a") is None
    assert advice_on_tokenizer([JAPANESE], "char") is None
    assert advice_on_tokenizer([], "13a") is None


def test_numbers_of_lines_must_agree():
    with pytest.raises(ValueError, match="2 hypotheses, and references for 1;"):
        scored(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no hypothesis"):
        scored([], [])


def test_moses_lowercase_sees_tokens_and_no_case():
    pytest.importorskip("sacremoses")
    score = score_moses_lowercase(["ein „Mann“ ,der geht ."], [['Ein "Mann", der geht.']], "de")["bleu_moses_lowercase"]
    assert score.value == pytest.approx(100.0)
    assert "tok:none" in score.signature and "norm.tok.lc-de" in score.signature


def test_moses_tokens_are_those_of_the_perl_scripts():
    pytest.importorskip("sacremoses")
    line = "Ein Café namens „El Sol“, z. B. am Kids' Park (oder/und im T-Shirt)."
    tokens = "ein café namens &quot; el sol &quot; , z. b. am kids &apos; park ( oder / und im t-shirt ) ."
    assert metrics._moses_tokens([line], "de") == [tokens]
    assert metrics._moses_tokens(["A man's hat; it isn't his."], "en") == ["a man &apos;s hat ; it isn &apos;t his ."]


def test_moses_lowercase_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="sacremoses"):
        score_moses_lowercase(["a"], [["a"]], "en")
