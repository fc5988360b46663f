import socket
import struct
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import lazy_imports_utils

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.corpora.registered import read_tfrecords
from seq2seq_jax.errors import UserError


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """A builder of the old style that needs no download."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("de_en", "fr_en")]

    def _info(self):
        source = self.builder_config.name[:2]
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({source: text, "en": text, "id": tfds.features.Scalar(np.int64)})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=(source, "en"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        source = self.builder_config.name[:2]
        for number in range(count):
            yield number, {source: f"{source}\n{number}", "en": f"en {number}", "id": number}


def load(tmp_path, corpus, **settings: Any):
    return load_corpus(DataConfig(corpus=corpus, data_dir=str(tmp_path / "prepared"), **settings))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_tfds_name_is_prepared_and_read_by_its_supervised_keys(tmp_path, capfd):
    corpus = load(tmp_path, "tiny_pairs/de_en")
    assert (corpus.source, corpus.target) == ("de", "en")
    assert {name: len(split) for name, split in corpus.splits.items()} == {"train": 30, "validation": 2}
    sources, targets = corpus.split("train").read(0, 30)
    assert sorted(sources) == sorted(f"de {number}" for number in range(30))  # a line break became a blank
    assert [line[3:] for line in sources] == [line[3:] for line in targets]
    assert capfd.readouterr() == ("", "")


def test_one_given_side_turns_the_pair_round(tmp_path):
    corpus = load(tmp_path, "tiny_pairs/fr_en", source="en")
    assert (corpus.source, corpus.target) == ("en", "fr")


def test_columns_that_are_no_text_are_not_offered(tmp_path):
    with pytest.raises(UserError, match="data.source id: there is no such column; tiny_pairs has the columns de, en"):
        load(tmp_path, "tiny_pairs", source="id", target="en")


def test_tfrecord_data_gives_the_same_corpus_as_array_record(tmp_path):
    expected = load(tmp_path, "tiny_pairs/de_en")
    builder: Any = tfds.builder("tiny_pairs/de_en", data_dir=tmp_path / "prepared", file_format="array_record")
    folder = tmp_path / "old" / "tiny_pairs" / "de_en" / "1.2.0"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        name = f"tiny_pairs-{split}.tfrecord-00000-of-00001"
        (folder / name).write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records))
    for name in ("dataset_info.json", "features.json"):
        text = (tmp_path / "prepared" / "tiny_pairs" / "de_en" / "1.2.0" / name).read_text()
        (folder / name).write_text(text.replace("array_record", "tfrecord"))
    corpus = load_corpus(DataConfig(corpus="tiny_pairs/de_en", data_dir=str(tmp_path / "old")))
    assert corpus.fingerprint == expected.fingerprint
    assert any(str(folder) in note for note in corpus.notes)


def test_a_tfrecord_file_that_ends_early_is_told(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(struct.pack("<QI", 5, 0) + b"hello" + bytes(4) + struct.pack("<QI", 5, 0) + b"he")
    records = read_tfrecords(path)
    assert next(records) == b"hello"
    with pytest.raises(UserError, match="ends inside a record"):
        next(records)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("wmt16_translat/de-en", "Did you mean wmt16_translate"),
        ("gigawrod", "Did you mean gigaword"),
        ("scna/length", "Did you mean scan/length"),
        ("tiny_pairs/de_fr", "no configuration de_fr; its configurations are de_en, fr_en. Did you mean"),
        ("tiny_pairs/de_en:9.9.9", "9.9.9"),
        ("no such: thing", "there is no such corpus"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(tmp_path, corpus, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, corpus)


def test_a_folder_without_its_prefix_is_recognised(tmp_path):
    with pytest.raises(UserError, match=f"Did you mean files:{tmp_path}"):
        load(tmp_path, str(tmp_path))


@pytest.mark.parametrize("corpus", ["wmt16_translate/de-en", "ted_hrlr_translate/pt_to_en", "cfq"])
def test_without_a_network_nothing_is_tried_and_nothing_left(tmp_path, corpus, capfd):
    with pytest.raises(UserError, match="is not on this machine, and no network reaches"):
        load(tmp_path, corpus)
    assert list(tmp_path.rglob("*")) == [] and capfd.readouterr() == ("", "")


def test_archives_are_opened_without_tensorflow(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("inner/train.txt", "eins one\nzwei two\ndrei three\n")

    def extract(self, dl_manager):
        return {"train": read(dl_manager.extract(tmp_path / "text.zip") / "inner" / "train.txt")}

    def read(path):
        with lazy_imports_utils.tensorflow.io.gfile.GFile(path) as file:  # as builders do
            for number, line in enumerate(file):
                yield number, dict(zip(("de", "en"), line.split(), strict=True)) | {"id": number}

    monkeypatch.setattr(TinyPairs, "_split_generators", extract)
    corpus = load(tmp_path, "tiny_pairs/de_en")
    assert sum(len(split) for split in corpus.splits.values()) == 3
    assert "tensorflow" not in sys.modules


def test_what_a_builder_says_when_it_fails_is_passed_on(tmp_path, monkeypatch):
    def fail(self, dl_manager):
        raise ConnectionError("the server went away")

    monkeypatch.setattr(TinyPairs, "_split_generators", fail)
    with pytest.raises(UserError, match="tiny_pairs: TFDS could not prepare it: the server went away"):
        load(tmp_path, "tiny_pairs/de_en")
    assert not list(tmp_path.rglob("*.array_record*"))
