import functools
import importlib.util
import itertools
import math
import sys
from collections import Counter
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import sacrebleu
import sacrebleu.tokenizers.tokenizer_ja_mecab
import sacrebleu.tokenizers.tokenizer_ko_mecab
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax import metrics
from seq2seq_jax.config import FURTHER_SCORES, BleuTokenizer, Config, FurtherMetric, PublishedMetric
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import (
    advice_on_rouge,
    advice_on_tokenizer,
    check_comet,
    check_packages,
    levenshtein,
    score_comet,
    score_further,
    score_hypotheses,
    score_moses_lowercase,
)

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


# several references


SEVERAL = [["the cat sat on the mat", "a cat is sitting on the mat today"], ["dogs play in the wet grass here"]]
WRITTEN = ["a cat sat on the mat today", "dogs play in the grass here now"]


def test_bleu_with_several_references_is_that_of_the_paper():
    """Lines of different numbers of references; the lengths of the first ones are 6 and 8, those of the outputs 7."""
    score = score_hypotheses(WRITTEN, SEVERAL, tokenizer="none")["bleu"]
    assert score.value == pytest.approx(bleu_by_hand(WRITTEN, SEVERAL)) and "nrefs:var" in score.signature
    first = score_hypotheses(WRITTEN, [texts[:1] for texts in SEVERAL], tokenizer="none")["bleu"]
    assert score.value > first.value and "nrefs:1" in first.signature


@pytest.mark.parametrize("seed", range(5))
def test_bleu_of_text_that_is_tokenised_counts_its_tokens_as_they_are(seed):
    """As multi-bleu.perl, which cuts at blanks alone."""
    random = np.random.default_rng(seed)
    words = ["it", "'s", "10,000", "yen", ".", "don't", "&", "(", "U.S.", "n't"]
    line = lambda: " ".join(random.choice(words, random.integers(6, 15)))  # noqa: E731
    references = [[line() for _ in range(random.integers(1, 4))] for _ in range(200)]
    hypotheses = [" ".join(texts[0].split()[:-1]) if random.random() < 0.5 else line() for texts in references]
    score = score_hypotheses(hypotheses, references, tokenizer="none")["bleu"]
    assert score.value == pytest.approx(bleu_by_hand(hypotheses, references), rel=1e-12)
    assert score.value != pytest.approx(score_hypotheses(hypotheses, references)["bleu"].value, abs=0.1)


def test_any_reference_may_be_matched_and_chrf_takes_the_best():
    references = [["x y", "a b"], ["c"], ["d", "e f"]]
    scores = score_hypotheses(["a b", "c", "f"], references)
    assert scores["exact_match"].value == pytest.approx(200 / 3)
    best = scored(["a b", "c", "f"], ["a b", "c", "e f"])
    assert scores["chrf"].value == best["chrf"].value
    restored = [["x y", "a b"], ["c"], [None, "f"]]
    scores = score_hypotheses(["a b", "c", "f"], references, restored)
    assert scores["exact_match"].value == 100 and scores["exact_match_raw"].value == pytest.approx(200 / 3)


def test_moses_lowercase_takes_several_references():
    pytest.importorskip("sacremoses")
    score = score_moses_lowercase(["Ein Hund schläft ."], [["Eine Katze geht.", "ein Hund schläft."]], "de")[
        "bleu_moses_lowercase"
    ]
    assert score.value == pytest.approx(100.0) and "nrefs:2" in score.signature


def test_a_reference_twice_changes_no_score():
    twice = [[text, text] for text in REFERENCES]
    for metric in get_args(FurtherMetric):
        if metric == "rouge":
            continue  # an extra, see below
        once = score_further(metric, HYPOTHESES, each(REFERENCES))
        assert {name: score.value for name, score in score_further(metric, HYPOTHESES, twice).items()} == {
            name: score.value for name, score in once.items()
        }
    once = scored(HYPOTHESES, REFERENCES)
    assert all(score.value == once[name].value for name, score in score_hypotheses(HYPOTHESES, twice).items())


def test_a_hypothesis_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="no reference"):
        score_hypotheses(["a", "b"], [["a"], []])


# further scores


