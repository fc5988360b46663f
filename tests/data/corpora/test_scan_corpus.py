import gzip
import re
from collections import Counter

import pytest

from seq2seq_jax.data.corpora.scan_corpus import CONFIGS, find_scan_corpus, scan_corpus_split
from seq2seq_jax.errors import UserError

PUBLISHED_COUNTS = {
    "simple": (16_728, 4_182),
    "length": (16_990, 3_920),
    "addprim_jump": (14_670, 7_706),
    "addprim_turn_left": (21_890, 1_208),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_counts_are_the_published_ones(config):
    assert (len(scan_corpus_split(config, "train")), len(scan_corpus_split(config, "test"))) == PUBLISHED_COUNTS[config]


@pytest.mark.parametrize("config", ["length", "addprim_jump"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_rule_splits_equal_the_published_files(corpora, config, split):
    columns = []
    for column in ("command", "action"):
        with gzip.open(corpora / f"scan-{config}" / f"{split}.{column}.gz", "rt") as file:
            columns.append(file.read().splitlines())
    assert Counter(scan_corpus_split(config, split)) == Counter(zip(*columns, strict=True))


def test_turn_left_is_seen_alone_only():
    train, test = (Counter(scan_corpus_split("addprim_turn_left", split)) for split in ("train", "test"))
    assert {pair for pair in train if "turn left" in pair[0]} == {("turn left", "I_TURN_LEFT")}
    assert train["turn left", "I_TURN_LEFT"] == 2_189
    assert all("turn left" in command for command, _ in test)
    assert set(train) | set(test) == _grammar()


def test_simple_cuts_the_whole_grammar_in_two():
    train, test = (scan_corpus_split("simple", split) for split in ("train", "test"))
    assert len(set(train)) + len(set(test)) == 20_910
    assert set(train) | set(test) == _grammar()


def test_meaning_agrees_with_an_interpreter_of_the_paper():
    pairs = scan_corpus_split("simple", "test")
    assert [actions for _, actions in pairs] == [" ".join(_interpret(command)) for command, _ in pairs]


def test_an_unknown_configuration_names_the_nearest():
    with pytest.raises(UserError, match="scan/lenght.*Did you mean scan/length"):
        find_scan_corpus("lenght")


def _grammar():
    return set(scan_corpus_split("simple", "train")) | set(scan_corpus_split("simple", "test"))


def _interpret(command: str) -> list[str]:
    """The double brackets of figure 7, applied from the outside in."""
    if " and " in command:
        first, second = command.split(" and ")
        return _interpret(first) + _interpret(second)
    if " after " in command:
        first, second = command.split(" after ")
        return _interpret(second) + _interpret(first)
    if match := re.fullmatch(r"(.*) (twice|thrice)", command):
        return _interpret(match[1]) * (2 if match[2] == "twice" else 3)
    if match := re.fullmatch(r"(\w+) (opposite |around |)(left|right)", command):
        turn = [f"I_TURN_{match[3].upper()}"]
        action = [] if match[1] == "turn" else [f"I_{match[1].upper()}"]
        return {"opposite ": turn + turn + action, "around ": (turn + action) * 4, "": turn + action}[match[2]]
    return [f"I_{command.upper()}"]
