import errno
import os
import pickle
from typing import Any

import pytest
import tensorflow_datasets as tfds

import seq2seq_jax.data.corpora as corpora_module
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora import load_corpus, prepare
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
    with pytest.raises(UserError, match=r"Cannot write .*file.*set data\.data_dir"):
        load_corpus(DataConfig(train_files=config.train_files, data_dir=str(tmp_path / "file")))


def test_what_is_prepared_is_a_dataset_that_tfds_reads(config, tmp_path):
    corpus = load_corpus(config)
    builder: Any = tfds.builder(f"pairs/{corpus.fingerprint}", data_dir=tmp_path / "prepared")
    examples = builder.as_data_source("train[:50%]")
    assert len(examples) == 19
    assert [(e["source"].decode(), e["target"].decode()) for e in examples] == everything(corpus.split("train"))[:19]


def test_progress_counts_every_pair(config):
    calls = []
    load_corpus(config, progress=lambda *call: calls.append(call))
    assert calls == [("reading train", 40, None), ("preparing train", 40, 40)]


def test_scan_is_prepared_without_any_file(tmp_path, capfd):
    corpus = load_corpus(DataConfig(corpus="scan/simple", data_dir=str(tmp_path)))
    assert (corpus.source, corpus.target) == ("commands", "actions")
    assert {name: len(split) for name, split in corpus.splits.items()} == {
        "train": 16_728 - 836,
        "validation": 836,
        "test": 4_182,
    }
    assert capfd.readouterr() == ("", "")


def test_splits_can_be_sent_to_another_process(config):
    split = load_corpus(config).split("train")
    assert everything(pickle.loads(pickle.dumps(split))) == everything(split)
