"""The run that the doors lead to, and the count of cases."""

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

import numpy as np
import pytest

from tests.doors.doorway import Doorway, Reached, counts


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many cases were tried at which door."""
    if counts:
        doors = ", ".join(f"{door} {number:,}" for door, number in sorted(counts.items()))
        terminalreporter.write_line(f"doors: {sum(counts.values()):,} cases: {doors}")


@pytest.fixture(scope="session")
def doorway(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Doorway:
    """Where the cases live: `corpus`, the tiny text, and `run`, a copy of the run trained on it."""
    base = tmp_path_factory.mktemp("doors")
    for name in ("corpus", "run"):
        shutil.copytree(trained.parent / name, base / name)
    shutil.rmtree(base / "run" / "evaluations")
    return Doorway(base, watched=[base / "corpus", base / "run"])


@pytest.fixture(scope="module")
def no_training(compiled: None) -> Iterator[None]:
    """`train`, `reproduce`, `plan` end where they would compile: text, vocabularies and batches are there by then."""
    from seq2seq_jax import cli
    from seq2seq_jax.training import loop, reproduction
    from seq2seq_jax.training.costs import planning
    from seq2seq_jax.training.setup import Material

    def stop(*arguments: Any, **_: Any) -> None:
        config, material = arguments[0], next(value for value in arguments if isinstance(value, Material))
        raise Reached((config, material))

    with (
        mock.patch.object(cli, "_configure_jax"),  # as the fixture `compiled` has it
        mock.patch.object(loop, "compile_steps", stop),
        mock.patch.object(reproduction, "compile_steps", stop),
        mock.patch.object(planning, "compile_steps", stop),
    ):
        yield


@pytest.fixture(scope="module")
def paths_only() -> Iterator[None]:
    """Options are paths and nothing else: for where the command line is not the matter, for tyro takes 30 ms."""
    from seq2seq_jax import cli

    def parse(cls: type, given: Sequence[Any], *, default: Any, prog: str) -> Any:
        values: dict[str, Any] = {option.name.replace("-", "_"): Path(option.values[0]) for option in given}
        if "workdir" in values and get_type_hints(cls)["workdir"] == tuple[Path, ...]:
            values["workdir"] = (values["workdir"],)
        return cls(**values) if default is None else replace(default, **values)

    with mock.patch.object(cli, "parse", parse):
        yield


@pytest.fixture(scope="module")
def echo(trained: Path, compiled: None) -> Iterator[Callable[..., Any]]:
    """`load` gives a translator whose search says again what it read, in no time; all else of it is real.

    The vocabularies of the tiny run have the same words in the same order, the target's in upper case.
    """
    from seq2seq_jax import cli, translator
    from seq2seq_jax.decoding.hypotheses import Found
    from seq2seq_jax.padded import Padded
    from seq2seq_jax.symbols import PAD

    loaded = translator.load(trained)

    def load(_: Any, decode: Any = None, **__: Any) -> Any:
        model: Any = copy.copy(loaded)
        model.decode = decode or loaded.config.decode

        def search(
            params: Any, tables: Any, padded: Padded, limits: Any, asked: Any, max_length: int, num_best: int
        ) -> Found:
            source = padded.values
            if len(source) * model.decode.beam_size * max_length > 2**32:
                raise MemoryError("RESOURCE_EXHAUSTED")
            tokens = np.full((len(source), num_best, max(max_length, source.shape[1])), PAD, np.int32)
            tokens[:, :, : source.shape[1]] = source[:, None]
            nothing = np.zeros((len(source), num_best), np.float32)
            found: Any = Found
            return found(tokens, nothing, nothing, (tokens != PAD).sum(-1), nothing > 0)

        def token_scores(params: Any, source: Padded, target: Padded) -> tuple[np.ndarray, ...]:
            tokens = target.lengths
            return tokens.astype(np.float32), tokens, tokens

        model._search, model._token_scores = search, token_scores
        return model

    with mock.patch.object(cli, "_configure_jax"), mock.patch.object(translator, "load", load):
        yield load