@functools.cache
def distance_by_definition(first, second):
    """By what becomes of the last items: dropped, added, or one for the other."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        distance_by_definition(first[:-1], second) + 1,
        distance_by_definition(first, second[:-1]) + 1,
        distance_by_definition(first[:-1], second[:-1]) + (first[-1] != second[-1]),
    )


@given(st.text("abc", max_size=9), st.text("abcd", max_size=9))
def test_levenshtein_is_the_least_number_of_changes(first, second):
    assert levenshtein(first, second) == distance_by_definition(first, second)
    assert levenshtein(list(first), list(second)) == levenshtein(second, first)


def test_token_errors_are_summed_over_the_tokens_of_the_nearest_references():
    """Changes 0, 1 and 2 of 3, 4 and 1 tokens: the second is as near to three tokens as to four, the longer counts."""
    hypotheses = ["AE B K", "T OW S", "Z IH D"]
    references = [["AE B", "AE B K"], ["T OW Z", "T OW S T", "AH"], ["D"]]
    (score,) = score_further("token_errors", hypotheses, references).values()
    assert score.value == pytest.approx(100 * 3 / 8) and "nrefs:var" in score.signature


def test_token_errors_may_be_more_than_all_tokens_and_of_no_tokens():
    rate = lambda *lines: score_further("token_errors", *lines)["token_error_rate"].value  # noqa: E731
    assert rate(["a b c"], [["x"]]) == 300
    assert rate(["a"], [[""]]) == math.inf and rate([""], [[""]]) == 0


def test_edit_distance_is_the_mean_over_characters_to_the_nearest():
    found = score_further("edit_distance", ["walked", "ging", ""], [["walkte", "walks"], ["ging"], ["ab"]])
    expected = [min(distance_by_definition("walked", text) for text in ("walkte", "walks")), 0, 2]
    assert found["edit_distance"].value == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize("metric", ["token_errors", "edit_distance"])
def test_what_can_only_be_lowercase_is_compared_with_lowercased_references(metric):
    (mixed,) = score_further(metric, ["ab c"], [["AB C"]]).values()
    (lower,) = score_further(metric, ["ab c"], [["AB C"]], lowercase=True).values()
    assert mixed.value > 0 and "case:mixed" in mixed.signature
    assert lower.value == 0 and "case:lc" in lower.signature


def test_distinct_counts_different_words_and_pairs_by_all_words():
    """Of 9 words i, do, not, know, so are different; of pairs i do, do not, not know, i know, so; none over an end."""
    scores = score_further("distinct", ["i do not know", "i do", "i know", "so"], each(["x"] * 4))
    assert scores["distinct_1"].value == pytest.approx(100 * 5 / 9)
    assert scores["distinct_2"].value == pytest.approx(100 * 4 / 9)
    assert {score.value for score in score_further("distinct", ["", ""], each(["x", "y"])).values()} == {0}


def f1(matches, written, expected):
    return 2 * matches / (written + expected) if matches else 0.0


def longest_common_subsequence(first, second):
    """Tries every choice of words of the first."""
    for size in range(len(first), 0, -1):
        for chosen in itertools.combinations(first, size):
            words = iter(second)
            if all(word in words for word in chosen):
                return size
    return 0


def test_rouge_is_that_of_the_paper():
    """Lin 2004; words of three letters at most are no matter of the stemmer. The best reference for each score."""
    pytest.importorskip("rouge_score")
    hypotheses = ["The cat sat on a mat.", "no dog ran", "it is so"]
    references = [["a cat sat on the mat", "the cat is on a big mat"], ["a dog ran"], ["all of us"]]
    found = score_further("rouge", hypotheses, references)
    expected = {"rouge1": [], "rouge2": [], "rougeL": []}
    for line, texts in zip(hypotheses, references, strict=True):
        words = line.lower().rstrip(".").split()
        best = {name: [] for name in expected}
        for other in (text.split() for text in texts):
            for size in (1, 2):
                left, right = ngrams(words, size), ngrams(other, size)
                best[f"rouge{size}"].append(f1((left & right).total(), left.total(), right.total()))
            best["rougeL"].append(f1(longest_common_subsequence(words, other), len(words), len(other)))
        for name, values in best.items():
            expected[name].append(max(values))
    for name, values in expected.items():
        assert found[name].value == pytest.approx(100 * sum(values) / 3), name
        assert "nrefs:var|case:lc" in found[name].signature and "stem:porter" in found[name].signature


def test_rouge_compares_stems():
    pytest.importorskip("rouge_score")
    assert score_further("rouge", ["dogs jumping"], [["dog jumps"]])["rouge2"].value == pytest.approx(100)


def test_letters_that_rouge_does_not_know_are_told():
    assert advice_on_rouge(["plain", "Über alles", "Ende 3 %"]) == (
        "1 of 3 references is cut by ROUGE, which knows the letters a to z alone"
    )
    assert advice_on_rouge(["plain, it's"]) is None


def test_rouge_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_packages(Config(metrics=("token_errors", "edit_distance", "distinct")))
    with pytest.raises(UserError, match=r"metrics rouge needs rouge-score: pip install 'seq2seq-jax\[rouge\]'"):
        check_packages(Config(metrics=("rouge",)))
    with pytest.raises(UserError, match="rouge-score"):
        score_further("rouge", ["a"], [["a"]])


def test_the_scores_of_a_metric_are_those_that_the_configuration_names():
    for metric, names in FURTHER_SCORES.items():
        if metric == "rouge":
            pytest.importorskip("rouge_score")
        found = score_further(metric, ["a"], [["a"]]).keys()
        assert {*found} == {*names} - {"sequence_error_rate"}  # which an evaluation takes from exact_match
        assert {*names} <= {*get_args(PublishedMetric)}
    assert FURTHER_SCORES.keys() == {*get_args(FurtherMetric)}


def test_comet_is_the_mean_over_all_references_by_a_model_that_is_there(monkeypatch, tmp_path):
    """By a stand-in of the package, which scores by how many letters agree."""
    seen = []

    class Model:
        def predict(self, triples, *, gpus, progress_bar):
            seen.extend(triples)
            shares = [sum(a == b for a, b in zip(t["mt"], t["ref"], strict=False)) / len(t["ref"]) for t in triples]
            return SimpleNamespace(system_score=sum(shares) / len(shares))

    stub = ModuleType("comet")
    vars(stub)["load_from_checkpoint"] = lambda path: Model()
    monkeypatch.setitem(sys.modules, "comet", stub)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.2.0")
    path = tmp_path / "wmt22" / "checkpoints" / "model.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    found = score_comet(path, ["a", "b"], ["xy", "zz"], [["xy", "xx"], ["zy"]])
    assert found == {"comet": (pytest.approx(100 * (1 + 0.5 + 0.5) / 3), "model:wmt22|version:2.2.0")}
    assert [tuple(triple.values()) for triple in seen] == [("a", "xy", "xy"), ("a", "xy", "xx"), ("b", "zz", "zy")]


def test_comet_without_its_package_or_model_is_told_at_the_door(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs unbabel-comet: pip install 'seq2seq-jax\[comet\]'"):
        check_comet(tmp_path / "model.ckpt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(UserError, match="there is no file .*model.ckpt. COMET's models are files named model.ckpt."):
        check_comet(tmp_path / "model.ckpt")
