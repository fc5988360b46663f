import errno
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from seq2seq_jax import run_directory
from seq2seq_jax.config import Config, DataConfig, ModelConfig, from_json
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import (
    Origin,
    check_is_free,
    check_origin,
    check_text,
    claim,
    is_claimed,
    locked,
    members,
    read_config,
    with_absolute_paths,
    write_fingerprint,
)
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


# several seeds


def note(folder: Path, *tested: bool) -> Path:
    """A note of what became of seeds 5 and so on: whether each was tested."""
    seeds = [{"seed": 5 + index, "scores": {"test": {}} if each else {}} for index, each in enumerate(tested)]
    folder.mkdir()
    (folder / "reproduction.json").write_text(json.dumps({"seeds": seeds}))
    return folder


def test_a_directory_of_seeds_stands_for_those_that_were_tested(tmp_path):
    one, all_of_them, some = tmp_path / "one", note(tmp_path / "all", True, True), note(tmp_path / "some", False, True)
    assert members([one, all_of_them]) == (one, all_of_them / "seeds" / "0", all_of_them / "seeds" / "1")
    with pytest.warns(UserWarning, match=f"^Seed 5 of {some} had diverged and is left out of the ensemble"):
        assert members([some, one]) == (some / "seeds" / "1", one)
    assert members([]) == ()


def test_a_directory_whose_seeds_have_all_diverged_or_whose_note_is_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match="All seeds of .*hopeless have diverged, see .*reproduction.json"):
        members([note(tmp_path / "hopeless", False, False)])
    for number, content in enumerate([b"", b"{", b"\xff", b"[]", b"{}", b'{"seeds": [1]}', b'{"seeds": null}']):
        folder = note(tmp_path / str(number), True)
        (folder / "reproduction.json").write_bytes(content)
        with pytest.raises(UserError, match=r"reproduction.json is damaged \(\w+\). The command reproduce"):
            members([folder])


@pytest.mark.parametrize(
    ("kept", "here", "message"),
    [
        ({"seeds_together": 3}, 4, "holds 3 seeds, and --num-seeds is 4. Give --num-seeds 3"),
        ({"seeds_together": 1}, 2, "holds 1 seed, and --num-seeds is 2. Give --num-seeds 1"),
        ({"seeds_together": 1}, None, "holds 1 seed, which the command reproduce trains"),
        ({"seeds_together": None}, 1, "is of a run by itself, and not of 1 seed. Choose another"),
        ({"num_seeds": 3}, None, "holds 3 seeds, which the command reproduce trains"),  # by an earlier version
        ({"num_seeds": 1}, 1, "is of a run by itself, and not of 1 seed."),
        ({}, 2, "is of a run by itself, and not of 2 seeds."),
        ({"num_seeds": 3}, 3, None),
        ({"num_seeds": 1}, None, None),
        ({"seeds_together": 1}, 1, None),
        ({}, None, None),
    ],
)
def test_checkpoints_of_one_run_and_of_seeds_are_told_apart(tmp_path, kept, here, message):
    origin = Origin(tiny_config(tmp_path / "corpus"), "source", "target", "text", here)
    kept = {name: value for name, value in origin.as_json().items() if name != "seeds_together"} | kept
    if message is None:
        check_origin(tmp_path, tmp_path / "5", kept, origin)
        return
    with pytest.raises(UserError, match=message):
        check_origin(tmp_path, tmp_path / "5", kept, origin)


# one training at a time


def in_use(workdir: Path) -> str:
    with pytest.raises(UserError) as refused, locked(workdir):
        pass
    return str(refused.value)


