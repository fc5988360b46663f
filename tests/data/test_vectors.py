"""Files of word vectors, against a parse by NumPy."""

import gzip
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.config import DataConfig, ModelConfig
from seq2seq_jax.data.vectors import load_vectors, read_vectors
from seq2seq_jax.data.vocabulary import TokenVocabulary, Vocabularies, build_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.symbols import NUM_SPECIAL
from tests.data.pairs import Pairs

WORDS = ("ant", "bee", "cat", "Dog", "eel", "fox", "été", "猫", "-", "1.5")
SIZE = 5


def vocabulary(*words: str, lowercase: bool = False) -> TokenVocabulary:
    return TokenVocabulary(words, "words", lowercase)


def file_of(words: tuple[str, ...], size: int = SIZE, seed: int = 0) -> str:
    """Lines of words and random numbers, small and large."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((len(words), size)) * 10.0 ** random.integers(-8, 8, (len(words), 1))
    return "".join(f"{word} {' '.join(map(repr, row.tolist()))}\n" for word, row in zip(words, rows, strict=True))


def parsed(text: str) -> dict[str, np.ndarray]:
    """The same by NumPy's reader of tables."""
    table = np.loadtxt(io.StringIO(text), dtype=str, delimiter=" ", comments=None, ndmin=2, encoding="utf-8")
    return {row[0]: row[1:].astype(np.float64).astype(np.float32) for row in table}


def written(folder: Path, text: str, name: str = "vectors.txt") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


FORMS = {
    "glove": lambda text: text,
    "word2vec": lambda text: f"{len(WORDS)} {SIZE}\n" + text.replace("\n", " \n"),
    "windows": lambda text: text.replace("\n", "\r\n"),
    "wide blanks": lambda text: text.replace(" ", "  "),
    "no last newline": lambda text: text.removesuffix("\n"),
}


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_entries_in_the_file(tmp_path, form, name):
    words, text = vocabulary("猫", "none", "ant", "1.5", "-", "dog"), file_of(WORDS)
    found, expected = read_vectors(written(tmp_path, FORMS[form](text), name), words, SIZE), parsed(text)
    assert found.ids.tolist() == [NUM_SPECIAL + place for place in (0, 2, 3, 4)]
    assert found.rows.dtype == np.float32
    np.testing.assert_array_equal(found.rows, [expected[word] for word in ("猫", "ant", "1.5", "-")])


def test_of_several_vectors_for_an_entry_the_first_counts_and_a_lowercased_vocabulary_lowercases(tmp_path):
    text = file_of(("Dog", "ANT", "dog", "ant"))
    found = read_vectors(written(tmp_path, text), vocabulary("dog", "ant", lowercase=True), SIZE)
    np.testing.assert_array_equal(found.rows, [parsed(text)[word] for word in ("Dog", "ANT")])
    found = read_vectors(written(tmp_path, text), vocabulary("dog", "ant"), SIZE)
    np.testing.assert_array_equal(found.rows, [parsed(text)[word] for word in ("dog", "ant")])


def test_a_word_may_have_blanks_in_it(tmp_path):
    text = "ant 1 2\n. . . 3 4\nat name@domain.com 5 6\nbee 7 8\n"
    found = read_vectors(written(tmp_path, text), vocabulary("ant", "bee"), 2)
    np.testing.assert_array_equal(found.rows, [[1, 2], [7, 8]])


def test_entries_of_sentencepiece_are_its_pieces(tmp_path):
    pairs = Pairs(["low lower lowest"] * 20, ["new newer newest"] * 20)
    pieces = build_vocabularies(DataConfig(vocabulary="bpe", vocab_size=24), pairs).source
    ids = pieces.entry_ids()
    assert sorted(ids.values()) == list(range(NUM_SPECIAL, pieces.size))
    begun = [piece for piece in ids if piece.startswith("▁") and len(piece) > 2]
    text = file_of((*begun, "▁no", "low"))
    found = read_vectors(written(tmp_path, text), pieces, SIZE)
    np.testing.assert_array_equal(found.rows[np.searchsorted(found.ids, ids[begun[0]])], parsed(text)[begun[0]])
    # Encoded text has the ids whose rows these are.
    [line] = pieces.encode([begun[0].removeprefix("▁")])
    assert line.tolist() == [ids[begun[0]]]


def test_both_sides_have_their_own_files(tmp_path):
    source, target = file_of(WORDS, seed=1), file_of(WORDS, seed=2)
    config = ModelConfig(
        embed_size=SIZE,
        source_vectors=str(written(tmp_path, source, "s")),
        target_vectors=str(written(tmp_path, target, "t")),
    )
    found = load_vectors(config, Vocabularies(vocabulary("ant"), vocabulary("x", "ant")))
    np.testing.assert_array_equal(found["source"].rows, [parsed(source)["ant"]])
    np.testing.assert_array_equal(found["target"].rows, [parsed(target)["ant"]])
    assert (found["source"].ids.tolist(), found["target"].ids.tolist()) == ([NUM_SPECIAL], [NUM_SPECIAL + 1])
    assert load_vectors(ModelConfig(), Vocabularies(vocabulary("ant"), vocabulary("ant"))) == {}


REFUSED = {
    "ant 1 2\nbee 1 2 3\n": "line 2: 3 numbers for a word, and model.embed_size is 2. Set that to the width",
    "ant 1 2\nbee 1\n": "line 2: 1 number for a word, and model.embed_size is 2",
    "ant 1 2\n\nbee 1 2\n": "line 2: 0 numbers for a word",
    "ant\t1\t2\n": "line 1: 0 numbers for a word",
    "1 3\nant 1 2 3\n": "line 1: 3 numbers for a word, and model.embed_size is 2",
    "3 2\nant 1 2\nbee 1 2\n": "line 1 says 3 words, and the file has 2. Is it whole?",
    "1 2\nant 1 2\nbee 1 2\n": "line 1 says 1 word, and the file has 2",
    "ant 1 2\nbee 1 x\n": "line 2: 'x' is not a number",
    "ant 1 nan\n": "line 1: 'nan' is not a finite number",
    "ant 1e39 1\n": "line 1: '1e39' is not a finite number of 32 bits",
    "cat 1 2\n": "has a vector for none of the 2 entries of the vocabulary, such as 'ant'",
    "": "has a vector for none of the 2 entries",
    "ant 1 2\nbee \0 2\n": "line 2: a NUL byte",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_are_no_vectors_is_refused_by_file_and_line(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_vectors(path, vocabulary("ant", "bee"), 2)
    assert str(refused.value).startswith(str(path)) and REFUSED[text] in str(refused.value)


def test_a_file_that_is_not_there_or_not_whole_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file .*vectors.txt"):
        read_vectors(tmp_path / "vectors.txt", vocabulary("ant"), 2)
    path = written(tmp_path, file_of(WORDS * 100), "cut.gz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut.gz is not a whole gzip file"):
        read_vectors(path, vocabulary("ant"), SIZE)


def test_no_more_is_held_than_the_rows_that_are_found(tmp_path):
    size = 50
    row = " ".join(["0.123456"] * size)
    path = written(tmp_path, "".join(f"word{number} {row}\n" for number in range(20_000)))
    tracemalloc.start()
    try:
        found = read_vectors(path, vocabulary("word7", "word19999"), size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.rows.shape == (2, size) and peak < path.stat().st_size / 4
