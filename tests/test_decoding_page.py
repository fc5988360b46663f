"""What docs/decoding.md shows is run, on a model of the tiny task."""

import json
import re
import shlex
import shutil
from dataclasses import fields
from typing import Any

import pytest

import seq2seq_jax
from seq2seq_jax import cli
from seq2seq_jax.config import DecodeConfig


@pytest.fixture
def page(repository, trained, tmp_path, monkeypatch) -> str:
    """The page; the working directory has what its commands name."""
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    shutil.copytree(trained, tmp_path / "runs" / "other")
    for name, text in {
        "new.txt": "ant bee cat\ndog\n\n",
        "begin.txt": "HEN\n\n\n",
        "terms.txt": "BEE\tHEN HEN\n\n\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return (repository / "docs" / "decoding.md").read_text()


def commands(page: str) -> list[list[str]]:
    found = [shlex.split(line) for line in page.splitlines() if line.startswith("python -m seq2seq_jax ")]
    return [words[3:] for words in found]


def test_its_commands_run(page, tmp_path, capfdbinary):
    outputs = []
    for words in commands(page):
        assert cli.main(words) == 0
        outputs.append(capfdbinary.readouterr().out.decode().splitlines())
    several, drawn, begun, required, objects, aligned, again = outputs
    assert {line.split("\t")[0] for line in several} == {"1", "2", "3"} == {line.split("\t")[0] for line in drawn}
    assert begun[0].startswith("HEN ") and len(begun[1].split()) >= 2 and begun[2] == ""
    assert "BEE" in required[0] and "HEN HEN" in required[0] and required[1:] == ["DOG", ""]
    first = json.loads(objects[0])
    assert first["text"] == "ANT BEE CAT" and len(first["tokens"]) == len(first["log_probs"]) == len(first["alignment"])
    assert aligned == again == ["ANT BEE CAT", "DOG", ""]
    links = (tmp_path / "links.txt").read_text().split("\n")
    assert len(links) == 4 and re.fullmatch(r"(\d-\d ?)+", links[0]) and links[2] == ""


def test_every_setting_it_names_exists_and_none_is_missing(page):
    named = {name.replace("-", "_") for name in re.findall(r"--decode\.([a-z-]+)", page)}
    known = {field.name for field in fields(DecodeConfig)}
    assert named <= known
    assert known - named <= {"batch_size", "ensemble", "max_length_ratio"}  # told in README


def test_its_python_runs(page):
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names: dict[str, Any] = {"seq2seq_jax": seq2seq_jax}
    exec(compile(program, "docs/decoding.md", "exec"), names)
    begun, required = (str(names[name].text) for name in ("begun", "required"))
    assert begun.startswith("ANT") and {"CAT", "HEN"} <= set(required.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--prefix-file", "begin.txt", "--input", "short.txt"],
            "begin.txt has 3 lines, and short.txt 1; it needs a line",
        ),
        (
            ["--prefix-file", "short.txt", "--input", "new.txt"],
            "short.txt has 1 line, and new.txt more; it needs a line",
        ),
        (["--required-file", "nowhere.txt", "--input", "new.txt"], "nowhere.txt"),
        (["--alignments", "a", "--num-best", "2", "--input", "new.txt"], "--alignments are of the best output"),
        (["--rerank", "runs/nobody", "--input", "new.txt"], "runs/nobody"),
        (["--rerank", "runs/other", "--rerank-weight", "2", "--input", "new.txt"], "must be from 0 to 1, got 2.0"),
        (
            ["--rerank", "runs/other", "--decode.beam-size", "1", "--input", "new.txt"],
            "set --decode.beam-size 2 or more",
        ),
        (["--alignments", "new.txt", "--input", "new.txt"], "new.txt"),
        (["--decode.temperature", "2", "--input", "new.txt"], "it goes with decode.sample True"),
        (["--prefix-file", "zebra.txt", "--input", "short.txt"], "The prefix of line 1, 'ZEBRA', has symbols"),
    ],
)
def test_mistakes_are_told_in_one_message(page, tmp_path, capfd, options, message):
    (tmp_path / "short.txt").write_text("ant\n")
    (tmp_path / "zebra.txt").write_text("ZEBRA\n")
    assert cli.main(["translate", "--workdir", "runs/mine", *options]) == 2
    assert message in capfd.readouterr().err
    assert (tmp_path / "new.txt").read_text() == "ant bee cat\ndog\n\n"