def test_a_run_directory_is_held_by_one_training_which_is_named_to_any_other(tmp_path):
    with locked(tmp_path):
        holder = json.loads((tmp_path / "lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        told = in_use(tmp_path)
        assert f"{tmp_path} is in use: process {os.getpid()} on {socket.gethostname()}" in told
        assert f"since {holder['since']}" in told and "another --workdir" in told
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    """The system has freed it; the file is still there, naming a process that may be anybody's by now."""
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "long ago"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_its_holder_removes_while_it_is_opened_is_no_lock(tmp_path, monkeypatch):
    """Two would hold locks, one of a file that nobody can open any more."""
    original, removed = run_directory.try_lock, []

    def try_lock(descriptor):
        if not removed:
            removed.append((tmp_path / "lock").unlink())
        return original(descriptor)

    monkeypatch.setattr(run_directory, "try_lock", try_lock)
    with locked(tmp_path):
        assert removed and (tmp_path / "lock").exists()
        assert "is in use" in in_use(tmp_path)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def try_lock(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_directory, "try_lock", try_lock)
    with pytest.warns(UserWarning, match=f"file system of {tmp_path} has no locks \\(No locks"), locked(tmp_path):
        pass


def test_a_directory_made_for_a_run_that_never_began_is_removed(tmp_path):
    with locked(tmp_path / "runs" / "mine"):
        assert (tmp_path / "runs" / "mine").is_dir()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "config.json").touch()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["config.json"]


def test_what_stands_in_the_way_of_a_run_directory_is_told(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    assert "run is a link to nothing" in in_use(tmp_path / "run")
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is a file" in in_use(tmp_path / "file" / "run")
    (tmp_path / "other" / "lock").mkdir(parents=True)
    assert "lock is a folder" in in_use(tmp_path / "other")


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    assert f"Nothing may be written in {tmp_path}. Choose another --workdir." in in_use(tmp_path / "run")


# where the text lies


def test_paths_of_a_corpus_become_absolute_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    data = DataConfig("files:data", train_files=("a", "~/b"), test_files=("../c", "/d"), data_dir="prepared")
    found = with_absolute_paths(Config(data=data)).data
    assert found == DataConfig(
        f"files:{tmp_path}/data",
        train_files=(f"{tmp_path}/a", "/home/me/b"),
        test_files=(f"{tmp_path.parent}/c", "/d"),
        data_dir=f"{tmp_path}/prepared",
    )
    for data in (DataConfig("scan/simple"), DataConfig("wmt16_translate/de-en", data_dir="/prepared")):
        assert with_absolute_paths(Config(data=data)).data == data


def test_files_of_vectors_become_absolute_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(source_vectors="a/vectors.txt", target_vectors="/b/vectors.txt")
    found = with_absolute_paths(Config(model=model)).model
    assert found == replace(model, source_vectors=str(tmp_path / "a" / "vectors.txt"))
    assert with_absolute_paths(Config()) == Config()


def test_a_run_is_the_same_wherever_its_text_lies(tmp_path):
    for here, there in (
        (DataConfig("files:/a/data", data_dir="/a"), DataConfig("files:/b", data_dir="/b")),
        (DataConfig(train_files=("a", "b")), DataConfig(train_files=("c", "d"))),
    ):
        claim(tmp_path, Config(data=here))
        check_is_free(tmp_path, Config(data=there))
        write_fingerprint(tmp_path, "hash")
        check_text(tmp_path, Config(data=there), "name", "hash", "")


def test_other_corpora_are_another_run(tmp_path):
    claim(tmp_path, Config(data=DataConfig("files:/a")))
    for other in (DataConfig("scan/simple"), DataConfig("files:/a", train_files=("a", "b"))):
        with pytest.raises(UserError, match="another configuration"):
            check_is_free(tmp_path, Config(data=other))


def test_other_text_is_refused_with_where_it_was_read_then_and_now(tmp_path):
    claim(tmp_path, Config(data=DataConfig("files:/a")))
    write_fingerprint(tmp_path, "old")
    with pytest.raises(UserError) as refused:
        check_text(tmp_path, Config(data=DataConfig("files:/b")), "files:/b", "new", "do this.")
    told = str(refused.value)
    assert f"The text of files:/b is no longer the one that {tmp_path} was trained on; do this." in told
    assert "data.corpus: 'files:/a' -> 'files:/b'" in told


def test_without_a_note_of_the_text_it_is_taken_for_the_same_only_where_it_lies(tmp_path):
    """A run of an older version."""
    claim(tmp_path, Config(data=DataConfig("files:/a")))
    check_text(tmp_path, Config(data=DataConfig("files:/a")), "files:/a", "any", "")
    with pytest.raises(UserError, match="no longer"):
        check_text(tmp_path, Config(data=DataConfig("files:/b")), "files:/b", "any", "")


# its configuration


def test_another_configuration_is_refused_naming_every_field_that_differs(tmp_path):
    claim(tmp_path, tiny_config(tmp_path / "corpus"))
    other = tiny_config(tmp_path / "corpus", model={"hidden_size": 32}, train={"seed": 7})
    with pytest.raises(UserError) as refused:
        check_is_free(tmp_path, other)
    told = str(refused.value)
    assert "model.hidden_size: 16 -> 32" in told and "train.seed: 0 -> 7" in told and "--workdir" in told
    assert told.count(" -> ") == 3  # these two and the legend
    assert from_json((tmp_path / "config.json").read_text()) == tiny_config(tmp_path / "corpus")


def test_a_run_may_go_on_on_other_devices(tmp_path):
    claim(tmp_path, tiny_config(tmp_path / "corpus"))
    check_is_free(tmp_path, tiny_config(tmp_path / "corpus", mesh={"data": 2, "fsdp": 4}))


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
        (b"[" * 100_000, "recursion"),
    ],
    ids=range(5),
)
def test_a_damaged_configuration_is_told_with_its_file(tmp_path, content, told):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_config(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'config.json'}: ") and told in str(refused.value)
    assert "or remove it and give the command that trained the run again" in str(refused.value)


def test_a_folder_in_the_place_of_the_configuration_is_told(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/config.json: it is a folder"):
        read_config(tmp_path)


def test_a_run_of_an_older_version_without_a_new_field_gets_its_default(tmp_path):
    config = tiny_config(tmp_path / "corpus")
    claim(tmp_path, config)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["checksum"]
    del values["optimizer"]["momentum"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == config


def test_a_place_where_the_system_lets_nobody_make_a_folder_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # as /proc does, whatever it says of permissions
    with pytest.raises(UserError, match=r"run cannot be made \(No such file or directory\). Choose another --workdir"):
        with locked(tmp_path / "run"):
            pass
