import gzip
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.corpora.files import find_folder
from seq2seq_jax.data.corpora.raw import name_splits
from seq2seq_jax.errors import UserError
from seq2seq_jax.text_files import read_lines

FOLDERS: dict[str, tuple[dict[str, Any], int]] = {  # folder -> what to say beside its name, and pairs in train
    "multi30k-de-en": (dict(source="de", target="en"), 29_000),
    "tanaka10k-ja-en": (dict(source="ja", target="en"), 10_000),
    "tanaka50k-en-ja": (dict(source="en", target="ja"), 50_000),
    "tatoeba-en-fr": (dict(source="en", target="fr"), 159_695),
    "scan-simple": (dict(source="command", target="action"), 16_728),
    "cmudict": (dict(columns=("word", "phones"), source="word", target="phones"), 114_626),
    "sigmorphon2020-g2p/bul": (dict(columns=("word", "phones"), source="word", target="phones"), 3_600),
    "sigmorphon2017-task1/german": (dict(columns=("lemma", "form", "tags"), source="lemma", target="form"), 10_000),
    "sigmorphon2016-task1/german": (dict(columns=("lemma", "form", "tags"), source="lemma", target="form"), 12_490),
    "aeslc": (dict(source="email", target="subject"), 14_436),
    "dailydialog": ({}, 76_053),
    "nl2bash": (dict(source="nl", target="bash"), 10_437),
}


