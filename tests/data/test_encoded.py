import errno
import itertools
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data import encoded as module
from seq2seq_jax.data.encoded import Rows, encode_lines, encode_split
from seq2seq_jax.data.vocabulary import UNKNOWN_TEXT, build_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.symbols import EOS, PAD, UNK
from seq2seq_jax.text_files import read_lines
from tests.data.pairs import Pairs, toy_pairs


@pytest.fixture(scope="module")
def pairs():
    return toy_pairs(300)


@pytest.fixture(scope="module")
def vocabularies(pairs):
    return build_vocabularies(DataConfig(vocabulary="words", joint_vocabulary=False), pairs)


def rows(split):
    return [(split.source(index).tolist(), split.target(index).tolist()) for index in range(len(split))]


def test_ids_are_the_vocabulary_s_with_an_end(pairs, vocabularies, tmp_path):
    split = encode_split(pairs, vocabularies, tmp_path, "toy")
    sources, targets = vocabularies.source.encode(pairs.sources), vocabularies.target.encode(pairs.targets)
    assert rows(split) == [([*s, EOS], [*t, EOS]) for s, t in zip(sources, targets, strict=True)]
    assert split.source_lengths.tolist() == [len(row) + 1 for row in sources]
    assert split.target_lengths.tolist() == [len(row) + 1 for row in targets]
    assert split.source_lengths.dtype == split.source(0).dtype == np.int32


def test_the_first_pairs_are_a_split_of_their_own(pairs, vocabularies, tmp_path):
    split = encode_split(pairs, vocabularies, tmp_path, "toy")
    for count in (0, 1, 17, 300, 1_000):
        first = split.first(count)
        assert rows(first) == rows(split)[:count]
        assert len(first.sources.flat) == first.source_lengths.sum()


def test_chosen_sequences_are_taken_in_the_order_in_which_they_are_named(pairs, vocabularies, tmp_path):
    sources = encode_split(pairs, vocabularies, tmp_path, "toy").sources
    for chosen in ([], [299], [7, 3, 3, 0]):
        taken = sources.take(chosen)
        assert [taken[index].tolist() for index in range(len(taken))] == [sources[index].tolist() for index in chosen]
        assert taken.unknown == sources.unknown and taken.flat.dtype == taken.lengths.dtype == np.int32


def test_blocks_do_not_matter(pairs, vocabularies, tmp_path, monkeypatch):
    whole = encode_split(pairs, vocabularies, tmp_path / "a", "toy")
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert rows(encode_split(pairs, vocabularies, tmp_path / "b", "toy")) == rows(whole)


def test_the_files_are_the_same_with_any_number_of_threads(vocabularies, tmp_path, monkeypatch):
    pairs, written = toy_pairs(400), []
    monkeypatch.setattr(module, "_BLOCK", 7)
    for threads in (1, 2, 4):
        monkeypatch.setattr(module, "_THREADS", threads)
        encode_split(pairs, vocabularies, tmp_path / str(threads), "toy")
        written.append({path.name: path.read_bytes() for path in (tmp_path / str(threads)).glob("encoded/*/*")})
    assert written[0] == written[1] == written[2] and len(written[0]) == 7


def test_threads_are_only_a_few_blocks_ahead(vocabularies, monkeypatch):
    """However slow the disk is, what waits to be written is bounded."""
    pairs = toy_pairs(50)
    monkeypatch.setattr(module, "_BLOCK", 1)
    blocks = module._encoded(pairs, vocabularies)
    next(blocks)
    assert pairs.num_reads <= module._THREADS + 1
    del blocks
    assert pairs.num_reads <= module._THREADS + 1


def test_ids_and_lengths_stay_on_disk(pairs, vocabularies, tmp_path):
    split = encode_split(pairs, vocabularies, tmp_path, "toy")
    for side in (split.sources, split.targets):
        assert all(isinstance(array.base, np.memmap) for array in (side.flat, side.lengths, side._starts))


def test_a_split_without_a_pair_is_empty(vocabularies, tmp_path):
    split = encode_split(Pairs([], []), vocabularies, tmp_path, "none")
    assert rows(split) == [] and split.sources.with_unknown().tolist() == []


