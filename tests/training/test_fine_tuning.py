import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.vocabulary import TaggedVocabulary, TokenVocabulary, build_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import read_config
from seq2seq_jax.sharding import one_device
from seq2seq_jax.symbols import NUM_SPECIAL
from seq2seq_jax.training.fine_tuning import start_from
from seq2seq_jax.training.loop import train
from seq2seq_jax.training.reproduction import reproduce
from seq2seq_jax.training.setup import prepare
from seq2seq_jax.training.step import initial_state
from seq2seq_jax.translator import load, vocab_sizes
from tests.tiny import rows, sentences, tiny_config, write_pairs

pytestmark = pytest.mark.usefixtures("compiled")

NEW = ("yak", "zebu")


def further(trained: Path, folder: Path, **train_fields):
    """A run that goes on from the tiny one, on text with two more words."""
    config = tiny_config(
        folder, train={"init_from": str(trained), "num_steps": 20, "evaluate_every": 10} | train_fields
    )
    lines = [f"{line} {NEW[index % 2]}" for index, line in enumerate(sentences(100, seed=8))]
    write_pairs(folder, "train", lines)
    return config


def first_params(config):
    material = prepare(config, 1)
    mesh = one_device()
    state = initial_state(config, vocab_sizes(material.vocabularies), mesh)
    state, step = start_from(state, config, material.vocabularies, mesh)
    return state, step, material.vocabularies


def test_a_run_starts_from_the_best_parameters_and_vocabularies_of_another(trained, tmp_path):
    state, step, vocabularies = first_params(further(trained, tmp_path, ema=0.9))
    other = load(trained)
    assert step == other.step
    assert vocabularies.source.fingerprint == other.vocabularies.source.fingerprint
    for found in (state.params, state.average):
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_new_words_start_at_the_mean_and_all_others_where_they_were(trained, tmp_path):
    state, _, vocabularies = first_params(further(trained, tmp_path, grow_vocabulary=True))
    other = load(trained)
    for side, name in (("source", ("source_table",)), ("target", ("target_table",)), ("target", ("output", "table"))):
        mine, theirs = state.params, other.params
        for key in name:
            mine, theirs = mine[key], theirs[key]
        new, old = getattr(vocabularies, side), getattr(other.vocabularies, side)
        assert set(new.entry_ids()) - set(old.entry_ids()) == {
            word.upper() if side == "target" else word for word in NEW
        }
        for word, index in new.entry_ids().items():
            if word in old.entry_ids():
                np.testing.assert_array_equal(mine[index], theirs[old.entry_ids()[word]])
            else:
                np.testing.assert_allclose(mine[index], np.asarray(theirs)[NUM_SPECIAL:].mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(mine[:NUM_SPECIAL], theirs[:NUM_SPECIAL])


def test_a_run_goes_on_on_other_text_and_learns_new_words(trained, tmp_path, capsys):
    config = further(trained, tmp_path, grow_vocabulary=True, num_steps=150, evaluate_every=50)
    train(config, tmp_path / "run")
    assert f"Starting from step {load(trained).step} of {trained}." in capsys.readouterr().out
    found = load(tmp_path / "run").translate(["ant bee yak", "dog zebu"])
    assert [hypothesis.text for hypothesis in found] == ["ANT BEE YAK", "DOG ZEBU"]
    losses = [row["validation_loss"] for row in rows(tmp_path / "run") if "validation_loss" in row]
    assert losses[0] < 1  # from random values it is 2.5 by then


def test_more_steps_of_the_same_text_go_on_where_the_other_ended(trained, tmp_path):
    config = read_config(trained)
    longer = replace(config, train=replace(config.train, init_from=str(trained), num_steps=2, log_every=1))
    train(longer, tmp_path / "run")
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert max(losses) < 0.5


def test_a_run_that_has_begun_needs_the_other_no_more(trained, tmp_path):
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    config = further(other, tmp_path / "text", grow_vocabulary=True)
    train(config, tmp_path / "run")
    shutil.rmtree(other)
    assert train(config, tmp_path / "run").status == "done"


def test_what_is_frozen_stays_as_it_is(trained, tmp_path):
    train(further(trained, tmp_path, freeze=("encoder", "source_table")), tmp_path / "run")
    mine, theirs = load(tmp_path / "run").params, load(trained).params
    for name in mine:
        same = [
            np.array_equal(one, other)
            for one, other in zip(jax.tree.leaves(mine[name]), jax.tree.leaves(theirs[name]), strict=True)
        ]
        assert all(same) if name in ("encoder", "source_table") else not all(same)


def test_parts_that_are_none_are_refused_before_anything_is_written(trained, tmp_path):
    with pytest.raises(UserError, match="train.freeze encodr: the model has no such part. Did you mean encoder?"):
        train(further(trained, tmp_path, freeze=("encodr",)), tmp_path / "run")
    everything = tuple(load(trained).params)
    with pytest.raises(UserError, match="train.freeze names all parts of the model; leave one to be trained."):
        train(further(trained, tmp_path, freeze=everything), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_model_or_other_ids_are_refused_by_their_fields(trained, tmp_path):
    config = further(trained, tmp_path)
    for section, fields, told in (
        ("model", {"hidden_size": 32}, r"model.hidden_size: 16 -> 32"),
        ("model", {"attention": "dot"}, r"model.attention: 'general' -> 'dot'"),
        ("data", {"lowercase": True}, r"data.lowercase: False -> True"),
    ):
        other = replace(config, **{section: replace(getattr(config, section), **fields)})
        with pytest.raises(UserError, match=rf"(?s)another model or other text \(.*\):\n  {told}\nSet these"):
            train(other, tmp_path / "run")
    train(replace(config, model=replace(config.model, dropout_rate=0.4)), tmp_path / "run")  # of the training alone
    with pytest.raises(UserError, match="nowhere is not a run directory"):
        train(further(tmp_path / "nowhere", tmp_path), tmp_path / "other")


def test_seeds_of_reproduce_start_from_values_of_their_own(trained, tmp_path):
    with pytest.raises(UserError, match="train.init_from gives all seeds the same first values"):
        reproduce(further(trained, tmp_path), 2, tmp_path / "run")


def test_word_vectors_and_another_run_are_not_both_where_tables_start_from(trained, tmp_path):
    config = further(trained, tmp_path)
    with pytest.raises(UserError, match="train.init_from and model.source_vectors"):
        replace(config, model=replace(config.model, source_vectors="vectors.txt"))


def test_entries_and_tags_have_their_ids_in_another_vocabulary():
    old = TaggedVocabulary(TokenVocabulary(["a", "b", "V"], "words", False), ["V", "N"], ";")
    new = TaggedVocabulary(TokenVocabulary(["b", "c", "a"], "words", False), ["N", "Z", "V"], ";")
    grown = old.grown(new)
    assert list(grown.entry_ids()) == ["a", "b", "V", "c"] and grown.num_tags == 4
    ids = grown.ids_in(old).tolist()
    assert ids == [0, 1, 2, 3, 4, 5, 6, -1, 7, 8, 9, -1]
    assert sorted(grown.encode_sources(["a c\tZ;V"])[0].tolist()) == [4, 7, 9, 11]


def test_pieces_of_words_do_not_grow(trained, tmp_path):
    config = tiny_config(tmp_path)
    data = replace(config.data, vocabulary="bpe", vocab_size=30)
    vocabularies = build_vocabularies(data, load_corpus(data).split("train"))
    with pytest.raises(UserError, match="kind bpe writes new words by the pieces that it has; leave train.grow_voc"):
        vocabularies.source.grown(vocabularies.target)
