"""What docs/report.md shows is run, and what it lists is there."""

import re
import shlex
import shutil
from typing import Any

import pytest

from seq2seq_jax import cli
from seq2seq_jax.reporting.charts import MOST_POINTS
from seq2seq_jax.reporting.runs import MOST_COUNTED
from seq2seq_jax.reporting.sentences import LONGEST_MAP, NUM_SAMPLES
from seq2seq_jax.reporting.statistics import MOST_RESAMPLED


@pytest.fixture
def text(repository, trained, tmp_path, monkeypatch) -> str:
    """The text; the working directory has the runs that it names."""
    for name in ("mine", "other"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return (repository / "docs" / "report.md").read_text()


def test_its_commands_write_the_pages_that_it_says(text, tmp_path):
    commands = [shlex.split(line)[3:] for line in text.splitlines() if line.startswith("python -m seq2seq_jax ")]
    assert len(commands) == 3
    for words in commands[:2]:
        assert cli.main(words) == 0
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names: dict[str, Any] = {"__name__": "report"}
    exec(compile(program, "docs/report.md", "exec"), names)
    both = (tmp_path / "both.html").read_text()
    assert names["path"].read_text() == both and (tmp_path / "runs" / "mine" / "report.html").exists()
    listed = re.findall(r"^\* \*\*(.*?)\*\*", text, re.M)
    sections = re.findall(r"<h2>([^<(]*?)(?: \([^<]*)?</h2>", both)
    assert sorted([*listed, "Environment"]) == sorted(sections)


def test_its_numbers_are_those_of_the_code(text):
    words = re.sub(r"\s+", " ", text)
    for said in (
        f"more than {MOST_POINTS} rows",
        f"more than {LONGEST_MAP} tokens",
        f"more than {MOST_COUNTED:,} pairs",
    ):
        assert said in words
    assert f"more than {MOST_RESAMPLED:,} sentences" in words and "five sentences" in words and NUM_SAMPLES == 5
