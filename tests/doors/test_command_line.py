"""The first door: commands and options, right and wrong; every field of the settings, found by looking."""

import contextlib
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.arguments import options_of
from seq2seq_jax.cli import COMMANDS
from seq2seq_jax.config import Config
from tests.doors.doorway import Doorway, Outcome, cases, enter
from tests.doors.strategies import HOSTILE, help_words, lines, option, right_values

pytestmark = pytest.mark.usefixtures("no_training", "echo")

OPTIONS = {name: options_of(command.arguments) for name, command in COMMANDS.items()}
NEEDED = {
    "train": [],
    "reproduce": [],
    "plan": [],
    "evaluate": ["--workdir", "../run"],
    "translate": ["--workdir", "../run"],
    "serve": ["--workdir", "../run"],
    "score": ["--workdir", "../run", "--source-file", "lines", "--target-file", "lines"],
    "average": ["--workdir", "../run", "--last", "2", "--output", "averaged"],
    "report": ["--workdir", "../run", "--output", "page.html"],
    "export": ["--workdir", "../run", "--output", "model.pyz"],
}
DECODE = {name: hint for name, hint in OPTIONS["translate"].items() if name.startswith("decode.")}
CONFIG = """
from seq2seq_jax.config import from_json


def get_config():
    return from_json(open("../run/config.json").read())
"""


def furnish(room: Path) -> None:
    """A default config, which trains on the tiny corpus, and a file of lines."""
    (room / "configs").mkdir()
    (room / "configs" / "default.py").write_text(CONFIG)
    (room / "lines").write_text("ant bee\n\ncat\n")


@st.composite
def command_line(draw: st.DrawFn, kind: st.SearchStrategy[str]) -> list[str]:
    """A command, what it needs, and up to three options of its own or of another command; help anywhere."""
    command = draw(kind)
    own = OPTIONS[command if draw(st.integers(0, 9)) else draw(st.sampled_from(sorted(OPTIONS)))]
    chosen = draw(st.lists(option(own), max_size=3))
    words = [*(NEEDED[command] if draw(st.integers(0, 9)) else []), *(word for words in chosen for word in words)]
    if not draw(st.integers(0, 9)):
        words.insert(draw(st.integers(0, len(words))), draw(help_words))
    return [command, *words]


def check(outcome: Outcome, words: list[str]) -> None:
    if words and (words[0] in ("-h", "--help") or outcome.code == 0 and {"-h", "--help"} & set(words)):
        assert "usage" in outcome.out or outcome.reached or "-h" not in words[-1:]
    if outcome.reached and isinstance(outcome.reached, tuple):
        check_usable(outcome.reached[0])


def check_usable(config: Config) -> None:
    """What was taken can be trained with: learning rates are finite numbers, from the first step to the last."""
    from seq2seq_jax.training.optimizer import make_schedule

    schedule: Any = make_schedule(config.optimizer, config.train.num_steps)
    for step in {0, config.optimizer.warmup_steps, config.train.num_steps - 1}:
        rate = float(schedule(np.int32(step)))
        assert np.isfinite(rate) and rate >= 0, f"learning rate {rate} at step {step}"


@cases(100)
@given(words=command_line(st.sampled_from(["translate", "evaluate", "score", "average", "report"])))
def test_any_options_of_a_trained_run(doorway: Doorway, words: list[str]) -> None:
    with doorway.room("command line", doorway.base / "cache") as room:
        if words[0] == "average":  # which writes into the run unless another place is named: a copy of it
            shutil.copytree(doorway.base / "run", room / "run")
            room = room / "beside"
            room.mkdir()
        furnish(room)
        with contextlib.chdir(room):
            check(enter(*words), words)


@cases(40)
@given(words=command_line(st.sampled_from(["train", "plan"])))
def test_any_options_of_a_run_to_train(doorway: Doorway, words: list[str]) -> None:
    with doorway.room("command line", doorway.base / "cache") as room:
        furnish(room)
        check(enter(*words), words)


@cases(300)
@given(words=st.lists(st.one_of(st.sampled_from([*COMMANDS, *HOSTILE]), help_words, st.text(max_size=8)), max_size=4))
def test_words_that_are_no_command_line(doorway: Doorway, words: list[str]) -> None:
    with doorway.room("command line", doorway.base / "cache") as room:
        furnish(room)
        check(enter(*words), words)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("word", ["-h", "--help", "--h"])
def test_help_is_given_wherever_it_is_asked_for(doorway: Doorway, command: str, word: str) -> None:
    needed = NEEDED[command]
    for words in ([word], [*needed, word], [word, *needed]):
        with doorway.room("command line", doorway.base / "cache") as room:
            furnish(room)
            outcome = enter(command, *words)
            assert outcome.code == 0 and "usage" in outcome.out and outcome.reached is None


@cases(40)
@given(options=st.lists(option(DECODE), min_size=1, max_size=2), spoken=lines(least=1, most=10))
def test_any_search_settings_give_as_many_lines_or_a_message(
    doorway: Doorway, options: list[list[str]], spoken: list[str]
) -> None:
    with doorway.room("command line"):
        text = "".join(f"{line}\n" for line in spoken).encode()
        outcome = enter("translate", *NEEDED["translate"], *(word for words in options for word in words), stdin=text)
        if outcome.code == 0:
            assert outcome.out.count("\n") == len(spoken) or "usage" in outcome.out


# Fields, given by a config file: that costs no parsing of a command line where the value is refused.


def section_fields() -> dict[str, Any]:
    """Every field of the settings by its dotted name, with its type."""
    return options_of(Config)


NUMBERS = (0, 1, -1, 2, 2**31 - 1, 2**31, 3_000_000_000, 2**63, 2**64, 10**23, 10**400)
NUMBERS += (0.0, -0.0, 0.5, 1.0, 1e-45, 1e-300, 1e9, 1e23, 1e39, 1e300, float("inf"), float("-inf"), float("nan"))
OTHERS = (None, True, False, "", " ", "a\0b", "\udc80", "x" * 300, "1", b"x", (), (1, 2), ("a", "b"), [], {}, ..., 1j)
values = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(OTHERS), st.integers(), st.floats())


def as_words(hint: Any) -> st.SearchStrategy[Any]:
    return right_values(hint).map(lambda words: words[0] if words else "")


@cases(120)
@given(name=st.sampled_from(sorted(section_fields())), value=values)
def test_any_value_of_any_field(doorway: Doorway, name: str, value: Any) -> None:
    section, _, field = name.rpartition(".")
    assert section == "" or section in {item.name for item in fields(Config)}
    here = f"{{{field!r}: value}}"
    change = f"{{{section!r}: replace(config.{section}, **{here})}}" if section else here
    with doorway.room("config fields", doorway.base / "cache") as room:
        furnish(room)
        (room / "given.py").write_text(
            CONFIG.replace("return", "config =")
            + f"    inf, nan, value = float('inf'), float('nan'), None\n    value = {value!r}\n"
            + f"    from dataclasses import replace\n    return replace(config, **{change})\n"
        )
        check(enter("train", "--config", "given.py"), ["train"])
