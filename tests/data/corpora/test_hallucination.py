"""Invented pairs: what differs from the pair they were made of, and what must not."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.config import Config, DataConfig
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.corpora.hallucination import LEAST, LONG, hallucinated, stem
from seq2seq_jax.errors import UserError

PAIRS = [("walk\tV;PST", "walked"), ("go\tV;PST", "went"), ("unter gehen\tV;PTCP", "untergegangen")]


def runs_by_hand(word: str, form: str) -> set[str]:
    """All maximal runs without blanks that both sides have, of at least three characters."""
    found = set()
    for start, stop in itertools.combinations(range(len(word) + 1), 2):
        run = word[start:stop]
        if len(run) >= LEAST and " " not in run and run in form:
            found.add(run)
    return {run for run in found if not any(run != other and run in other for other in found)}


def test_the_stem_of_examples():
    assert stem("walk", "walked") == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert stem("go", "went") == []
    assert stem("lachen", "gelacht") == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert stem("machinen", "machinen!") == [(i, i) for i in range(1, 7)]  # the first and the last of a long run stay
    assert stem("abc def", "abc def") == [(i, i) for i in (0, 1, 2, 4, 5, 6)]  # a blank is no part of a stem


@given(st.text("ab c", max_size=9), st.text("ab c", max_size=9))
def test_positions_of_a_stem_are_one_character_in_runs_that_both_sides_share(word, form):
    positions = stem(word, form)
    assert all(word[here] == form[there] != " " for here, there in positions)
    assert positions == sorted(positions) and sorted(there for _, there in positions) == [p[1] for p in positions]
    assert bool(positions) == bool(runs_by_hand(word, form))


def test_only_characters_of_the_stem_differ_and_alike_on_both_sides():
    made = hallucinated(PAIRS, 600)
    assert len(made) == 600 and len(set(made)) > 400
    alphabet = set("".join(source.split("\t")[0] + target for source, target in PAIRS)) - {" "}
    seen = set()
    for number, (source, target) in enumerate(made):
        model, form = PAIRS[(0, 2)[number % 2]]  # in turn those that have a stem
        word, tags = model.split("\t")
        new, new_tags = source.split("\t")
        assert new_tags == tags and len(new) == len(word) and len(target) == len(form)
        positions = dict(stem(word, form))
        changed = {here for here in range(len(word)) if new[here] != word[here]}
        assert changed <= positions.keys() and all(new[here] == target[positions[here]] for here in positions)
        rest = set(range(len(form))) - set(positions.values())
        assert all(target[there] == form[there] for there in rest)
        seen |= {new[here] for here in changed}
    assert seen == alphabet


def test_half_of_the_characters_are_replaced():
    model = ("abcdefghij" * 3 + "\tX", "abcdefghij" * 3)
    made = hallucinated([model, ("".join(map(chr, range(0x4E00, 0x5E00))) + "\tX", "!")], 400)
    changed = [sum(one != other for one, other in zip(source, model[0], strict=True)) for source, _ in made]
    assert 0.47 < sum(changed) / (400 * (30 - 2)) < 0.53
    assert all(source[0] == "a" and source[29] == "j" for source, _ in made) and LONG == 6


def test_more_of_them_begin_with_the_same_ones():
    assert hallucinated(PAIRS, 50)[:20] == hallucinated(PAIRS, 20)


def tables(folder, *, validation=True):
    lines = [f"{word}{letter}\t{word}{letter}ed\tV;PST\n" for word in ("walk", "talk", "jump") for letter in "abcdefgh"]
    (folder / "train.tsv").write_text("".join(lines))
    if validation:
        (folder / "validation.tsv").write_text("laugh\tlaughed\tV;PST\n")
    return DataConfig(
        corpus=f"files:{folder}",
        columns=("lemma", "form", "tags"),
        source="lemma",
        target="form",
        features="tags",
        vocabulary="characters",
        hallucinate=30,
        data_dir=str(folder / "prepared"),
    )


def test_they_are_trained_on_and_said_and_the_text_is_another(tmp_path):
    config = tables(tmp_path)
    corpus, without = load_corpus(config), load_corpus(replace(config, hallucinate=0))
    train = corpus.split("train")
    pairs = list(zip(*train.read(0, len(train)), strict=True))
    assert len(pairs) == 54 and pairs[24:] == hallucinated(pairs[:24], 30)
    assert len(without.split("train")) == 24 and corpus.fingerprint != without.fingerprint
    assert any("30 of its pairs are invented" in note for note in corpus.notes)
    assert load_corpus(config).fingerprint == corpus.fingerprint  # from the index
    assert len(corpus.split("validation")) == 1


def test_pairs_without_a_stem_are_counted(tmp_path):
    config = tables(tmp_path)
    assert not any("are no model" in note for note in load_corpus(config).notes)
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("go\twent\tV;PST\nbe\twas\tV;PST\n")
    assert any("; 2 of the others share no 3 characters in a row" in note for note in load_corpus(config).notes)


def test_where_text_is_lowercased_case_does_not_hide_a_stem(tmp_path):
    config = tables(tmp_path)
    (tmp_path / "train.tsv").write_text("WALK\twalked\tV;PST\n" * 3)
    with pytest.raises(UserError, match="no training pair shares 3 characters in a row"):
        load_corpus(config)
    train = load_corpus(replace(config, lowercase=True)).split("train")
    pairs = list(zip(*train.read(0, len(train)), strict=True))
    assert pairs[3:] == hallucinated([("walk\tV;PST", "walked")], 30)  # tags keep their case


def test_without_a_validation_split_or_a_stem_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.hallucinate 30 needs a validation split of its own"):
        load_corpus(tables(tmp_path, validation=False))
    with pytest.raises(UserError, match="no training pair shares 3 characters in a row"):
        hallucinated([("go\tV", "went")], 5)


def test_it_goes_with_characters_alone():
    with pytest.raises(UserError, match="data.hallucinate 5 invents words of characters, and the vocabulary is bpe"):
        Config(data=DataConfig(hallucinate=5, vocabulary="bpe"))
