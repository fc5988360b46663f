import json

import pytest

from seq2seq_jax.answers import answer_lines, pharaoh
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.translator import Details, Hypothesis

WEIGHTS = ((0.1, 0.7, 0.2, 0.0), (0.6, 0.2, 0.1, 0.1), (0.1, 0.1, 0.1, 0.7), (0.25, 0.25, 0.25, 0.25))
DETAILS = Details(("ein", "Hund", "ja", "</s>"), ("a", "dog", "yes", "</s>"), (-0.5, -0.25, -1.0, -0.125), WEIGHTS)
FOUND = [Hypothesis("a dog yes", -1.5, False, DETAILS), Hypothesis("", float("-inf"), True)]


class Pairs:
    def __init__(self, *pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def read(self, start, stop):
        return tuple(map(list, zip(*self.pairs[start:stop], strict=True)))


def vocabularies(kind: str, **fields):
    pairs = Pairs(*[("ein Hund laeuft", "a dog runs"), ("ja nein und aber", "yes no and but")] * 40)
    return build_vocabularies(DataConfig(vocabulary=kind, joint_vocabulary=False, **fields), pairs)


def test_hypotheses_are_written_as_text_as_lists_and_as_json():
    assert answer_lines("text", 3, FOUND[:1], ranked=False) == ["a dog yes"]
    assert answer_lines("text", 3, FOUND, ranked=True) == ["3 ||| a dog yes ||| -1.5000", "3 |||  ||| -inf"]
    assert answer_lines("tsv", 3, FOUND, ranked=True) == ["3\t-1.5000\ta dog yes", "3\t-inf\t"]
    first, second = map(json.loads, answer_lines("json", 3, FOUND, ranked=True))
    assert first == {
        "line": 3,
        "rank": 1,
        "text": "a dog yes",
        "score": -1.5,
        "cut": False,
        "tokens": ["a", "dog", "yes", "</s>"],
        "log_probs": [-0.5, -0.25, -1.0, -0.125],
        "source_tokens": ["ein", "Hund", "ja", "</s>"],
        "alignment": [1, 0, 3, 0],
    }
    assert second == {"line": 3, "rank": 2, "text": "", "score": None, "cut": True}


def test_a_line_of_json_is_one_line_whatever_the_text():
    (line,) = answer_lines("json", 1, [Hypothesis('a "b"\n\u2028 ü', 0.0)], ranked=False)
    assert "\n" not in line and json.loads(line)["text"] == 'a "b"\n\u2028 ü'


def test_words_align_with_words():
    assert pharaoh(vocabularies("words"), FOUND[0]) == "0-1 1-0"  # the third attends to the end mark, which is no word


def test_pieces_of_a_word_align_as_the_word():
    details = Details(
        ("▁ein", "▁Hu", "nd", "</s>"),
        ("▁a", "▁d", "og", "</s>"),
        (0.0,) * 4,
        ((1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)),
    )
    hypothesis = Hypothesis("a dog", 0.0, details=details)
    assert pharaoh(vocabularies("bpe", vocab_size=40), hypothesis) == "0-0 1-1"
    assert pharaoh(vocabularies("words"), hypothesis) == "0-0 1-2 2-1"


def test_without_weights_there_is_no_alignment():
    with pytest.raises(ValueError, match="no alignment"):
        pharaoh(vocabularies("words"), Hypothesis("a", 0.0))
