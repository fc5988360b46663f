"""Lint, format and types, so that `pytest` alone checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["ty", "check", "--python", sys.prefix, "--error-on-warning"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_is_clean(command):
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
