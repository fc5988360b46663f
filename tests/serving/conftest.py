"""Models to be served, their largest programs compiled; tests change nothing in them."""

from pathlib import Path

import pytest

from seq2seq_jax.serving.model import Model
from seq2seq_jax.translator import Translator, load
from tests.serving.random_models import random_translator
from tests.tiny import sentences


def prepared(translator: Translator) -> Model:
    model = Model(translator, max_tokens=None)
    model.programs.compile_first(lambda: None)
    return model


@pytest.fixture(scope="session")
def model(trained: Path) -> Model:
    """The trained one of the tiny task."""
    return prepared(load(trained))


@pytest.fixture(scope="session")
def dialogue() -> Model:
    """Reads two turns before a text."""
    lines = sentences(20, seed=1)
    data = {"corpus": "files:.", "turns": "turn", "context_turns": 2, "vocabulary": "words", "joint_vocabulary": True}
    return prepared(random_translator(lines, lines[::-1], data=data | {"max_length": 7}, decode={"beam_size": 3}))


@pytest.fixture(scope="session")
def tagged() -> Model:
    """Reads tags behind a text."""
    data = {"corpus": "files:.", "columns": ("lemma", "form", "tags"), "source": "lemma", "target": "form"}
    data |= {"features": "tags", "vocabulary": "words"}
    sources = [f"{line}\t{tags}" for line, tags in zip(sentences(10, seed=1), ("V;PST", "N;PL") * 5, strict=True)]
    return prepared(random_translator(sources, sentences(10, seed=2), data=data, decode={"beam_size": 2}))
