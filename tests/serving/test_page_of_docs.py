"""What docs/serving.md shows is run, on a server of the tiny task; what it lists is there."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.requests import FIELDS
from tests.serving.clients import events, started

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "serving.md").read_text()


@pytest.fixture(scope="module")
def address(trained: Path):
    with started(trained) as server:
        yield server.url


def shown(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.M | re.S)


def rows(page: str, title: str) -> list[list[str]]:
    """The rows of the table that follows these words."""
    (table,) = re.findall(rf"^\| {re.escape(title)} \|.*?\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_its_curl_commands_are_answered_with_the_fields_it_shows(page, address):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    commands = [line for line in page.splitlines() if line.startswith("curl ")]
    answers = []
    for command in commands:
        words = shlex.split(command.replace(ADDRESS, address))
        answers.append(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)
    alone, several, streamed, health, model, metrics = answers
    assert json.loads(alone).keys() - {"warnings"} == json.loads(shown(page, "json")[0]).keys()
    for found in json.loads(several)["translations"]:
        assert len(found["hypotheses"]) == 2
    *parts, last = events(streamed)
    *parts_shown, last_shown = events(shown(page, "text")[0] + "\n")
    assert {*map(frozenset, parts)} <= {*map(frozenset, parts_shown)} and last.keys() - {
        "warnings"
    } == last_shown.keys()
    assert json.loads(health)["status"] == "ok" and json.loads(model)["max_texts"] == 64
    for name in set().union(*(names(row[0]) for row in rows(page, "name"))) - {"process_resident_memory_bytes"}:
        assert re.search(rf"^{name}(_count|{{| )", metrics, re.M), name


def test_its_python_runs(page, address, capsys):
    (program,) = shown(page, "python")
    exec(compile(program.replace(ADDRESS, address), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[")


def test_the_fields_it_lists_are_those_there_are(page, address):
    assert set().union(*(names(row[0]) for row in rows(page, "field of a request"))) == set(FIELDS)
    asked = {"text": "ant zebra", "num_best": 2, "details": True}
    found = httpx.post(f"{address}/translate", json=asked, timeout=60).json()
    assert set().union(*(names(row[0]) for row in rows(page, "field of an answer"))) == set(found)


def test_the_limits_it_lists_are_those_there_are(page):
    found = {next(iter(names(row[0]))): row[1] for row in rows(page, "option")}
    known = {f"--{field.name.replace('_', '-')}": field.default for field in fields(Limits)}
    assert found.keys() == known.keys()
    for name, default in known.items():
        assert default is None or float(found[name].replace(",", "")) == default, name
