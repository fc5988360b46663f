from pathlib import Path

import pytest

from seq2seq_jax.serving.model import Model
from seq2seq_jax.translator import load


@pytest.fixture(scope="session")
def model(trained: Path) -> Model:
    """The model of the tiny task, its largest programs compiled."""
    model = Model(load(trained), max_tokens=None)
    model.programs.compile_first(lambda: None)
    return model