def put(folder: Path, **files: str) -> Path:
    """Writes each file under its name, in which _ stands for a dot."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_bytes(text.encode())
    return folder


def load(folder: Path, **settings: Any):
    settings = {"source": "de", "target": "en"} | settings
    return load_corpus(DataConfig(corpus=f"files:{folder}", data_dir=str(folder.parent / "prepared"), **settings))


def numbered(word: str, count: int) -> str:
    return "".join(f"{word} {number}\n" for number in range(count))


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_of_the_corpora_trains_as_it_stands(corpora, name):
    settings, num_train = FOLDERS[name]
    raw = name_splits(find_folder(f"{corpora}/{name}", DataConfig(**settings)), "train")
    assert ("validation" in raw.splits) == (name != "scan-simple")
    for stream in raw.splits.values():
        pairs = list(itertools.islice(stream(), 10))
        assert len(pairs) == 10 and all(source and target for source, target in pairs)
    if num_train <= 10_000:  # seconds in all: the checks of types cost ten times the reading
        corpus = load_corpus(DataConfig(corpus=f"files:{corpora}/{name}", **settings))
        assert len(corpus.split("train")) == num_train


def test_lines_come_back_as_they_are_in_every_split(tmp_path):
    lines = ["ein  Haus\u2028", " ein\tHund\x0b ", "日本語", "x" * 10_000]
    folder = put(tmp_path / "text", train_en=numbered("a", 4), validation_de="v\n", validation_en="w\n")
    (folder / "train.de.gz").write_bytes(gzip.compress("\n".join(lines).encode()))  # no end of line at the end
    put(folder, test_x_de="p\r\nq\r\n", notes_md="not a split", README="neither", vocab_de="d", vocab_en="e\nf")
    (folder / "test.x.de").rename(folder / "test_x.de")
    (folder / "test_x.en").write_bytes(b"\xef\xbb\xbfr\r\ns\n")
    corpus = load(folder)
    assert (corpus.source, corpus.target) == ("de", "en")
    assert corpus.split("train").read(0, 100) == (lines, ["a 0", "a 1", "a 2", "a 3"])
    assert corpus.split("train").read(2, 3) == (["日本語"], ["a 2"])
    assert corpus.split("test_x").read(0, 2) == (["p", "q"], ["r", "s"])
    assert list(corpus.splits) == ["train", "validation", "test_x"] and corpus.notes == ()


def test_tables_and_named_files_give_the_same_text_as_parallel_files(tmp_path):
    parallel = put(tmp_path / "a", train_de=numbered("d", 9), train_en=numbered("e", 9))
    table = put(tmp_path / "b", train_tsv="".join(f"{n}\te {n}\td {n}\n" for n in range(9)))
    named = DataConfig(
        train_files=(str(parallel / "train.de"), str(parallel / "train.en")), data_dir=str(tmp_path / "prepared")
    )
    corpora = [load(parallel), load(table, columns=("id", "en", "de")), load_corpus(named)]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert {(corpus.source, corpus.target) for corpus in corpora} == {("de", "en")}
    assert load(parallel, source="en", target="de").fingerprint != corpora[0].fingerprint


def test_other_usual_names_of_splits_are_understood_and_said(tmp_path):
    folder = put(tmp_path / "text", dev_de="v\n", dev_en="w\n", test_de="t\n", test_en="u\n")
    for name, count in (("train-low", 2), ("train-high", 5)):
        (folder / f"{name}.de").write_text(numbered("d", count))
        (folder / f"{name}.en").write_text(numbered("e", count))
    corpus = load(folder)
    assert {name: len(split) for name, split in corpus.splits.items()} == {
        "train": 5,
        "validation": 1,
        "test": 1,
        "train-low": 2,
    }
    assert any("train-high" in note for note in corpus.notes) and any("split dev" in note for note in corpus.notes)
    assert len(load(folder, train_split="train-low").split("train")) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(source="ger"), r"data\.source ger.*columns de, en"),
        (dict(source=None, target=None), r"columns de, en; say with data\.source and data\.target"),
        (dict(target="de"), r"both de"),
        (dict(train_split="trian"), r"no split trian.*Did you mean train\?"),
        (dict(columns=("a", "b")), r"data\.columns is for SPLIT\.tsv"),
    ],
)
def test_columns_and_splits_that_are_not_there_are_named(tmp_path, settings, message):
    folder = put(tmp_path / "text", train_de="a\nb\n", train_en="c\nd\n")
    with pytest.raises(UserError, match=message):
        load(folder, **settings)


def test_a_column_missing_in_one_split_is_named(tmp_path):
    folder = put(tmp_path / "text", train_de="a\nb\n", train_en="c\nd\n", test_de="e\n")
    with pytest.raises(UserError, match="split test has no column en; it has de"):
        load(folder)


def test_a_missing_split_names_those_there_are(tmp_path):
    folder = put(tmp_path / "text", test_de="a\n", test_en="b\n")
    with pytest.raises(UserError, match="no split train to train on; the corpus has test"):
        load(folder)


@pytest.mark.parametrize("name", ["train", "test"])
def test_an_empty_split_is_refused(tmp_path, name):
    files = dict(train_de="a\nb\n", train_en="c\nd\n", test_de="e\n", test_en="f\n")
    folder = put(tmp_path / "text", **(files | {f"{name}_de": "", f"{name}_en": ""}))
    with pytest.raises(UserError, match=f"Split {name} is empty"):
        load(folder)


def test_a_table_without_names_of_columns_says_how_to_give_them(tmp_path):
    folder = put(tmp_path / "text", train_tsv="a\tb\tc\n")
    with pytest.raises(
        UserError, match=r"train\.tsv has 3 columns without names: 'a\\tb\\tc'\. Name them.*data\.columns"
    ):
        load(folder)


def test_a_table_line_with_other_columns_is_named(tmp_path):
    folder = put(tmp_path / "text", train_tsv="a\tb\nc\n")
    with pytest.raises(UserError, match=r"train\.tsv, line 2 has 1 tab-separated fields.*2 \(de, en\): 'c'"):
        load(folder, columns=("de", "en"))


@pytest.mark.parametrize(("num_source", "num_target"), [(1_003, 1_001), (1_001, 1_005)])
def test_different_line_counts_name_both_and_the_first_line_beyond(tmp_path, num_source, num_target):
    folder = put(tmp_path / "text", train_de=numbered("d", num_source), train_en=numbered("e", num_target))
    longer, word = ("train.de", "d") if num_source > num_target else ("train.en", "e")
    with pytest.raises(UserError) as caught:
        load(folder)
    assert f"{longer} has {max(num_source, num_target):,} lines and " in str(caught.value)
    assert f"has 1,001: line 1,002 of {longer}" in str(caught.value) and f"'{word} 1001'" in str(caught.value)


def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path):
    folder = put(tmp_path / "text", train_de="ä\nö\n", train_en="a\nb\n")
    (folder / "train.de").write_bytes("ä\n".encode() + "für\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.de, line 2: not UTF-8 \(byte 0xfc at column 2\)"):
        load(folder)


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(numbered("word", 5_000).encode())[:-100])
    with pytest.raises(UserError, match=r"a\.gz is not a whole gzip file: damaged after line \d"):
        list(read_lines(path))
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match="not a whole gzip file"):
        list(read_lines(path))


def test_files_and_folders_that_are_not_there_name_the_nearest(tmp_path):
    put(tmp_path / "corpus", train_de="a\nb\n", train_en="c\nd\n")
    (tmp_path / "all").mkdir()
    (tmp_path / "corpus").rename(tmp_path / "all" / "corpus")
    with pytest.raises(UserError, match="no such folder. Did you mean corpus"):
        load(tmp_path / "all" / "corpsu")
    with pytest.raises(UserError, match="Its folders are corpus"):
        load(tmp_path / "all")
    named = (str(tmp_path / "all" / "corpus" / "trian.de"), str(tmp_path / "all" / "corpus" / "train.en"))
    with pytest.raises(UserError, match=r"data\.train_files: there is no file .*trian\.de\. Did you mean train\.de"):
        load_corpus(DataConfig(train_files=named, data_dir=str(tmp_path / "prepared")))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("folder", "is a folder"), ("link", "is a link to nothing"), ("pipe", "is a pipe or a device")],
)
@pytest.mark.parametrize("name", ["train.de", "test.en", "test.en.gz"])
def test_what_should_be_a_file_and_is_none_is_named(tmp_path, name, kind, message):
    folder = put(tmp_path / "text", train_de="a\nb\n", train_en="c\nd\n", test_de="e\n", test_en="f\n")
    path = folder / name
    (folder / name.removesuffix(".gz")).unlink()
    {"folder": path.mkdir, "link": lambda: path.symlink_to("gone"), "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(UserError, match=f"files:{folder}: {path} should be a file of text and {message}"):
        load(folder)
    if name == "train.de":
        files = (str(path), str(folder / "train.en"))
        with pytest.raises(UserError, match=f"data.train_files: {path} should be a file of text and {message}"):
            load_corpus(DataConfig(train_files=files, data_dir=str(tmp_path / "prepared")))


def test_folders_whose_names_only_look_like_splits_are_left_alone(tmp_path):
    folder = put(tmp_path / "text", train_de="a\nb\n", train_en="c\nd\n")
    (folder / "train.backup").mkdir()
    (folder / "tests.old").mkdir()
    assert list(load(folder, target=None).splits) == ["train", "validation"]


def test_names_of_splits_that_are_hard_to_write_are_told_or_written(tmp_path):
    folder = put(tmp_path / "text", train_de="a\nb\n", train_en="c\nd\n")
    for column in (b".de", b".en"):
        Path(os.fsdecode(os.fsencode(folder) + b"/test\xff" + column)).write_text("e\n")
    assert load(folder).split("test\udcff").read(0, 9) == (["e"], ["e"])
    for column in ("de", "en"):
        (folder / f"{'test' * 60}.{column}").write_text("e\n")
    with pytest.raises(UserError, match="The name of split testtest.* is too long"):
        load(folder)


def test_empty_lines_of_a_table_are_kept_in_every_split_but_train(tmp_path):
    text = "a\tb\n\nc\t\n"
    folder = put(tmp_path / "text", train_tsv=text + "d\te\n", validation_tsv=text, test_tsv=text)
    corpus = load(folder, columns=("de", "en"))
    assert corpus.split("train").read(0, 9) == (["a", "d"], ["b", "e"])
    assert corpus.split("validation").read(0, 9) == corpus.split("test").read(0, 9) == (["a", "", "c"], ["b", "", ""])


def test_a_file_both_plain_and_compressed_is_refused(tmp_path):
    folder = put(tmp_path / "text", train_de="a\nb\n", train_en="c\nd\n", train_de_gz="")
    with pytest.raises(UserError, match=r"both train\.de and train\.de\.gz"):
        load(folder)


TAGGED = {"columns": ("lemma", "form", "tags"), "source": "lemma", "target": "form", "features": "tags"}


def test_tags_follow_their_source_after_a_tab(tmp_path):
    put(tmp_path / "text", train_tsv="walk\twalked\tV;PST\ngo\twent\tV;PST\nsee\tsees\t\n")
    corpus = load(tmp_path / "text", **TAGGED)
    pairs = [pair for name in corpus.splits for pair in zip(*corpus.split(name).read(0, 9), strict=True)]
    assert sorted(pairs) == [("go\tV;PST", "went"), ("see\t", "sees"), ("walk\tV;PST", "walked")]
    plain = load(tmp_path / "text", **TAGGED | {"features": None})
    assert plain.fingerprint != corpus.fingerprint


def test_tags_are_a_third_of_parallel_files(tmp_path):
    put(tmp_path / "text", train_de="a\nb\n", train_en="x\ny\n", train_tags="N;SG\nV\n")
    corpus = load(tmp_path / "text", features="tags")
    pairs = [pair for name in corpus.splits for pair in zip(*corpus.split(name).read(0, 9), strict=True)]
    assert sorted(pairs) == [("a\tN;SG", "x"), ("b\tV", "y")]
    put(tmp_path / "text", train_tags="N;SG\n")
    with pytest.raises(UserError, match=r"train\.de has 2 lines and .*train\.tags has 1: line 2 of train\.de"):
        load(tmp_path / "text", features="tags")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "tag"}, r"data\.features tag: there is no such column; .* Did you mean tags\?"),
        ({"features": "lemma"}, "data.features and data.source are both lemma"),
        ({"source": None}, "say with data.source and data.target"),
    ],
)
def test_a_column_of_tags_that_cannot_be_is_refused(settings, message, tmp_path):
    put(tmp_path / "text", train_tsv="walk\twalked\tV;PST\ngo\twent\tV;PST\n")
    if settings.get("source", "") is None:
        settings = settings | {"target": None}
    with pytest.raises(UserError, match=message):
        load(tmp_path / "text", **TAGGED | settings)


def test_scan_has_no_tags(tmp_path):
    with pytest.raises(UserError, match="data.features tags: scan/simple has commands and actions, and no tags"):
        load_corpus(DataConfig(features="tags", data_dir=str(tmp_path)))
