import json
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
from seq2seq_jax.data.corpora.tfrecords import read_tfrecords
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


@pytest.fixture
def folder(tmp_path):
    """A dataset that was prepared elsewhere, as TFDS leaves it."""
    load(tmp_path, "tiny_pairs/de_en")
    return (tmp_path / "prepared" / "tiny_pairs").rename(tmp_path / "tiny_pairs") / "de_en" / "1.2.0"


def load_from(folder):
    return load_corpus(DataConfig(corpus="tiny_pairs/de_en", data_dir=str(folder.parents[2])))


TRAIN = "tiny_pairs-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dataset_info.json", '"30"', '"29"', rf"{TRAIN} cannot be used: it holds 30 records, .* says 29"),
        ("dataset_info.json", '"30"', '"31"', rf"{TRAIN} cannot be used: it holds 30 records, .* says 31"),
        ("dataset_info.json", '"30"', '"30", "1"', "train.array_record-00000-of-00002 is missing or empty"),
        ("dataset_info.json", '"2"', '"0"', "validation.array_record-00000-of-00001 belongs to no split"),
        ("dataset_info.json", '"validation"', '"test"', "test.array_record-00000-of-00001 is missing or empty"),
        ("dataset_info.json", "{", "[" * 100_000, "cannot be used"),
        ("dataset_info.json", "array_record", "parquet", "its files are of the format parquet"),
        ("dataset_info.json", None, None, "there is no dataset_info.json in it"),
        ("features.json", "{", "", "cannot be used"),
        (
            "features.json",
            "tensorflow_datasets.core.features.text",
            "tensorflow_datasets.scripts",
            "no feature of TFDS",
        ),
        ("features.json", None, None, "cannot be used"),
        (TRAIN, None, None, f"{TRAIN} is missing or empty"),
        (TRAIN, b"de", b"dE", f"{TRAIN} cannot be used"),
    ],
)
def test_a_damaged_dataset_of_tfds_is_told_with_its_folder_before_anything_is_prepared(folder, name, old, new, message):
    path = folder / name
    if old is None:
        path.unlink()
    elif isinstance(old, bytes):
        path.write_bytes(path.read_bytes().replace(old, new, 1))
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"(?s){message}.*Remove {folder}"):
        load_from(folder)
    assert not (folder.parents[2] / "pairs").exists()


@pytest.mark.parametrize("damage", ["half", "empty", "a folder", "a link to nothing"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", TRAIN])
def test_a_file_of_tfds_that_is_none_is_told_with_its_folder(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a link to nothing":
        path.symlink_to("gone")
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    with pytest.raises(UserError, match=rf"(?s)cannot be used.*Remove {folder}"):
        load_from(folder)


def test_an_empty_folder_in_the_place_of_a_dataset_is_filled(tmp_path):
    (tmp_path / "prepared" / "tiny_pairs" / "de_en" / "1.2.0").mkdir(parents=True)
    assert len(load(tmp_path, "tiny_pairs/de_en").split("train")) == 30


@pytest.mark.parametrize("name", ["tiny_pairs", "tiny_pairs/de_en", "tiny_pairs/de_en/1.2.0"])
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path, name):
    path = tmp_path / "prepared" / name
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match=str(path)):
        load(tmp_path, "tiny_pairs/de_en")


def test_a_folder_beside_the_versions_is_none_of_them(folder):
    (folder.parent / "backup").mkdir()
    (folder.parent / "backup" / "dataset_info.json").write_text("{}")
    assert len(load_from(folder).split("train")) == 30


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
@pytest.mark.parametrize("corpus", ["tiny_pairs/de_en", "tiny_pairs/de_en:1.2.0", "made_elsewhere"])
def test_files_of_a_dataset_choose_no_code(folder, monkeypatch, key, corpus):
    root = folder.parents[2]
    (root / "chosen_by_data.py").write_text(f"open({str(root / 'marker')!r}, 'w')\n")
    monkeypatch.syspath_prepend(root)
    if corpus == "made_elsewhere":  # TFDS has no builder of that name
        folder = folder.rename(root / "1.2.0")
        (root / corpus).mkdir()
        folder = folder.rename(root / corpus / "1.2.0")
    evil = {key: "chosen_by_data.Feature", "content": {}} if key == "type" else {key: "chosen_by_data.Feature"}
    (folder / "features.json").write_text(json.dumps(evil))
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "chosen_by_data"}))
    with pytest.raises(UserError, match=f"{folder} cannot be used.*class chosen_by_data.Feature.*Remove {folder}"):
        load_corpus(DataConfig(corpus=corpus, data_dir=str(root)))
    assert not (root / "marker").exists()
    assert tfds.features.FeatureConnector.cls_from_name.__name__ == "cls_from_name"  # TFDS is as it was


def test_every_split_but_train_keeps_its_empty_texts(tmp_path, monkeypatch):
    def generate(self, count):
        for number in range(count):
            yield number, {"de": f"de {number}" if number else "", "en": f"en {number}", "id": number}

    monkeypatch.setattr(TinyPairs, "_generate_examples", generate)
    corpus = load(tmp_path, "tiny_pairs/de_en")
    assert {name: len(split) for name, split in corpus.splits.items()} == {"train": 29, "validation": 2}
    assert corpus.notes[-2:] == (
        "train: 1 of 30 pairs left out, a side of them is empty",
        "validation: 1 of 2 pairs has an empty side and is kept",
    )


def test_text_that_is_not_utf8_is_told_with_its_record(tmp_path, monkeypatch):
    def generate(self, count):
        for number in range(count):
            yield number, {"de": b"f\xfcr", "en": f"en {number}", "id": number}

    monkeypatch.setattr(TinyPairs, "_generate_examples", generate)
    with pytest.raises(UserError, match="record 1: its text is not UTF-8"):
        load(tmp_path, "tiny_pairs/de_en")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("a" * 300, "there is no such corpus"),
        ("~no such user/a", "there is no such corpus"),
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")  # Beam's
def test_a_builder_that_needs_beam_has_it_where_it_is_installed(tmp_path, monkeypatch):
    beam = pytest.importorskip("apache_beam")

    def generate(self, dl_manager):
        rows = [(number, {"id": number, "de": f"d {number}", "en": f"e {number}"}) for number in range(60)]
        return {"train": beam.Create(rows)}

    monkeypatch.setattr(TinyPairs, "_split_generators", generate)
    corpora = [load(tmp_path / place, "tiny_pairs/de_en") for place in "ab"]
    assert corpora[0].fingerprint == corpora[1].fingerprint
    pairs = [pair for split in corpora[0].splits.values() for pair in zip(*split.read(0, 60), strict=True)]
    assert sorted(pairs) == sorted((f"d {number}", f"e {number}") for number in range(60))
