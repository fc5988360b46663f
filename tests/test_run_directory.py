import json
import os
from pathlib import Path

import pytest

from seq2seq_jax.config import from_json
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import check_is_free, claim, existing_folder, is_claimed, read_config
from tests.tiny import tiny_config


def test_a_new_directory_gets_the_configuration_and_gives_it_back(tmp_path):
    config = tiny_config(tmp_path / "corpus")
    claim(tmp_path / "runs" / "mine", config)
    assert read_config(tmp_path / "runs" / "mine") == config
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["config.json"]


def test_a_directory_is_free_for_any_run_until_claimed_and_for_the_same_one_afterwards(tmp_path):
    config = tiny_config(tmp_path / "corpus")
    check_is_free(tmp_path, config)
    assert not is_claimed(tmp_path)
    claim(tmp_path, config)
    assert is_claimed(tmp_path)
    check_is_free(tmp_path, config)


def test_a_folder_still_to_be_made_is_looked_for_above(tmp_path, monkeypatch):
    assert existing_folder(tmp_path) == existing_folder(tmp_path / "runs" / "mine") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing_folder(Path("runs/mine")) == tmp_path


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="run is a link to nothing"):
        check_is_free(tmp_path / "run", tiny_config(tmp_path / "corpus"))


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(UserError, match=f"Nothing may be written in {tmp_path}. Choose another --workdir."):
        check_is_free(tmp_path / "run", tiny_config(tmp_path / "corpus"))


def test_another_configuration_is_refused_naming_every_field_that_differs(tmp_path):
    claim(tmp_path, tiny_config(tmp_path / "corpus"))
    other = tiny_config(tmp_path / "corpus", model={"hidden_size": 32}, train={"seed": 7})
    with pytest.raises(UserError) as refused:
        check_is_free(tmp_path, other)
    told = str(refused.value)
    assert "model.hidden_size: 16 -> 32" in told and "train.seed: 0 -> 7" in told and "--workdir" in told
    assert told.count(" -> ") == 3  # these two and the legend
    assert from_json((tmp_path / "config.json").read_text()) == tiny_config(tmp_path / "corpus")


def test_a_folder_that_is_no_run_directory_is_told_with_the_nearest_run(tmp_path):
    claim(tmp_path / "german", tiny_config(tmp_path / "corpus"))
    with pytest.raises(UserError, match="germn is not a run directory.* Did you mean .*/german.$"):
        read_config(tmp_path / "germn")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"model": {"cell": "lst', "not a configuration"),
        (b'{"model": {"cel": "lstm"}}', "Unknown config field model.cel. Did you mean model.cell?"),
        (b"\xff\xfe", "codec can't decode"),
        (b"[1, 2]", "must be a group of fields"),
    ],
)
def test_a_damaged_configuration_is_told_with_its_file(tmp_path, content, told):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_config(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'config.json'}: ") and told in str(refused.value)


def test_a_run_of_an_older_version_without_a_new_field_gets_its_default(tmp_path):
    config = tiny_config(tmp_path / "corpus")
    claim(tmp_path, config)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["optimizer"]["momentum"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == config