def test_text_is_encoded_once(pairs, vocabularies, tmp_path):
    first = encode_split(pairs, vocabularies, tmp_path, "toy")
    untouched = Pairs(pairs.sources, pairs.targets)
    assert rows(encode_split(untouched, vocabularies, tmp_path, "toy")) == rows(first)
    assert untouched.num_reads == 0


def test_other_text_or_another_vocabulary_is_encoded_anew(pairs, vocabularies, tmp_path):
    encode_split(pairs, vocabularies, tmp_path, "toy")
    again = Pairs(pairs.sources, pairs.targets)
    encode_split(again, vocabularies, tmp_path, "other")
    assert again.num_reads
    smaller = build_vocabularies(DataConfig(vocabulary="words", vocab_size=20), pairs)
    assert encode_split(pairs, smaller, tmp_path, "toy").source(0).max() < 20
    assert len(list((tmp_path / "encoded").iterdir())) == 3


@pytest.mark.parametrize("name", ["source.ids", "target.ids", "source.lengths", "target.starts"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "one bit"])
def test_a_damaged_cache_is_made_again(pairs, vocabularies, tmp_path, name, damage):
    whole = rows(encode_split(pairs, vocabularies, tmp_path, "toy"))
    (path,) = (tmp_path / "encoded").glob(f"*/{name}")
    content = path.read_bytes()
    flipped = content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]
    left = {"empty": b"", "cut": content[: len(content) // 2], "one bit": flipped}
    path.unlink() if damage == "missing" else path.write_bytes(left[damage])
    with pytest.warns(UserWarning, match=f"{path.parent} was damaged .*made again"):
        assert rows(encode_split(pairs, vocabularies, tmp_path, "toy")) == whole
    assert path.read_bytes() == content
    assert rows(encode_split(pairs, vocabularies, tmp_path, "toy")) == whole  # and nothing is said


def test_ids_of_one_split_in_the_place_of_another_s_are_made_again(pairs, vocabularies, tmp_path):
    others = Pairs(pairs.targets, pairs.sources)
    wanted = rows(encode_split(pairs, vocabularies, tmp_path, "toy"))
    (place,) = (tmp_path / "encoded").iterdir()
    encode_split(others, vocabularies, tmp_path, "others")
    (other,) = set((tmp_path / "encoded").iterdir()) - {place}
    place.rename(tmp_path / "away")
    other.rename(place)
    with pytest.warns(UserWarning, match="made again"):
        assert rows(encode_split(pairs, vocabularies, tmp_path, "toy")) == wanted


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_something_in_the_way_of_the_cache_is_named(pairs, vocabularies, tmp_path, obstacle):
    way = tmp_path / "encoded"
    way.touch() if obstacle == "file" else way.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{way} is a {obstacle}.*SEQ2SEQ_JAX_CACHE") as caught:
        encode_split(pairs, vocabularies, tmp_path, "toy")
    causes, error = [], caught.value
    while error is not None and len(causes) < 9:
        causes.append(error)
        error = error.__cause__
    assert len(causes) == len({id(cause) for cause in causes}) < 9


def test_a_broken_off_write_leaves_nothing(pairs, vocabularies, tmp_path):
    class Broken(Pairs):
        def read(self, start, stop):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_split(Broken(pairs.sources, pairs.targets), vocabularies, tmp_path, "toy")
    assert list((tmp_path / "encoded").iterdir()) == []


@pytest.mark.parametrize("code, message", [(errno.ENOSPC, "No space left"), (errno.EACCES, "Cannot write")])
def test_a_cache_that_cannot_be_written_is_said(pairs, vocabularies, tmp_path, monkeypatch, code, message):
    def fail(*arguments, **settings):
        raise OSError(code, "no")

    monkeypatch.setattr(module, "open", fail, raising=False)
    with pytest.raises(UserError, match=f"{message}.*SEQ2SEQ_JAX_CACHE|SEQ2SEQ_JAX_CACHE"):
        encode_split(pairs, vocabularies, tmp_path, "toy")
    assert list((tmp_path / "encoded").iterdir()) == []


def test_lines_in_memory_equal_a_split(pairs, vocabularies, tmp_path):
    split = encode_split(pairs, vocabularies, tmp_path, "toy")
    assert rows(encode_lines(vocabularies, pairs.sources, pairs.targets)) == rows(split)


def test_lines_without_targets_have_the_end_alone(vocabularies):
    split = encode_lines(vocabularies, ["ba do", ""])
    assert [target for _, target in rows(split)] == [[EOS], [EOS]]
    assert split.source(1).tolist() == [EOS]
    assert len(encode_lines(vocabularies, [])) == 0


def test_padded_rows_are_the_sequences_then_padding():
    sequences = Rows(np.arange(1, 11, dtype=np.int32), np.array([3, 1, 6], np.int32))
    padded = sequences.padded(np.array([2, 0]), 4, 7)
    expected = [[5, 6, 7, 8, 9, 10], [1, 2, 3], [], []]
    assert padded.values.tolist() == [row + [PAD] * (7 - len(row)) for row in expected]
    assert padded.lengths.tolist() == [6, 3, 0, 0]
    assert padded.values.dtype == padded.lengths.dtype == np.int32


def test_a_sequence_is_never_cut():
    sequences = Rows(np.arange(1, 11, dtype=np.int32), np.array([3, 1, 6], np.int32))
    with pytest.raises(ValueError, match="do not fit"):
        sequences.padded(np.array([2]), 1, 5)
    with pytest.raises(ValueError, match="do not fit"):
        sequences.padded(np.array([0, 1]), 1, 5)


def test_it_survives_pickling(pairs, vocabularies, tmp_path):
    split = encode_split(pairs, vocabularies, tmp_path, "toy")
    assert rows(pickle.loads(pickle.dumps(split))) == rows(split)


def test_unknown_tags_and_unknown_words_are_both_unknown(monkeypatch):
    pairs = Pairs(["ba\tV", "do\tN"], ["x", "y"])
    vocabularies = build_vocabularies(DataConfig(vocabulary="words", features="tags"), pairs)
    encoded = encode_lines(vocabularies, ["ba\tV", "ba\tNEW", "new\tV", "do\tN;V"], ["x", "new", "y", "x"])
    assert encoded.sources.with_unknown().tolist() == [1, 2]
    assert encoded.first(2).sources.with_unknown().tolist() == [1]
    assert encoded.targets.with_unknown().tolist() == [1]
    monkeypatch.setattr(module, "_IDS_AT_ONCE", 2)
    assert encoded.sources.with_unknown().tolist() == [1, 2]
    assert encoded.sources.with_turns_left_out().tolist() == []


COPIED = Pairs(["ba do ke", "ke ba", "do"] * 100, ["do ba", "ke", "do ba"] * 100)


@pytest.mark.parametrize("kind", ["words", "characters", "unigram", "bpe"])
@pytest.mark.parametrize("features", [None, "tags"])
def test_what_a_target_has_of_its_source_alone_is_a_copy(kind, features):
    """One id for each unknown token of the source, by its first position, and the text comes back."""
    pairs = Pairs([f"{line}\tN;V" for line in COPIED.sources], COPIED.targets) if features else COPIED
    config = DataConfig(vocabulary=kind, vocab_size=14, features=features)
    vocabularies = replace(build_vocabularies(config, pairs), copy=True)
    size, tags = vocabularies.target.size, "\tV;N" if features else ""
    sources = [f"ba 字 do ß ß{tags}", f"do{tags}", f"ß{tags}", tags]
    targets = ["字 ba ß", "do 字", "字", ""]
    encoded = encode_lines(vocabularies, sources, targets)
    source, target = encoded.sources[0], encoded.targets[0]
    num_tags = 2 if features else 0
    tokens = vocabularies.source.source_tokens(sources[0])
    places = [position for position, token in enumerate(tokens, num_tags) if "字" in token or "ß" in token]
    first, second = places[:2]
    assert [token for token in source if token >= size] == [size + first, size + second, size + second][: len(places)]
    assert [token for token in target if token >= size] == [size + first, size + second]
    assert encoded.sources.with_unknown().tolist() == []
    assert encoded.targets.with_unknown().tolist() == [1, 2]
    rows = [encoded.targets[index] for index in range(4)]
    restored = vocabularies.target.decode(rows, vocabularies.copies(sources))
    assert [restored[0], restored[3]] == ["字 ba ß", ""]
    assert UNKNOWN_TEXT in restored[1] and UNKNOWN_TEXT in restored[2]
    without = encode_lines(replace(vocabularies, copy=False), sources, targets)
    assert without.sources.flat.max() < size and without.targets.flat.max() < size


@pytest.mark.parametrize(("name", "columns"), [("nl2bash", ("nl", "bash")), ("aeslc", ("email", "subject"))])
def test_words_of_real_lines_that_the_vocabulary_lacks_are_copied(name, columns, corpora):
    """File names, options, people: of the targets' unknown words most are in their sources, and come back whole."""
    files = [f"{corpora}/{name}/test.{column}.gz" for column in columns]
    if not os.path.exists(files[0]):
        files = [f"{corpora}/{name}/validation.{column}.gz" for column in columns]
    sources, targets = (list(itertools.islice(read_lines(Path(file)), 300)) for file in files)
    config = DataConfig(vocabulary="words", vocab_size=500)
    plain = build_vocabularies(config, Pairs(sources, targets))
    copying = replace(plain, copy=True)
    before, after = (encode_lines(vocabularies, sources, targets).targets for vocabularies in (plain, copying))
    copied = after.flat >= plain.target.size
    assert np.array_equal(before.flat[~copied], after.flat[~copied]) and np.all(before.flat[copied] == UNK)
    assert copied.sum() > 30
    restored = copying.target.decode([after[index] for index in range(300)], copying.copies(sources))
    for index in range(300):
        words = targets[index].split()
        assert len(words) == len(after[index]) - 1
        expected = [UNKNOWN_TEXT if token == UNK else word for word, token in zip(words, after[index], strict=False)]
        assert restored[index].split(" ") == expected
        known = set(sources[index].split())
        for word, token in zip(words, after[index], strict=False):
            assert (token >= plain.target.size) == (word in known and before[index][words.index(word)] == UNK)


@pytest.mark.parametrize("kind", ["words", "characters", "unigram", "bpe"])
@pytest.mark.parametrize("max_length", [100, 11])
def test_words_of_all_turns_that_are_read_can_be_copied(kind, max_length):
    config = DataConfig(vocabulary=kind, vocab_size=14, turns="turn", context_turns=2, max_length=max_length)
    vocabularies = replace(build_vocabularies(config, COPIED), copy=True)
    source = "ba ba ba ba ke\tdo 字\tß do"
    encoded = encode_lines(vocabularies, [source], ["ß 字 ba"])
    size, tokens = vocabularies.target.size, vocabularies.source.source_tokens(source)
    places = [next(place for place, token in enumerate(tokens) if sign in token) for sign in "ß字"]
    assert [token for token in encoded.targets[0] if token >= size] == [size + place for place in places]
    assert [token for token in encoded.sources[0] if token >= size] == [size + place for place in sorted(places)]
    assert vocabularies.target.decode([encoded.targets[0]], vocabularies.copies([source])) == ["ß 字 ba"]
    assert encoded.sources.with_turns_left_out().tolist() == ([0] if max_length == 11 else [])


def test_sources_that_lost_turns_are_known_by_their_ids(tmp_path):
    pairs = Pairs(["a", "a\tb b", "a\tb b\tc", "c"], ["b b", "c", "d", "d"])
    vocabularies = build_vocabularies(DataConfig(vocabulary="words", turns="t", context_turns=2, max_length=6), pairs)
    encoded = encode_split(pairs, vocabularies, tmp_path, "key")
    assert encoded.source_lengths.tolist() == [2, 5, 6, 2]
    assert encoded.sources.with_turns_left_out().tolist() == [2]
    assert encoded.first(2).sources.with_turns_left_out().tolist() == []
    assert encoded.targets.with_turns_left_out().tolist() == []
