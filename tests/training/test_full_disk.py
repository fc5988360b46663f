"""A disk that fills while a command writes: one message that names the file, and the same command goes on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from seq2seq_jax import cli
from seq2seq_jax.config import to_json
from seq2seq_jax.training import loop
from seq2seq_jax.translator import load
from tests.conftest import REPOSITORY, Disk
from tests.tiny import rows, tiny_config

CONFIG = """
from pathlib import Path
from seq2seq_jax.config import from_json


def get_config():
    return from_json(Path({path!r}).read_text())
"""
AT = 23
"""Steps that are taken before the disk is full: the save at step 20 has waited for that at step 10."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def config_file(folder: Path) -> Path:
    length = {"num_steps": 60, "evaluate_every": 20, "checkpoint_every": 10, "log_every": 1, "decode_sentences": 0}
    (folder / "config.json").write_text(to_json(tiny_config(folder / "corpus", train=length)))
    (folder / "config.py").write_text(CONFIG.format(path=str(folder / "config.json")))
    return folder / "config.py"


@pytest.fixture(scope="module", autouse=True)
def configured(compiled: None) -> Iterator[None]:
    """JAX is configured already, with a place for programs that stays."""
    with mock.patch.object(cli, "_configure_jax"):
        yield


@pytest.fixture
def command(config_file: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Gives a command; returns its exit code, and what it says on standard error."""

    def give(*words: str | Path) -> tuple[int, str]:
        code = cli.main(list(map(str, words)))
        return code, capfd.readouterr().err

    return give


@pytest.fixture(scope="module")
def unbroken(folder: Path, config_file: Path) -> Path:
    assert cli.main(["train", "--config", str(config_file), "--workdir", str(folder / "unbroken")]) == 0
    return folder / "unbroken"


def check_same(workdir: Path, unbroken: Path) -> None:
    """Rows, outputs and parameters of a run are those of the unbroken one."""
    assert rows(workdir) == rows(unbroken)
    hypotheses = Path("evaluations") / "test.hypotheses.txt"
    assert (workdir / hypotheses).read_bytes() == (unbroken / hypotheses).read_bytes()
    pairs = zip(*(jax.tree.leaves(load(run).params) for run in (workdir, unbroken)), strict=True)
    assert all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in pairs)
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name or "partial" in path.name]


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "evaluations"])
def test_a_disk_that_fills_during_a_training_is_told_and_costs_no_bits(
    command, config_file, unbroken, tmp_path, monkeypatch, disk: Disk, name
):
    """One of the run's files lies on a disk of its own, so that it is the one for which there is no room."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    if name == "metrics.jsonl":
        (disk.path / name).touch()
    else:
        (disk.path / name).mkdir()
    (workdir / name).symlink_to(disk.path / name)
    batches = loop.training_batches

    def filling(*arguments: object) -> Iterator[object]:
        for step, batch in enumerate(batches(*arguments)):
            if step == AT:
                disk.fill()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_batches", filling)
        code, told = command("train", "--config", config_file, "--workdir", workdir)
    assert code == 2 and told.startswith("error: No space left on ") and told.count("\n") == 1
    assert str(workdir / name) in told and "same command" in told
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert kept[-1] >= 10 and load(workdir).step in kept
    disk.free()
    assert command("train", "--config", config_file, "--workdir", workdir) == (0, "")
    check_same(workdir, unbroken)


def test_a_full_disk_of_the_cache_is_told_and_the_same_command_trains(
    command, config_file, unbroken, tmp_path, monkeypatch, disk: Disk
):
    monkeypatch.setenv("SEQ2SEQ_JAX_CACHE", str(disk.path / "cache"))
    disk.fill()
    code, told = command("train", "--config", config_file, "--workdir", tmp_path / "run")
    assert code == 2 and told.startswith(f"error: No space left on the disk of {disk.path}")
    assert "set SEQ2SEQ_JAX_CACHE" in told and not (tmp_path / "run").exists()
    disk.free()
    assert command("train", "--config", config_file, "--workdir", tmp_path / "run") == (0, "")
    check_same(tmp_path / "run", unbroken)


def test_a_full_disk_of_translations_is_told_and_the_file_of_before_stays(command, unbroken, tmp_path, disk: Disk):
    (tmp_path / "in").write_text("ant bee\n" * 500)
    (disk.path / "out").write_text("of before\n")
    disk.fill()
    words = ("translate", "--workdir", unbroken, "--input", tmp_path / "in", "--output", disk.path / "out")
    code, told = command(*words)
    assert code == 2 and told == (
        f"error: No space left on device: {disk.path / 'out'}. What was saved before is kept; mend this and give the"
        " same command again.\n"
    )
    assert (disk.path / "out").read_text() == "of before\n"
    assert sorted(os.listdir(disk.path)) == ["filler", "out"]
    disk.free()
    assert command(*words) == (0, "")
    assert (disk.path / "out").read_text().count("\n") == 500


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["--version"], ["translate", "--workdir", "RUN"]], ids=" ".join)
def test_standard_output_on_a_full_disk_is_told(unbroken, words):
    program = [sys.executable, "-m", "seq2seq_jax", *(word.replace("RUN", str(unbroken)) for word in words)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(program, input=b"ant\n" * 9, stdout=full, stderr=subprocess.PIPE, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("error: No space left on device: standard output. ")
