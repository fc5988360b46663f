import functools
import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.corpora.formal_corpus import SPLITS, TASKS, find_formal_corpus
from seq2seq_jax.data.corpora.formal_corpus import formal_corpus_split as draw
from seq2seq_jax.errors import UserError

formal_corpus_split = functools.cache(draw)

EVERY = [(task, split) for task in TASKS for split in SPLITS]


def solve(task: str, source: str) -> str:
    """A second way to each answer: the grammar of Python for arithmetic, a automaton of two states for parity."""
    symbols = source.split(" ")
    if task == "modular_arithmetic":
        return str(eval(source) % 5)
    if task == "parity":
        even = True
        for symbol in symbols:
            even = even ^ {"a": False, "b": True}[symbol]
        return "True" if even else "False"
    places = range(len(symbols))
    order = [-1 - place for place in places] if task == "reverse" else [*places, *places]
    return " ".join(symbols[place] for place in order)


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_answers_agree_with_brute_force(task, split):
    pairs = formal_corpus_split(task, split)
    assert len(pairs) == SPLITS[split].count
    assert [target for _, target in pairs] == [solve(task, source) for source, _ in pairs]


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_lengths_and_symbols_are_drawn_evenly(task, split):
    """Within five standard deviations; where strings have to be new, the shortest are rare."""
    sources = [source.split(" ") for source, _ in formal_corpus_split(task, split)]
    shortest, longest, count = SPLITS[split]
    step = 2 if task == "modular_arithmetic" else 1
    lengths = Counter(map(len, sources))
    possible = range(shortest, longest + 1, step)
    assert set(lengths) <= set(possible)
    if shortest > 1 or split == "train":
        share = count * step / (longest - shortest + 1)
        assert all(abs(lengths[length] - share) < 5 * np.sqrt(share) + 1 for length in possible)
    if task == "modular_arithmetic":
        kinds = [Counter(symbol for string in sources for symbol in string[start::2]) for start in (0, 1)]
        assert [set(kind) for kind in kinds] == [set("01234"), set("+-*")]
    else:
        kinds = [Counter(symbol for string in sources for symbol in string)]
        assert set(kinds[0]) == set("ab")
    for kind in kinds:
        expected = kind.total() / len(kind)
        assert all(abs(number - expected) < 5 * np.sqrt(expected) for number in kind.values())


@pytest.mark.parametrize("task", TASKS)
def test_no_other_split_has_a_string_of_train_or_one_twice(task):
    known = {source for source, _ in formal_corpus_split(task, "train")}
    for split in set(SPLITS) - {"train"}:
        sources = [source for source, _ in formal_corpus_split(task, split)]
        assert len(set(sources)) == len(sources)
        assert known.isdisjoint(sources)


def test_every_process_draws_the_same():
    program = (
        "import hashlib; from seq2seq_jax.data.corpora.formal_corpus import *;"
        "print(hashlib.sha256(repr([formal_corpus_split(t, s) for t in TASKS for s in SPLITS]).encode()).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    own = hashlib.sha256(repr([formal_corpus_split(task, split) for task, split in EVERY]).encode()).hexdigest()
    assert found.stdout.strip() == own


def test_it_is_prepared_without_any_file(tmp_path):
    corpus = load_corpus(DataConfig(corpus="formal/modular_arithmetic", data_dir=str(tmp_path)))
    assert (corpus.source, corpus.target, corpus.notes) == ("input", "output", ())
    assert {name: len(split) for name, split in corpus.splits.items()} == {
        name: split.count for name, split in SPLITS.items()
    }
    assert corpus.split("test_101_500").read(0, 1) == tuple(
        [text] for text in formal_corpus_split("modular_arithmetic", "test_101_500")[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "formal/party"}, "formal/party.*Did you mean formal/parity"),
        ({"corpus": "formal"}, "data.corpus formal: there is no such corpus; there are formal/parity, "),
        ({"corpus": "formal/parity", "features": "tags"}, "formal/parity has input and output, and no tags"),
        ({"corpus": "scan/simple", "turns": "turn"}, "scan/simple has commands and actions, and no dialogues"),
    ],
)
def test_what_there_is_not_is_told(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_corpus(DataConfig(**settings, data_dir=str(tmp_path)))


def test_the_shortest_strings_are_all_in_train():
    """So none of them is left for the other splits, and drawing these ends."""
    trained = {source for source, _ in formal_corpus_split("parity", "train")}
    for length in range(1, 6):
        strings = {" ".join("ab"[number >> place & 1] for place in range(length)) for number in range(2**length)}
        assert strings <= trained
    assert find_formal_corpus("parity").newest == 0
