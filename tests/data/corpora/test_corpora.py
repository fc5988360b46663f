import errno
import os
import pickle
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

import seq2seq_jax.data.corpora as corpora_module
from seq2seq_jax.checksums import write_checksums
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora import load_corpus, prepare
from seq2seq_jax.data.corpora.raw import name_splits
from seq2seq_jax.data.corpora.scan_corpus import find_scan_corpus, scan_corpus_split
from seq2seq_jax.data.progress import silent
from seq2seq_jax.errors import UserError


@pytest.fixture
def config(tmp_path) -> DataConfig:
    """Forty pairs in two files, and a folder to prepare them in."""
    for column in ("de", "en"):
        write(tmp_path / f"train.{column}", [f"{column} {number}" for number in range(40)])
    files = (str(tmp_path / "train.de"), str(tmp_path / "train.en"))
    return DataConfig(train_files=files, data_dir=str(tmp_path / "prepared"))


def write(path, lines):
    """Writes a file that was last touched long ago."""
    path.write_text("".join(f"{line}\n" for line in lines))
    os.utime(path, (1e9, 1e9))


def everything(split):
    return list(zip(*split.read(0, len(split)), strict=True))


def test_validation_is_cut_from_train_by_a_rule_and_said(config):
    corpus = load_corpus(config)
    train, validation = (everything(corpus.split(name)) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (38, 2)
    assert sorted(train + validation) == sorted((f"de {number}", f"en {number}") for number in range(40))
    assert corpus.notes == ("validation: 2 pairs cut from train by a fixed rule, which leaves 38",)
    again = load_corpus(DataConfig(train_files=config.train_files, data_dir=config.data_dir + "2"))
    assert everything(again.split("validation")) == validation


def test_pairs_with_an_empty_side_are_left_out_and_counted(config, tmp_path):
    write(tmp_path / "train.en", ["", " \t"] + [f"en {number}" for number in range(2, 40)])
    corpus = load_corpus(config)
    assert {name: len(split) for name, split in corpus.splits.items()} == {"train": 37, "validation": 1}
    assert "train: 2 of 40 pairs left out, a side of them is empty" in corpus.notes
    assert all(int(source.split()[1]) > 1 for source, _ in everything(corpus.split("train")))


def test_every_split_but_train_keeps_all_of_its_lines_and_says_so(tmp_path):
    train = [f"{number}" for number in range(4)] + [""]
    lines = {"validation": ["", "b", "c"], "test": ["\t ", "b", "", "d"]}
    files = {}
    for split in ("train", "validation", "test"):
        sources = train if split == "train" else lines[split]
        for column, text in (("de", sources), ("en", ["x", *sources[1:-1], "y"])):
            write(tmp_path / f"{split}.{column}", text)
        files[f"{split}_files"] = (str(tmp_path / f"{split}.de"), str(tmp_path / f"{split}.en"))
    corpus = load_corpus(DataConfig(**files, data_dir=str(tmp_path / "prepared")))
    assert everything(corpus.split("train")) == [(word, "x" if word == "0" else word) for word in train[:-1]]
    assert everything(corpus.split("validation")) == [("", "x"), ("b", "b"), ("c", "y")]
    assert everything(corpus.split("test")) == [("\t ", "x"), ("b", "b"), ("", ""), ("d", "y")]
    assert corpus.notes == (
        "train: 1 of 5 pairs left out, a side of them is empty",
        "validation: 1 of 3 pairs has an empty side and is kept",
        "test: 2 of 4 pairs have an empty side and are kept",
    )


def test_a_split_without_any_filled_pair_is_refused(config, tmp_path):
    write(tmp_path / "test.de", ["a", ""])
    write(tmp_path / "test.en", ["", "b"])
    files = (str(tmp_path / "test.de"), str(tmp_path / "test.en"))
    with pytest.raises(UserError, match="Split test is empty"):
        load_corpus(replace(config, test_files=files))


def copies(*counts):
    """Pairs that occur so often, in no order."""
    lines = [f"{index}" for index, count in enumerate(counts) for _ in range(count)]
    return random.Random(0).sample(lines, len(lines))


@pytest.mark.parametrize(
    ("lines", "held_out"),
    [
        (copies(1, 2, *[1] * 37), 2),  # a twentieth
        (copies(*[1] * 2, *[2] * 99), 10),  # the two that occur once, and four of the others
        (copies(30, 10), 10),  # whole pairs: what there is least of
        (copies(*[1] * 50, 150), 10),
    ],
)
def test_no_pair_of_the_validation_split_is_in_train(config, lines, held_out):
    for path in config.train_files:
        write(Path(path), lines)
    corpus = load_corpus(config)
    train, validation = (everything(corpus.split(name)) for name in ("train", "validation"))
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(zip(lines, lines, strict=True))
    assert len(validation) == held_out


def test_the_pairs_of_a_source_stay_together_where_its_references_do(config):
    """A source of 1 to 3 pairs, not beside one another: no source is on both sides, and all numbers are held out."""
    pairs = [(f"de {number}", f"en {copy}") for copy in range(3) for number in range(300) if number % 3 >= copy]
    for column, path in enumerate(map(Path, config.train_files)):
        write(path, [pair[column] for pair in pairs])
    apart, together = load_corpus(config), load_corpus(replace(config, group_references=True))
    assert apart.fingerprint != together.fingerprint
    train, validation = (everything(together.split(name)) for name in ("train", "validation"))
    held_out = Counter(source for source, _ in validation)
    assert not held_out.keys() & {source for source, _ in train} and {*held_out.values()} == {1, 2, 3}
    assert len(pairs) // 20 - 2 <= len(validation) <= len(pairs) // 20
    assert sorted(train + validation) == sorted(pairs)
    assert {s for s, _ in everything(apart.split("train"))} & {s for s, _ in everything(apart.split("validation"))}


def test_a_corpus_with_a_validation_split_is_one_and_the_same_however_it_is_scored(config, tmp_path):
    files = []
    for column in ("de", "en"):
        write(tmp_path / f"valid.{column}", [column] * 3)
        files.append(str(tmp_path / f"valid.{column}"))
    config = replace(config, validation_files=tuple(files))
    assert load_corpus(config).fingerprint == load_corpus(replace(config, group_references=True)).fingerprint


def test_one_source_many_times_cannot_be_cut_in_two(config):
    write(Path(config.train_files[0]), ["again"] * 50)
    write(Path(config.train_files[1]), [str(number) for number in range(50)])
    with pytest.raises(UserError, match="train has one source, 50 times.* one source cannot be cut in two"):
        load_corpus(replace(config, group_references=True))


def test_what_is_held_out_depends_on_the_text_and_not_on_its_order(config):
    def held_out():
        return sorted(everything(load_corpus(config).split("validation")))

    before = held_out()
    for path in map(Path, config.train_files):
        write(path, path.read_text().splitlines()[::-1])
    assert held_out() == before


def test_a_repeated_primitive_stays_in_train():
    held_out = prepare.survey(name_splits(find_scan_corpus("addprim_jump"), "train"), silent).held_out
    pairs = scan_corpus_split("addprim_jump", "train")
    assert pairs.count(("jump", "I_JUMP")) == 1_467
    assert len(held_out) == 14_670 // 20 and "jump" not in {pairs[index][0] for index in held_out}


def test_one_pair_many_times_cannot_be_cut_in_two(config):
    for path in config.train_files:
        write(Path(path), ["again"] * 50)
    with pytest.raises(UserError, match="train has one pair, 50 times"):
        load_corpus(config)


def test_untouched_files_are_not_read_again(config, monkeypatch):
    first = load_corpus(config)
    monkeypatch.setattr(corpora_module, "survey", None)
    monkeypatch.setattr(corpora_module, "write", None)
    second = load_corpus(config)
    assert second.fingerprint == first.fingerprint and second.notes == first.notes
    assert everything(second.split("train")) == everything(first.split("train"))


def test_touched_files_are_read_but_not_prepared_again(config, tmp_path, monkeypatch):
    first = load_corpus(config)
    (tmp_path / "train.de").touch()
    monkeypatch.setattr(corpora_module, "write", None)
    assert load_corpus(config).fingerprint == first.fingerprint


def test_changed_text_is_prepared_again_even_if_size_and_time_are_as_before(config, tmp_path):
    lines = [f"de {number}" for number in range(40)]
    write(tmp_path / "train.de", lines)
    (tmp_path / "train.de").touch()
    first = load_corpus(config)
    time = (tmp_path / "train.de").stat().st_mtime_ns
    write(tmp_path / "train.de", lines[::-1])
    os.utime(tmp_path / "train.de", ns=(time, time))
    second = load_corpus(config)
    assert second.fingerprint != first.fingerprint
    assert ("de 39", "en 0") in everything(second.split("train")) + everything(second.split("validation"))


FILES = [
    "pairs-train.array_record-00000-of-00001",
    "pairs-validation.array_record-00000-of-00001",
    "dataset_info.json",
    "features.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["one bit", "half", "nothing", "missing", "a folder"])
def test_a_damaged_dataset_is_prepared_again_and_said(config, name, damage):
    first = load_corpus(config)
    wanted = {split: everything(first.split(split)) for split in first.splits}
    (path,) = Path(config.data_dir).glob(f"pairs/*/*/{name}")
    content = path.read_bytes()
    if damage == "one bit":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif damage in ("half", "nothing"):
        path.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with pytest.warns(UserWarning, match=f"{path.parents[1]} was damaged .*made again") as said:
        again = load_corpus(config)
    assert len(said) == 1
    assert {split: everything(again.split(split)) for split in again.splits} == wanted
    assert (again.fingerprint, again.notes) == (first.fingerprint, first.notes)
    load_corpus(config)  # says nothing


def test_a_file_that_is_damaged_while_it_is_in_use_is_told(config):
    split = load_corpus(config).split("train")
    (path,) = Path(config.data_dir).glob(f"pairs/*/*/{FILES[0]}")
    path.write_bytes(path.read_bytes()[:-70_000].replace(b"de", b"\xff\xff"))
    with pytest.raises(UserError, match=rf"{path} can no longer be read"):
        split.read(0, 40)


@pytest.mark.parametrize("damage", ["swapped", "empty", "a file", "a link to nothing"])
def test_a_dataset_in_which_splits_are_swapped_or_that_is_no_folder_is_prepared_again(config, damage):
    first = load_corpus(config)
    wanted = {split: everything(first.split(split)) for split in first.splits}
    folder = Path(config.data_dir) / "pairs" / first.fingerprint
    if damage == "swapped":
        train, validation = (next(folder.glob(f"*/{name}")) for name in FILES[:2])
        train.rename(folder / "away")
        validation.rename(train)
        (folder / "away").rename(validation)
    else:
        shutil.rmtree(folder)
        if damage == "empty":
            folder.mkdir()
        elif damage == "a file":
            folder.touch()
        else:
            folder.symlink_to(folder.parent / "gone")
    with pytest.warns(UserWarning, match="made again"):
        again = load_corpus(config)
    assert {split: everything(again.split(split)) for split in again.splits} == wanted


def test_a_damaged_index_is_not_believed(config, tmp_path):
    def index():
        (path,) = (tmp_path / "prepared" / "pairs" / "index").iterdir()
        return path

    first = load_corpus(config)
    text = index().read_text()
    other = load_corpus(replace(config, data_dir=str(tmp_path / "other"), train_files=config.train_files[::-1]))
    assert other.fingerprint != first.fingerprint
    (tmp_path / "other" / "pairs" / other.fingerprint).rename(tmp_path / "prepared" / "pairs" / other.fingerprint)
    (others,) = (tmp_path / "other" / "pairs" / "index").iterdir()
    damaged = [
        text.replace(first.fingerprint, other.fingerprint),
        text.replace("38", "37"),
        text.replace("validation", "validatiom"),
        others.read_text(),  # of other files
        "",
        "[" * 100_000,
    ]
    for content in damaged:
        index().write_text(content)
        with pytest.warns(UserWarning, match=f"{index()} is damaged: the text is read again"):
            again = load_corpus(config)
        assert (again.fingerprint, again.notes) == (first.fingerprint, first.notes)
        assert index().read_text() == text
    path = index()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="is damaged"):
        load_corpus(config)
    assert path.read_text() == text


@pytest.mark.parametrize("place", ["", "pairs", "pairs/index"])
@pytest.mark.parametrize("obstacle", ["file", "link to nothing"])
def test_something_in_the_way_is_named_before_any_text_is_read(config, monkeypatch, place, obstacle):
    path = Path(config.data_dir, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch() if obstacle == "file" else path.symlink_to(path.with_name("gone"))
    monkeypatch.setattr(corpora_module, "survey", None)
    with pytest.raises(UserError, match=rf"{path} is a {obstacle}\. Move it away, or set data\.data_dir"):
        load_corpus(config)


def test_files_on_disk_choose_no_code(config, tmp_path, monkeypatch):
    corpus = load_corpus(config)
    (tmp_path / "chosen_by_data.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "prepared" / "pairs" / corpus.fingerprint
    for path in folder.glob("*/*.json"):
        path.write_text(path.read_text().replace("tensorflow_datasets.core.features", "chosen_by_data"))
    write_checksums(folder, folder.name)  # by somebody who knows how
    assert everything(load_corpus(config).split("train")) == everything(corpus.split("train"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "a" * 300, "~no such user/a"])
@pytest.mark.parametrize("field", ["data_dir", "train_files", "corpus"])
def test_names_that_no_file_can_have_are_told(config, name, field):
    values = {"data_dir": name, "train_files": (name, config.train_files[1]), "corpus": f"files:{name}"}
    settings = {field: values[field]} | ({"train_files": None} if field == "corpus" else {})
    with pytest.raises(UserError, match=f"data.{field}.*(holds a NUL|not UTF-8 text|too long|no such user)"):
        load_corpus(replace(config, **settings))


def test_one_pair_cannot_be_cut_in_two(config, tmp_path):
    for column in ("de", "en"):
        write(tmp_path / f"train.{column}", ["alone"])
    with pytest.raises(UserError, match="train has one pair"):
        load_corpus(config)


def test_an_unknown_split_names_those_there_are(config):
    with pytest.raises(UserError, match="no split tset; it has train, validation"):
        load_corpus(config).split("tset")


@pytest.mark.parametrize("where", ["before", "while writing"])
def test_a_full_disk_is_one_message_and_leaves_nothing(config, tmp_path, monkeypatch, where):
    if where == "before":
        usage = prepare.shutil.disk_usage(tmp_path)._replace(free=100)
        monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr(prepare, "ArrayRecordWriter", FullDisk)
    with pytest.raises(UserError, match=r"No space left on the disk of .*set data\.data_dir"):
        load_corpus(config)
    assert [path for path in (tmp_path / "prepared").rglob("*") if not path.is_dir()] == []
    assert list((tmp_path / "prepared").rglob("*.partial")) == []


class FullDisk:
    """Fails as ArrayRecord's writer does."""

    def __init__(self, path, options):
        with open(path, "wb") as file:
            file.write(b"half")

    def write(self, record):
        raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing it; at byte 4")


def test_a_folder_that_cannot_be_made_is_one_message(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no folder .*: .*/file is a file\..*set data\.data_dir"):
        load_corpus(DataConfig(train_files=config.train_files, data_dir=str(tmp_path / "file")))


def test_what_is_prepared_is_a_dataset_that_tfds_reads(config, tmp_path):
    corpus = load_corpus(config)
    builder: Any = tfds.builder(f"pairs/{corpus.fingerprint}", data_dir=tmp_path / "prepared")
    examples = builder.as_data_source("train[:50%]")
    assert len(examples) == 19
    assert [(e["source"].decode(), e["target"].decode()) for e in examples] == everything(corpus.split("train"))[:19]


def test_a_pair_is_the_same_bytes_in_every_process(config):
    """Of a message's two fields either may be the first, as a process happens to hash them."""
    load_corpus(config)
    (path,) = Path(config.data_dir).glob(f"pairs/*/*/{FILES[0]}")
    content = path.read_bytes()
    places = [[found.start() for found in re.finditer(name, content)] for name in (b"source", b"target")]
    assert len(places[0]) == 38 and all(source < target for source, target in zip(*places, strict=True))


def test_progress_counts_every_pair(config):
    calls = []
    load_corpus(config, progress=lambda *call: calls.append(call))
    assert calls == [("reading train", 40, None), ("preparing train", 40, 40)]


def test_the_scan_corpus_is_prepared_without_any_file(tmp_path, capfd):
    corpus = load_corpus(DataConfig(corpus="scan/simple", data_dir=str(tmp_path)))
    assert (corpus.source, corpus.target) == ("commands", "actions")
    assert {name: len(split) for name, split in corpus.splits.items()} == {
        "train": 16_728 - 836,
        "validation": 836,
        "test": 4_182,
    }
    assert capfd.readouterr() == ("", "")


def test_reading_ends_where_the_split_does(config):
    split = load_corpus(config).split("train")
    pairs = everything(split)
    assert len(pairs) == len(split) == 38
    for start, stop in ((0, 1), (30, 38), (30, 99), (38, 40), (7, 7), (0, 0)):
        assert list(zip(*split.read(start, stop), strict=True)) == pairs[start:stop]


def test_splits_can_be_sent_to_another_process(config):
    split = load_corpus(config).split("train")
    assert everything(pickle.loads(pickle.dumps(split))) == everything(split)
